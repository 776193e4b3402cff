// Watching: each batch that anyone commits passes through here, after it has its numbers
// and before anybody can see it.

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"
	"weak"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"
	"github.com/cockroachdb/pebble/objstorage"

	"go.elara.ws/chaistore/internal/reach"
)

// A watcher sees each batch of a database, and sets Pebble's options. Pebble refers to it.
// It must not be referred to by anything that outlives the database.
type watcher struct {
	pebble.Logger
	*shared
	handle    *chai.DB
	session   func() (session io.Closer, rows *pebble.Snapshot) // opens a reading session of Chai
	seen      *map[string]struct{}                              // Chai's
	db        *pebble.DB
	writeLock *sync.Mutex // Chai's
	pipeline  reach.CommitPipeline
	opened    *pebble.Options // which some parts of the database go on to use

	// Pebble's own functions.
	write reach.Write
	apply reach.Apply

	tuning sync.Mutex // held while options are set
}

// watch makes a watcher for a database.
func watch(db *chai.DB, s *shared) {
	if err := reach.Err(); err != nil {
		s.state = new(state)
		_ = s.state.fault(err)
		return
	}
	p := db.DB.Store.DB()
	w := &watcher{
		Logger:    reach.Opts(p).Logger,
		shared:    s,
		handle:    &chai.DB{DB: db.DB},
		seen:      reach.Seen(db),
		db:        p,
		writeLock: reach.Writetxmu(db),
		pipeline:  reach.Commit(p),
		opened:    reach.Opts(p),
	}
	store := db.DB.Store
	w.session = func() (io.Closer, *pebble.Snapshot) {
		s := store.NewSnapshotSession()
		return s, reach.Snapshot(s.Snapshot)
	}
	closed := reach.ClosedCh(p)
	s.state = new(state)
	s.state.closed.Store(&closed)
	if s.state.isClosed() { // the directory may be open again
		return
	}
	if dir := dirOf(p); dir != "" {
		found := opened.in(dir)
		if found == nil {
			_ = s.state.fault(errOtherFiles)
			return
		}
		s.state = found
		s.state.closed.Store(&closed)
	}
	if err := s.state.failed(); err != nil {
		_ = s.state.fault(fmt.Errorf("open database: %w", err)) // Chai may have taken rows that it could not read for missing
	}
	w.set(func(o *pebble.Options) { o.Logger = w })
	weakly := weak.Make(w)
	s.state.watcher.Store(&weakly)
	w.tune()
	w.observe(false)
}

var errOtherFiles = errors.New("the files of the database don't pass through chaistore: it was opened before chaistore was initialized, or vfs.Default of github.com/cockroachdb/pebble was replaced")

// dirOf returns the directory of a database, or "" if it is in memory.
func dirOf(db *pebble.DB) string {
	if dir := filepath.Dir(db.ObjProvider().Path(objstorage.ObjectMetadata{})); dir != "." {
		return dir
	}
	return ""
}

// set publishes changed options. Pebble's goroutines read options without a lock, so what
// they have read is not changed.
func (w *watcher) set(change func(o *pebble.Options)) {
	w.tuning.Lock()
	defer w.tuning.Unlock()
	changed := new(pebble.Options)
	*changed = *reach.Opts(w.db)
	change(changed)
	reach.SetOpts(w.db, changed)
}

// tune makes writes wait for flushes and compactions only while these work, since what is
// written is in the log. A database that is read-only compacts nothing, and one that is
// being closed flushes nothing, either.
func (w *watcher) tune() {
	w.set(func(o *pebble.Options) {
		const memTables, unlimited = 2, 1 << 30
		o.MemTableStopWritesThreshold, o.L0StopWritesThreshold = memTables, max(chaiStopFiles, 2*o.L0CompactionThreshold)
		if w.state.writable() != nil || w.state.jobs.error() != nil {
			o.MemTableStopWritesThreshold, o.L0StopWritesThreshold = unlimited, unlimited
		}
		o.DisableAutomaticCompactions = w.state.failed() != nil
	})
}

// fail makes the database read-only, and returns the first reason.
func (w *watcher) fail(err error) error { return w.state.fail(err) }

// observe puts the functions of the watcher before Pebble's own, so that it sees each
// batch from then on, and mends the sequence of namespaces. It does so while no transaction
// is open, so that it sees all of each. It reports false if it can't just now, or if the
// database is closed.
func (w *watcher) observe(writeLocked bool) bool {
	if !writeLocked {
		if !w.writeLock.TryLock() {
			return false
		}
		defer w.writeLock.Unlock()
	}
	if w.observing.Load() {
		return true
	}
	if !w.install() {
		return false
	}
	if err := w.mendSequence(); err != nil {
		_ = w.fail(fmt.Errorf("mend the sequence of namespaces: %w", err))
	}
	return true
}

// install is the part of observe that must be done while no batch is committed.
func (w *watcher) install() bool {
	mu := w.pipeline.Mu()
	if !mu.TryLock() {
		return false
	}
	defer mu.Unlock()
	if w.state.usable() != nil { // Close holds the mutex
		return false
	}
	if !noNotes(w.db) {
		_ = w.state.fault(errIncompleteUndo)
		return false
	}
	w.forgetSeen()
	number := w.pipeline.LogSeqNum()
	w.feed.start(number)
	w.undo.start(number)
	w.write, w.apply = w.pipeline.SetEnv(w.writeBatch, w.applyBatch)
	w.observing.Store(true)
	return true
}

// isObserving reports whether batches are observed, and tries that if they are not.
func (db *DB) isObserving() bool {
	if db.observing.Load() {
		return true
	}
	w := db.state.watch()
	return w != nil && w.observe(false)
}

