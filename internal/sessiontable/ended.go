// What has ended: sessions that must not be committed again.

package sessiontable

import (
	"errors"
	"hash/maphash"
	"maps"
	"math"
	"sync"
	"time"
)

// ErrEnded is the error of [Table.Upsert] for a session that has ended.
var ErrEnded = errors.New("the session has been ended")

// endedKey is the key of what all Tables of the same name in a database remember
// together.
type endedKey struct{ table string }

// ended remembers the keys of rows that were deleted, each for a time. It keeps a
// hash of 64 bits of each, so that it takes less than 64 bytes: one in 10^13 commits
// is refused by mistake while a million are remembered. A nil *ended remembers
// nothing.
type ended struct {
	seed  maphash.Seed
	start time.Time // from which times are measured, whatever the clock is set to

	mu     sync.Mutex
	until  map[uint64]time.Duration
	oldest []endedRow // in the order in which they were added
	most   int        // of them, since there was last made room for fewer
}

type endedRow struct {
	hash  uint64
	until time.Duration
}

func newEnded() *ended {
	return &ended{seed: maphash.MakeSeed(), start: time.Now(), until: make(map[uint64]time.Duration)}
}

// add remembers a key for a time.
func (e *ended) add(key []byte, remember time.Duration) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget()
	now := time.Since(e.start)
	row := endedRow{maphash.Bytes(e.seed, key), now + min(remember, math.MaxInt64-now)}
	e.until[row.hash] = max(row.until, e.until[row.hash])
	e.oldest = append(e.oldest, row)
	e.most = max(e.most, len(e.oldest))
}

// has reports whether a key is remembered.
func (e *ended) has(key []byte) bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget()
	return e.until[maphash.Bytes(e.seed, key)] > time.Since(e.start)
}

// forget frees what need not be remembered any more, unless something older has to
// be. e.mu must be held.
func (e *ended) forget() {
	now := time.Since(e.start)
	for len(e.oldest) > 0 && e.oldest[0].until <= now {
		if row := e.oldest[0]; e.until[row.hash] <= now {
			delete(e.until, row.hash)
		}
		e.oldest = e.oldest[1:]
	}
	if len(e.oldest) < e.most/4 { // neither a map nor a slice shrinks by itself
		until := make(map[uint64]time.Duration, len(e.until))
		maps.Copy(until, e.until)
		e.until, e.oldest, e.most = until, append([]endedRow(nil), e.oldest...), len(e.oldest)
	}
}
