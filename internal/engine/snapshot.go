// Reading: snapshots of the committed state.

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble"
)

// A Snapshot is everything committed before one moment, by anyone. It must not be
// used after the function that it was passed to has returned.
type Snapshot struct {
	ctx      context.Context
	db       *DB
	session  io.Closer // Chai's
	rows     *pebble.Snapshot
	number   uint64 // its sequence number
	observed bool   // whether the cache sees each batch that is not in it
	undoing  bool   // whether it has notes on how to undo changes in it
}

// open opens a snapshot.
func (db *DB) open(ctx context.Context) *Snapshot {
	observed := db.cache.observing.Load() // before the session: it has what came before
	session := db.handle.DB.Store.NewSnapshotSession()
	rows, number := snapshotOf(session)
	return &Snapshot{ctx: ctx, db: db, session: session, rows: rows, number: number, observed: observed}
}

// close closes the snapshot.
func (s *Snapshot) close() error { return s.session.Close() }

// Read calls f with a snapshot of everything committed before, by anyone. It waits
// for no transaction and no fsync. When ctx ends, scans of the snapshot return its
// error. Once the engine has panicked in a read, each Read returns that failure at
// once.
func (db *DB) Read(ctx context.Context, f func(s *Snapshot) error) error {
	return db.whileOpen(func() error {
		db.observe()
		s := db.open(ctx)
		err := s.lookForNotes()
		if err == nil {
			err = f(s)
		}
		// After a panic the session stays open: closing it could wait for a lock that
		// the panic has left locked.
		return errors.Join(err, s.close())
	})
}

// whileOpen calls f, and returns its error, or that of a panic. The database is not
// closed meanwhile: Close waits for f.
func (db *DB) whileOpen(f func() error) (err error) {
	if failure := db.failures.reading(); failure != nil {
		return failure
	}
	defer db.failures.rescue(&err, db.failures.failAll)
	db.enter()
	returned := false
	defer func() {
		if returned {
			db.leave()
		} else {
			go db.leave() // a panic may have left Pebble's mutex locked
		}
	}()
	err = f()
	returned = true
	return err
}

// A transaction of Chai that reads after it wrote writes out its changes before it
// commits, with a note on each row that it changes for the first time: what the row
// was before. When it is rolled back, Chai first lets others see these changes, and
// then undoes them and removes the notes, in one batch (Rollback in its
// internal/database). If that fails, such as on a full disk, both stay. So a snapshot
// with notes is read as if the changes were undone.
//
// A note is a row of its own table, with the row's key as a blob. It is a zero byte
// for a row that was not there. So is an index entry, which Chai takes for one that
// was not there.

// lookForNotes finds out whether s has notes.
func (s *Snapshot) lookForNotes() error {
	if s.observed && s.db.cache.notes.absent(s.number) {
		return nil
	}
	err := s.scan([]byte{notesTable}, []byte{notesTable + 1}, func(_, _ []byte) error {
		s.undoing = true
		return errStop
	})
	if errors.Is(err, errStop) {
		return nil
	}
	if err == nil && s.observed {
		s.db.cache.notes.seenNone(s.number)
	}
	return err
}

var errStop = errors.New("stop")

// noteKey returns the key of the note on the row with the given key.
func noteKey(key []byte) []byte {
	note := binary.AppendUvarint([]byte{notesTable, blobType}, uint64(len(key)))
	return append(note, key...)
}

// notedKey returns the key of the row that the note with the given key is on.
func notedKey(note []byte) []byte {
	_, n := binary.Uvarint(note[2:])
	return note[2+n:]
}

func isMissing(note []byte) bool { return len(note) == 1 && note[0] == 0 }

// Get returns the row with the given key, or nil if there is none. The row belongs to
// the caller.
func (s *Snapshot) Get(key []byte) ([]byte, error) {
	if s.undoing {
		note, err := s.get(noteKey(key))
		if isMissing(note) {
			return nil, nil
		}
		if note != nil || err != nil {
			return note, err
		}
	}
	return s.get(key)
}

// get uses Pebble's Get, which looks at the filters of files, as iterators don't.
func (s *Snapshot) get(key []byte) (row []byte, err error) {
	defer closing(&err)
	row, closer, err := s.rows.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
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
	if row != nil && s.observed && !s.undoing {
		s.db.cache.fill(s.number, key, row)
	}
	return row, err
}

// Scan calls each for the rows with keys from one up to, but not including, another,
// in their order, until each returns an error. Scan then returns that error. The key
// and the row are valid only during the call.
func (s *Snapshot) Scan(from, to []byte, each func(key, row []byte) error) error {
	return s.scanCommitted(from, to, isMissing, each)
}

