//go:build !race

package reach

import (
	"sync/atomic"
	"unsafe"

	"github.com/cockroachdb/pebble"
)

// publish sets a field of one word that goroutines of Pebble read without a lock: a
// pointer, a map or a function. Who sees the new value also sees what it points to.
func publish[Word any](field *Word, value Word) {
	atomic.StorePointer((*unsafe.Pointer)(unsafe.Pointer(field)), *(*unsafe.Pointer)(unsafe.Pointer(&value)))
}

// hidden returns options: only the race detector needs a copy.
func hidden(opts *pebble.Options) *pebble.Options { return opts }
