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
	taken       bool // somebody has the turn; else nobody waits
	locked      bool // it is a caller of Lock
	first, last *request
}

// wait waits for r's role. Who leads must call pass in the end.
func (q *queue) wait(ctx context.Context, r *request) role {
	if q.enter(r) {
		return leads
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

// enter reports whether r has the turn. Otherwise r is in the queue.
func (q *queue) enter(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.taken {
		q.taken = true
		return true
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
	return false
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
