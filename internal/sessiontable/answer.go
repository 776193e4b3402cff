// Answers: the sessions that are listed for an owner, all of them or an error.

package sessiontable

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

var (
	errNoOwners = errors.New("the store does not know the owners of sessions: set Config.Owner, for example to chaistore.OwnerByKey(sessionManager.Codec, \"userID\")")
	// Rather than some of an owner's sessions, its readers get these.
	errReconciling = errors.New("the owners of other sessions are still being determined: try again")
	errReplaced    = errors.New("a table was replaced meanwhile: try again")
)

// ErrOwnerUnreadable is returned when all that is known to be an owner's was found or
// deleted, but there are sessions whose owner can't be read.
var ErrOwnerUnreadable = errors.New("a session may be this owner's, but Config.Owner can't read its data: end such sessions with DeleteFunc and a function that returns true where Config.Owner returns an error")

// An OwnerError is why an owner can't be read, in a text that quotes nothing of the
// session. The text of Err may: encoding/json, for example, quotes a character.
type OwnerError struct {
	Text string
	Err  error // of the application, or nil
}

func (e *OwnerError) Error() string { return e.Text }

// Unwrap is for [errors.Is] and [errors.As].
func (e *OwnerError) Unwrap() error { return e.Err }

// ownerError returns an error of Config.Owner with a text that quotes nothing.
func ownerError(err error) error {
	if _, ok := err.(*OwnerError); ok {
		return err
	}
	return &OwnerError{fmt.Sprintf("it has returned a %T", err), err}
}

// maxUnread is the number of unknown sessions for whose owners an answer asks in vain.
const maxUnread = 1000

// An answer is what a call knows about an owner's sessions.
type answer struct {
	begun   uint64           // the number of its first snapshot: it has all sessions of that
	at      tables           // from which it is
	unread  map[string]error // unknown sessions; with nil, those that it deletes
	more    bool             // whether there are too many unknown sessions to look at
	rounds  int              // of listing sessions
	waiting time.Duration    // in all rounds but the first
}

// err returns why sessions may be missing.
func (a *answer) err() error {
	for _, err := range a.unread {
		if err == nil {
			continue
		}
		return fmt.Errorf("%w: %w", ErrOwnerUnreadable, ownerError(err))
	}
	if a.more {
		return ErrOwnerUnreadable
	}
	return nil
}

// begin begins an answer for an owner.
func (x *ownerIndex) begin(owner string) (*answer, error) {
	if x.ownerOf == nil {
		return nil, errNoOwners
	}
	if _, err := x.table.layout(); err != nil {
		return nil, err
	}
	if len(owner) > MaxKeyLen {
		return nil, ErrOwnerTooLong // such sessions can't be listed
	}
	return &answer{begun: math.MaxUint64, unread: make(map[string]error)}, nil
}

// listed returns a sequence of the sessions that are listed for an owner. It includes those
// that have expired or are somebody else's by now. The owner "" has none.
func (x *ownerIndex) listed(ctx context.Context, a *answer, owner string) iter.Seq2[Row, error] {
	return pages(ctx, func(from string) ([]Row, string, error) { return x.page(ctx, a, owner, from) })
}

// observe returns when the feed tells of each change. If the first store was made while a
// transaction of the application was open, that is when it has ended.
func (x *ownerIndex) observe(ctx context.Context) error {
	if x.table.db.Observes() {
		return nil
	}
	return x.table.write(ctx, 0, func(*engine.Batch, *layout) error { return nil })
}

// page returns the listed sessions of an owner as [Table.Page] does, with those that are
// somebody else's by now.
func (x *ownerIndex) page(ctx context.Context, a *answer, owner, from string) (rows []Row, next string, err error) {
	if err := x.observe(ctx); err != nil {
		return nil, "", err
	}
	if err := x.compareOwners(ctx); err != nil {
		return nil, "", err
	}
	for {
		var at tables
		var current bool
		var unknown []Row
		err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
			a.begun, at = min(a.begun, s.Number()), l.tables()
			if current = x.current(at, a.begun, s.Number()); current {
				unknown, err = x.unknown(s, l, a)
			}
			if current && len(unknown) == 0 && owner != "" && err == nil {
				rows, next, err = x.rowsOf(s, l, owner, from, pageLen, nil)
			}
			return err
		})
		switch {
		case err != nil:
		case from != "" && at != a.at:
			err = errReplaced
		case current && len(unknown) == 0:
			a.at = at
			return rows, next, nil
		default:
			err = x.round(ctx, a, unknown)
		}
		if err != nil {
			return nil, "", err
		}
	}
}

// round lists the sessions that are noted, or the given unknown ones. If others note more
// all the time, that ends with an error.
func (x *ownerIndex) round(ctx context.Context, a *answer, unknown []Row) (err error) {
	if a.waiting > engine.HangLimit {
		return errReconciling
	}
	if a.rounds++; a.rounds > 1 { // the first one may compare all sessions
		defer func(start time.Time) { a.waiting += time.Since(start) }(time.Now())
	}
	if len(unknown) > 0 {
		return x.recheck(ctx, unknown, a.unread)
	}
	if err = x.reconcile(ctx); errors.Is(err, errReplaced) {
		return nil // the next round is about the new table
	}
	return err
}

// unknown returns unknown sessions that an answer does not know.
func (x *ownerIndex) unknown(s *engine.Snapshot, l *layout, a *answer) ([]Row, error) {
	if len(a.unread) < maxUnread {
		rows, _, err := x.rowsOf(s, l, "", "", reconcilePart, a.unread)
		return rows, err
	}
	rows, _, err := x.rowsOf(s, l, "", "", 1, a.unread)
	a.more = a.more || len(rows) > 0
	return nil, err
}

// recheck asks for the owners of unknown sessions again, and lists those that it can read.
func (x *ownerIndex) recheck(ctx context.Context, rows []Row, unread map[string]error) error {
	owners, errs, err := x.ownersOf(ctx, rows)
	if err != nil {
		return err
	}
	var known []entry
	for i, row := range rows {
		if errs[i] != nil {
			unread[row.Token] = errs[i]
			continue
		}
		known = append(known, entry{session: row, found: true, actual: x.listable(owners[i])})
	}
	return x.replace(ctx, known)
}
