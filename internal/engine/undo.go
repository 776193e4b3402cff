// The undo log: which snapshots have changes of a transaction that has not ended, and what
// is read instead.
//
// A transaction of Chai that reads after it wrote writes out its changes before it commits,
// with a note on each row that it changes for the first time: what the row was before
// (RollbackSegment in its internal/kv). Until it ends, Chai's readers share the snapshot
// from before it. When it is rolled back, Chai first lets others see the changes, and then
// undoes them and removes the notes, in one batch. If that batch is refused, because the
// disk has failed, the changes stay. So when the first note is observed, the snapshot from
// before it is kept, and a reader who would see notes reads that instead.
//
// The same for a commit that fails: Pebble shows it to those who open a snapshot later.

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble"

	"go.elara.ws/chaistore/internal/reach"
)

// An undoLog knows which snapshots have notes.
type undoLog struct {
	since atomic.Uint64 // the number of the first batch with notes that are still there, 0 if there are none
	until atomic.Uint64 // the end of the last batch that removed notes
	count atomic.Uint64 // of transactions with notes
	good  atomic.Bool   // whether all readers read the snapshot that is kept, until the database is closed

	keys map[string]struct{} // of the rows that have a note. Pebble's commit mutex protects it.

	mu    sync.Mutex
	first uint64        // the number of the first batch with notes of the last transaction
	kept  *kept         // the snapshot from before it, or nil if readers need none
	over  chan struct{} // closed when that transaction ends, or nil if there is none
}

// A kept snapshot is closed when it is not needed any more, and no reader uses it.
type kept struct {
	rows   *pebble.Snapshot
	number uint64
	close  func() error
	ended  chan ending // gets the end of the transaction, if it ends

	// undoLog.mu protects these.
	readers int
	dropped bool
}

// An ending is the end of the batch that ended a transaction.
type ending struct {
	end        uint64
	rolledBack bool
}

// start begins with the batch that gets the given number, when there are no notes.
func (u *undoLog) start(number uint64) {
	u.until.Store(number)
	u.keys = make(map[string]struct{})
}

// absent reports whether the snapshot with the given number is known to have no notes.
func (u *undoLog) absent(number uint64) bool {
	since := u.since.Load() // before until: see end
	return number >= u.until.Load() && (since == 0 || number <= since)
}

// shared reports whether the snapshot with the given number is the one from before the last
// transaction with notes, which Chai's readers share until that is committed. It was opened
// when there had been count transactions with notes.
func (u *undoLog) shared(number, count uint64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.count.Load() == count && number <= u.first
}

// began notes that the batch with the given number is the first with notes.
func (u *undoLog) began(number uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.first = number
	u.over = make(chan struct{})
	u.count.Add(1)
	u.since.Store(number)
}

// open returns a channel that is closed when the transaction with notes ends, or nil if
// there is none.
func (u *undoLog) open() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.over
}

// end notes that the batch that ends at the given number has removed all notes. It is
// called before anybody can see that.
func (u *undoLog) end(end uint64, rolledBack bool) {
	if u.since.Load() == 0 {
		return // after a rollback, Chai removes notes once more, with the next commit
	}
	u.keys = make(map[string]struct{})
	u.until.Store(end)
	u.since.Store(0)
	u.endKept(ending{end, rolledBack})
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.over)
	u.over = nil
}

// endKept lets go of the snapshot that is kept, unless it is kept for good.
func (u *undoLog) endKept(e ending) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.kept != nil && !u.good.Load() {
		select {
		case u.kept.ended <- e:
		default: // it has ended before
		}
	}
}

// acquire returns the snapshot that is kept, or nil. It must be released.
func (u *undoLog) acquire() *kept {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.kept != nil {
		u.kept.readers++
	}
	return u.kept
}

func (u *undoLog) release(k *kept) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	k.readers--
	return k.closeUnused()
}

// drop lets go of a snapshot.
func (u *undoLog) drop(k *kept) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.kept == k {
		u.kept = nil
	}
	k.dropped = true
	_ = k.closeUnused()
}

// closeUnused closes k if nobody needs it. undoLog.mu must be locked.
func (k *kept) closeUnused() error {
	if !k.dropped || k.readers > 0 {
		return nil
	}
	return k.close()
}

