// The memory of writes that wait.

package engine

import (
	"container/list"
	"context"
	"sync"
)

// Writes that wait may hold up to maxWaiting bytes together. Then 32 commits of 16 MiB
// at once take up to 0.5 GB of memory, most of it Pebble's, instead of 1.1 GB. Writes of
// less than smallWrite bytes are not counted, because they need little.
const (
	maxWaiting = 32 << 20
	smallWrite = 4 << 10
)

// Reserve waits until the writes of all DBs of the database that wait have room for
// another of the given size, or until ctx ends. If it returns nil, the caller may make
// a copy of what it writes, and must call Release afterwards. A write larger than the
// limit waits until it is alone.
//
// No call waits longer than the writes before it: when these are refused because a
// turn hangs, their callers release what they have reserved.
func (db *DB) Reserve(ctx context.Context, size int) error {
	if size < smallWrite {
		return nil
	}
	return db.budget.take(ctx, size)
}

// Release gives back what Reserve has reserved.
func (db *DB) Release(size int) {
	if size >= smallWrite {
		db.budget.give(size)
	}
}

// A budget is the memory that writes may hold while they wait. The zero budget is ready
// for use.
type budget struct {
	mu      sync.Mutex
	taken   int
	waiting list.List // of *claim
}

// A claim waits for its bytes.
type claim struct {
	size    int
	granted chan struct{} // closed when the claim has its bytes
}

func (b *budget) take(ctx context.Context, size int) error {
	c := &claim{size, make(chan struct{})}
	b.mu.Lock()
	place := b.waiting.PushBack(c)
	b.grant()
	b.mu.Unlock()
	select {
	case <-c.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-c.granted:
		return nil // the write looks at ctx, too
	default:
		b.waiting.Remove(place)
		b.grant() // a smaller one behind it may fit
		return ctx.Err()
	}
}

func (b *budget) give(size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken -= size
	b.grant()
}

// grant gives the claims their bytes, in their order. b.mu must be held.
func (b *budget) grant() {
	for first := b.waiting.Front(); first != nil; first = b.waiting.Front() {
		c := first.Value.(*claim)
		if b.taken > 0 && b.taken+c.size > maxWaiting {
			return
		}
		b.taken += c.size
		b.waiting.Remove(first)
		close(c.granted)
	}
}
