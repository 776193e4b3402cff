// This file is the queue of those who want to write. It knows who has the turn
// and who comes next, and nothing of what they do with it.

package writer

import (
	"context"
	"sync"
)

// A request is a caller that wants to write.
type request struct {
	op         Op         // shares a transaction with those of others
	statements Statements // have a transaction of their own
	err        error      // of either; a caller of Lock has neither

	// woken gets the one role that is given to a request that waits.
	woken chan role

	prev, next *request // in the queue
	queued     bool
}

// locks reports whether r is a caller of Lock.
func (r *request) locks() bool {
	return r.op == nil && r.statements == nil
}

// answer tells the caller its result.
func (r *request) answer(err error) {
	r.err = err
	if r.woken != nil {
		r.woken <- answered // nobody receives it if r leads
	}
}

// A role is what becomes of a request.
type role int

const (
	leads    role = iota // it has the turn
	answered             // another one has run it: its err is set
	left                 // its context has ended, and it has left the queue
)

// maxGroup is how many requests one turn may serve. It bounds how long a caller
// works for others.
const maxGroup = 256

// A queue is a lock that is handed from one request to the next in the order in
// which they came. The zero queue is ready for use.
type queue struct {
	mu          sync.Mutex
	taken       bool  // somebody has the turn; else nobody waits
	locked      bool  // it is a caller of Lock
	stallErr    error // the answer to all other callers, while whoever has the turn hangs
	first, last *request
}

// wait waits for r's role. Who leads must call pass in the end.
func (q *queue) wait(ctx context.Context, r *request) role {
	if role, ok := q.enter(r); ok {
		return role
	}
	var role role
	select {
	case role = <-r.woken:
	case <-ctx.Done():
		if q.leave(r) {
			return left
		}
		role = <-r.woken
	}
	if role == leads && ctx.Err() != nil {
		q.pass()
		return left
	}
	return role
}

// enter returns the role of r, unless it has to wait: then it is in the queue.
func (q *queue) enter(r *request) (_ role, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.taken {
		q.taken = true
		return leads, true
	}
	if q.stallErr != nil && !r.locks() {
		r.err = q.stallErr
		return answered, true
	}
	r.woken = make(chan role, 1)
	r.queued = true
	r.prev = q.last
	if q.last == nil {
		q.first = r
	} else {
		q.last.next = r
	}
	q.last = r
	return 0, false
}

// leave takes r out of the queue, unless it is not there any more.
func (q *queue) leave(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !r.queued {
		return false
	}
	q.remove(r)
	return true
}

// remove takes r out of the queue. q.mu must be held.
func (q *queue) remove(r *request) {
	if r.prev == nil {
		q.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		q.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next, r.queued = nil, nil, false
}

// group returns the requests that share a transaction: leader, which has the
// turn, and those that come next, up to the first that can't.
func (q *queue) group(leader *request) []*request {
	group := []*request{leader}
	if leader.op == nil {
		return group
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(group) < maxGroup && q.first != nil && q.first.op != nil {
		group = append(group, q.first)
		q.remove(q.first)
	}
	return group
}

// pass gives the turn to the request that has waited longest.
func (q *queue) pass() {
	q.mu.Lock()
	defer q.mu.Unlock()
	next := q.first
	if next == nil {
		q.taken = false
		return
	}
	q.remove(next)
	next.woken <- leads
}

// stall answers all callers but those of Lock with err, first those of group, and
// whoever comes later, until resume.
func (q *queue) stall(group []*request, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stallErr = err
	for _, r := range group {
		r.answer(err)
	}
	for r := q.first; r != nil; {
		next := r.next
		if !r.locks() {
			q.remove(r)
			r.answer(err)
		}
		r = next
	}
}

// resume ends what stall began, and passes the turn on.
func (q *queue) resume() {
	q.mu.Lock()
	q.stallErr = nil
	q.mu.Unlock()
	q.pass()
}

// stalled returns the error of stall until resume.
func (q *queue) stalled() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stallErr
}

// Lock waits for the turn and takes it.
func (q *queue) Lock() {
	q.wait(context.Background(), new(request))
	q.mu.Lock()
	defer q.mu.Unlock()
	q.locked = true
}

// Unlock passes on the turn that Lock has taken. It panics if there is none.
func (q *queue) Unlock() {
	q.mu.Lock()
	locked := q.locked
	q.locked = false
	q.mu.Unlock()
	if !locked {
		panic("chaistore: unlock of unlocked write lock")
	}
	q.pass()
}
