// The queue of those who want to write, and the turns in which it is served.

package engine

import (
	"container/list"
	"errors"
	"runtime"
	"sync"
	"time"
)

// HangLimit is how long a turn may take.
const HangLimit = 10 * time.Second

// ErrHangs is the error of writes while a turn hangs.
var ErrHangs = errors.New("writing has hung for 10 seconds: the application may hold the write lock or have a transaction open, its goroutines may have deadlocked each other in Chai, or the disk may be full")

// The requests of one turn are limited, to bound how long it takes. The engine
// writes a batch beyond its limit of 10 MB in parts, and treats one of more than
// half of its memory table of 4 MB as a file of its own.
const (
	maxGroup      = 256
	maxGroupBytes = 1 << 20
)

// A request is a caller that wants to write.
type request struct {
	op     Op
	size   int
	answer chan error    // gets one error, or nil
	place  *list.Element // in the queue, nil outside of it
}

// A queue has the requests that wait. The zero queue is ready for use.
type queue struct {
	mu      sync.Mutex
	waiting list.List // of *request
	served  bool      // by a goroutine
	hangs   bool      // the turn of that goroutine does
}

// A turn is one pass of the goroutine that serves the queue.
type turn struct {
	group []*request // what it has taken from the queue
	over  bool
}

// enter puts r into the queue. It reports whether the caller has to see to it that
// the queue is served.
func (q *queue) enter(r *request) (serve bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.hangs {
		return false, ErrHangs
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

// hanging reports whether a turn hangs.
func (q *queue) hanging() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hangs
}

// remove takes r out of the queue. q.mu must be held.
func (q *queue) remove(r *request) {
	q.waiting.Remove(r.place)
	r.place = nil
}

// take moves the requests that share a turn from the queue to t.
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

// giveUp answers everyone who waits for t, and refuses those who come, until t
// ends. It reports whether t had not ended yet.
func (q *queue) giveUp(t *turn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.over {
		return false
	}
	q.hangs = true
	for _, r := range t.group {
		r.answer <- ErrHangs
	}
	for first := q.waiting.Front(); first != nil; first = q.waiting.Front() {
		r := first.Value.(*request)
		q.remove(r)
		r.answer <- ErrHangs
	}
	return true
}

// end ends t. It reports whether its requests are still to be answered.
func (q *queue) end(t *turn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	answer := !q.hangs
	t.over, q.hangs = true, false
	return answer
}

// more reports whether requests wait. If none do, the queue is not served any
// more.
func (q *queue) more() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.served = q.waiting.Len() > 0
	return q.served
}

// serve serves the queue until it is empty. It is a goroutine of its own, because
// the engine can hang: its locks when an application has deadlocked it, and its
// batches when they can't be written to a full disk (makeRoomForWrite in Pebble).
func (db *DB) serve() {
	growStack()
	for db.queue.more() {
		t := new(turn)
		timer := time.AfterFunc(db.hangLimit, func() {
			if db.queue.giveUp(t) {
				db.logger().Error("chaistore: writing to the database hangs", "error", ErrHangs)
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
			// Those who have been answered may be about to come back. Let them, or the
			// next group would be small, and they would wait for it. It makes groups 1.8
			// times as large with 8 to 256 goroutines, and the throughput 1.3 to 1.5
			// times (BenchmarkCommit).
			runtime.Gosched()
		}
	}
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
