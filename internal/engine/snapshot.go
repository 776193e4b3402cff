// Reading: snapshots of what is committed.

package engine

import (
	"errors"
	"runtime"
	"time"
)

// snapshot is the engine's session that reads, whose type can't be named here.
type snapshot interface {
	Get(key []byte) ([]byte, error)
	Close() error
}

// A Snapshot is the state that was committed at one moment, by anyone. It
// must not be used after the function that it was given to has returned.
type Snapshot struct {
	session snapshot
	cache   *cache
	epoch   *epoch        // in which it was opened, nil if it is not known to be one
	batch   *announcement // the latest when it was opened
	scan    func(from, to []byte, each func(key, row []byte) error) error
}

// Get returns the row with the given key, or nil if there is none. The row is the
// caller's.
func (s *Snapshot) Get(key []byte) ([]byte, error) { return get(s.session, key) }

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
		session := db.handle.DB.Store.NewSnapshotSession()
		s := &Snapshot{session, db.cache, epoch, batch, func(from, to []byte, each func(key, row []byte) error) error {
			options := zero(session.Iterator)
			options.LowerBound, options.UpperBound = from, to
			rows, err := session.Iterator(options)
			if err != nil {
				return err
			}
			for ok := rows.First(); ok && err == nil; ok = rows.Next() {
				var row []byte
				if row, err = rows.Value(); err == nil {
					err = each(rows.Key(), row)
				}
			}
			return errors.Join(err, rows.Error(), rows.Close())
		}}
		err = nil
		if epoch == nil || db.cache.current(transactions(db.handle)) != epoch {
			err = s.checkUndone()
		}
		if errors.Is(err, errNotUndone) && time.Since(start) < db.hangLimit {
			_ = session.Close()
			continue
		}
		if err == nil {
			err = f(s)
		}
		return errors.Join(err, session.Close())
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

// get returns the row with the given key, or nil if there is none.
func get(s snapshot, key []byte) ([]byte, error) {
	row, err := s.Get(key)
	if err != nil && isNotFound(err) {
		return nil, nil
	}
	return row, err
}

// isNotFound reports whether the engine has said that there is no such row. Its
// error, kv.ErrKeyNotFound, is internal to it, and comes wrapped in a stack.
func isNotFound(err error) bool {
	for next := err; next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err.Error() == "key not found"
}

// zero returns a zero value of what f takes, whose type is internal to the engine.
func zero[T, R any](f func(*T) (R, error)) *T { return new(T) }
