// What a store can do with sessions other than those whose tokens the caller knows:
// look at them, and delete some.

package chaistore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/internal/sessiontable"
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
	return active(sessions(ctx, func(from string) ([]sessiontable.Row, string, error) {
		return s.table.Page(ctx, from)
	}))
}

// SessionsOf returns a sequence of the active sessions of an owner, as [Config.Owner]
// tells it, in a time that depends on how many there are. It is like
// [ChaiStore.Sessions] otherwise. The owner "" has none.
//
// A session whose data was changed by SQL, or by a store that knows no owners, is not
// in the sequence if the owner has changed with it: neither of the former owner, at
// once, nor of the present one, until a store that knows owners commits it again.
// Sessions that such a store has added are found after the next sweep.
func (s *ChaiStore) SessionsOf(ctx context.Context, owner string) iter.Seq2[Session, error] {
	return active(s.sessionsOf(ctx, owner))
}

// sessionsOf is SessionsOf with the expired sessions.
func (s *ChaiStore) sessionsOf(ctx context.Context, owner string) iter.Seq2[Session, error] {
	return sessions(ctx, func(from string) ([]sessiontable.Row, string, error) {
		if !s.table.HasOwners() {
			return nil, "", errNoOwners
		}
		return s.table.PageOf(ctx, owner, from)
	})
}

var errNoOwners = errors.New("the store has no Config.Owner")

// active returns a sequence of the active ones of some sessions.
func active(sessions iter.Seq2[Session, error]) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		for session, err := range sessions {
			if (err != nil || isActive(session.Expiry, time.Now())) && !yield(session, err) {
				return
			}
		}
	}
}

// sessions returns a sequence of sessions that are read in pages.
func sessions(ctx context.Context, page func(from string) (rows []sessiontable.Row, next string, err error)) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		from := ""
		for {
			rows, next, err := page(from)
			for _, row := range rows {
				if err = ctx.Err(); err != nil {
					break
				}
				if !yield(Session(row), nil) {
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
// the number deleted, even on error. It looks at all sessions; to end those of a
// user, [ChaiStore.DeleteOf] does not. Both work with HashTokenInStore, where Destroy
// would hash the token again and find nothing.
//
// The sessions are those of [ChaiStore.Sessions], and del may do what the body of
// a loop over them may do. They are deleted many at a time, some time after del
// has seen them, even if they have been committed again in between. A request
// that is being served meanwhile commits its session again, unless the store
// remembers what was ended: see [Config.RememberEnded].
func (s *ChaiStore) DeleteFunc(ctx context.Context, del func(Session) bool) (int, error) {
	return s.deleteEach(ctx, s.Sessions(ctx), del)
}

// DeleteOf deletes the active sessions of an owner, those of
// [ChaiStore.SessionsOf], and returns the number deleted, even on error. It also
// deletes, without counting them, those that have expired but are not swept yet: a
// request that is being served could renew one.
func (s *ChaiStore) DeleteOf(ctx context.Context, owner string) (int, error) {
	return s.deleteEach(ctx, s.sessionsOf(ctx, owner), func(Session) bool { return true })
}

func (s *ChaiStore) deleteEach(ctx context.Context, sessions iter.Seq2[Session, error], del func(Session) bool) (int, error) {
	deleted := 0
	var tokens []string // to delete
	counted := 0        // the active ones of them
	flush := func() error {
		if len(tokens) == 0 {
			return nil
		}
		if err := s.table.Delete(ctx, tokens...); err != nil {
			return fmt.Errorf("chaistore: delete sessions: %w", err)
		}
		deleted += counted
		tokens, counted = tokens[:0], 0
		return nil
	}
	for session, err := range sessions {
		if err != nil {
			return deleted, err
		}
		active := isActive(session.Expiry, time.Now())
		if del(session) {
			tokens = append(tokens, session.Token)
			if active {
				counted++
			}
		}
		if len(tokens) == deleteBatch {
			if err := flush(); err != nil {
				return deleted, err
			}
		}
	}
	err := flush()
	return deleted, err
}

// deleteBatch is how many sessions are deleted at once, which takes about as long as
// a commit.
const deleteBatch = 100

// OwnerByKey returns a function for [Config.Owner] that decodes the data of a session
// with the codec of the session manager, and returns the value that the application
// has put under a key: a string as it is, any other value as fmt.Sprint prints it. If
// there is no such value, or the data can't be decoded, the session is nobody's.
//
//	Owner: chaistore.OwnerByKey(sessionManager.Codec, "userID")
func OwnerByKey(codec scs.Codec, key string) func(data []byte) string {
	return func(data []byte) string {
		_, values, err := codec.Decode(data)
		if err != nil || values[key] == nil {
			return ""
		}
		return fmt.Sprint(values[key])
	}
}
