// What a database is in: it works, it is read-only, or it is closed. All that happens when
// something fails is in this file, and what the disk refuses then in disk.go.

package engine

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"
)

// ErrClosed is returned by calls on a closed database.
var ErrClosed = errors.New("the database is closed: before closing it, stop the server and all else that uses it; to go on, open it again and make a new store")

// ErrReadOnly is returned by writes, with its reason, once the database is read-only.
var ErrReadOnly = errors.New("the database is read-only since a failure: free space on its disk, or check the disk, and restart")

// A state says whether a database works, is read-only, or is closed. There is one for
// each open database. It is shared with the file system, so it must not keep the database
// alive.
type state struct {
	failure atomic.Pointer[error] // the first one; the database has been read-only since
	broken  atomic.Pointer[error] // why the database is as good as closed: after a panic, its locks may be locked
	damage  atomic.Uint64         // reads of sstables that have failed
	lossy   atomic.Bool           // whether a compaction has not read all rows
	jobs    jobs
	closed  atomic.Pointer[<-chan struct{}] // closed when Close of the database begins; nil before there is a watcher
	watcher atomic.Pointer[weak.Pointer[watcher]]
}

// failed returns why the database is read-only, or nil. A nil state never fails.
func (s *state) failed() error {
	if s == nil {
		return nil
	}
	return load(&s.failure)
}

// fail makes the database read-only for good, and returns [ErrReadOnly] with the first
// reason.
func (s *state) fail(err error) error {
	if !errors.Is(err, ErrReadOnly) {
		err = fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	if s.failure.CompareAndSwap(nil, &err) {
		s.tune()
	}
	return s.failed()
}

// fault makes the database as good as closed, and returns the first reason.
func (s *state) fault(err error) error {
	_ = s.fail(err)
	s.broken.CompareAndSwap(nil, &err)
	return load(&s.broken)
}

func (s *state) isClosed() bool {
	closed := s.closed.Load()
	if closed == nil {
		return false
	}
	select {
	case <-*closed:
		return true
	default:
		return false
	}
}

// usable returns why the database can't be used any more, or nil.
func (s *state) usable() error {
	if s.isClosed() {
		return ErrClosed
	}
	return load(&s.broken)
}

// writable returns why nothing can be written any more, or nil.
func (s *state) writable() error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.failed()
}

// unreadable records that a part of an sstable can't be read. Who reads it gets an error,
// but a compaction would lose what is there.
func (s *state) unreadable(err error) {
	s.damage.Add(1)
	if calledBy("github.com/cockroachdb/pebble.(*DB).runCompaction") {
		s.lossy.Store(true)
		_ = s.fail(fmt.Errorf("%w: a compaction would lose the rows there; if a restart doesn't help, restore a backup", err))
	}
}

var errUnreadable = errors.New("a part of the database can't be read: check the disk and restart, or restore a backup")

// readAll returns an error if a read has failed since damage was looked at: Pebble may
// have gone on without what it could not read.
func (s *state) readAll(damage uint64) error {
	if s.damage.Load() != damage {
		return errUnreadable
	}
	return nil
}

// rescue is deferred around calls of Chai and Pebble. It turns a panic into an error. That
// of a closed database leaves nothing locked; after others, nobody knows, so it calls
// failed: [state.fail], or, where reads would meet the lock, too, [state.fault].
func (s *state) rescue(err *error, failed func(error) error) {
	r := recover()
	if r == nil {
		return
	}
	cause, ok := r.(error)
	switch {
	case ok && isClosed(cause):
		*err = ErrClosed
	case ok:
		*err = failed(fmt.Errorf("restart, because chai panicked: %w", cause))
	default:
		*err = failed(fmt.Errorf("restart, because chai panicked: %v", r))
	}
}

func load(failure *atomic.Pointer[error]) error {
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}

// calledBy reports whether one of the callers of its caller is a function whose name
// begins with one of the given ones. It takes some microseconds, and is for what happens
// rarely.
func calledBy(names ...string) bool {
	for _, caller := range callers() {
		for _, name := range names {
			if strings.HasPrefix(caller, name) {
				return true
			}
		}
	}
	return false
}

// callers returns the names of the functions that are running, the innermost first.
func callers() (names []string) {
	counters := make([]uintptr, 128)
	frames := runtime.CallersFrames(counters[:runtime.Callers(3, counters)])
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		names = append(names, frame.Function)
	}
	return names
}

