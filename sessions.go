// Going through sessions, and deleting many of them: those that a function chooses,
// or those of an owner.

package chaistore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"time"

	"go.elara.ws/chaistore/internal/sessiontable"
)

// A Session is a session in the store. Printing or logging one shows neither its token nor
// its data, which are as good as a password. Encoding one, for example as JSON, shows both.
// So does a JSON log of a slice of sessions, or of a struct that has one.
type Session struct {
	Token  string    // as stored: with HashTokenInStore, a hash
	Data   []byte    // as encoded by the session manager's Codec
	Expiry time.Time // in UTC
}

// String returns a text without the token and the data.
func (s Session) String() string {
	return fmt.Sprintf("session of %d bytes until %s", len(s.Data), s.Expiry.Format(time.RFC3339))
}

// Format prints String, for every verb.
func (s Session) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue returns the size of the data and the expiry.
func (s Session) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("bytes", len(s.Data)), slog.Time("expiry", s.Expiry))
}

// Sessions returns a sequence of all active sessions, in the order of their tokens. A
// session that exists throughout is in the sequence once. One that is committed,
// deleted or expires meanwhile may or may not be in it.
//
// The sessions are read in pages of about a megabyte. No lock or snapshot is held
// while the loop body runs: it may call any method of the store, and may end the
// loop. If the sessions can't be read, or ctx ends, the last element of the sequence
// is an error with a zero Session.
//
// Their data is not decoded: a session that the codec can't read is in the sequence, too,
// while SCS's Iterate ends at it.
func (s *ChaiStore) Sessions(ctx context.Context) iter.Seq2[Session, error] {
	return s.converted(func() iter.Seq2[sessiontable.Row, error] { return s.table.Sessions(ctx, time.Now()) })
}

// converted returns a sequence of sessions with errors of this package. Each use of it
// reads the rows anew.
func (s *ChaiStore) converted(rows func() iter.Seq2[sessiontable.Row, error]) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		if err := s.usable(); err != nil {
			yield(Session{}, fmt.Errorf("chaistore: read sessions: %w", err))
			return
		}
		for row, err := range rows() {
			if err != nil {
				err = fmt.Errorf("chaistore: read sessions: %w", err)
			}
			if !yield(Session(row), err) {
				return
			}
		}
	}
}

// SessionsOf returns a sequence of the active sessions of an owner, according to
// [Config.Owner]. It has all sessions that were committed before, by stores or with SQL, or
// it ends with an error. Otherwise it is like [ChaiStore.Sessions]. The owner "" has no
// sessions.
//
// It reads only the sessions of the owner, and those that SQL, or a store without an Owner,
// has put since the last call. If there are more than 10,000 of the latter, it reads all
// sessions. It also does so the first time in a process, unless a sweep of a store with an
// Owner has done it. Reading 200,000 sessions in gob takes 1 to 3 seconds. Meanwhile, other
// such calls wait, for up to 10 seconds.
//
// If another Owner function has listed the sessions, the store logs that, and reads all
// sessions again. The sequence ends with an error if others keep changing the table of
// owners for 10 seconds, or if a table is replaced while the sequence goes through many
// sessions.
//
// SessionsOf may write, so it must not be called in a function passed to [Update].
//
// A session whose data Owner can't read is committed all the same, and may belong to anyone.
// If there are such sessions, the sequence has the owner's other sessions, and then ends
// with [ErrOwnerUnreadable], which says how to end them. The next sweep deletes the expired
// ones.
//
// The table of owners, which [NewWithConfig] creates, has the name of the table of sessions
// followed by "_owners". Its columns are owner and token. It may have rows that are out of
// date.
func (s *ChaiStore) SessionsOf(ctx context.Context, owner string) iter.Seq2[Session, error] {
	return s.converted(func() iter.Seq2[sessiontable.Row, error] { return s.table.SessionsOf(ctx, owner, time.Now()) })
}

// DeleteFunc deletes every active session for which del returns true, and returns their
// number, even on error. Sessions that others delete meanwhile count, too. DeleteFunc reads
// all sessions; [ChaiStore.DeleteOf] reads only those of an owner. Both work with
// HashTokenInStore, where Destroy would hash the stored token again and find nothing.
//
// DeleteFunc goes through [ChaiStore.Sessions], so del may do whatever a loop body may do
// there. The sessions are deleted many at a time, some time after del has seen them, even
// if they were committed again in between. When sessions can't be read, or ctx ends,
// DeleteFunc deletes those that del has chosen so far, and returns the error.
//
// A request that is being served meanwhile commits its session again, unless the store
// remembers ended sessions: see [Config.RememberEnded].
func (s *ChaiStore) DeleteFunc(ctx context.Context, del func(Session) bool) (int, error) {
	if del == nil {
		return 0, errors.New("chaistore: the function passed to DeleteFunc is nil")
	}
	if err := s.usable(); err != nil {
		return 0, fmt.Errorf("chaistore: %w", err)
	}
	n, err := s.table.DeleteFunc(ctx, time.Now(), func(row sessiontable.Row) bool { return del(Session(row)) })
	if err != nil {
		return n, fmt.Errorf("chaistore: %w", err)
	}
	return n, nil
}

// DeleteOf deletes the active sessions of an owner, as [ChaiStore.SessionsOf] returns them,
// and returns their number, even on error. It also deletes
//
//   - sessions that have expired but are not swept yet, without counting them, since a
//     request that is being served could renew one;
//   - sessions that have belonged to the owner, and whose owner can't be read now.
//
// If there are other sessions whose owner can't be read, it deletes the rest, and returns
// [ErrOwnerUnreadable], which says how to end them. After any other error, sessions may be
// left. Like [ChaiStore.DeleteCtx], DeleteOf goes on when ctx ends. It must not be called in
// a function passed to [Update].
func (s *ChaiStore) DeleteOf(ctx context.Context, owner string) (int, error) {
	if err := s.usable(); err != nil {
		return 0, fmt.Errorf("chaistore: %w", err)
	}
	n, err := s.table.DeleteOf(context.WithoutCancel(ctx), owner, time.Now())
	if err != nil {
		return n, fmt.Errorf("chaistore: %w", err)
	}
	return n, nil
}
