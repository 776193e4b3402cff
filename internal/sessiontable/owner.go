// The owners of sessions: a second table, which lists the sessions of each owner.

package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"math"
	"sync"
	"sync/atomic"

	"go.elara.ws/chaistore/internal/engine"
)

// An ownerIndex lists sessions by their owners, in a table whose rows, the entries, are
// pairs of an owner and a token. Both are its primary key, so the entries of an owner
// follow each other.
//
// An entry that is missing hides a session from whoever ends all sessions of an owner. One
// too many does no harm: what is listed is compared with the session itself. So:
//
//   - A commit puts its entry in the batch of the session, without looking for a former one.
//     It puts none if the data stays the same, which it looks at in its turn.
//   - A session whose owner can't be read is unknown. It gets an entry with the owner "",
//     and keeps those that it has. A session that is nobody's gets none.
//   - Sessions that others put, with SQL or with a store without an owner function, are
//     noted, and so are entries that others delete (ownernotes.go). An answer lists the
//     sessions that are noted before it begins (reconcile). So it does with all sessions once
//     in a process, and when a table was replaced or too many sessions were noted.
//   - An answer asks again for the owners of unknown sessions. If it can't read one, it ends
//     with an error.
//   - Only sweeps remove entries of sessions that are gone, or somebody else's (forget).
//
// The owner function may use the table, panic, or end its goroutine. So it is called
// without a snapshot, a lock or a turn, but for reconciling. Whether an entry is missing
// does not change meanwhile: who changes a session also lists or notes it. Entries are
// removed in a turn that compares the session with what the owner function has read.
type ownerIndex struct {
	*ownerNotes
	table   *Table
	ownerOf func(data []byte) (owner string, err error) // nil in a table without owners
	seed    maphash.Seed
	logged  sync.Once
	sampled atomic.Bool // see compareOwners
}

// The columns of a table of owners.
var ownerColumns = []column{{"owner", "text", true}, {"token", "text", true}}

// ErrOwnerTooLong is returned for an owner of more than [MaxKeyLen] bytes.
var ErrOwnerTooLong = fmt.Errorf("the owner is longer than %d bytes: return a shorter one from Config.Owner, such as a user ID", MaxKeyLen)

var (
	errNoOwners = errors.New("the store does not know the owners of sessions: set Config.Owner, for example to chaistore.OwnerByKey(sessionManager.Codec, \"userID\")")
	// Rather than some of an owner's sessions, its readers get these.
	errReconciling = errors.New("the owners of other sessions are still being determined: try again")
	errUnread      = errors.New("a session may be this owner's, but Config.Owner can't read its data: end such sessions with DeleteFunc, which should return true where Config.Owner returns an error")
)

const (
	reconcilePart = 500  // sessions that are listed in one turn
	mostUnread    = 1000 // unknown sessions for whose owners an answer asks in vain
)

func ownerKey(namespace int64, owner, token string) []byte {
	return appendText(appendText(appendInt(nil, namespace), owner), token)
}

// decodeOwnerKey returns the owner and the token in the key of an entry.
func decodeOwnerKey(key []byte) (owner, token []byte, err error) {
	values, err := split(key, 3)
	if err != nil {
		return nil, nil, err
	}
	owner, ok1 := decodeBytes(values[1], textType)
	token, ok2 := decodeBytes(values[2], textType)
	if !ok1 || !ok2 {
		return nil, nil, errBadRow
	}
	return owner, token, nil
}

// put puts an entry.
func (l *layout) putOwner(b *engine.Batch, owner, token string) error {
	row := appendText(appendText(nil, owner), token)
	return l.owners.put(b, ownerKey(l.owners.namespace, owner, token), row)
}

// A listing is what a commit does to list its session.
type listing struct {
	token, owner string
	known        bool
	same         []byte // the data, if the session had the same when it was last seen
}

// prepare asks for the owner of a session that is about to be committed, unless a copy in
// memory shows that its data stays the same, and so do its entries.
func (x *ownerIndex) prepare(token string, data []byte) (n listing, err error) {
	n.token = token
	if x.ownerOf == nil {
		return n, nil
	}
	if l, err := x.table.layout(); err == nil {
		var room [MaxKeyLen + 20]byte // on the stack: see appendKey
		if _, same, _, err := decodeRow(x.table.db.Cached(appendKey(room[:0], l.sessions.namespace, token))); err == nil && bytes.Equal(same, data) {
			n.same = same
			return n, nil
		}
	}
	owner, unread := x.ownerOf(data)
	if unread == nil && len(owner) > MaxKeyLen {
		return n, ErrOwnerTooLong
	}
	n.owner, n.known = owner, unread == nil
	if !n.known {
		n.owner = ""
	}
	return n, nil
}

// commit lists a session in its batch, before it is put. If it can't, it has the session
// noted.
func (x *ownerIndex) commit(b *engine.Batch, l *layout, n listing) error {
	if x.ownerOf == nil || !x.follows(l.tables()) {
		b.AsOther() // the entry may be in a table that is put back later
	}
	switch {
	case x.ownerOf == nil:
		return nil
	case n.same != nil:
		row, found, err := l.session(b.Get, n.token)
		if !found || !bytes.Equal(row.Data, n.same) {
			b.AsOther()
		}
		return err
	case n.known && n.owner == "":
		return nil
	}
	return l.putOwner(b, n.owner, n.token)
}

