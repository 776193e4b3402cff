// This file is what the caller that has the turn does: it runs the operations of
// all that wait in one transaction, and answers them.

package writer

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/chaisql/chai"
)

const stallLimit = 10 * time.Second

// ErrStalled is the error of writes while a transaction hangs in the engine. The
// operations that run in it may have been committed in the end.
var ErrStalled = fmt.Errorf("a transaction has not ended for %v: another goroutine may be writing to the database without holding the write lock, or the disk may be full", stallLimit)

// lead runs the request that has the turn together with those that wait, answers
// them, and passes the turn on.
//
// The engine can hang: when it deadlocks with an application that writes without
// the lock, or when its memory is full and can't be written to a full disk
// (makeRoomForWrite in Pebble). Therefore another goroutine calls it. If that one
// does not come back, the callers get an error, and the turn is passed on when it
// does.
func (db *DB) lead(leader *request) {
	if db.crowded {
		// Those that the last group has answered may be about to come back. Let them,
		// or this group would be the leader alone, and they would wait for it. It makes
		// groups 1.8 times as large with 8 to 256 goroutines, and the throughput 1.3
		// to 1.5 times (BenchmarkCommit).
		runtime.Gosched()
	}
	group := db.queue.group(leader)
	db.crowded = len(group) > 1

	done := make(chan []error, 1)
	var settled atomic.Bool // by the goroutine that comes to its end, or the leader that gives up
	go func() {
		growStack()
		errs := db.run(group)
		if settled.CompareAndSwap(false, true) {
			done <- errs
			return
		}
		db.queue.resume()
	}()
	stall := time.NewTimer(db.stallLimit)
	defer stall.Stop()
	var errs []error
	select {
	case errs = <-done:
	case <-stall.C:
		if settled.CompareAndSwap(false, true) {
			db.logger().Error("chaistore: writing to the database hangs", "error", ErrStalled)
			db.queue.stall(group, ErrStalled)
			return
		}
		errs = <-done
	}
	for i, r := range group {
		r.answer(errs[i])
	}
	db.queue.pass()
}

// growStack lets the stack of a new goroutine grow to what the engine needs in one
// step. In three steps, each of which copies more than the one before, it takes an
// eighth of the time of a commit to memory (BenchmarkCommit/1/memory).
//
//go:noinline
func growStack() {
	var room [8 << 10]byte
	use(&room)
}

//go:noinline
func use(*[8 << 10]byte) {}

// run runs a group of requests and returns their errors.
func (db *DB) run(group []*request) []error {
	errs := make([]error, len(group))
	err := db.transact(group)
	alone := err != nil && len(group) > 1 && db.writeFailure.Load() == nil
	for i := range group {
		if alone {
			err = db.transact(group[i : i+1])
		}
		errs[i] = err
	}
	return errs
}

// transact runs all requests in one transaction. When one of them fails, or the
// commit, the transaction is rolled back.
func (db *DB) transact(group []*request) error {
	tx, err := db.begin(group[0].statements != nil)
	if err != nil {
		return err
	}
	return db.finish(tx, group)
}

// A transaction is one that writes: by statements, or as a batch.
type transaction struct {
	sql   *chai.Tx // nil for a batch
	batch Batch

	// Either ends it, unless it fails.
	commit, rollback func() error
}

func (db *DB) begin(statements bool) (tx transaction, err error) {
	db.opening.Lock()
	defer db.opening.Unlock()
	defer db.rescue(&err, db.failAll)

	if failure := db.writeFailure.Load(); failure != nil {
		return tx, *failure
	}
	// With a transaction of an SQL BEGIN open, Begin would return an error
	// without unlocking the engine's write lock (internal/database, BeginTx).
	if db.engine.DB.GetAttachedTx() != nil {
		return tx, errors.New("begin transaction: a transaction that SQL BEGIN has opened is still open on this database")
	}
	if statements {
		tx, err = db.beginStatements()
	} else {
		tx, err = db.beginBatch()
	}
	if err != nil {
		return tx, db.failWrites(fmt.Errorf("begin transaction: %w", err))
	}
	if err := db.queue.stalled(); err != nil { // it took too long: nobody waits any more
		if rollbackErr := tx.rollback(); rollbackErr != nil {
			db.failWrites(fmt.Errorf("roll back transaction: %w", rollbackErr))
		}
		return tx, err
	}
	return tx, nil
}

// beginStatements begins a transaction of statements. It locks readers out while
// it commits, and has a view published for them.
func (db *DB) beginStatements() (transaction, error) {
	tx, err := db.engine.Begin(true)
	if err != nil {
		return transaction{}, err
	}
	commit := func() error {
		if err := db.publish(); err != nil {
			return err
		}
		defer db.unpublish()
		return tx.Commit()
	}
	return transaction{sql: tx, commit: commit, rollback: tx.Rollback}, nil
}

// beginBatch begins a transaction that is a batch. It commits as the engine does
// (internal/database, Transaction.Commit), but without locking readers out, which
// makes sure that a change of the catalog is seen together with its rows: a batch
// makes none. They see the state before it until it is on the disk.
func (db *DB) beginBatch() (transaction, error) {
	tx, err := db.engine.DB.Begin(true)
	if err != nil {
		return transaction{}, err
	}
	commit := func() error {
		if err := tx.Session.Commit(); err != nil {
			return err
		}
		tx.WriteTxMu.Unlock()
		return nil
	}
	batch := Batch{put: tx.Session.Put, delete: tx.Session.Delete}
	return transaction{batch: batch, commit: commit, rollback: tx.Rollback}, nil
}

// finish runs the requests in tx and ends tx. After a panic tx is left as it is:
// the engine still has its write lock then, and Rollback would hang.
func (db *DB) finish(tx transaction, group []*request) (err error) {
	defer db.rescue(&err, db.failWrites)

	for _, r := range group {
		if tx.sql != nil {
			err = r.statements(tx.sql)
		} else {
			err = r.op(&tx.batch)
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		if err = tx.commit(); err == nil {
			return nil
		}
		err = fmt.Errorf("commit transaction: %w", err)
	}
	// A Rollback that fails returns before it unlocks (internal/database,
	// transaction.go).
	if rollbackErr := tx.rollback(); rollbackErr != nil {
		db.failWrites(fmt.Errorf("roll back transaction: %w", rollbackErr))
	}
	return err
}

// A Batch is a transaction that changes rows as the engine stores them, without
// reading any. It must not be used after the [Op] that it was given to has
// returned.
//
// It exists because of what statements cost in a transaction that has already
// written: before an INSERT or a DELETE looks for its row, the engine writes out
// what the transaction has changed so far, with a record of how to undo it
// (internal/kv, batch.go and rollback.go). With statements, 64 goroutines that
// commit reach a fifth of the throughput, the engine remembers each key until it
// is closed, and a crash can leave a part of a transaction.
type Batch struct {
	put    func(key, value []byte) error
	delete func(key []byte) error
}

// Put adds the row with the given key, or overwrites it.
func (b *Batch) Put(key, row []byte) error {
	return b.put(key, row)
}

// Delete deletes the row with the given key, if there is one.
func (b *Batch) Delete(key []byte) error {
	return b.delete(key)
}
