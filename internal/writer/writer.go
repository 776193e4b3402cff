// Package writer gives a Chai database three things that it lacks: writers that
// share a transaction instead of deadlocking, readers that don't wait for an
// fsync, and errors where the engine panics.
//
// Chai deadlocks when two goroutines write at the same time: BeginTx in its
// internal/database waits for the write lock while it holds the lock that
// Commit needs. It locks readers out while it commits. And when it panics, as it
// does once it is closed or its disk is full, it keeps locks that the next call
// then waits for.
//
// The parts are the queue, in which writers wait (queue.go); the group, which is
// what one of them does for all (group.go); the view, which is what readers see
// (read.go); and the failures, which end it all (failure.go). The package knows
// nothing of sessions, nor of the SQL that passes through it.
package writer

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/chaisql/chai"
)

// A DB is a Chai database that can be written to and read from by many
// goroutines. All DBs of the same database share its queue of writers, and what
// is known of the engine's failures.
type DB struct {
	engine     *chai.DB
	logger     func() *slog.Logger
	stallLimit time.Duration // how long a transaction may take before its callers get ErrStalled
	prepared   sync.Map      // SQL text -> *chai.Statement
	*shared
}

// shared is what all DBs of one database have in common. It must not refer to
// the database for longer than a transaction lasts, or the database could never
// be collected.
type shared struct {
	queue   queue
	crowded bool // whether the last group had more than one member; for who has the turn

	// opening is held, shared, while the engine opens a transaction for reading,
	// and, exclusively, while it opens one for writing. An opening that panics
	// leaves a lock of the engine behind (NewSnapshotSession and
	// LockSharedSnapshot in its internal/kv), and another that ran beside it would
	// wait for that lock for ever. With opening, the other one comes later, and
	// sees the failure before it calls the engine.
	opening sync.RWMutex

	published atomic.Pointer[view] // while statements are committed, what can be read

	readFailure  atomic.Pointer[error] // why nothing can be read any more
	writeFailure atomic.Pointer[error] // why nothing can be written any more
}

// registry has the shared part of each open database. The key is a weak pointer
// to the engine behind the handle, because handles are copied
// (chai.DB.WithContext) and their copies write to the same engine.
var registry sync.Map

// For returns db with its queue of writers. The logger is asked for when there
// is something to log. A context that [chai.DB.WithContext] has attached to db
// does not apply to the result.
func For(db *chai.DB, logger func() *slog.Logger) *DB {
	return &DB{engine: &chai.DB{DB: db.DB}, logger: logger, stallLimit: stallLimit, shared: sharedBy(db)}
}

func sharedBy(db *chai.DB) *shared {
	key := any(weak.Make(db.DB))
	if s, ok := registry.Load(key); ok {
		return s.(*shared)
	}
	s, loaded := registry.LoadOrStore(key, new(shared))
	if !loaded {
		runtime.AddCleanup(db.DB, func(key any) { registry.Delete(key) }, key)
	}
	return s.(*shared)
}

// Lock returns the lock that is held by whoever writes to db. A goroutine that
// writes without [DB.Write] holds it from before its transaction begins until
// after it has ended. It waits for the lock in the same queue as all others.
func Lock(db *chai.DB) sync.Locker {
	return &sharedBy(db).queue
}

// An Op is a write that may share its transaction: changes of rows by their keys.
// It may be run more than once, after the transaction in which it ran was rolled
// back, and by another goroutine than the one that waits for it.
type Op func(b *Batch) error

// Statements are a write of any kind, in a transaction of its own.
type Statements func(tx *chai.Tx) error

// Write runs op in a transaction that it may share with other operations, and
// commits. It returns when the commit has reached the disk, or has failed.
//
// An operation that fails makes no other one fail: the transaction is rolled
// back, and each operation is run again in a transaction of its own.
//
// A context that ends before the transaction has begun makes Write return the
// context's error, and op is not run. Afterwards it has no influence. Once the
// engine has panicked in a write, or would keep its write lock for ever, each
// Write returns that failure at once. When a transaction hangs in the engine for
// 10 seconds, so that it is not known whether it will be committed, Write returns
// an error, and so do those that come later, at once, until it has ended.
func (db *DB) Write(ctx context.Context, op Op) error {
	return db.write(ctx, &request{op: op})
}

// WriteAlone is [DB.Write] for statements in a transaction of their own. What
// fails is rolled back.
func (db *DB) WriteAlone(ctx context.Context, statements Statements) error {
	return db.write(ctx, &request{statements: statements})
}

func (db *DB) write(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if failure := db.writeFailure.Load(); failure != nil {
		return *failure
	}
	switch db.queue.wait(ctx, r) {
	case leads:
		db.lead(r)
		return r.err
	case answered:
		return r.err
	default:
		return ctx.Err()
	}
}
