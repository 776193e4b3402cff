// Package writer gives a Chai database the two things that it lacks: writers
// that take turns, and errors where the engine panics.
//
// Chai deadlocks when two goroutines write at the same time: BeginTx in its
// internal/database waits for the write lock while it holds the lock that
// Commit needs. And when it panics, as it does once it is closed or its disk is
// full, it keeps locks that the next call then waits for.
//
// This package knows nothing of sessions, nor of the SQL that passes through it.
package writer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/chaisql/chai"
)

// A DB is a Chai database to which one goroutine writes at a time. All DBs of
// the same database share that turn, and what is known of the engine's
// failures. Its methods may be called from many goroutines.
type DB struct {
	engine   *chai.DB
	prepared sync.Map // SQL text -> *chai.Statement
	*shared
}

// shared is what all DBs of one database have in common. It must not refer to
// the database, which could then never be collected.
type shared struct {
	turn chan struct{} // holds an element while somebody writes

	// opening is held, shared, while the engine opens a transaction for reading,
	// and, exclusively, while it opens one for writing. An opening that panics
	// leaves a lock of the engine behind (NewSnapshotSession and
	// LockSharedSnapshot in its internal/kv), and another that ran beside it would
	// wait for that lock for ever. With opening, the other one comes later, and
	// sees the failure before it calls the engine.
	opening sync.RWMutex

	readFailure  atomic.Pointer[error] // why nothing can be read any more
	writeFailure atomic.Pointer[error] // why nothing can be written any more
}

// registry has the shared part of each open database. The key is a weak pointer
// to the engine behind the handle, because handles are copied
// (chai.DB.WithContext) and their copies write to the same engine.
var registry sync.Map

// For returns db as a database whose writers take turns. A context that
// [chai.DB.WithContext] has attached to db does not apply to the result.
func For(db *chai.DB) *DB {
	return &DB{engine: &chai.DB{DB: db.DB}, shared: sharedBy(db)}
}

// Lock returns the lock that is held by whoever writes to db. A goroutine that
// writes without [DB.Write] holds it from before its transaction begins until
// after it has ended.
func Lock(db *chai.DB) sync.Locker {
	return sharedBy(db)
}

func sharedBy(db *chai.DB) *shared {
	key := any(weak.Make(db.DB))
	if s, ok := registry.Load(key); ok {
		return s.(*shared)
	}
	s, loaded := registry.LoadOrStore(key, &shared{turn: make(chan struct{}, 1)})
	if !loaded {
		runtime.AddCleanup(db.DB, func(key any) { registry.Delete(key) }, key)
	}
	return s.(*shared)
}

// Lock waits until nobody writes, in the order in which callers came.
func (s *shared) Lock() {
	s.turn <- struct{}{}
}

func (s *shared) lockContext(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if failure := s.writeFailure.Load(); failure != nil {
		return *failure
	}
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unlock ends what Lock began. It panics if nobody holds the lock.
func (s *shared) Unlock() {
	select {
	case <-s.turn:
	default:
		panic("chaistore: unlock of unlocked write lock")
	}
}

// An Op is a write: statements to run in a transaction. It must be safe to run
// once more after the transaction was rolled back.
type Op func(tx *Tx) error

// Write runs op in a transaction, when it is its turn, and commits. When op or
// the commit fails, the transaction is rolled back and that error returned.
//
// A context that ends before the transaction has begun makes Write return the
// context's error; afterwards it has no influence. Once the engine has panicked
// in a write, or would keep its write lock for ever, each Write returns that
// failure at once.
func (db *DB) Write(ctx context.Context, op Op) error {
	if err := db.lockContext(ctx); err != nil {
		return err
	}
	defer db.Unlock()

	tx, err := db.begin()
	if err != nil {
		return err
	}
	return db.finish(tx, op)
}

func (db *DB) begin() (tx *Tx, err error) {
	db.opening.Lock()
	defer db.opening.Unlock()
	defer db.rescue(&err, db.failAll)

	if failure := db.writeFailure.Load(); failure != nil {
		return nil, *failure
	}
	// With a transaction of an SQL BEGIN open, Begin would return an error
	// without unlocking the engine's write lock (internal/database, BeginTx).
	if db.engine.DB.GetAttachedTx() != nil {
		return nil, errors.New("begin transaction: a transaction that SQL BEGIN has opened is still open on this database")
	}
	t, err := db.engine.Begin(true)
	if err != nil {
		return nil, db.failWrites(fmt.Errorf("begin transaction: %w", err))
	}
	return &Tx{engine: t, prepared: make(map[string]*chai.Statement)}, nil
}

// finish runs op in tx and ends tx. After a panic tx is left as it is: the
// engine still has its write lock then, and Rollback would hang.
func (db *DB) finish(tx *Tx, op Op) (err error) {
	defer db.rescue(&err, db.failWrites)

	err = op(tx)
	if err == nil {
		if err = tx.engine.Commit(); err == nil {
			return nil
		}
		err = fmt.Errorf("commit transaction: %w", err)
	}
	// A Rollback that fails returns before it unlocks (internal/database,
	// transaction.go).
	if rollbackErr := tx.engine.Rollback(); rollbackErr != nil {
		db.failWrites(fmt.Errorf("roll back transaction: %w", rollbackErr))
	}
	return err
}

// Query runs a statement that reads, and calls each with every row of its
// result until each returns an error, which Query then returns. The row, and
// what is scanned from it into a []byte, are valid during that call only.
// Statements are parsed once.
//
// Once the engine has panicked in a read, each Query returns that failure at
// once.
func (db *DB) Query(sql string, each func(row *chai.Row) error, args ...any) (err error) {
	// After a panic the result is left as it is: closing it could wait for a lock
	// that the panic has left behind.
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

// rescue is deferred around calls of the engine: it turns a panic into an error
// and remembers it with fail.
func (s *shared) rescue(err *error, fail func(error) error) {
	switch r := recover().(type) {
	case nil:
	case error:
		*err = fail(fmt.Errorf("chai panicked: %w", r))
	default:
		*err = fail(fmt.Errorf("chai panicked: %v", r))
	}
}

// failWrites remembers why nothing can be written any more, and returns the
// first such failure.
func (s *shared) failWrites(err error) error {
	s.writeFailure.CompareAndSwap(nil, &err)
	return *s.writeFailure.Load()
}

// failAll remembers why nothing can be written or read any more, and returns
// the first such failure.
func (s *shared) failAll(err error) error {
	s.failWrites(err)
	s.readFailure.CompareAndSwap(nil, &err)
	return *s.readFailure.Load()
}

// A Tx is a write transaction. It ends when the Op that it was given to
// returns.
type Tx struct {
	engine   *chai.Tx
	prepared map[string]*chai.Statement
}

// Exec runs a statement that has no result. Statements are parsed once a
// transaction.
func (tx *Tx) Exec(sql string, args ...any) error {
	statement, err := tx.prepare(sql)
	if err != nil {
		return err
	}
	return statement.Exec(args...)
}

// Query runs a statement that reads, as [DB.Query] does.
func (tx *Tx) Query(sql string, each func(row *chai.Row) error, args ...any) error {
	statement, err := tx.prepare(sql)
	if err != nil {
		return err
	}
	result, err := statement.Query(args...)
	if err != nil {
		return err
	}
	return result.Iterate(each)
}

func (tx *Tx) prepare(sql string) (*chai.Statement, error) {
	if statement, ok := tx.prepared[sql]; ok {
		return statement, nil
	}
	statement, err := tx.engine.Prepare(sql)
	if err != nil {
		return nil, err
	}
	tx.prepared[sql] = statement
	return statement, nil
}
