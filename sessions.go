// This file is what a store can do with sessions other than those whose tokens
// the caller knows: look at all of them, and delete some.

package chaistore

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// A Session is a session in the store.
type Session struct {
	Token  string    // as it is in the store: with HashTokenInStore, a hash
	Data   []byte    // as the session manager's Codec has encoded it
	Expiry time.Time // in UTC
}

// Sessions returns a sequence of all active sessions, in the order of their
// tokens. A session that is there throughout is in the sequence once; one that is
// committed, deleted or expires meanwhile may be in it or not.
//
// The sessions are read in pages of about a megabyte. While the loop runs,
// nothing of the database is held: its body may call any method of the store, and
// may end the loop. If the sessions can't be read, or ctx ends, the sequence ends
// with an error, next to a zero Session.
func (s *ChaiStore) Sessions(ctx context.Context) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		from := ""
		for {
			rows, next, err := s.table.Page(ctx, from)
			for _, row := range rows {
				if err = ctx.Err(); err != nil {
					break
				}
				if isActive(row.Expiry, time.Now()) && !yield(Session(row), nil) {
					return
				}
			}
			if err != nil {
				yield(Session{}, fmt.Errorf("chaistore: read sessions: %w", err))
				return
			}
			if next == "" {
				return
			}
			from = next
		}
	}
}

// DeleteFunc deletes every active session for which del returns true, and returns
// how many that were. It ends, for example, all sessions of a user, also with
// HashTokenInStore, when Destroy can't, which would hash the token again.
//
// The sessions are those of [ChaiStore.Sessions], and del may do what the body of
// a loop over them may do. They are deleted many at a time, some time after del
// has seen them, even if they have been committed again in between. A request
// that is being served meanwhile may escape: one that loaded its session before
// it was deleted and changed it commits it again, and one that renews its token
// may do so behind DeleteFunc's back.
//
// If DeleteFunc returns an error, the sessions that it counts have been deleted
// all the same.
func (s *ChaiStore) DeleteFunc(ctx context.Context, del func(Session) bool) (int, error) {
	deleted := 0
	var tokens []string // to delete
	flush := func() error {
		if len(tokens) == 0 {
			return nil
		}
		if err := s.table.Delete(ctx, tokens...); err != nil {
			return fmt.Errorf("chaistore: delete sessions: %w", err)
		}
		deleted += len(tokens)
		tokens = tokens[:0]
		return nil
	}
	for session, err := range s.Sessions(ctx) {
		if err != nil {
			return deleted, err
		}
		if del(session) {
			tokens = append(tokens, session.Token)
		}
		if len(tokens) == deleteFuncBatch {
			if err := flush(); err != nil {
				return deleted, err
			}
		}
	}
	err := flush()
	return deleted, err
}

// deleteFuncBatch is how many sessions DeleteFunc deletes in one transaction,
// which takes about as long as a commit.
const deleteFuncBatch = 500
