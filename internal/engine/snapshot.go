// Reading: snapshots of what is committed.

package engine

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"time"
)

// An iterator is Chai's, whose type can't be named here. Chai's interface lacks
// SetBounds, but what implements it has Pebble's methods, too.
type iterator interface {
	SetBounds(from, to []byte) // of which it keeps copies
	First() bool
	Next() bool
	Key() []byte
	Value() ([]byte, error)
	Error() error
	Close() error
}

// A session is one of Chai's that reads. Neither its type nor the types of its
// methods can be named here.
type session[O, I any] interface {
	Iterator(*O) (I, error)
	Close() error
}

// A reader reads the rows of a session.
type reader struct {
	iterator     func() (iterator, error)
	closeSession func() error
	rows         iterator // for get, nil before the first
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

// get returns the row with the given key, or nil if there is none. It moves one
// iterator instead of using the session's Get: that takes the same time for single
// rows, and a fifth for rows that follow each other (BenchmarkGet).
func (r *reader) get(key []byte) (row []byte, err error) {
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

// scan calls each for the rows with keys from one up to, but not including,
// another, in their order, until each returns an error, which scan then returns.
func (r *reader) scan(from, to []byte, each func(key, row []byte) error) error {
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

// A Snapshot is the state that was committed at one moment, by anyone. It
// must not be used after the function that it was given to has returned.
type Snapshot struct {
	*reader
	cache *cache
	epoch *epoch        // in which it was opened, nil if it is not known to be one
	batch *announcement // the latest when it was opened
}

// Get returns the row with the given key, or nil if there is none. The row is the
// caller's.
func (s *Snapshot) Get(key []byte) ([]byte, error) { return s.get(key) }

// Find is Get for a row that is likely to be looked up again: it enters the cache,
// and must not be changed.
func (s *Snapshot) Find(key []byte) ([]byte, error) {
	row, err := s.Get(key)
	if row != nil && s.epoch != nil {
		s.cache.fill(s.epoch, s.batch, key, row)
	}
	return row, err
}

// Scan calls each for the rows with keys from one up to, but not including,
// another, in their order, until each returns an error, which Scan then returns.
// The key and the row are valid during that call only.
func (s *Snapshot) Scan(from, to []byte, each func(key, row []byte) error) error {
	return s.scan(from, to, each)
}

// Cached returns the row with the given key if the cache has a copy that is known
// to be the newest, or else nil. The row must not be changed.
func (db *DB) Cached(key []byte) []byte {
	if e := db.cache.current(transactions(db.handle)); e != nil {
		return db.cache.get(e, key)
	}
	return nil
}

// Read calls f with a snapshot that has everything that anyone has committed
// before. It waits for no transaction and no fsync, only for Chai to undo
// a transaction that is being rolled back. Once the engine has panicked in a read,
// each Read returns that failure at once.
func (db *DB) Read(f func(s *Snapshot) error) (err error) {
	if failure := db.failures.reading(); failure != nil {
		return failure
	}
	// After a panic the session stays open: to close it could wait for a lock that
	// the panic has left behind.
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

// checkUndone returns an error if s has rows that were never committed. A
// transaction that reads after it has written writes out what it has, and notes how
// to undo it. When it is rolled back, Chai shows that to others first, and undoes it
// then, in one batch with the notes (Rollback in its internal/database).
func (s *Snapshot) checkUndone() error {
	const notes = 48 + 3 // the encoded number of their table
	return s.Scan([]byte{notes}, []byte{notes + 1}, func(_, _ []byte) error { return errNotUndone })
}

// currentEpoch returns the current epoch of the cache. It begins one if the last
// has ended and nobody has a transaction open that writes, and returns nil if
// somebody has.
func (db *DB) currentEpoch() *epoch {
	e := db.cache.current(transactions(db.handle))
	if e == nil && db.writeLock.TryLock() {
		e = db.cache.begin(transactions(db.handle))
		db.writeLock.Unlock()
	}
	return e
}

// panicIfClosed panics if the database is closed. NewSnapshotSession and
// NewBatchSession do that, too, but with a lock of Chai held, for which the next
// call would wait. Pebble looks first whether it is closed, and does nothing more
// for an empty batch.
func (db *DB) panicIfClosed() {
	empty := db.handle.DB.Store.DB().NewBatch()
	_ = empty.Commit(nil)
	_ = empty.Close()
}

// writable returns why nothing can be written any more, or nil. It is called before
// the write lock is waited for, which a panic may have left locked: one in a write
// here, or one in a call of the application after it has closed the database.
func (db *DB) writable() (err error) {
	if failure := db.failures.writing(); failure != nil {
		return failure
	}
	defer db.failures.rescue(&err, db.failures.failAll)
	db.panicIfClosed()
	return nil
}

// Quiet reports whether nobody had a transaction open that writes, at a moment
// during the call. Then the catalog describes the tables that are committed.
func (db *DB) Quiet() bool { return db.currentEpoch() != nil }
