// Going through sessions, and deleting many of them: those that a function chooses,
// or those of an owner.

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
	Token  string    // as stored: with HashTokenInStore, a hash
	Data   []byte    // as encoded by the session manager's Codec
	Expiry time.Time // in UTC
}

// Sessions returns a sequence of all active sessions, in the order of their tokens. A
// session that exists throughout is in the sequence once. One that is committed,
// deleted or expires meanwhile may or may not be in it.
//
// The sessions are read in pages of about a megabyte. No lock or snapshot is held
// while the loop body runs: it may call any method of the store, and may end the
// loop. If the sessions can't be read, or ctx ends, the last element of the sequence
// is an error with a zero Session.
func (s *ChaiStore) Sessions(ctx context.Context) iter.Seq2[Session, error] {
	return active(sessions(ctx, func(from string) ([]sessiontable.Row, string, error) {
		return s.table.Page(ctx, from)
	}))
}

// SessionsOf returns a sequence of the active sessions of an owner, according to
// [Config.Owner], in a time that depends on their number only; the first call may have
// to wait until all sessions have an owner. Otherwise it is like [ChaiStore.Sessions].
// The owner "" has no sessions.
//
// If Owner can't read the data of one of these sessions, the sequence has the others,
// and then ends with an error: see [Config.Owner].
//
// If SQL, or a store without an Owner, changes the owner of a session, the session
// leaves the former owner's sequence at once, but enters the new owner's only when a
// store with an Owner commits it again. Sessions added that way, with new tokens, are
// found after the next sweep of a store with an Owner.
func (s *ChaiStore) SessionsOf(ctx context.Context, owner string) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		var unread error
		for session, err := range active(s.listedFor(ctx, owner)) {
			if err == nil {
				actual, err := s.table.ReadOwner(session.Data)
				if err != nil {
					unread = err
				}
				if err != nil || actual != owner {
					continue
				}
			}
			if !yield(session, err) || err != nil {
				return
			}
		}
		if unread != nil {
			yield(Session{}, fmt.Errorf("chaistore: read sessions: %w", unread))
		}
	}
}

// listedFor returns a sequence of the sessions that the table of owners lists for an
// owner, the expired ones included.
func (s *ChaiStore) listedFor(ctx context.Context, owner string) iter.Seq2[Session, error] {
	return sessions(ctx, func(from string) ([]sessiontable.Row, string, error) {
		if !s.table.HasOwners() {
			return nil, "", errNoOwners
		}
		return s.table.PageOf(ctx, owner, from)
	})
}

var errNoOwners = errors.New("the store has no Config.Owner")

// active returns the active sessions of a sequence.
func active(sessions iter.Seq2[Session, error]) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		for session, err := range sessions {
			if (err != nil || isActive(session.Expiry, time.Now())) && !yield(session, err) {
				return
			}
		}
	}
}

// sessions returns a sequence of the sessions that page reads. With an error, page may
// return sessions that come before it.
func sessions(ctx context.Context, page func(from string) (rows []sessiontable.Row, next string, err error)) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		from := ""
		for {
			rows, next, err := page(from)
			for _, row := range rows {
				if ended := ctx.Err(); ended != nil {
					err = ended
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

// DeleteFunc deletes every active session for which del returns true, and returns their
// number, even on error, with those that somebody else deletes meanwhile. It reads all
// sessions; [ChaiStore.DeleteOf] reads only those of an owner. Both work with
// HashTokenInStore, where Destroy would hash the stored token again and find nothing.
//
// DeleteFunc goes through [ChaiStore.Sessions], so del may do whatever a loop body
// may do there. The sessions are deleted many at a time, some time after del has seen
// them, even if they were committed again in between. A request that is being served
// meanwhile commits its session again, unless the store remembers ended sessions: see
// [Config.RememberEnded]. When ctx ends, DeleteFunc stops reading, deletes the
// sessions that del has chosen before, and returns the context's error.
func (s *ChaiStore) DeleteFunc(ctx context.Context, del func(Session) bool) (int, error) {
	return s.deleteEach(ctx, s.Sessions(ctx), del)
}

// DeleteOf deletes the active sessions of an owner, as in [ChaiStore.SessionsOf], and
// returns their number, as [ChaiStore.DeleteFunc] does. It also deletes
//
//   - sessions that have expired but are not swept yet, without counting them, since a
//     request that is being served could renew one;
//   - sessions that belonged to the owner when they were committed, and whose data
//     Owner can't read now, or finds to be nobody's.
//
// Like [ChaiStore.DeleteCtx], it goes on when ctx ends.
func (s *ChaiStore) DeleteOf(ctx context.Context, owner string) (int, error) {
	ctx = context.WithoutCancel(ctx)
	return s.deleteEach(ctx, s.listedFor(ctx, owner), func(session Session) bool {
		actual, err := s.table.ReadOwner(session.Data)
		return err != nil || actual == "" || actual == owner
	})
}

// deleteEach deletes each session of a sequence for which del returns true. If the
// sequence ends with an error, it still deletes those found before.
func (s *ChaiStore) deleteEach(ctx context.Context, sessions iter.Seq2[Session, error], del func(Session) bool) (int, error) {
	ctx = context.WithoutCancel(ctx) // deletions go on
	deleted := 0
	var tokens []string // to delete
	counted := 0        // active sessions among them
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
			err = errors.Join(err, flush())
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

// deleteBatch is the number of sessions deleted in one batch, which takes about as
// long as a commit.
const deleteBatch = 100

// OwnerByKey returns a function for [Config.Owner] that decodes a session with the
// session manager's codec, and returns the value that the application has put under
// key: a string as it is, any other value as fmt.Sprint prints it. If there is no
// such value, the session has no owner.
//
// If the codec can't decode the data, the function panics. The store expects that: it
// commits the session, and goes on as [Config.Owner] says.
//
//	Owner: chaistore.OwnerByKey(sessionManager.Codec, "userID")
func OwnerByKey(codec scs.Codec, key string) func(data []byte) string {
	return func(data []byte) string {
		_, values, err := codec.Decode(data)
		if err != nil {
			panic(sessiontable.ErrUndecodable)
		}
		if values[key] == nil {
			return ""
		}
		return fmt.Sprint(values[key])
	}
}