// ScanEntries is Scan for index entries. While a transaction is being rolled back, it
// also passes entries that it has added: their rows must be looked up.
func (s *Snapshot) ScanEntries(from, to []byte, each func(entry, row []byte) error) error {
	return s.scanCommitted(from, to, func([]byte) bool { return false }, each)
}

// scanCommitted is Scan with a function that tells the notes on rows that were not
// there.
func (s *Snapshot) scanCommitted(from, to []byte, missing func(note []byte) bool, each func(key, row []byte) error) error {
	if !s.undoing {
		return s.scan(from, to, each)
	}
	type former struct{ key, row []byte }
	var notes []former // in the order of their keys
	compare := options(s.db.pebble()).Comparer.Compare
	err := s.scan([]byte{notesTable}, []byte{notesTable + 1}, func(note, row []byte) error {
		if key := notedKey(note); compare(from, key) <= 0 && compare(key, to) < 0 {
			notes = append(notes, former{bytes.Clone(key), bytes.Clone(row)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(notes, func(a, b former) int { return compare(a.key, b.key) })
	// eachBefore passes the noted rows before key, or all of them.
	eachBefore := func(key []byte) error {
		for len(notes) > 0 && (key == nil || compare(notes[0].key, key) < 0) {
			n := notes[0]
			notes = notes[1:]
			if missing(n.row) {
				continue
			}
			if err := each(n.key, n.row); err != nil {
				return err
			}
		}
		return nil
	}
	err = s.scan(from, to, func(key, row []byte) error {
		if err := eachBefore(key); err != nil {
			return err
		}
		if len(notes) > 0 && bytes.Equal(notes[0].key, key) {
			return nil // changed: its note comes before the next row
		}
		return each(key, row)
	})
	if err != nil {
		return err
	}
	return eachBefore(nil)
}

// closing is deferred around calls of Pebble. Once Close has begun, and waits for the
// read to end, they panic before they do anything. It makes an error of that, so that
// the read closes what it has open.
func closing(err *error) {
	switch r := recover().(type) {
	case nil:
	case error:
		if !errors.Is(r, pebble.ErrClosed) {
			panic(r)
		}
		*err = fmt.Errorf("chai panicked: %w", r) // as rescue says it later
	default:
		panic(r)
	}
}

// scan is Scan with the changes that are to be undone.
func (s *Snapshot) scan(from, to []byte, each func(key, row []byte) error) error {
	rows, err := s.iterate(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	for ok := rows.First(); ok && err == nil; ok = rows.Next() {
		var row []byte
		if row, err = rows.ValueAndErr(); err == nil {
			err = s.ctx.Err()
		}
		if err == nil {
			err = each(rows.Key(), row)
		}
	}
	return errors.Join(err, rows.Error(), rows.Close())
}

func (s *Snapshot) iterate(o *pebble.IterOptions) (rows *pebble.Iterator, err error) {
	defer closing(&err)
	return s.rows.NewIter(o)
}

// Catalog returns the number of the last batch that changed the catalog, and whether
// s has that catalog. If not, the catalog must be read in s.
func (s *Snapshot) Catalog() (number uint64, ok bool) {
	number = s.db.Catalog()
	return number, s.observed && !s.undoing && number <= s.number
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

// panicIfClosed panics if the database is closed. NewSnapshotSession and
// NewBatchSession panic, too, but with a lock of Chai held, which the next call would
// wait for. For an empty batch, Pebble checks that it is open, and does nothing else;
// looking at what it checks takes a third of a find in memory less.
func (db *DB) panicIfClosed() {
	if known.observing {
		if closed := (*at[*atomic.Value](db.pebble(), known.isClosed)).Load(); closed != nil {
			panic(closed)
		}
		return
	}
	empty := db.pebble().NewBatch()
	_ = empty.Commit(nil)
	_ = empty.Close()
}

// Writable returns why nothing can be written any more, or nil. It is called before
// waiting for the write lock, which a panic may have left locked: in a write of this
// package, or in a call of the application on a closed database.
func (db *DB) Writable() error {
	if failure := db.failures.writing(); failure != nil {
		return failure
	}
	return db.Usable()
}

// Usable returns an error if the database is closed, or if nothing can be read any
// more.
func (db *DB) Usable() (err error) {
	if failure := db.failures.reading(); failure != nil {
		return failure
	}
	defer db.failures.rescue(&err, db.failures.failAll)
	db.panicIfClosed()
	return nil
}