// noNotes reports whether it is known that there are no notes in what it is given.
func noNotes(in pebble.Reader) bool {
	rows, err := in.NewIter(&pebble.IterOptions{LowerBound: []byte{undoTable}, UpperBound: []byte{undoTable + 1}})
	if err != nil {
		return false
	}
	none := !rows.First()
	return rows.Close() == nil && none
}

// awaitObserving returns when batches are observed, which is at once, unless the first store
// was made while a transaction was open. The caller may have locked Chai's write lock.
func (db *DB) awaitObserving(ctx context.Context, writeLocked bool) error {
	if db.observing.Load() {
		return nil
	}
	for start := time.Now(); ; {
		if w := db.state.watch(); w != nil && w.observe(writeLocked) {
			return nil
		}
		if err := db.state.usable(); err != nil {
			return err
		}
		if time.Since(start) > db.hangLimit {
			return ErrBusy
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// writeBatch writes a batch to the log. It is called with Pebble's commit mutex locked. A
// batch that is refused goes on through the pipeline without having been written or
// applied, and what it asks to be synced ends with the error:
//
//   - The commit of a transaction returns it, or panics with it (see Fatalf).
//   - What a transaction writes before, and its rollback, seem to succeed. So Chai's own
//     code ends the transaction, and unlocks its locks, as if nothing had failed.
func (w *watcher) writeBatch(b *pebble.Batch, synced *sync.WaitGroup, syncErr *error) (mem reach.MemTable, err error) {
	if err := w.state.failed(); err != nil {
		w.refuse(err, synced, syncErr)
		return nil, nil
	}
	ends, err := w.look(b, synced != nil)
	if err != nil {
		w.refuse(w.fail(err), synced, syncErr)
		return nil, nil
	}
	defer func() {
		if r := recover(); r != nil { // with what locked, nobody knows
			w.refuse(w.state.fault(fmt.Errorf("chai panicked: write to the log: %v", r)), synced, syncErr)
			mem, err = nil, nil
		}
	}()
	mem, err = w.write(b, w.untilSynced(synced, syncErr), syncErr)
	if err != nil {
		return mem, err
	}
	w.tell(b, ends && synced == nil)
	if ends || synced != nil {
		w.feed.ended++
	}
	if ends {
		w.forgetSeen()
		w.undo.end(b.SeqNum()+uint64(b.Count()), synced == nil)
	}
	return mem, err
}

// untilSynced returns what to wait for instead of synced. The file of the log hides its
// errors from Pebble, which would panic with its locks locked when it closes the log. So
// who waits for a sync asks afterwards whether the database still works: a commit of this
// package does so itself, and for one of Chai, a goroutine does.
func (w *watcher) untilSynced(synced *sync.WaitGroup, syncErr *error) *sync.WaitGroup {
	if synced == nil || w.own.Load() != nil {
		return synced
	}
	logged := new(sync.WaitGroup)
	logged.Add(1)
	go func() {
		logged.Wait()
		if err := w.state.failed(); err != nil {
			*syncErr = err
		}
		synced.Done()
	}()
	return logged
}

// applyBatch adds a batch to a memtable, unless it was refused.
func (w *watcher) applyBatch(b *pebble.Batch, mem reach.MemTable) error {
	if mem == nil {
		return nil
	}
	return w.apply(b, mem)
}

func (w *watcher) refuse(err error, synced *sync.WaitGroup, syncErr *error) {
	if synced != nil {
		*syncErr = err
		synced.Done()
		select {
		case <-w.pipeline.LogSyncQSem():
		default: // after a panic, it may have been given back
		}
	}
}

// forgetSeen makes Chai write to its undo log again how to undo changes of the rows that
// earlier transactions have changed. It notes the first change of each row, but remembers
// the rows until the database is closed (seen in its internal/kv): what a later
// transaction has written out would be undone neither by its rollback nor after a crash.
//
// The caller must hold Chai's write lock, with no transaction open, or be the commit or
// the rollback of one.
func (w *watcher) forgetSeen() {
	if len(*w.seen) > 0 {
		*w.seen = make(map[string]struct{})
	}
}

// Chai's encoded numbers of the table of tables, of that of sequences, and of its undo log,
// with which their keys begin, the type with which the numbers of tables for passing results
// begin, and other types.
const (
	smallInt      = 48 // the integer 0; up to 31, an integer is its own type
	catalogTable  = smallInt + 1
	sequenceTable = smallInt + 2
	undoTable     = smallInt + 3
	uint8Type     = 80
	transientType = 83
	textType      = 98
	blobType      = 103
)

// forgetSeen is the watcher's. Chai also remembers the rows of a transaction that it could
// not note, and whose end is not observed because it has written nothing.
func (db *DB) forgetSeen() {
	if w := db.state.watch(); w != nil {
		w.forgetSeen()
	}
}

// look shows a batch to the undo log. It returns whether the batch ends a transaction that
// has an undo log, or why the batch must not be committed.
func (w *watcher) look(b *pebble.Batch, sync bool) (ends bool, err error) {
	u := w.undo.look(b.SeqNum(), sync)
	if own := w.own.Load(); own != nil && own.batch == b { // it has no notes
		return false, u.check()
	}
	for r := b.Reader(); ; {
		kind, key, row, ok, err := r.Next()
		if err != nil {
			return false, err
		}
		if !ok {
			return u.ends, u.check()
		}
		undo := len(key) > 0 && key[0] == undoTable
		switch kind {
		case pebble.InternalKeyKindSet, pebble.InternalKeyKindDelete:
			if !undo {
				u.change(key, row)
			} else if err := u.note(w, key, row); err != nil {
				return false, err
			}
		case pebble.InternalKeyKindRangeDelete:
			u.ends = u.ends || undo
		}
	}
}
