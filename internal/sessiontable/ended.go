// Ended sessions, which must not be committed again.

package sessiontable

import (
	"bytes"
	"errors"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// ErrEnded is returned by [Table.Upsert] for a session that has ended.
var ErrEnded = errors.New("the session has been ended: send its visitor to the sign-in page")

// ended remembers the tokens of deleted sessions, each for a time. It keeps a hash of 64
// bits of each token, which takes less than 64 bytes. While it remembers a million
// tokens, one in 10^13 commits is refused by mistake. A nil *ended remembers nothing.
//
// The tokens are in generations, each of which is forgotten as a whole: no call takes
// longer because many tokens are forgotten at once.
//
// Who deletes sessions with this package adds their tokens. What SQL deletes is told by the
// feed, when its transaction may still put a session back, or be rolled back. So it is added
// when the transaction has ended, before the next commit looks for it.
type ended struct {
	seed    maphash.Seed
	start   time.Time // times are measured from it, whatever the clock is set to
	once    sync.Once // done when the feed is followed
	catalog []byte    // the key of the table in the catalog

	followed atomic.Pointer[[]byte] // the beginning of the keys of sessions, as told last; nil without a table

	mu          sync.Mutex
	longest     time.Duration // for which tokens are remembered
	generations []*generation
	deleting    deleting
}

// deleting is what a transaction of SQL deletes.
type deleting struct {
	transaction uint64
	at          time.Duration       // of the last deletion
	tokens      map[uint64]struct{} // hashes of those that it has deleted and not put again
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

func newEnded(name string) *ended {
	return &ended{seed: maphash.MakeSeed(), start: time.Now(), catalog: appendKey(nil, catalogNamespace, name)}
}

// remember makes e remember for at least the given time what SQL deletes.
func (e *ended) remember(remember time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.longest = max(e.longest, remember)
}

// follow notes the namespace that the table has, outside of any transaction.
func (e *ended) follow(namespace int64) {
	beginning := appendInt(nil, namespace)
	if f := e.followed.Load(); f == nil || !bytes.Equal(*f, beginning) {
		e.followed.Store(&beginning)
	}
}

// told notes a change. It is called with Pebble's commit mutex locked.
func (e *ended) told(c engine.Change) {
	if c.Own {
		return
	}
	var token []byte
	replaces := bytes.Equal(c.Key, e.catalog)
	if f := e.followed.Load(); f != nil && !replaces {
		token = tokenIn(c.Key, *f)
	}
	if token == nil && !replaces {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	d := &e.deleting
	if d.transaction != c.Transaction {
		e.addDeleted()
		d.transaction = c.Transaction
	}
	switch {
	case replaces:
		d.tokens = nil // the sessions may be in the new table
		if namespace, err := decodeCatalogRow(c.Row); err == nil {
			e.follow(namespace)
		} else {
			e.followed.Store(nil) // it is deleted
		}
	case c.Undo:
		d.tokens = nil
	case c.Delete:
		d.at = time.Since(e.start)
		if d.tokens == nil {
			d.tokens = make(map[uint64]struct{})
		}
		d.tokens[e.hash(token)] = struct{}{}
	case d.tokens != nil:
		delete(d.tokens, e.hash(token))
	}
}

// addDeleted adds what a transaction that has ended has deleted. e.mu must be held.
func (e *ended) addDeleted() {
	if len(e.deleting.tokens) > 0 {
		g := e.open(e.longest, e.deleting.at)
		g.last = max(g.last, e.deleting.at+min(e.longest, math.MaxInt64-e.deleting.at))
		for hash := range e.deleting.tokens {
			g.until[hash] = max(g.until[hash], g.last)
		}
	}
	e.deleting = deleting{}
}

func (e *ended) hash(token []byte) uint64 { return maphash.Bytes(e.seed, token) }

// add remembers a token for a time.
func (e *ended) add(token string, remember time.Duration) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.forget()
	g := e.open(remember, now)
	g.last = max(g.last, now+min(remember, math.MaxInt64-now))
	g.until[maphash.String(e.seed, token)] = g.last
}

// has reports whether a token is remembered. No transaction of SQL may be open, and the
// table must have the given namespace.
func (e *ended) has(token string, namespace int64) bool {
	if e == nil {
		return false
	}
	e.follow(namespace)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addDeleted()
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
