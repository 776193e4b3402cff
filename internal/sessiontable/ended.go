// Ended sessions, which must not be committed again.

package sessiontable

import (
	"errors"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"time"
)

// ErrEnded is returned by [Table.Upsert] for a session that has ended.
var ErrEnded = errors.New("the session has been ended: send its visitor to the sign-in page")

// ended remembers the tokens of deleted sessions, each for a time. It keeps a hash of 64
// bits of each token, which takes less than 64 bytes. While it remembers a million
// tokens, one in 10^13 commits is refused by mistake. A nil *ended remembers nothing.
//
// The tokens are in generations, each of which is forgotten as a whole: no call takes
// longer because many tokens are forgotten at once.
type ended struct {
	seed  maphash.Seed
	start time.Time // times are measured from it, whatever the clock is set to

	mu          sync.Mutex
	generations []*generation
}

// A generation has the keys that were added, for the same time, within an eighth of
// that time. So there are about nine generations for each such time, and keys are freed
// up to an eighth of it late.
type generation struct {
	remember time.Duration
	begun    time.Duration
	until    map[uint64]time.Duration
	last     time.Duration // the greatest of until
}

func newEnded() *ended {
	return &ended{seed: maphash.MakeSeed(), start: time.Now()}
}

// add remembers a token for a time.
func (e *ended) add(token string, remember time.Duration) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.forget()
	g := e.open(remember, now)
	g.last = now + min(remember, math.MaxInt64-now)
	g.until[maphash.String(e.seed, token)] = g.last
}

// has reports whether a token is remembered.
func (e *ended) has(token string) bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.forget()
	hash := maphash.String(e.seed, token)
	for _, g := range e.generations {
		if g.until[hash] > now {
			return true
		}
	}
	return false
}

// open returns the generation to which tokens are added now. e.mu must be held.
func (e *ended) open(remember, now time.Duration) *generation {
	for _, g := range e.generations {
		if g.remember == remember && now-g.begun <= remember/8 {
			return g
		}
	}
	g := &generation{remember: remember, begun: now, until: make(map[uint64]time.Duration)}
	e.generations = append(e.generations, g)
	return g
}

// forget frees the generations whose tokens need not be remembered any more, and returns
// the time. e.mu must be held.
func (e *ended) forget() (now time.Duration) {
	now = time.Since(e.start)
	e.generations = slices.DeleteFunc(e.generations, func(g *generation) bool { return g.last <= now })
	return now
}
