// The indexes of the table: writing the entries of each row, and repairing wrong
// ones.

package sessiontable

import (
	"bytes"
	"context"

	"go.elara.ws/chaistore/internal/engine"
)

// An index is a secondary index of a table. Its entries are rows of a namespace of
// its own. The key of an entry consists of the indexed columns and the key of the
// indexed row.
type index struct {
	name      string
	namespace int64
	columns   []indexColumn
	width     int // the number of columns of the table
}

type indexColumn struct {
	position   int // in the table
	descending bool
}

// appendEntry appends the key of a row's entry.
func (ix *index) appendEntry(dst, key, row []byte) ([]byte, error) {
	values, err := split(row, ix.width)
	if err != nil {
		return nil, err
	}
	dst = appendInt(dst, ix.namespace)
	for _, column := range ix.columns {
		start := len(dst)
		dst = append(dst, values[column.position]...)
		if column.descending {
			dst[start] = 255 - dst[start]
		}
	}
	return appendBlob(dst, key), nil
}

// rowKey returns the key of an entry's row, or nil if the entry is malformed.
func (ix *index) rowKey(entry []byte) []byte {
	for range 1 + len(ix.columns) {
		n := valueLen(entry)
		if n == 0 {
			return nil
		}
		entry = entry[n:]
	}
	if n := valueLen(entry); n == 0 || n != len(entry) {
		return nil
	}
	key, _ := decodeBytes(entry, blobType)
	if n := valueLen(key); n == 0 || n+valueLen(key[n:]) != len(key) {
		return nil
	}
	return key
}

// entryRow is the row of an entry, as in Chai.
var entryRow = []byte{0}

// put adds or overwrites a row, and its entries.
func (r *relation) put(b *engine.Batch, key, row []byte) error {
	if err := r.deleteEntries(b, key); err != nil {
		return err
	}
	for i := range r.indexes {
		e, err := r.indexes[i].appendEntry(nil, key, row)
		if err != nil {
			return err
		}
		b.PutEntry(e, entryRow)
	}
	if r.cached {
		b.Put(key, row)
	} else {
		b.PutEntry(key, row)
	}
	return nil
}

// delete deletes a row and its entries, if there is such a row.
func (r *relation) delete(b *engine.Batch, key []byte) error {
	if err := r.deleteEntries(b, key); err != nil {
		return err
	}
	b.Delete(key)
	return nil
}

// deleteEntries deletes the entries of a row, if there is such a row.
func (r *relation) deleteEntries(b *engine.Batch, key []byte) error {
	if len(r.indexes) == 0 {
		return nil
	}
	old, err := b.Get(key)
	if old == nil || err != nil {
		return err
	}
	for i := range r.indexes {
		e, err := r.indexes[i].appendEntry(nil, key, old)
		if err != nil {
			return err
		}
		b.Delete(e)
	}
	return nil
}

// repairIndexes repairs the indexes of the table of sessions, each once in the life
// of t.
//
// An earlier write with ON CONFLICT REPLACE leaves an entry with the former expiry in
// an index, and none with the present one (internal/stream, on_conflict.go). Then an
// application's SELECT takes a renewed session for an expired one, and its UPDATE and
// DELETE fail.
func (t *Table) repairIndexes(ctx context.Context) error {
	l, err := t.layout()
	if err != nil {
		return err
	}
	for _, ix := range l.sessions.indexes {
		if _, ok := t.repaired.Load(ix.namespace); ok {
			continue
		}
		if err := t.addEntries(ctx, &ix); err != nil {
			return err
		}
		if err := t.removeEntries(ctx, &ix); err != nil {
			return err
		}
		t.repaired.Store(ix.namespace, true)
	}
	return nil
}

// addEntries adds the entries that ix lacks.
func (t *Table) addEntries(ctx context.Context, ix *index) error {
	for from, more := "", true; more; {
		var keys [][]byte // of rows without an entry
		err := t.read(ctx, func(s *engine.Snapshot, l *layout) error {
			keys, more = nil, false
			n := 0
			return scan(s, l, from, func(_, encoded []byte, row Row) (bool, error) {
				if n++; n > sweepScan || len(keys) == sweepWrite {
					from, more = row.Token, true
					return false, nil
				}
				key := appendKey(nil, l.sessions.namespace, row.Token)
				ok, err := ix.hasEntry(s.Get, key, encoded)
				if !ok && err == nil {
					keys = append(keys, key)
				}
				return true, err
			})
		})
		if err != nil {
			return err
		}
		err = t.writeIndex(ctx, ix, keys, func(b *engine.Batch, key []byte) error {
			row, err := b.Get(key)
			if row == nil || err != nil {
				return err
			}
			e, err := ix.appendEntry(nil, key, row)
			b.PutEntry(e, entryRow)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hasEntry reports whether ix has a row's entry.
func (ix *index) hasEntry(get func(key []byte) ([]byte, error), key, row []byte) (bool, error) {
	e, err := ix.appendEntry(nil, key, row)
	if err != nil {
		return false, err
	}
	found, err := get(e)
	return found != nil, err
}

// removeEntries removes the entries of ix that belong to no row, or to a former state
// of one.
func (t *Table) removeEntries(ctx context.Context, ix *index) error {
	from, end := appendInt(nil, ix.namespace), appendInt(nil, ix.namespace+1)
	for more := true; more; {
		var wrong [][]byte
		more = false
		err := t.db.Read(ctx, func(s *engine.Snapshot) error {
			n := 0
			return s.Scan(from, end, func(e, _ []byte) (bool, error) {
				if n++; n > sweepScan || len(wrong) == sweepWrite {
					from, more = bytes.Clone(e), true
					return false, nil
				}
				ok, err := ix.isRight(s.Get, e)
				if !ok && err == nil {
					wrong = append(wrong, bytes.Clone(e))
				}
				return true, err
			})
		})
		if err != nil {
			return err
		}
		err = t.writeIndex(ctx, ix, wrong, func(b *engine.Batch, e []byte) error {
			ok, err := ix.isRight(b.Get, e)
			if !ok && err == nil {
				b.Delete(e)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// isRight reports whether the row of an entry exists and has the values of the entry.
func (ix *index) isRight(get func(key []byte) ([]byte, error), e []byte) (bool, error) {
	key := ix.rowKey(e)
	if key == nil {
		return false, nil
	}
	row, err := get(key)
	if row == nil || err != nil {
		return false, err
	}
	want, err := ix.appendEntry(nil, key, row)
	return bytes.Equal(want, e), err
}

// writeIndex calls op for each key, in one turn, if ix is still an index of the
// table.
func (t *Table) writeIndex(ctx context.Context, ix *index, keys [][]byte, op func(b *engine.Batch, key []byte) error) error {
	if len(keys) == 0 {
		return nil
	}
	return t.write(ctx, len(keys)*2*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		for i := range l.sessions.indexes {
			if l.sessions.indexes[i].namespace != ix.namespace {
				continue
			}
			for _, key := range keys {
				if err := op(b, key); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
