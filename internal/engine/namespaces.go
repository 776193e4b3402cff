// Namespaces: the numbers of tables and indexes, with which the keys of their rows begin.

package engine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"
)

// Namespaces returns the tables and indexes of a database by their namespaces. Each should
// have its own.
func Namespaces(db *chai.DB) map[int64][]string {
	all := make(map[int64][]string)
	catalog := db.DB.Catalog()
	for _, name := range catalog.Cache.ListObjects("table") {
		if info, err := catalog.GetTableInfo(name); err == nil {
			all[int64(info.StoreNamespace)] = append(all[int64(info.StoreNamespace)], fmt.Sprintf("table %q", name))
		}
	}
	for _, name := range catalog.ListIndexes("") {
		if info, err := catalog.GetIndexInfo(name); err == nil {
			all[int64(info.StoreNamespace)] = append(all[int64(info.StoreNamespace)], fmt.Sprintf("index %q", name))
		}
	}
	return all
}

// storeSequence is the name of the sequence that numbers tables and indexes.
const storeSequence = "__chai_store_seq"

// mendSequence makes Chai give each table and index to come a namespace of its own. Else two
// get the same, and what deletes the rows of one deletes those of the other:
//
//   - Chai creates its sequence with CACHE 0, and so stores the number before the one that it
//     gives (Next in sequence.go of its internal/database). Only Close stores the right one.
//     After a kill, and in a copy of the open database, the next table gets the namespace of
//     the last one.
//   - After a transaction that was undone in part (see forgetSeen), there may be a table with
//     a greater namespace than the sequence has.
//
// With CACHE 1, the sequence stores what it gives. The catalog has it from then on, so it is
// right in programs without this package, too.
//
// Chai's write lock must be locked, with no transaction open.
func (w *watcher) mendSequence() (err error) {
	defer w.state.rescue(&err, w.state.fail)
	sequence, err := w.handle.DB.Catalog().GetSequence(storeSequence)
	if err != nil {
		return err
	}
	last := sequence.Info.Start - 1
	if sequence.CurrentValue != nil {
		last = *sequence.CurrentValue
	}
	for namespace := range Namespaces(w.handle) {
		last = max(last, namespace)
	}
	sequence.CurrentValue, sequence.Info.Cache, sequence.Cached = &last, 1, 1

	name := append([]byte{textType, byte(len(storeSequence))}, storeSequence...)
	b := w.db.NewBatch()
	defer b.Close()
	for _, table := range []byte{catalogTable, sequenceTable} {
		key := append([]byte{table}, name...)
		row, closer, err := w.db.Get(key)
		if err != nil {
			return err
		}
		mended := appendUint(bytes.Clone(name), uint64(last))
		if table == catalogTable {
			mended = bytes.Replace(row, []byte(" CACHE 0"), []byte(" CACHE 1"), 1)
		}
		if !bytes.Equal(mended, row) {
			err = b.Set(key, mended, nil)
		}
		if err := errors.Join(err, closer.Close()); err != nil {
			return err
		}
	}
	if b.Empty() {
		return nil
	}
	if err := w.db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
		return err
	}
	return cmp.Or(b.SyncWait(), w.state.failed())
}

// appendUint appends a number as Chai encodes it.
func appendUint(dst []byte, n uint64) []byte {
	switch {
	case n <= 31:
		return append(dst, smallInt+byte(n))
	case n <= math.MaxUint8:
		return append(dst, uint8Type, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, uint8Type+1), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, uint8Type+2), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, transientType), n)
	}
}
