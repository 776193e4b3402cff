// Sessions: finding, committing and deleting single ones, and reading pages.

package sessiontable

import (
	"bytes"
	"context"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// A Row is one session of the table.
type Row struct {
	Token  string
	Data   []byte
	Expiry time.Time
}

// Chai stores microseconds since the year 2000 in 64 bits, and panics for times
// beyond (EncodeTimestamp in its internal/encoding).
var (
	minExpiry = time.Unix(0, 0)
	maxExpiry = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
)

// A page ends after pageLen rows, or once its rows hold pageBytes bytes of data.
const (
	pageLen   = 1000
	pageBytes = 1 << 20
)

// Find returns the data and the expiry of the session with the given token. The data
// belongs to the caller.
func (t *Table) Find(ctx context.Context, token string) (data []byte, expiry time.Time, found bool, err error) {
	l, err := t.layout()
	if err != nil {
		return nil, time.Time{}, false, err
	}
	t.counts.finds.Add(1)
	var room [MaxKeyLen + 20]byte // on the stack: see appendKey
	key := appendKey(room[:0], l.sessions.namespace, token)
	row := t.db.Cached(key)
	known := row != nil || t.db.Absent(key)
	if known && l.isOf(t.db.Catalog()) { // the table had not been replaced when that was known
		t.counts.cacheHits.Add(1)
	} else {
		err = t.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
			row, err = s.Find(appendKey(nil, l.sessions.namespace, token))
			return err
		})
		if row == nil && err == nil {
			t.CollectFew(ctx)
		}
	}
	if row == nil || err != nil {
		return nil, time.Time{}, false, err
	}
	_, data, expiry, err = decodeRow(row)
	return bytes.Clone(data), expiry, err == nil, err
}

// Page returns the sessions beginning at the token from, in the order of their
// tokens, up to the limits of a page. next is where the next page begins, or "" after
// the last page. The first page begins at "". The sessions belong to the caller.
func (t *Table) Page(ctx context.Context, from string) (rows []Row, next string, err error) {
	err = t.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
		rows, next, err = l.page(s, from, pageLen)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return rows, next, nil
}

// page is [Table.Page] in a snapshot, with another limit.
func (l *layout) page(s *engine.Snapshot, from string, limit int) (rows []Row, next string, err error) {
	size := 0
	err = scan(s, l, from, func(_, _ []byte, row Row) (more bool, err error) {
		if len(rows) == limit || size >= pageBytes {
			next = after(rows[len(rows)-1].Token)
			return false, nil
		}
		row.Data = bytes.Clone(row.Data)
		size += len(row.Data)
		rows = append(rows, row)
		return true, nil
	})
	return rows, next, err
}

// scan calls each for the sessions beginning at the token from, in the order of their
// tokens, for as long as each asks for more. The key, the encoded row and the data are valid
// only during the call. It passes over rows whose token is too long for a session, which SQL can
// add.
func scan(s *engine.Snapshot, l *layout, from string, each func(key, encoded []byte, row Row) (more bool, err error)) error {
	end := appendInt(nil, l.sessions.namespace+1)
	return s.Scan(appendKey(nil, l.sessions.namespace, from), end, func(key, encoded []byte) (more bool, err error) {
		token, data, expiry, err := decodeRow(encoded)
		if err != nil {
			return false, err
		}
		if len(token) > MaxKeyLen {
			return true, nil
		}
		return each(key, encoded, Row{string(token), data, expiry})
	})
}

// after returns the least token greater than token.
func after(token string) string { return token + "\x00" }

// Upsert adds the session, or overwrites its data and expiry. An expiry before 1970
// or after 9999 is moved to that limit. The token must not be longer than
// [MaxKeyLen]. If the table remembers that the session was deleted, Upsert returns
// [ErrEnded].
func (t *Table) Upsert(ctx context.Context, token string, data []byte, expiry time.Time) error {
	if expiry.Before(minExpiry) {
		expiry = minExpiry
	} else if expiry.After(maxExpiry) {
		expiry = maxExpiry
	}
	listing, err := t.owners.prepare(token, data)
	if err != nil {
		return err
	}
	// After the owner function, which may use the table.
	size := len(token) + len(data)
	if err := t.db.Reserve(ctx, size); err != nil {
		return err
	}
	defer t.db.Release(size)
	// The caller encodes the row: other callers need not wait for that, and the
	// operation does not use the caller's data if it runs after an early return.
	row := encodeRow(Row{token, data, expiry})
	err = t.write(ctx, len(row)+2*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		if t.ended.has(token, l.sessions.namespace) {
			return ErrEnded
		}
		if err := t.owners.commit(b, l, listing); err != nil {
			return err
		}
		return l.sessions.put(b, appendKey(nil, l.sessions.namespace, token), row)
	})
	if err == nil {
		t.counts.upserts.Add(1)
	}
	return err
}

// Delete deletes the sessions with the given tokens in one batch, and remembers that
// they have ended. Missing sessions are ignored, but remembered, too. The tokens must
// not be longer than [MaxKeyLen]. If all are known to be missing, Delete waits for nobody.
func (t *Table) Delete(ctx context.Context, tokens ...string) error {
	if t.ended == nil && ctx.Err() == nil && t.absent(tokens) {
		t.counts.deletes.Add(uint64(len(tokens)))
		return nil
	}
	return t.deleteListed(ctx, nil, "", tokens)
}

// absent reports whether all sessions with the given tokens are known to be missing.
func (t *Table) absent(tokens []string) bool {
	l, err := t.layout()
	if err != nil {
		return false
	}
	var room [MaxKeyLen + 20]byte
	for _, token := range tokens {
		if !t.db.AbsentOnDisk(appendKey(room[:0], l.sessions.namespace, token)) {
			return false
		}
	}
	return l.isOf(t.db.Catalog())
}

// deleteListed is Delete for sessions that an answer lists for an owner, if it is not nil.
func (t *Table) deleteListed(ctx context.Context, a *answer, owner string, tokens []string) error {
	err := t.write(ctx, len(tokens)*2*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		if a != nil {
			if l.tables() != a.at {
				return errReplaced
			}
			t.owners.claim(b, l)
		}
		if err := l.delete(b, tokens); err != nil {
			return err
		}
		for _, token := range tokens {
			t.ended.add(token, t.options.RememberEnded)
			if a == nil {
				continue
			}
			if err := l.owners.delete(b, ownerKey(l.owners.namespace, owner, token)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		t.counts.deletes.Add(uint64(len(tokens)))
	}
	return err
}

// delete deletes the sessions with the given tokens. Their owners go with a sweep.
func (l *layout) delete(b *engine.Batch, tokens []string) error {
	for _, token := range tokens {
		key := appendKey(nil, l.sessions.namespace, token)
		if b.Absent(key) {
			continue
		}
		if err := l.sessions.delete(b, key); err != nil {
			return err
		}
	}
	return nil
}
