// The batch: the changes of the operations of a turn, and their commit.

package engine

import (
	"cmp"
	"context"
	"fmt"

	"github.com/cockroachdb/pebble"
)

// An Op changes rows by their keys. It runs in another goroutine than its caller. If
// it returns an error, its changes are dropped.
type Op func(b *Batch) error

// A Batch is a set of changes that are committed together. It must not be used after
// the [Op] that it was passed to has returned.
type Batch struct {
	changes []change
	latest  map[string]int                   // the index of each key's last change
	read    func(key []byte) ([]byte, error) // reads the rows from before the batch
	absent  func(key []byte) bool            // whether a row was certainly not there before
	by      any                              // see By; nil at the beginning of each operation
}

// A change puts or deletes a row.
type change struct {
	key, row []byte // row is nil for a deletion
	uncached bool
	by       any
}

// Put adds the row with the given key, or overwrites it. The key and the row must not
// be changed afterwards, and the row must not be empty.
func (b *Batch) Put(key, row []byte) { b.add(change{key: key, row: row}) }

// PutEntry is Put for a row that is not cached, such as an index entry.
func (b *Batch) PutEntry(key, row []byte) { b.add(change{key: key, row: row, uncached: true}) }

// Delete deletes the row with the given key, if there is one. The key must not be
// changed afterwards.
func (b *Batch) Delete(key []byte) { b.add(change{key: key}) }

// By names who makes the further changes of the operation, for followers of the feed. They
// compare it with what they know. Without it, nobody is named, as with SQL.
func (b *Batch) By(who any) { b.by = who }

func (b *Batch) add(c change) {
	c.by = b.by
	b.latest[string(c.key)] = len(b.changes)
	b.changes = append(b.changes, c)
}

// Get returns the row with the given key as this batch leaves it, or nil if there is
// none. The row must not be changed.
func (b *Batch) Get(key []byte) ([]byte, error) {
	if i, ok := b.latest[string(key)]; ok {
		return b.changes[i].row, nil
	}
	return b.read(key)
}

// Absent reports whether it is certain that there is no row with the given key, so that it
// need not be deleted.
func (b *Batch) Absent(key []byte) bool {
	_, changed := b.latest[string(key)]
	return !changed && b.absent(key)
}

// run runs op, and undoes its changes if it fails.
func (b *Batch) run(op Op) error {
	n := len(b.changes)
	b.by = nil
	err := op(b)
	if err != nil {
		b.changes = b.changes[:n]
		clear(b.latest)
		for i, c := range b.changes {
			b.latest[string(c.key)] = i
		}
	}
	return err
}

// run takes the requests of a turn from the queue, runs them in one batch, and
// returns their results.
func (db *DB) run(t *turn) []error {
	failure := db.Writable()
	if failure == nil {
		db.app.taken <- struct{}{}
		defer func() { <-db.app.taken }()
		db.writeLock.Lock()
		defer db.writeLock.Unlock()
	}
	db.queue.take(t)
	results := make([]error, len(t.group))
	if failure == nil {
		failure = db.commit(t.group, results)
	}
	if failure != nil {
		for i := range results {
			results[i] = failure
		}
	}
	return results
}

// commit runs the operations of group, stores their results, and commits the changes
// of the successful ones. Chai's write lock must be locked, for which Close of the
// database waits.
func (db *DB) commit(group []*request, results []error) (err error) {
	if err := db.Writable(); err != nil {
		return err
	}
	defer db.state.rescue(&err, db.state.fail)
	if err := db.awaitObserving(context.Background(), true); err != nil {
		return err
	}
	db.filters.settle()
	var committed *Snapshot
	b := Batch{latest: make(map[string]int, len(group)), absent: db.AbsentOnDisk, read: func(key []byte) (_ []byte, err error) {
		if row := db.cache.get(key); row != nil {
			return row, nil
		}
		// The engine's own batch must not be read: it would first write out its changes
		// (applyBatch in its internal/kv), and remember their keys until the database
		// is closed.
		if committed == nil {
			if committed, err = db.open(context.Background()); err != nil {
				return nil, err
			}
		}
		return committed.Get(key)
	}}
	for i, r := range group {
		results[i] = b.run(r.op)
	}
	if committed != nil {
		_ = committed.close() // frees it; nothing was written
	}
	if len(b.changes) == 0 {
		return nil
	}
	if err := db.apply(b.changes); err != nil {
		return err
	}
	db.cache.committed(&b)
	return nil
}

// apply writes changes in one batch of the engine. Readers see the state from before
// the batch until it is on disk, or for good, if that fails.
func (db *DB) apply(changes []change) (err error) {
	db.forgetSeen()
	session := db.handle.DB.Store.NewBatchSession()
	// The session's own Put and Delete do the same, but write out a batch of more
	// than 10 MB in parts, which is not atomic.
	for _, c := range changes {
		if c.row == nil {
			err = session.Batch.Delete(c.key, nil)
		} else {
			err = session.Batch.Set(c.key, c.row, nil)
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		err = db.syncBatch(session.Batch, changes)
	}
	if err != nil {
		err = db.state.fail(fmt.Errorf("commit: %w", err))
		if w := db.state.watch(); w != nil {
			w.keepForGood()
		}
	}
	if closeErr := session.Close(); err == nil && closeErr != nil {
		return fmt.Errorf("commit: %w", closeErr)
	}
	if err == nil {
		db.fsyncs.Add(1)
	}
	return err
}

// syncBatch commits b, and waits until it is on disk. The session's own Commit does
// the same, but an error becomes a panic (Fatalf in failure.go).
//
// The session's Commit also removes the notes on how to undo a transaction. There are
// none, since no other transaction that writes is open.
func (db *DB) syncBatch(b *pebble.Batch, changes []change) error {
	db.own.Store(&ownBatch{b, changes})
	defer db.own.Store(nil)
	if err := db.pebble().ApplyNoSyncWait(b, pebble.Sync); err != nil {
		return err
	}
	return cmp.Or(b.SyncWait(), db.state.failed())
}
