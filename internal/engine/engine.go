// Package engine reads and writes a Chai database beneath its transactions, so
// that nothing an application does with its own can deadlock the caller.
//
// Chai deadlocks when two goroutines write at the same time: BeginTx in its
// internal/database waits for the write lock while it holds the lock that Commit
// needs. Commit locks readers out during its fsync. A panic, as in a closed
// database, leaves locks behind. Beneath transactions, a database has a write lock,
// sessions that write a batch, and sessions that read a snapshot, none of which need
// Chai's other locks.
//
// # How a write is done
//
// A write is an [Op], a function that changes a [Batch]. Its caller puts it into
// the queue of the database, and waits for the answer or for its context. If
// nobody serves the queue, the caller starts a goroutine that does, in turns,
// until the queue is empty:
//
//  1. It waits for the callers of [Lock] and for the write lock of the engine.
//     The requests stay in the queue meanwhile, so their contexts can still end.
//  2. It takes the requests that wait, up to a limit, out of the queue, runs
//     their operations on one batch, and commits it with one fsync. An operation
//     that fails is left out of the batch.
//  3. It gives up the locks, and answers each request.
//
// A turn that takes longer than 10 seconds hangs. Then a timer answers everyone
// who waits with [ErrHangs], and the queue refuses further requests with it, until
// the turn is over. Both happen under the lock of the queue, so whatever comes
// first, nothing is answered twice and no refusal is left behind.
//
// If the engine panics, the goroutine keeps the write lock, as Chai would, and
// everyone gets the panic as an error from then on.
//
// The package knows nothing of sessions. The queue is in queue.go, the batch in
// batch.go, reading in snapshot.go, the application's own turns in
// application.go, and what remains after a panic in failure.go.
package engine

import (
	"context"
	"log/slog"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
	"weak"

	"github.com/chaisql/chai"
)

// A DB is a Chai database that many goroutines can read and write. All DBs of the
// same database share its queue, and what is known of the engine's failures.
type DB struct {
	handle    *chai.DB
	writeLock *sync.Mutex // of the engine: held by the one transaction that writes
	logger    func() *slog.Logger
	hangLimit time.Duration
	*shared
}

// shared is what all DBs of one database have in common. It must not refer to the
// database, which could then never be collected.
type shared struct {
	queue    queue
	app      appLock
	failures failures
	cache    *cache
	fsyncs   atomic.Uint64
	values   sync.Map // of other packages
}

// registry has the shared part of each open database. The key is a weak pointer
// to the engine behind the handle, because handles are copied
// (chai.DB.WithContext) and their copies write to the same engine.
var registry sync.Map

// For returns db. It asks for the logger each time there is something to log. A
// context that [chai.DB.WithContext] has attached to db does not apply to the
// result.
func For(db *chai.DB, logger func() *slog.Logger) *DB {
	return &DB{
		handle:    &chai.DB{DB: db.DB},
		writeLock: writeLock(db),
		logger:    logger,
		hangLimit: HangLimit,
		shared:    sharedBy(db),
	}
}

// writeLock returns the lock that a transaction of Chai holds while it writes.
//
// Only such a transaction has an exported reference to it, and to begin one just
// for that could deadlock the application: BeginTx would wait for a transaction
// that is open, with a lock held that the other one needs to commit.
func writeLock(db *chai.DB) *sync.Mutex {
	field := reflect.ValueOf(db.DB).Elem().FieldByName("writetxmu")
	return (*sync.Mutex)(unsafe.Pointer(field.UnsafeAddr()))
}

func sharedBy(db *chai.DB) *shared {
	key := any(weak.Make(db.DB))
	if s, ok := registry.Load(key); ok {
		return s.(*shared)
	}
	s, loaded := registry.LoadOrStore(key, &shared{app: appLock{taken: make(chan struct{}, 1)}, cache: newCache()})
	if !loaded {
		runtime.AddCleanup(db.DB, func(key any) { registry.Delete(key) }, key)
	}
	return s.(*shared)
}

// Write runs op in a batch that it may share with other operations, and commits.
// It returns when the commit has reached the disk, or has failed. The size is
// about how many bytes op writes.
//
// A context that ends before op is run makes Write return the context's error, and
// op is not run. Afterwards the context has no influence. Write returns
// [ErrHangs] when a turn hangs; whether op has been committed is not known then.
// Once the engine has panicked in a write, each Write returns that failure at
// once.
func (db *DB) Write(ctx context.Context, size int, op Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if failure := db.failures.writing(); failure != nil {
		return failure
	}
	r := &request{op: op, size: size, answer: make(chan error, 1)}
	serve, err := db.queue.enter(r)
	if err != nil {
		return err
	}
	if serve {
		go db.serve()
	}
	select {
	case err := <-r.answer:
		return err
	case <-ctx.Done():
		if db.queue.leave(r) {
			return ctx.Err()
		}
		return <-r.answer
	}
}

// Shared returns the value that all DBs of the same database have under a key, which
// is the given one if there was none. It must not refer to the database.
func (db *DB) Shared(key, value any) any {
	value, _ = db.values.LoadOrStore(key, value)
	return value
}

// Fsyncs returns how many batches have been committed, each with one fsync.
func (db *DB) Fsyncs() uint64 { return db.fsyncs.Load() }

// WriteError returns what a write returns at present: nil if writes work,
// [ErrHangs], or the failure that ended them for good.
func (db *DB) WriteError() error {
	if db.queue.hanging() {
		return ErrHangs
	}
	return db.failures.writing()
}