// skip logs once that there is a row that can't be: it is passed over.
func (x *ownerIndex) skip(what string) {
	x.logged.Do(func() {
		x.table.Logger().Error("chaistore: a session is not listed for its owner: " + what + " is too long")
	})
}

// An answer is what a call knows about an owner's sessions.
type answer struct {
	begun  uint64           // the number of its first snapshot: it has all sessions of that
	unread map[string]error // unknown sessions
	more   bool             // whether there are too many unknown sessions to look at
}

// err returns why sessions may be missing.
func (a *answer) err() error {
	for _, err := range a.unread {
		return fmt.Errorf("%w: %w", errUnread, err)
	}
	if a.more {
		return errUnread
	}
	return nil
}

// begin begins an answer for an owner.
func (x *ownerIndex) begin(ctx context.Context, owner string) (*answer, error) {
	if x.ownerOf == nil {
		return nil, errNoOwners
	}
	a, err := x.await(ctx)
	if err == nil && len(owner) > MaxKeyLen {
		err = ErrOwnerTooLong // such sessions can't be listed
	}
	return a, err
}

// listed returns a sequence of the sessions that are listed for an owner. It includes those
// that have expired or are somebody else's by now. The owner "" has none.
func (x *ownerIndex) listed(ctx context.Context, a *answer, owner string) iter.Seq2[Row, error] {
	return pages(ctx, func(from string) ([]Row, string, error) {
		if owner == "" {
			return nil, "", nil
		}
		return x.page(ctx, a, owner, from)
	})
}

// await returns when all sessions are listed that were committed before, by anyone.
func (x *ownerIndex) await(ctx context.Context) (*answer, error) {
	a := &answer{begun: math.MaxUint64, unread: make(map[string]error)}
	if err := x.observe(ctx); err != nil {
		return nil, err
	}
	if err := x.compareOwners(ctx); err != nil {
		return nil, err
	}
	err := x.table.read(ctx, func(s *engine.Snapshot, _ *layout) error {
		a.begun = min(a.begun, s.Number())
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a, x.recheck(ctx, a)
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
	rows, next, late, err := x.currentPage(ctx, a, owner, from, pageLen)
	if late && err == nil {
		err = x.recheck(ctx, a) // what was listed then may be unknown
	}
	return rows, next, err
}

// currentPage returns listed sessions of an owner from a snapshot in which all sessions of
// the beginning of the answer are listed. late is whether some had to be listed first.
func (x *ownerIndex) currentPage(ctx context.Context, a *answer, owner, from string, most int) (rows []Row, next string, late bool, err error) {
	for {
		current := false
		err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
			a.begun = min(a.begun, s.Number())
			if current = x.current(l.tables(), a.begun, s.Number()); current {
				rows, next, err = x.rowsOf(s, l, owner, from, most)
			}
			return err
		})
		if current || err != nil {
			return rows, next, late, err
		}
		if err := x.reconcile(ctx); err != nil {
			return nil, "", true, err
		}
		late = true
	}
}

// rowsOf returns listed sessions of an owner, beginning at a token.
func (x *ownerIndex) rowsOf(s *engine.Snapshot, l *layout, owner, from string, most int) (rows []Row, next string, err error) {
	size := 0
	prefix := appendText(appendInt(nil, l.owners.namespace), owner)
	end := append(bytes.Clone(prefix), 0xff) // greater than the type of any value
	err = s.Scan(ownerKey(l.owners.namespace, owner, from), end, func(key, _ []byte) (more bool, err error) {
		_, token, err := decodeOwnerKey(key)
		if err != nil {
			return false, err
		}
		if len(token) > MaxKeyLen {
			x.skip("its token")
			return true, nil
		}
		if len(rows) == most || size >= pageBytes {
			next = after(rows[len(rows)-1].Token)
			return false, nil
		}
		row, found, err := l.session(s.Get, string(token))
		if found {
			size += len(row.Data)
			rows = append(rows, row)
		}
		return true, err
	})
	return rows, next, err
}

// session returns a session.
func (l *layout) session(get func(key []byte) ([]byte, error), token string) (row Row, found bool, err error) {
	encoded, err := get(appendKey(nil, l.sessions.namespace, token))
	if encoded == nil || err != nil {
		return row, false, err
	}
	_, row.Data, row.Expiry, err = decodeRow(encoded)
	row.Token = token
	return row, err == nil, err
}

// recheck asks for the owners of unknown sessions again, and lists those that it can read.
func (x *ownerIndex) recheck(ctx context.Context, a *answer) error {
	for from := ""; !a.more; {
		rows, next, _, err := x.currentPage(ctx, a, "", from, reconcilePart)
		if err == nil {
			err = x.list(ctx, rows, a.unread, nil)
		}
		if next == "" || err != nil {
			return err
		}
		from, a.more = next, len(a.unread) >= mostUnread
	}
	return nil
}