// keep keeps a snapshot: until the transaction that it is from before has ended, or, if
// that can't end, until the database is closed, which waits for that.
func (w *watcher) keep(k *kept) {
	if err := w.enter(w.db); err != nil {
		_ = k.close()
		return
	}
	u := &w.undo
	u.endKept(ending{})
	u.mu.Lock()
	u.kept = k
	u.mu.Unlock()
	go func() {
		defer w.leave(w.db)
		defer u.drop(k)
		select {
		case <-reach.ClosedCh(w.db):
		case e := <-k.ended:
			// After a rollback, Chai's readers don't share the snapshot from before any more.
			for e.rolledBack && !w.sees(e.end) {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
}

// sees reports whether readers see the batch that ends at the given number.
func (w *watcher) sees(end uint64) (ok bool) {
	defer func() {
		if recover() != nil { // Close has begun, so all transactions have ended
			ok = true
		}
	}()
	s := w.db.NewSnapshot()
	defer s.Close()
	return reach.SeqNum(s) >= end
}

// keepForGood is called when a commit has failed, while readers still share the snapshot
// from before it. From then on, they read only that.
func (w *watcher) keepForGood() {
	u := &w.undo
	if u.good.Load() {
		return
	}
	count := u.count.Load()
	session, rows := w.session()
	number := reach.SeqNum(rows)
	if u.absent(number) || u.shared(number, count) {
		w.keep(&kept{rows: rows, number: number, close: session.Close, ended: make(chan ending, 1)})
	} else {
		_ = session.Close() // the one from before the transaction is kept
	}
	u.good.Store(true)
}

// open opens a snapshot without notes, of everything committed before. It waits for nobody.
func (db *DB) open(ctx context.Context) (*Snapshot, error) {
	for start := time.Now(); ; runtime.Gosched() {
		s, err := db.tryOpen(ctx)
		if s != nil || err != nil {
			return s, err
		}
		if time.Since(start) > db.hangLimit {
			return nil, errIncompleteUndo
		}
		// A rollback has just ended, and the next session sees that.
	}
}

// tryOpen is open, or returns nil if the snapshot that was kept has just been let go of.
func (db *DB) tryOpen(ctx context.Context) (*Snapshot, error) {
	u := &db.undo
	count, observed := u.count.Load(), db.isObserving()
	session, rows, err := db.session()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{ctx: ctx, db: db, rows: rows, number: reach.SeqNum(rows), observed: observed, close: session.Close}
	switch {
	case !observed && noNotes(rows):
		return s, nil
	case observed && !u.good.Load() && (u.absent(s.number) || u.shared(s.number, count)):
		return s, nil
	}
	if err := s.close(); err != nil {
		return nil, err
	}
	k := u.acquire()
	if k == nil {
		return nil, nil
	}
	return &Snapshot{ctx: ctx, db: db, rows: k.rows, number: k.number, observed: true, close: func() error { return u.release(k) }}, nil
}

// session opens a reading session of Chai.
func (db *DB) session() (session io.Closer, rows *pebble.Snapshot, err error) {
	defer func() {
		r := recover()
		if cause, ok := r.(error); ok && isClosed(cause) {
			reach.SharedSnapshot(db.handle).RUnlock() // Chai doesn't
			err = ErrClosed
		} else if r != nil {
			panic(r)
		}
	}()
	s := db.handle.DB.Store.NewSnapshotSession()
	return s, reach.Snapshot(s.Snapshot), nil
}

// errIncompleteUndo makes the database read-only: what was written out before is undone
// when it is opened again.
var errIncompleteUndo = errors.New("reading a row failed while a transaction changed it or was rolled back, so it is not undone: open the database again")

// A look is a look at a batch, for the undo log.
type look struct {
	u       *undoLog
	number  uint64
	sync    bool     // whether it is the last of its transaction, and must be synced
	ends    bool     // whether it removes all notes
	changed [][]byte // the keys of its rows, unless it is the last of a commit
}

// look begins to look at a batch.
func (u *undoLog) look(number uint64, sync bool) *look {
	return &look{u: u, number: number, sync: sync}
}

// change is called for each row that the batch changes.
func (l *look) change(key, row []byte) {
	if l.sync || len(key) == 0 || key[0] == transientType {
		return
	}
	l.changed = append(l.changed, key)
	if bytes.Equal(row, entryNote) {
		row[0] = missing[0]
	}
}

var (
	missing   = []byte{0} // the note on a row that was not there
	entryNote = []byte{1} // the note on an index entry that was; no row begins with it
)

// note looks at a note in the batch: a row of the undo log whose key has that of the noted
// row, and which is that row as it was, or a zero byte if there was none.
//
// An index entry is a zero byte, too, and Chai would remove it when it undoes the
// transaction: SQL that uses the index would miss its row, UNIQUE would allow another one,
// and changing the row would fail ("key not found"). So the note on an entry becomes
// another byte, with which Chai puts the entry back. It does not look at what entries are;
// change makes them zero bytes again.
func (l *look) note(w *watcher, note, row []byte) error {
	key := notedKey(note)
	if key == nil || key[0] == undoTable {
		return errIncompleteUndo // Chai tries again to note what it could not read
	}
	if l.u.since.Load() == 0 {
		l.begin(w)
	}
	if bytes.Equal(row, missing) {
		former, closer, err := w.db.Get(key)
		switch {
		case err == nil:
			isEntry := bytes.Equal(former, missing) || bytes.Equal(former, entryNote)
			row[0] = entryNote[0]
			if err := closer.Close(); err != nil || !isEntry {
				return errIncompleteUndo // Chai has not found the row, but it is there
			}
		case !errors.Is(err, pebble.ErrNotFound):
			return fmt.Errorf("read a row that a transaction has changed: %w", err)
		}
	}
	l.u.keys[string(key)] = struct{}{}
	return nil
}

// begin keeps the snapshot from before the transaction.
func (l *look) begin(w *watcher) {
	if !l.u.good.Load() {
		rows := w.db.NewSnapshot()
		w.keep(&kept{rows: rows, number: reach.SeqNum(rows), close: rows.Close, ended: make(chan ending, 1)})
	}
	l.u.began(l.number)
}

// notedKey returns the key of the row that a note is on, or nil if it is no note.
func notedKey(note []byte) []byte {
	if len(note) < 2 || note[1] != blobType {
		return nil
	}
	_, n := binary.Uvarint(note[2:])
	if n <= 0 || 2+n >= len(note) {
		return nil
	}
	return note[2+n:]
}

// check returns an error unless the batch keeps the promise of the undo log, that the
// transaction can be undone until it is committed. Chai breaks it when it ignores that a
// read has failed: it does not note a row, or leaves notes behind, or does not undo all.
func (l *look) check() error {
	keys := l.u.keys
	noted := 0
	for _, key := range l.changed {
		if _, ok := keys[string(key)]; ok {
			noted++
		}
	}
	switch {
	case l.sync && (l.ends || len(keys) == 0): // a commit
	case !l.sync && l.ends && noted == len(keys): // a rollback
	case !l.sync && !l.ends && noted == len(l.changed): // some changes of a transaction
	default:
		return errIncompleteUndo
	}
	return nil
}
