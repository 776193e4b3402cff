// The application's own turns to write, with Chai's transactions.

package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/reach"
)

// Lock returns the lock to hold while writing to the database with Chai's transactions.
// The turns of the queue take it, too. Hold it from before a transaction begins until it
// has ended.
func (db *DB) Lock() sync.Locker { return &db.app }

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
// error and does not call f. If it has to wait for too long, or a turn hangs, it returns
// [ErrBusy].
func (db *DB) Update(ctx context.Context, f func(tx *chai.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !db.BusySince().IsZero() {
		return ErrBusy
	}
	ctx, cancel := context.WithTimeoutCause(ctx, db.hangLimit, ErrBusy)
	defer cancel()
	select {
	case db.app.taken <- struct{}{}:
		defer func() { <-db.app.taken }()
	case <-ctx.Done():
		return waited(ctx)
	}
	if err := db.Writable(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if err := db.awaitObserving(ctx, false); err != nil {
		return err
	}
	if !db.waitForWriters(ctx) {
		return waited(ctx)
	}
	return db.update(f)
}

// These are returned by Update if f ends the transaction itself.
var (
	errCommitted  = errors.New("the function has committed the transaction itself, so its changes are kept: leave that to Update, which commits when the function returns nil")
	errRolledBack = errors.New("the function has rolled the transaction back itself, so its changes are gone: leave that to Update, which rolls back when the function returns an error or panics")
)

// update is Update in its turn.
func (db *DB) update(f func(tx *chai.Tx) error) error {
	tx, err := db.beginTx()
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	// After the end of tx, its batch is in Pebble's pool, and its catalog is everybody's. What is
	// written to tx then would be committed with a batch of somebody else, even to another
	// database, and a table that is changed would not be the one on disk. So it panics.
	release := func() { *reach.Batch(tx), *reach.Writable(tx) = nil, false }
	var ended error // by f
	for hooks, end := range map[*[]func()]error{reach.OnCommitHooks(tx): errCommitted, reach.OnRollbackHooks(tx): errRolledBack} {
		*hooks = append(*hooks, func() { release(); ended = end })
	}
	succeeded := false
	defer func() {
		if !succeeded {
			db.rollbackTx(tx)
		}
		release()
	}()
	if err := f(tx); err != nil {
		return err
	}
	succeeded = true
	if ended != nil {
		return ended
	}
	if err := db.commitTx(tx); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

// waited returns why a call of Update gave up: the error of its caller's context, or
// ErrBusy.
func waited(ctx context.Context) error {
	if cause := context.Cause(ctx); cause == ErrBusy {
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

// beginTx begins a transaction. Close of the database can't have begun then: it waits for
// the write lock first. But it may have ended.
func (db *DB) beginTx() (tx *chai.Tx, err error) {
	if err := db.Usable(); err != nil {
		return nil, err
	}
	defer db.state.rescue(&err, db.state.fault)
	defer func() {
		if r := recover(); r != nil {
			if cause, ok := r.(error); ok && isClosed(cause) {
				reach.SharedSnapshot(db.handle).Unlock() // Chai doesn't
				db.writeLock.Unlock()
			}
			panic(r)
		}
	}()
	if tx, err = db.handle.Begin(true); err != nil {
		// BeginTx keeps the write lock if SQL has begun a read-only transaction.
		db.writeLock.Unlock()
		return nil, err
	}
	db.forgetSeen()
	return tx, nil
}

// commitTx commits tx, or rolls it back if that fails: otherwise Chai would keep its
// write lock (internal/database, transaction.go).
func (db *DB) commitTx(tx *chai.Tx) (err error) {
	defer func() {
		if err != nil {
			db.rollbackTx(tx)
		}
	}()
	defer db.state.rescue(&err, db.state.fail)
	return commitOf(tx)
}

// commitOf is tx.Commit with an error instead of a commitFailure.
func commitOf(tx *chai.Tx) (err error) {
	defer func() {
		r := recover()
		if failure, ok := r.(commitFailure); ok {
			err = failure.error
		} else if r != nil {
			panic(r)
		}
	}()
	return tx.Commit()
}

// rollbackTx rolls tx back. An error because f has ended tx itself is not a failure.
func (db *DB) rollbackTx(tx *chai.Tx) {
	var err error
	defer db.state.rescue(&err, db.state.fail)
	if err = tx.Rollback(); err != nil && err.Error() != "already closed" {
		_ = db.state.fail(fmt.Errorf("roll back transaction: %w", err))
	}
}
