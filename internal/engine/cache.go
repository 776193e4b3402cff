// The cache: copies of rows in memory that are known to be the newest.

package engine

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// A cache holds copies of rows. Others can change rows behind its back: applications,
// with SQL, and Chai, when it undoes a transaction. So the cache is told of every batch
// that anyone commits, on its way (feed.go), which is meant by observing it:
//
//	batch ─ gets its numbers, n up to end ─ is observed ─ visible to snapshots of number end and later
//
// Batches are numbered, observed and become visible in the same order. A snapshot with
// number s has exactly the batches with end <= s. So:
//
//   - Observing a batch marks each of its keys with its end, and removes the copy.
//   - A reader enters a row only if the mark of its key is not greater than the number
//     of its snapshot, which then has all batches that have changed the row so far. It
//     looks at the mark under the lock that marking takes. So while a copy is there, no
//     batch that changes the row has been observed, and none is visible.
//   - A transaction of Chai that is open may have written out changes. They have been
//     observed, and Chai's readers share the snapshot from before: it enters none of the
//     rows that they change. If the transaction is rolled back, readers still read a
//     snapshot from before it until it is undone (undo.go).
//   - A batch of this package enters its rows when it is on disk, before its callers are
//     answered, and before the write lock is unlocked, so nobody has changed them
//     meanwhile. If its commit fails, it enters nothing.
//   - Batches from before the first observed one have smaller numbers than the mark that
//     all keys begin with.
//
// A key's mark is shared by all keys with the same hash, so it may be greater than
// necessary. Missing rows are not cached.
//
// The cache also knows which batch changed the catalog last.
type cache struct {
	catalog atomic.Uint64 // the mark of Chai's table of tables
	limit   atomic.Int64  // in bytes, for the copies and the filters
	filters *keyFilters
	seed    maphash.Seed
	shards  [32]shard
}

// GrowCache raises the limit of the cache and of the filters to the given number of bytes,
// if it is lower. At first, the limit is 0. The filters take up to half of it.
func (db *DB) GrowCache(bytes int64) {
	db.growing.Lock()
	defer db.growing.Unlock()
	c := &db.cache
	c.limit.Store(max(c.limit.Load(), bytes))
	c.filters.limit.Store(c.limit.Load() / 4)
}

// room returns the limit of a shard.
func (c *cache) room() int { return int(c.limit.Load()-c.filters.size.Load()) / len(c.shards) }

// follow is told each change.
func (c *cache) follow(change Change) {
	switch {
	case change.Key == nil:
		c.start(change.End)
		return
	case len(change.Key) > 0 && change.Key[0] == catalogTable:
		c.catalog.Store(change.End)
	}
	c.mark(change.Key, change.End)
}

// start marks all keys with end.
func (c *cache) start(end uint64) {
	c.catalog.Store(end)
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for j := range s.marks {
			s.marks[j] = end
		}
		s.entries, s.clock, s.size = nil, nil, 0
		s.mu.Unlock()
	}
}

// mark marks a key with end, and removes the copy of its row. Its place is kept.
func (c *cache) mark(key []byte, end uint64) {
	s, mark := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	*mark = end
	if e, ok := s.entries[string(key)]; ok {
		s.size -= e.size()
		e.row = nil
		s.size += e.size()
	}
}

// get returns the copy of a row, or nil.
func (c *cache) get(key []byte) []byte {
	s, _ := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	entry, ok := s.entries[string(key)]
	if !ok || entry.row == nil {
		return nil
	}
	entry.used = true
	return entry.row
}

// fill enters a row of the snapshot with the given number, unless it may have changed
// since.
func (c *cache) fill(number uint64, key, row []byte) {
	s, mark := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if *mark <= number {
		s.put(string(key), row, c.room())
	}
}

// committed enters the rows of a batch of this package.
func (c *cache) committed(b *Batch) {
	for key, i := range b.latest {
		change := &b.changes[i]
		if change.uncached {
			continue
		}
		s, _ := c.shard([]byte(key))
		s.mu.Lock()
		if change.row != nil {
			s.put(key, change.row, c.room())
		} else {
			s.remove(key)
		}
		s.mu.Unlock()
	}
}

// shard returns the shard of a key, and the place of its mark.
func (c *cache) shard(key []byte) (s *shard, mark *uint64) {
	h := maphash.Bytes(c.seed, key)
	s = &c.shards[h%uint64(len(c.shards))]
	return s, &s.marks[h>>32%uint64(len(s.marks))]
}

// A shard is a part of the cache, with a limit of its own. It first removes entries
// that were not used since the hand last passed them (CLOCK).
type shard struct {
	mu         sync.Mutex
	marks      [128]uint64 // of keys, by their hash
	entries    map[string]*entry
	clock      []*entry // the same entries, in any order
	maxEntries int      // the greatest number of entries since the map was made
	hand       int
	size       int
}

type entry struct {
	key   string
	row   []byte // nil after it was changed
	place int    // in the clock
	used  bool
}

// entryOverhead is the approximate number of bytes of an entry besides its row and
// its key: 64 for itself, 8 to 10 in the clock, 28 to 57 in the map, depending on how
// full the map is, and what the allocator adds to the key.
const entryOverhead = 150

// size returns about how many bytes an entry takes. The allocator adds up to an eighth
// to a row; a larger one than 32 KiB takes whole pages.
func (e *entry) size() int {
	const large, page = 32 << 10, 8 << 10
	row := len(e.row) * 9 / 8
	if len(e.row) > large {
		row = (len(e.row) + page - 1) / page * page
	}
	return entryOverhead + len(e.key) + row
}

func (s *shard) put(key string, row []byte, limit int) {
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
		s.maxEntries = max(s.maxEntries, len(s.clock))
	}
	e.row = row
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
	if last < s.maxEntries/4 { // neither a map nor a slice shrinks by itself
		entries := make(map[string]*entry, last)
		for _, e := range s.clock {
			entries[e.key] = e
		}
		s.entries, s.clock, s.maxEntries = entries, append([]*entry(nil), s.clock...), last
	}
}
