// Ended sessions, which must not be committed again.

package sessiontable

import (
	"errors"
	"hash/maphash"
	"maps"
	"math"
	"sync"
	"time"
)

// ErrEnded is returned by [Table.Upsert] for a session that has ended.
var ErrEnded = errors.New("the session has been ended")

// endedKey is the key of the ended sessions that all Tables of the same name in a
// database share.
type endedKey struct{ table string }

// ended remembers the tokens of deleted sessions, each for a time. It keeps a hash of
// 64 bits of each token, which takes less than 64 bytes. While it remembers a million
// tokens, one in 10^13 commits is refused by mistake. A nil *ended remembers nothing.
type ended struct {
	seed  maphash.Seed
	start time.Time // times are measured from it, whatever the clock is set to

	mu     sync.Mutex
	until  map[uint64]time.Duration
	oldest []endedRow // in the order of addition
	most   int        // the greatest length of oldest since it last shrank
}

type endedRow struct {
	hash  uint64
	until time.Duration
}

func newEnded() *ended {
	return &ended{seed: maphash.MakeSeed(), start: time.Now(), until: make(map[uint64]time.Duration)}
}

// add remembers a token for a time.
func (e *ended) add(token string, remember time.Duration) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget()
	now := time.Since(e.start)
	row := endedRow{maphash.String(e.seed, token), now + min(remember, math.MaxInt64-now)}
	e.until[row.hash] = max(row.until, e.until[row.hash])
	e.oldest = append(e.oldest, row)
	e.most = max(e.most, len(e.oldest))
}

// has reports whether a token is remembered.
func (e *ended) has(token string) bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget()
	return e.until[maphash.String(e.seed, token)] > time.Since(e.start)
}

// forget frees tokens whose time is over, except those added after one that must still
// be remembered. e.mu must be held.
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
