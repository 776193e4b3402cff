// Reading: snapshots of the committed state.

package engine

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"time"
)

// An iterator is Chai's iterator, whose type can't be named here. Its SetBounds is
// Pebble's, and copies both keys.
type iterator interface {
	SetBounds(from, to []byte)
	First() bool
	Next() bool
	Key() []byte
	Value() ([]byte, error)
	Error() error
	Close() error
}

// A session is Chai's reading session. Neither its type nor the types in its methods
// can be named here.
type session[O, I any] interface {
	Iterator(*O) (I, error)
	Close() error
}

// A reader reads the rows of a session.
type reader struct {
	iterator     func() (iterator, error)
	closeSession func() error
	rows         iterator // of Get, nil before its first call
}

func newReader[O, I any](s session[O, I]) *reader {
	return &reader{closeSession: s.Close, iterator: func() (iterator, error) {
		rows, err := s.Iterator(nil)
		if err != nil {
			return nil, err
		}
		return any(rows).(iterator), nil
	}}
}

// Get returns the row with the given key, or nil if there is none. The row belongs to
// the caller.
//
// Moving one iterator takes as long as the session's Get for single rows, and a fifth
// of that for rows that follow each other (BenchmarkGet).
func (r *reader) Get(key []byte) (row []byte, err error) {
	if r.rows == nil {
		if r.rows, err = r.iterator(); err != nil {
			return nil, err
		}
	}
	r.rows.SetBounds(key, append(slices.Clip(key), 0))
	if !r.rows.First() {
		return nil, r.rows.Error()
	}
	row, err = r.rows.Value()
	return bytes.Clone(row), err
}

// Scan calls each for the rows with keys from one up to, but not including, another,
// in their order, until each returns an error. Scan then returns that error. The key
// and the row are valid only during the call.
func (r *reader) Scan(from, to []byte, each func(key, row []byte) error) error {
	rows, err := r.iterator()
	if err != nil {
		return err
	}
	rows.SetBounds(from, to)
	for ok := rows.First(); ok && err == nil; ok = rows.Next() {
		var row []byte
		if row, err = rows.Value(); err == nil {
			err = each(rows.Key(), row)
		}
	}
	return errors.Join(err, rows.Error(), rows.Close())
}

// close closes the session.
func (r *reader) close() error {
	if r.rows == nil {
		return r.closeSession()
	}
	return errors.Join(r.rows.Close(), r.closeSession())
}

// A Snapshot is everything committed before one moment, by anyone. It must not be
// used after the function that it was passed to has returned.
type Snapshot struct {
	*reader
	cache *cache
	epoch *epoch        // in which it was opened, or nil
	batch *announcement // the latest before it was opened
}

// Find is Get for a row that is likely to be looked up again. The row enters the
// cache, and must not be changed.
func (s *Snapshot) Find(key []byte) ([]byte, error) {
	row, err := s.Get(key)
	if row != nil && s.epoch != nil {
		s.cache.fill(s.epoch, s.batch, key, row)
	}
	return row, err
}

// Cached returns the copy of the row with the given key if the cache knows it to be
// the newest, or else nil. The row must not be changed.
func (db *DB) Cached(key []byte) []byte {
	if e := db.cache.current(transactions(db.handle)); e != nil {
		return db.cache.get(e, key)
	}
	return nil
}

// Read calls f with a snapshot of everything committed before, by anyone. It waits
// for no transaction and no fsync, only for Chai to undo a transaction that is being
// rolled back. Once the engine has panicked in a read, each Read returns that failure
// at once.
func (db *DB) Read(f func(s *Snapshot) error) (err error) {
	if failure := db.failures.reading(); failure != nil {
		return failure
	}
	// After a panic the session stays open: Close could wait for a lock that the
	// panic has left locked.
	defer db.failures.rescue(&err, db.failures.failAll)

	db.panicIfClosed()
	for start := time.Now(); ; runtime.Gosched() {
		epoch, batch := db.currentEpoch(), db.cache.batch.Load()
		s := &Snapshot{newReader(db.handle.DB.Store.NewSnapshotSession()), db.cache, epoch, batch}
		err = nil
		if epoch == nil || db.cache.current(transactions(db.handle)) != epoch {
			err = s.checkUndone()
		}
		if errors.Is(err, errNotUndone) && time.Since(start) < db.hangLimit {
			_ = s.close() // frees it; nothing was written
			continue
		}
		if err == nil {
			err = f(s)
		}
		return errors.Join(err, s.close())
	}
}

var errNotUndone = errors.New("a transaction of the application that was rolled back has not been undone")

// checkUndone returns an error if s has rows that were never committed. A transaction
// that reads after it wrote writes out its changes before it commits, with notes on
// how to undo them. When it is rolled back, Chai first lets others see these changes,
// and then undoes them and removes the notes, in one batch (Rollback in its
// internal/database).
func (s *Snapshot) checkUndone() error {
	const notes = 48 + 3 // the encoded number of their table
	return s.Scan([]byte{notes}, []byte{notes + 1}, func(_, _ []byte) error { return errNotUndone })
}

// currentEpoch returns the current epoch of the cache. If the last one has ended, it
// begins a new one, or returns nil while a writing transaction is open.
func (db *DB) currentEpoch() *epoch {
	e := db.cache.current(transactions(db.handle))
	if e == nil && db.writeLock.TryLock() {
		e = db.cache.begin(transactions(db.handle))
		db.writeLock.Unlock()
	}
	return e
}

// panicIfClosed panics if the database is closed. NewSnapshotSession and
// NewBatchSession panic, too, but with a lock of Chai held, which the next call would
// wait for. For an empty batch, Pebble checks that it is open, and does nothing else.
func (db *DB) panicIfClosed() {
	empty := db.handle.DB.Store.DB().NewBatch()
	_ = empty.Commit(nil)
	_ = empty.Close()
}

// writable returns why nothing can be written any more, or nil. It is called before
// waiting for the write lock, which a panic may have left locked: in a write of this
// package, or in a call of the application on a closed database.
func (db *DB) writable() (err error) {
	if failure := db.failures.writing(); failure != nil {
		return failure
	}
	defer db.failures.rescue(&err, db.failures.failAll)
	db.panicIfClosed()
	return nil
}

// Quiet reports whether no writing transaction was open at some moment during the
// call. If so, the catalog described the committed tables.
func (db *DB) Quiet() bool { return db.currentEpoch() != nil }
