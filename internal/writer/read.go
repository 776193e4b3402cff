// This file is reading: from the database, or, while the commit of statements keeps
// the engine from opening transactions, from one that was opened just before.

package writer

import (
	"errors"
	"sync/atomic"

	"github.com/chaisql/chai"
)

// Get returns the row with the given key, as the engine stores it, or nil if
// there is none. The row is the caller's.
//
// Get sees all writes that had been committed when it was called, whoever made
// them, and does not wait for those that are being committed. Once the engine has
// panicked in a read, each Get returns that failure at once.
func (db *DB) Get(key []byte) (row []byte, err error) {
	err = db.look(func(v *view) (err error) {
		row, err = v.get(key)
		return err
	})
	return row, err
}

// Scan calls each for the rows with keys from one up to, but not including,
// another, in their order, until each returns an error, which Scan then returns.
// The key and the row are valid during that call only. Otherwise Scan is as
// [DB.Get] is.
func (db *DB) Scan(from, to []byte, each func(key, row []byte) error) error {
	return db.look(func(v *view) error {
		return v.scan(from, to, each)
	})
}

// look calls f with a view: the published one if there is one.
func (db *DB) look(f func(v *view) error) (err error) {
	// After a panic the view is left as it is: ending it could wait for a lock that
	// the panic has left behind.
	defer db.rescue(&err, db.failAll)

	v := db.published.Load()
	if v == nil || !v.acquire() {
		if v, err = db.openView(); err != nil {
			return err
		}
	}
	err = f(v)
	v.release()
	return err
}

// Query runs a statement that reads, and calls each with every row of its
// result until each returns an error, which Query then returns. The row, and
// what is scanned from it into a []byte, are valid during that call only.
// Statements are parsed once.
//
// Query sees what [DB.Get] sees, but waits while statements are committed.
func (db *DB) Query(sql string, each func(row *chai.Row) error, args ...any) (err error) {
	defer db.rescue(&err, db.failAll)

	result, err := db.open(sql, args)
	if err != nil {
		return err
	}
	err = result.Iterate(each)
	if closeErr := result.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (db *DB) open(sql string, args []any) (result *chai.Result, err error) {
	db.opening.RLock()
	defer db.opening.RUnlock()
	defer db.rescue(&err, db.failAll)

	if failure := db.readFailure.Load(); failure != nil {
		return nil, *failure
	}
	statement, ok := db.prepared.Load(sql)
	if !ok {
		statement, err = db.engine.Prepare(sql)
		if err != nil {
			return nil, err
		}
		db.prepared.Store(sql, statement)
	}
	return statement.(*chai.Statement).Query(args...)
}

// A view is a read transaction: that of one reader, or the published one of all
// who read while statements are committed. The latter shows the newest committed
// state, because whoever commits has the only turn to write.
type view struct {
	get  func(key []byte) ([]byte, error)
	scan func(from, to []byte, each func(key, row []byte) error) error

	end   func() error
	users atomic.Int64 // readers, and 1 while it is published; at 0 it has ended
}

// openView returns a view with one user.
func (db *DB) openView() (v *view, err error) {
	db.opening.RLock()
	defer db.opening.RUnlock()
	defer db.rescue(&err, db.failAll)

	if failure := db.readFailure.Load(); failure != nil {
		return nil, *failure
	}
	tx, err := db.engine.DB.Begin(false)
	if err != nil {
		return nil, err
	}
	v = &view{end: tx.Rollback}
	v.users.Store(1)
	v.get = func(key []byte) ([]byte, error) {
		row, err := tx.Session.Get(key)
		if err == nil {
			return row, nil
		}
		if !isNotFound(err) {
			return nil, err
		}
		return nil, nil
	}
	v.scan = func(from, to []byte, each func(key, row []byte) error) error {
		options := zero(tx.Session.Iterator)
		options.LowerBound, options.UpperBound = from, to
		rows, err := tx.Session.Iterator(options)
		if err != nil {
			return err
		}
		for ok := rows.First(); ok && err == nil; ok = rows.Next() {
			var row []byte
			if row, err = rows.Value(); err == nil {
				err = each(rows.Key(), row)
			}
		}
		if err == nil {
			err = rows.Error()
		}
		if closeErr := rows.Close(); err == nil {
			err = closeErr
		}
		return err
	}
	return v, nil
}

// isNotFound reports whether the engine has said that there is no such row. Its
// error, kv.ErrKeyNotFound, is internal to it, and comes wrapped in a stack.
func isNotFound(err error) bool {
	for next := err; next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err.Error() == "key not found"
}

// zero returns a zero value of what f takes, whose type is internal to the
// engine.
func zero[T, R any](f func(*T) (R, error)) *T {
	return new(T)
}

// publish opens a view for those who read while the caller, which has the turn,
// commits.
func (db *DB) publish() error {
	v, err := db.openView()
	if err != nil {
		return err
	}
	db.published.Store(v)
	return nil
}

// unpublish takes the view back. It comes before anyone is told of the commit,
// so that whoever has been told reads it.
func (db *DB) unpublish() {
	db.published.Swap(nil).release()
}

// acquire reports whether the view can be used, until release.
func (v *view) acquire() bool {
	for {
		n := v.users.Load()
		if n == 0 {
			return false
		}
		if v.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (v *view) release() {
	if v.users.Add(-1) == 0 {
		_ = v.end() // frees a snapshot; nothing was written
	}
}
