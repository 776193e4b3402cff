// The owners of sessions: a second table, which lists the sessions of each owner.

package sessiontable

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// An ownerIndex lists sessions by their owners, in a table whose rows, the entries, are
// pairs of an owner and a token. Both are its primary key, so the entries of an owner
// follow each other.
//
// An entry that is missing hides a session from whoever ends all sessions of an owner. One
// too many does no harm: what is listed is compared with the session itself. So each session
// has its entry, or is noted (ownerNotes):
//
//   - A commit puts its entry in the batch of the session, without looking for a former one.
//     It puts none if the data stays the same, which it looks at in its turn.
//   - A session whose owner can't be read is unknown. It gets an entry with the owner "",
//     and keeps those that it has. A session that is nobody's gets none.
//   - An entry is removed in a turn in which its session is gone, is deleted, or has the data
//     for which the entry of its owner is put (replace).
//   - What others do is noted. A turn is not one of the others if the notes follow its
//     tables (claim). So whatever is done to tables that are away for a moment, or have
//     another name, is noted by the store that follows them, or is compared when it does.
//   - Noted sessions are listed in the tables that they were read from, or the notes stay
//     (reconcile).
//
// An answer reads each page in one snapshot. It is one in which no session from before the
// answer is noted, nor an entry that is gone, and whose unknown sessions the answer knows.
// Until there is one, the answer lists what is noted, and asks again for the owners of
// unknown sessions. If it can't read one, it ends with an error. All its pages and deletions
// are of the same tables.
//
// The owner function may use the table, panic, or end its goroutine. So it is called
// without a snapshot, a lock or a turn, but for reconciling. What it does is in a later
// snapshot, and in the notes.
type ownerIndex struct {
	*ownerNotes
	table        *Table
	ownerOf      func(data []byte) (owner string, err error) // nil in a table without owners
	seed         maphash.Seed
	logged       sync.Once
	loggedUnread atomic.Int64 // when logUnread did so, in nanoseconds
	sampled      atomic.Bool  // see compareOwners
}

// The columns of a table of owners.
var ownerColumns = []column{{"owner", "text", true}, {"token", "text", true}}

// ErrOwnerTooLong is returned for an owner of more than [MaxKeyLen] bytes.
var ErrOwnerTooLong = fmt.Errorf("the owner is longer than %d bytes: return a shorter one from Config.Owner, such as a user ID", MaxKeyLen)

// reconcilePart is the number of sessions that are listed in one turn.
const reconcilePart = 500

func ownerKey(namespace int64, owner, token string) []byte {
	return appendText(appendKey(make([]byte, 0, len(owner)+len(token)+30), namespace, owner), token)
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

// putOwner puts an entry, whose columns are what its key has after the namespace.
func (l *layout) putOwner(b *engine.Batch, owner, token string) error {
	key := ownerKey(l.owners.namespace, owner, token)
	return l.owners.put(b, key, key[valueLen(key):])
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
	if unread != nil {
		x.logUnread(unread)
	}
	n.owner, n.known = owner, unread == nil
	if !n.known {
		n.owner = ""
	}
	return n, nil
}

// logUnread logs that the owner of a session that is committed can't be read, at most once a
// minute.
func (x *ownerIndex) logUnread(err error) {
	last, now := x.loggedUnread.Load(), time.Now().UnixNano()
	if now-last >= int64(time.Minute) && x.loggedUnread.CompareAndSwap(last, now) {
		x.table.Logger().Error("chaistore: Config.Owner can't read a session that is committed; while there are such sessions, SessionsOf and DeleteOf return ErrOwnerUnreadable: end them with DeleteFunc", "error", ownerError(err).Error())
	}
}

// claim makes a turn known to the notes, if they follow its tables.
func (x *ownerIndex) claim(b *engine.Batch, l *layout) {
	if f := x.followed.Load(); f != nil && f.tables == l.tables() {
		b.By(f)
	}
}

// commit lists a session in its batch, before it is put. If it can't, it has the session
// noted.
func (x *ownerIndex) commit(b *engine.Batch, l *layout, n listing) error {
	if x.ownerOf == nil {
		return nil
	}
	if n.same != nil {
		row, found, err := l.session(b.Get, n.token)
		if !found || !bytes.Equal(row.Data, n.same) {
			return err
		}
	}
	x.claim(b, l)
	if n.same != nil || n.known && n.owner == "" {
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

// listable returns an owner, or "" if it is too long.
func (x *ownerIndex) listable(owner string) string {
	if len(owner) > MaxKeyLen {
		x.skip("its owner")
		return ""
	}
	return owner
}

// rowsOf returns listed sessions of an owner, beginning at a token, but for unread ones.
func (x *ownerIndex) rowsOf(s *engine.Snapshot, l *layout, owner, from string, limit int, unread map[string]error) (rows []Row, next string, err error) {
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
		if _, ok := unread[string(token)]; ok {
			return true, nil
		}
		if len(rows) == limit || size >= pageBytes {
			next = after(rows[len(rows)-1].Token)
			return false, nil
		}
		if x.table.db.Absent(appendKey(nil, l.sessions.namespace, string(token))) {
			return true, nil
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
