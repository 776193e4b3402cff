// The application's own turns to write, with Chai's transactions.

package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/chaisql/chai"
)

// Lock returns the lock to hold while writing to db with Chai's transactions. The
// turns of the queue take it, too. Hold it from before a transaction begins until it
// has ended.
func Lock(db *chai.DB) sync.Locker { return &sharedBy(db).app }

// An appLock is a lock that can be waited for together with a context.
type appLock struct {
	taken  chan struct{} // holds an element while the lock is held
	locked atomic.Bool   // by a caller of Lock

	mu   sync.Mutex
	free chan struct{} // closed when no transaction is open; nil if nobody waits for that
}

func (l *appLock) Lock() {
	l.taken <- struct{}{}
	l.locked.Store(true)
}

// Unlock panics if l is not locked.
func (l *appLock) Unlock() {
	if !l.locked.CompareAndSwap(true, false) {
		panic("chaistore: unlock of unlocked write lock")
	}
	<-l.taken
}

// Update calls f with a writable transaction of Chai, in a turn of its own. It
// commits the transaction if f returns nil, and rolls it back if f returns an error
// or panics. If ctx ends before the transaction begins, Update returns the context's
// error and does not call f. If it has to wait for too long, it returns [ErrHangs].
func Update(ctx context.Context, db *chai.DB, f func(tx *chai.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e := For(db, nil)
	ctx, cancel := context.WithTimeoutCause(ctx, e.hangLimit, ErrHangs)
	defer cancel()
	select {
	case e.app.taken <- struct{}{}:
		defer func() { <-e.app.taken }()
	case <-ctx.Done():
		return waited(ctx)
	}
	if err := e.Writable(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if !e.waitForWriters(ctx) {
		return waited(ctx)
	}
	tx, err := e.beginTx()
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	succeeded := false
	defer func() {
		if !succeeded {
			e.rollbackTx(tx)
		}
		e.spend(tx)
	}()
	if err := f(tx); err != nil {
		return err
	}
	succeeded = true
	if err := e.commitTx(tx); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

// waited returns why a call of Update gave up: the error of its caller's context, or
// ErrHangs.
func waited(ctx context.Context) error {
	if cause := context.Cause(ctx); cause == ErrHangs {
		return cause
	}
	return ctx.Err()
}

// waitForWriters waits until no writing transaction is open. If ctx ends before, it
// returns false. Waiting in Begin instead would keep the open transaction from being
// committed.
//
// The goroutine that waits for the lock goes on after its caller gave up, so the next
// caller waits with it.
func (db *DB) waitForWriters(ctx context.Context) bool {
	if db.writeLock.TryLock() {
		db.writeLock.Unlock()
		return true
	}
	a := &db.app
	a.mu.Lock()
	free := a.free
	if free == nil {
		free = make(chan struct{})
		a.free = free
		go func() {
			db.writeLock.Lock()
			defer db.writeLock.Unlock()
			a.mu.Lock()
			defer a.mu.Unlock()
			close(free)
			a.free = nil
		}()
	}
	a.mu.Unlock()
	select {
	case <-free:
		return true
	case <-ctx.Done():
		return false
	}
}

func (db *DB) beginTx() (tx *chai.Tx, err error) {
	defer db.failures.rescue(&err, db.failures.failAll)
	db.panicIfClosed()
	if tx, err = db.handle.Begin(true); err != nil {
		// BeginTx keeps the write lock if SQL has begun a read-only transaction.
		db.writeLock.Unlock()
	}
	return tx, err
}

// commitTx commits tx. If that fails, it rolls tx back: otherwise Chai would keep its
// write lock (internal/database, transaction.go). If the commit panics, it does not:
// Rollback might wait for a lock of the engine, and readers share the snapshot from
// before tx as long as tx is open.
func (db *DB) commitTx(tx *chai.Tx) (err error) {
	defer db.failures.rescue(&err, db.failures.failWrites)
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if _, ok := r.(commitFailure); ok {
			db.writeLock.Unlock() // nobody else does
		}
		panic(r)
	}()
	if err = tx.Commit(); err != nil {
		db.rollbackTx(tx)
	}
	return err
}

// rollbackTx rolls tx back. If that fails, some of the writes of tx may remain, which
// readers of this package undo, and nothing can be written any more. An error because
// f has ended tx itself is not a failure.
func (db *DB) rollbackTx(tx *chai.Tx) {
	var err error
	defer db.failures.rescue(&err, db.failures.failWrites)
	if err = tx.Rollback(); err != nil && err.Error() != "already closed" {
		_ = db.failures.failWrites(fmt.Errorf("roll back transaction: %w", err))
	}
}
