// The cache: copies of rows in memory that are known to be the newest.

package engine

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/chaisql/chai"
)

// A cache holds copies of rows. An application can change rows behind its back, with
// SQL, so the cache must know when a copy may be stale:
//
//   - Chai numbers its transactions. Each one increments a counter of the database
//     before it changes anything, and, if it writes, after it has got the write lock.
//     Batches of this package don't count. While this package holds the write lock,
//     no writing transaction is open: it reads the number, and begins an epoch.
//   - A copy belongs to the epoch in which it was made. It is used only while that
//     epoch is the latest, and its number the current one: no transaction has begun
//     since, so only this package has changed anything. Nothing needs to be removed
//     when an epoch ends.
//   - A batch is announced, with its keys, before it is committed. The copies of
//     these keys are invalid from then on. After the commit, the rows of the batch
//     are entered, and then its end is announced, all before its callers are
//     answered. If the commit fails or hangs, the copies stay invalid.
//   - A reader enters a row only if no batch was announced since its snapshot was
//     opened, and if the batch announced last before that does not have the row's
//     key. It checks this under the lock that invalidating a copy takes, so a batch
//     announced a moment later invalidates what was entered.
//
// Missing rows are not cached.
type cache struct {
	epoch  atomic.Pointer[epoch]        // the latest; nil before the first
	batch  atomic.Pointer[announcement] // the latest
	limit  atomic.Int64                 // in bytes, for each shard
	seed   maphash.Seed
	shards [32]shard
}

// An epoch is a time in which no transaction of Chai begins.
type epoch struct{ number uint64 }

// An announcement holds the keys of the batch that is being committed, or none after
// its end.
type announcement struct{ keys map[string]int }

func newCache() *cache {
	c := &cache{seed: maphash.MakeSeed()}
	c.batch.Store(new(announcement))
	return c
}

// GrowCache raises the limit of the cache of db to the given number of bytes, if it
// is lower. At first, the limit is 0.
func (db *DB) GrowCache(bytes int64) {
	c := db.cache
	limit := bytes / int64(len(c.shards))
	for old := c.limit.Load(); old < limit && !c.limit.CompareAndSwap(old, limit); {
		old = c.limit.Load()
	}
}

// begin returns the epoch with the given number. The caller must hold the write lock.
func (c *cache) begin(number uint64) *epoch {
	e := c.epoch.Load()
	if e == nil || e.number != number {
		e = &epoch{number}
		c.epoch.Store(e)
	}
	return e
}

// current returns the latest epoch, or nil if it does not have the given number, the
// current one.
func (c *cache) current(number uint64) *epoch {
	if e := c.epoch.Load(); e != nil && e.number == number {
		return e
	}
	return nil
}

// get returns the copy of a row made in epoch e, or nil.
func (c *cache) get(e *epoch, key []byte) []byte {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	entry, ok := s.entries[string(key)]
	if !ok || entry.epoch != e {
		return nil
	}
	entry.used = true
	return entry.row
}

// fill enters a row read in epoch e, unless it may have changed since the given
// announcement.
func (c *cache) fill(e *epoch, since *announcement, key, row []byte) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, changing := since.keys[string(key)]; changing || c.batch.Load() != since {
		return
	}
	s.put(string(key), row, e, int(c.limit.Load()))
}

// announce announces a batch, and invalidates the copies of its keys.
func (c *cache) announce(b *Batch) {
	c.batch.Store(&announcement{b.latest})
	for key := range b.latest {
		s := c.shard([]byte(key))
		s.mu.Lock()
		if e, ok := s.entries[key]; ok {
			e.epoch = nil // not used any more, but its place is kept
		}
		s.mu.Unlock()
	}
}

// committed enters the rows of the announced batch, which was committed in epoch e,
// and announces its end.
func (c *cache) committed(e *epoch, b *Batch) {
	for key, i := range b.latest {
		change := &b.changes[i]
		if change.entry {
			continue
		}
		s := c.shard([]byte(key))
		s.mu.Lock()
		if change.row != nil {
			s.put(key, change.row, e, int(c.limit.Load()))
		} else {
			s.remove(key)
		}
		s.mu.Unlock()
	}
	c.batch.Store(new(announcement))
}

func (c *cache) shard(key []byte) *shard {
	return &c.shards[maphash.Bytes(c.seed, key)%uint64(len(c.shards))]
}

// A shard is a part of the cache, with a limit of its own. It first removes entries
// that were not used since the hand last passed them (CLOCK).
type shard struct {
	mu      sync.Mutex
	entries map[string]*entry
	clock   []*entry // the same entries, in any order
	hand    int
	size    int
}

type entry struct {
	key   string
	row   []byte
	epoch *epoch
	place int // in the clock
	used  bool
}

// entryOverhead is the approximate number of bytes of an entry besides its row and
// its key: 64 for itself, 8 to 10 in the clock, 28 to 57 in the map, depending on how
// full the map is, and what the allocator adds to the key.
const entryOverhead = 150

// size returns about how many bytes an entry takes. The allocator adds up to a fifth
// to a large row; size counts an eighth.
func (e *entry) size() int { return entryOverhead + len(e.key) + len(e.row)*9/8 }

func (s *shard) put(key string, row []byte, epoch *epoch, limit int) {
	e, ok := s.entries[key]
	if ok {
		s.size -= e.size()
	} else {
		if s.entries == nil {
			s.entries = make(map[string]*entry)
		}
		e = &entry{key: key, place: len(s.clock)}
		s.entries[key] = e
		s.clock = append(s.clock, e)
	}
	e.row, e.epoch = row, epoch
	s.size += e.size()
	if e.size() > limit {
		s.remove(key)
	}
	for s.size > limit {
		s.hand = (s.hand + 1) % len(s.clock)
		if e := s.clock[s.hand]; e.used {
			e.used = false
		} else {
			s.remove(e.key)
		}
	}
}

func (s *shard) remove(key string) {
	e, ok := s.entries[key]
	if !ok {
		return
	}
	delete(s.entries, key)
	s.size -= e.size()
	last := len(s.clock) - 1
	s.clock[e.place] = s.clock[last]
	s.clock[e.place].place = e.place
	s.clock[last] = nil
	s.clock = s.clock[:last]
}

// transactions returns the number of transactions of Chai that have begun.
func transactions(db *chai.DB) uint64 { return atomic.LoadUint64(&db.DB.TransactionIDs) }