// Fatalf is called by Pebble after errors after which it must not go on, and is expected
// to end the process. Chai's own logger does nothing, and so Pebble goes on: it
// acknowledges what is not in the log. What else Pebble can't write, the file system has
// seen (disk.go).
//
// So a commit that failed panics here, in the goroutine of its caller, who would otherwise
// be told that it succeeded. Chai unlocks its locks then, except for the write lock of a
// statement outside any transaction. Whoever has begun a transaction can still roll it
// back.
func (w *watcher) Fatalf(format string, args ...any) {
	if !strings.HasPrefix(format, "pebble: fatal commit error") {
		return
	}
	err := fmt.Errorf("commit: %v", args)
	if cause, ok := args[0].(error); ok {
		err = cause
	}
	err = w.fail(err)
	const commit = "github.com/chaisql/chai/internal/database.(*Transaction).Commit"
	names := callers()
	for i, name := range names {
		switch {
		case strings.HasSuffix(name, "internal/database.(*Database).closeDatabase"):
			return // it goes on to close Pebble
		case name != commit:
			continue
		}
		w.keepForGood()
		switch names[i+1] {
		case "github.com/chaisql/chai/internal/query/statement.(*Result).Close", "github.com/chaisql/chai/internal/query.Query.Run", "github.com/chaisql/chai/internal/query.(*Query).Run":
			w.writeLock.Unlock()
		}
		break
	}
	panic(commitFailure{err})
}

// A commitFailure is what a commit of Chai that fails panics with. No lock of Pebble is
// locked.
type commitFailure struct{ error }

func (f commitFailure) Unwrap() error { return f.error }

// jobs records which sstables could not be written. As long as that fails, all that is
// committed is in the log, which grows, and in memory.
type jobs struct {
	mu                sync.Mutex
	flush, compaction job
	dbs               []weak.Pointer[DB] // the first that there still is logs
	logged            time.Time          // the zero time before the first line
}

// A job is what writes sstables: flushes, or compactions.
type job struct {
	err  error // of the last one
	wait time.Duration
}

// A job that fails is tried again after a time that doubles with each failure.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// logEvery is the shortest time between two lines about failing jobs.
const logEvery = time.Minute

// maxUnflushed is how many bytes memtables may have while they can't be flushed. Tests
// change it.
var maxUnflushed uint64 = 256 << 20

// awaitTurn waits before a job that has failed is tried again, until the database is
// closed.
func (s *state) awaitTurn(j *job) {
	s.jobs.mu.Lock()
	wait := j.wait
	s.jobs.mu.Unlock()
	if wait == 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var closed <-chan struct{}
	if c := s.closed.Load(); c != nil {
		closed = *c
	}
	select {
	case <-timer.C:
	case <-closed:
	}
}

// jobEnded records that an sstable was written, or why not. Pebble's mutex must not be
// locked.
func (s *state) jobEnded(j *job, err error) {
	changed, report := s.jobs.ended(j, err)
	if changed {
		s.tune()
	}
	if report != nil {
		go report()
	}
	if w := s.watch(); w != nil && err != nil && w.db.Metrics().MemTable.Size > maxUnflushed {
		_ = s.fail(fmt.Errorf("flush: %w", err))
	}
}

// ended records the end of a job. It returns whether jobs fail now and did not before, or
// the other way round, and a function that logs the failure, or nil.
func (b *jobs) ended(j *job, err error) (changed bool, report func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.failing()
	j.err = err
	changed = (before == nil) != (b.failing() == nil)
	if err == nil {
		j.wait = 0
		return changed, nil
	}
	j.wait = min(max(2*j.wait, minBackoff), maxBackoff)
	if now, db := time.Now(), b.logging(); db != nil && (b.logged.IsZero() || now.Sub(b.logged) >= logEvery) {
		b.logged = now
		report = func() {
			db.logger().Error("chaistore: the database can't write its files in the background; trying again", "error", err.Error()) // %+v has a stack
		}
	}
	return changed, report
}

// failing returns why jobs fail, or nil. b.mu must be locked.
func (b *jobs) failing() error {
	if b.flush.err != nil {
		return b.flush.err
	}
	return b.compaction.err
}

// error returns why jobs fail, or nil.
func (b *jobs) error() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failing()
}

// logTo makes b use the logger of db once those of earlier DBs are gone.
func (b *jobs) logTo(db *DB) {
	if db.logger == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dbs = slices.DeleteFunc(b.dbs, func(p weak.Pointer[DB]) bool { return p.Value() == nil })
	b.dbs = append(b.dbs, weak.Make(db))
}

// logging returns the DB whose logger to use, or nil. b.mu must be locked.
func (b *jobs) logging() *DB {
	for _, p := range b.dbs {
		if db := p.Value(); db != nil {
			return db
		}
	}
	return nil
}

// watch returns the watcher of the database, or nil if there is none yet, or none any
// more.
func (s *state) watch() *watcher {
	if w := s.watcher.Load(); w != nil {
		return w.Value()
	}
	return nil
}

// tune adapts the options of the database to its state.
func (s *state) tune() {
	if w := s.watch(); w != nil {
		w.tune()
	}
}
