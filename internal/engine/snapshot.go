// Reading: snapshots of the committed state.

package engine

import (
	"bytes"
	"context"
	"errors"

	"github.com/cockroachdb/pebble"
)

// A Snapshot is everything committed before one moment, by anyone. It must not be
// used after the function that it was passed to has returned.
type Snapshot struct {
	ctx    context.Context
	db     *DB
	rows   *pebble.Snapshot
	number uint64 // its sequence number
	close  func() error

	observed bool // whether each batch that is not in it is observed
}

// Read calls f with a snapshot of everything committed before, by anyone. It waits
// for no transaction and no fsync. When ctx ends, scans of the snapshot return its
// error.
func (db *DB) Read(ctx context.Context, f func(s *Snapshot) error) error {
	return db.whileOpen(func() error {
		s, err := db.open(ctx)
		if err != nil {
			return err
		}
		// After a panic the snapshot stays open: closing it could wait for a lock that the
		// panic has left locked.
		return errors.Join(f(s), s.close())
	})
}

// Get returns the row with the given key, or nil if there is none. The row belongs to
// the caller. It uses Pebble's Get, which looks at the filters of sstables, as iterators
// don't.
func (s *Snapshot) Get(key []byte) (row []byte, err error) {
	defer closing(&err)
	damage := s.db.state.damage.Load()
	row, closer, err := s.rows.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, s.db.state.readAll(damage)
	}
	if err != nil {
		return nil, err
	}
	row = bytes.Clone(row)
	return row, closer.Close()
}

// Find is Get for a row that is likely to be looked up again. The row enters the
// cache, and must not be changed.
func (s *Snapshot) Find(key []byte) ([]byte, error) {
	row, err := s.Get(key)
	if row != nil && s.observed {
		s.db.cache.fill(s.number, key, row)
	}
	return row, err
}

// Scan calls each for the rows with keys from one up to, but not including, another,
// in their order, for as long as each asks for more. The key and the row are valid only
// during the call.
func (s *Snapshot) Scan(from, to []byte, each func(key, row []byte) (more bool, err error)) error {
	damage := s.db.state.damage.Load()
	rows, err := s.iterate(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	more := rows.First()
	for more && err == nil {
		var row []byte
		if row, err = rows.ValueAndErr(); err == nil {
			err = s.ctx.Err()
		}
		if err == nil {
			more, err = each(rows.Key(), row)
		}
		more = more && err == nil && rows.Next()
	}
	return errors.Join(err, rows.Error(), rows.Close(), s.db.state.readAll(damage))
}

func (s *Snapshot) iterate(o *pebble.IterOptions) (rows *pebble.Iterator, err error) {
	defer closing(&err)
	return s.rows.NewIter(o)
}

// Number returns the number of s. It has exactly the batches that end at this number or
// before: see [Change].
func (s *Snapshot) Number() uint64 { return s.number }

// Catalog returns the number of the last batch that changed the catalog, and whether
// s has that catalog. If not, the catalog must be read in s.
func (s *Snapshot) Catalog() (number uint64, ok bool) {
	number = s.db.Catalog()
	return number, s.observed && number <= s.number
}

// Catalog returns the number of the last batch that changed the catalog.
func (db *DB) Catalog() uint64 { return db.cache.catalog.Load() }

// Cached returns the copy of the row with the given key, the newest, or nil if there
// is none. The row must not be changed.
func (db *DB) Cached(key []byte) []byte {
	if db.Usable() != nil {
		return nil
	}
	return db.cache.get(key)
}

// Writable returns why nothing can be written any more, or nil. It is called before
// waiting for the write lock, which a panic may have left locked: in a write of this
// package, or in a call of the application on a closed database.
func (db *DB) Writable() error { return db.state.writable() }

// Usable returns an error if the database is closed, or if nothing can be read any more.
func (db *DB) Usable() error { return db.state.usable() }
