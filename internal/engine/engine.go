// Package engine reads and writes a Chai database beneath its transactions, so that
// the application's transactions can't deadlock the caller.
//
// Chai deadlocks when two goroutines write at the same time: BeginTx in its
// internal/database waits for the write lock while it holds the lock that Commit
// needs. Commit locks readers out during its fsync. A panic, such as on a closed
// database, leaves locks held. Beneath transactions, a database has a write lock,
// sessions that write a batch, and sessions that read a snapshot.
//
// # How a write works
//
// A write is an [Op], a function that changes a [Batch]. Its caller puts it into the
// queue of the database, and waits for the answer or for its context. If no goroutine
// serves the queue, the caller starts one that does, in turns, until the queue is
// empty:
//
//  1. It waits for the callers of [Lock] and for the engine's write lock. The
//     requests stay in the queue meanwhile, so their contexts can still end.
//  2. It takes the waiting requests out of the queue, up to a limit, runs their
//     operations on one batch, and commits it with one fsync. An operation that fails
//     is left out of the batch.
//  3. It releases the locks, and answers each request.
//
// A turn that takes longer than 10 seconds hangs. Then a timer answers all waiting
// callers with [ErrBusy], and the queue refuses further requests with it until the
// turn ends. Both the timer and the end of the turn hold the queue's lock, so no
// request is answered twice, and no refusal outlasts the hang.
//
// If a commit fails, or the engine panics, every later write returns that error.
//
// # What the files are
//
// The queue is in queue.go, the batch in batch.go, reading in snapshot.go, the cache in
// cache.go, and what certainly does not exist in absent.go. All that anyone commits passes
// through watch.go. feed.go tells followers of it, and await.go waits until snapshots have
// it. undo.go knows which changes may still be undone. When the disk fails, disk.go sees it,
// and failure.go says what follows. closing.go makes Close wait. The application's own
// turns are in application.go, memory and files for speed in memory.go, the memory of
// waiting writes in budget.go, freeing space in compact.go, copies of the files in
// backup.go, the order of keys in comparer.go, and the numbers of tables in namespaces.go.
// What Chai and Pebble don't export is in package reach.
//
// The package knows nothing of sessions.
package engine

import (
	"context"
	"hash/maphash"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"

	"go.elara.ws/chaistore/internal/reach"
)

// A DB is a Chai database that many goroutines can read and write. All DBs of the
// same database share its queue, its cache, and the failures of its engine.
type DB struct {
	handle    *chai.DB
	writeLock *sync.Mutex // the engine's, held by its only writing transaction
	logger    func() *slog.Logger
	hangLimit time.Duration
	*shared
}

// shared is the part that all DBs of one database share. It must not refer to the
// database, which could otherwise never be collected.
type shared struct {
	watched   sync.Once // done when there is a watcher, or the database is refused
	state     *state
	observing atomic.Bool // whether the watcher sees each batch
	queue     queue
	budget    budget
	app       appLock
	own       atomic.Pointer[ownBatch] // while this package commits it
	feed      feed
	cache     cache
	filters   keyFilters
	undo      undoLog
	growing   sync.Mutex
	memory    int64      // the greatest budget so far; growing protects it
	merging   sync.Mutex // held while Compact compacts
	using     int        // calls of enter that have not left; Pebble's mutex protects it
	fsyncs    atomic.Uint64
	values    sync.Map // for other packages
}

// registry holds the shared part of each open database. The key is a weak pointer to
// the engine behind the handle, because handles are copied (chai.DB.WithContext), and
// the copies write to the same engine.
var registry sync.Map

// Open returns the DB of a handle. It calls logger for each line that it logs; a nil logger
// logs nothing. A context attached by [chai.DB.WithContext] does not apply to the result.
func Open(db *chai.DB, logger func() *slog.Logger) *DB {
	e := &DB{
		handle:    &chai.DB{DB: db.DB},
		writeLock: new(sync.Mutex),
		logger:    logger,
		hangLimit: HangLimit,
		shared:    sharedBy(db),
	}
	if reach.Err() == nil {
		e.writeLock = reach.Writetxmu(db)
	}
	e.state.jobs.logTo(e)
	return e
}

func (db *DB) pebble() *pebble.DB { return db.handle.DB.Store.DB() }

func sharedBy(db *chai.DB) *shared {
	key := any(weak.Make(db.DB))
	value, ok := registry.Load(key)
	if !ok {
		fresh := &shared{app: appLock{taken: make(chan struct{}, 1)}}
		fresh.cache.seed, fresh.cache.filters = maphash.MakeSeed(), &fresh.filters
		fresh.feed.follow(fresh.cache.follow)
		fresh.feed.follow(fresh.filters.follow)
		value, ok = registry.LoadOrStore(key, fresh)
		if !ok {
			runtime.AddCleanup(db.DB, func(key any) { registry.Delete(key) }, key)
		}
	}
	s := value.(*shared)
	s.watched.Do(func() { watch(db, s) }) // who comes second waits for it
	return s
}

// Write runs op in a batch that it may share with other operations, and commits the
// batch. It returns when the commit has reached the disk or has failed. size is the
// approximate number of bytes that op writes.
//
// If ctx ends before op runs, Write returns the context's error, and op does not run.
// After that, ctx has no effect. Write returns [ErrBusy] when a turn hangs; op may
// or may not be committed then. Once the database is read-only or closed, it returns why, at
// once.
func (db *DB) Write(ctx context.Context, size int, op Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.Writable(); err != nil {
		return err
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

// Shared returns the value of type T that all DBs of the same database share under a name.
// If there is none yet, it is made. It must not refer to the database.
func Shared[T any](db *DB, name string, make func() *T) *T {
	key := sharedKey[T](name)
	value, ok := db.values.Load(key)
	if !ok {
		value, _ = db.values.LoadOrStore(key, make())
	}
	return value.(*T)
}

type sharedKey[T any] string

// Fsyncs returns the number of batches committed, each with one fsync.
func (db *DB) Fsyncs() uint64 { return db.fsyncs.Load() }

// BackgroundError returns why the engine can't write sstables in the background, or nil if
// it can. It tries again by itself.
func (db *DB) BackgroundError() error { return db.state.jobs.error() }

// WriteError returns the error that a write would return now: nil if writes work,
// [ErrBusy], or why the database is read-only or closed.
func (db *DB) WriteError() error {
	if err := db.Writable(); err != nil {
		return err
	}
	if !db.BusySince().IsZero() {
		return ErrBusy
	}
	return nil
}

// Probe makes a hang known that nobody has met yet: it takes a turn that writes nothing, if
// none is being taken. It does not wait for it.
func (db *DB) Probe() {
	if db.queue.isServed() {
		return
	}
	serve, err := db.queue.enter(&request{op: func(*Batch) error { return nil }, answer: make(chan error, 1)})
	if serve && err == nil {
		go db.serve()
	}
}

// BusySince returns since when writes return [ErrBusy], or the zero time if they don't.
func (db *DB) BusySince() time.Time { return db.queue.busySince() }
