// This file is what the caller that has the turn does: it runs the operations of
// all that wait in one transaction, and answers them.

package writer

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/chaisql/chai"
)

// stallLimit is how long a transaction may take before it is reported.
const stallLimit = 10 * time.Second

// lead runs the request that has the turn together with those that wait, answers
// them, and passes the turn on.
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
	db.run(group)
	for _, r := range group[1:] {
		r.woken <- answered
	}
	db.queue.pass()
}

// run runs a group of requests and sets their errors.
func (db *DB) run(group []*request) {
	err := db.transact(group)
	if err != nil && len(group) > 1 && db.writeFailure.Load() == nil {
		for i := range group {
			group[i].err = db.transact(group[i : i+1])
		}
		return
	}
	for _, r := range group {
		r.err = err
	}
}

// transact runs all requests in one transaction. When one of them fails, or the
// commit, the transaction is rolled back.
func (db *DB) transact(group []*request) error {
	stall := time.AfterFunc(stallLimit, func() {
		db.logger().Error("chaistore: a write to the database hangs; the likely reason is that another goroutine writes to it without holding the write lock",
			"since", stallLimit)
	})
	defer stall.Stop()

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
	end   interface {
		Commit() error
		Rollback() error
	}
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
		tx.sql, err = db.engine.Begin(true)
		tx.end = tx.sql
	} else {
		t, beginErr := db.engine.DB.Begin(true)
		if err = beginErr; err == nil {
			tx.batch = Batch{put: t.Session.Put, delete: t.Session.Delete}
			tx.end = t
		}
	}
	if err != nil {
		return tx, db.failWrites(fmt.Errorf("begin transaction: %w", err))
	}
	return tx, nil
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
		if err = db.commit(tx); err == nil {
			return nil
		}
		err = fmt.Errorf("commit transaction: %w", err)
	}
	// A Rollback that fails returns before it unlocks (internal/database,
	// transaction.go).
	if rollbackErr := tx.end.Rollback(); rollbackErr != nil {
		db.failWrites(fmt.Errorf("roll back transaction: %w", rollbackErr))
	}
	return err
}

// commit commits tx while readers see the state before it.
func (db *DB) commit(tx transaction) error {
	if err := db.publish(); err != nil {
		return err
	}
	defer db.unpublish()
	return tx.end.Commit()
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
