// Failures of the engine: later calls return the same error, and failures in the
// background, which the engine tries to mend by itself.

package engine

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"weak"
)

// failures records why the engine can't be called any more. The zero value records no
// failure.
type failures struct {
	read, write atomic.Pointer[error]
}

// reading returns why nothing can be read any more, or nil.
func (f *failures) reading() error { return load(&f.read) }

// writing returns why nothing can be written any more, or nil.
func (f *failures) writing() error { return load(&f.write) }

// failWrites records why nothing can be written any more, and returns the first such
// failure.
func (f *failures) failWrites(err error) error {
	f.write.CompareAndSwap(nil, &err)
	return f.writing()
}

// failAll records why nothing can be written or read any more, and returns the first
// failure of reading.
func (f *failures) failAll(err error) error {
	f.failWrites(err)
	f.read.CompareAndSwap(nil, &err)
	return f.reading()
}

// rescue is deferred around calls of the engine. It turns a panic into an error, and
// records it with fail.
func (f *failures) rescue(err *error, fail func(error) error) {
	switch r := recover().(type) {
	case nil:
	case error:
		*err = fail(fmt.Errorf("chai panicked: %w", r))
	default:
		*err = fail(fmt.Errorf("chai panicked: %v", r))
	}
}

func load(failure *atomic.Pointer[error]) error {
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}

// background records what the engine fails to do in its own goroutines, and tries
// again: files of rows are written when a memory table is full, and merged. As long as
// that fails, all that is committed is in the log, which grows.
type background struct {
	mu           sync.Mutex
	db           weak.Pointer[DB] // whose logger is called
	flush, merge job
	logged       time.Time // the zero time before the first line
}

type job struct {
	err  error // of its last run
	wait time.Duration
}

// A job that fails is tried again after a time that doubles with each failure.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// logEvery is the shortest time between two lines about failing jobs.
const logEvery = time.Minute

// logTo makes b use the logger of db, if that of another one is gone.
func (b *background) logTo(db *DB) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.db.Value() == nil && db.logger != nil {
		b.db = weak.Make(db)
	}
}

// ended records the end of a job, logs its failure, and returns the time after which
// to try again. It does not call the logger itself: the engine's locks may be held.
func (b *background) ended(j *job, err error) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if j.err = err; err == nil {
		j.wait = 0
		return 0
	}
	j.wait = min(max(2*j.wait, minBackoff), maxBackoff)
	if now, db := time.Now(), b.db.Value(); db != nil && (b.logged.IsZero() || now.Sub(b.logged) >= logEvery) {
		b.logged = now
		go db.logger().Error("chaistore: the database can't write its files in the background; trying again", "error", err.Error()) // %+v has a stack
	}
	return j.wait
}

// failing returns why a job fails, or nil.
func (b *background) failing() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flush.err != nil {
		return b.flush.err
	}
	return b.merge.err
}
