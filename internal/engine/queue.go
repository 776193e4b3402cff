// The queue of writes, and the turns in which it is served.

package engine

import (
	"container/list"
	"errors"
	"runtime"
	"sync"
	"time"
)

// HangLimit is how long a turn may take before it hangs.
const HangLimit = 10 * time.Second

// ErrBusy is returned by writes while a turn hangs.
var ErrBusy = errors.New("the database is busy: in handlers, write with chaistore.Update, not with db.Exec, db.Update or INSERT RETURNING, and never through a store inside that; if this lasts a minute, restart the program; no write has ended for 10 seconds, because goroutines have deadlocked in Chai, a transaction or the write lock was left open, or the disk is full or hangs")

// The requests of one turn are limited, to bound how long it takes. Pebble treats a
// batch larger than half of its memory table of 4 MB as a memory table of its own.
const (
	maxGroup      = 256
	maxGroupBytes = 1 << 20
)

// A request is a caller waiting to write.
type request struct {
	op     Op
	size   int
	answer chan error    // gets one error or nil
	place  *list.Element // in the queue; nil outside it
}

// A queue holds the waiting requests. The zero queue is ready for use.
type queue struct {
	mu      sync.Mutex
	waiting list.List // of *request
	served  bool      // by a goroutine
	hung    time.Time // since when that goroutine's turn hangs; the zero time if it does not
}

// A turn is one pass of the goroutine that serves the queue.
type turn struct {
	group []*request // taken from the queue
	over  bool
}

// enter puts r into the queue. It reports whether the caller must start a goroutine
// that serves the queue.
func (q *queue) enter(r *request) (serve bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.hung.IsZero() {
		return false, ErrBusy
	}
	r.place = q.waiting.PushBack(r)
	serve = !q.served
	q.served = true
	return serve, nil
}

// leave takes r out of the queue, and reports whether it was still there.
func (q *queue) leave(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r.place == nil {
		return false
	}
	q.remove(r)
	return true
}

// busySince returns since when a turn hangs, or the zero time.
func (q *queue) busySince() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hung
}

// isServed reports whether a goroutine serves the queue.
func (q *queue) isServed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.served
}

// remove takes r out of the queue. q.mu must be held.
func (q *queue) remove(r *request) {
	q.waiting.Remove(r.place)
	r.place = nil
}

// take moves requests from the queue to t, up to the limits of a turn.
func (q *queue) take(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := 0
	for first := q.waiting.Front(); first != nil && len(t.group) < maxGroup; first = q.waiting.Front() {
		r := first.Value.(*request)
		if size += r.size; len(t.group) > 0 && size > maxGroupBytes {
			return
		}
		q.remove(r)
		t.group = append(t.group, r)
	}
}

// giveUp answers the requests of t and of the queue with [ErrBusy], and makes the
// queue refuse further ones until t ends. If t has ended already, it does nothing and
// returns false.
func (q *queue) giveUp(t *turn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.over {
		return false
	}
	q.hung = time.Now()
	for _, r := range t.group {
		r.answer <- ErrBusy
	}
	for first := q.waiting.Front(); first != nil; first = q.waiting.Front() {
		r := first.Value.(*request)
		q.remove(r)
		r.answer <- ErrBusy
	}
	return true
}

// end ends t. It reports whether its requests still have to be answered.
func (q *queue) end(t *turn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	answer := q.hung.IsZero()
	t.over, q.hung = true, time.Time{}
	return answer
}

// more reports whether requests are waiting. If there are none, the queue is no
// longer served.
func (q *queue) more() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.served = q.waiting.Len() > 0
	return q.served
}

// serve takes turns until the queue is empty. It runs in a goroutine of its own,
// because the engine can hang: at its locks when an application has deadlocked it,
// and when a batch can't be written to a full disk (makeRoomForWrite in Pebble).
func (db *DB) serve() {
	for db.queue.more() {
		t := new(turn)
		timer := time.AfterFunc(db.hangLimit, func() {
			if db.queue.giveUp(t) {
				db.logger().Error("chaistore: writing to the database hangs", "error", ErrBusy)
			}
		})
		results := db.run(t)
		timer.Stop()
		if db.queue.end(t) {
			for i, r := range t.group {
				r.answer <- results[i]
			}
		}
		if len(t.group) > 1 {
			// The answered callers may be about to write again. Let them: otherwise the
			// next group is small, and they wait for it. With 8 to 256 goroutines, this
			// makes groups 1.8 times as large, and throughput 1.3 to 1.5 times as high
			// (BenchmarkCommit).
			runtime.Gosched()
		}
	}
}
