// What does not exist: filters of the keys of tables.

package engine

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// A keyFilter knows keys that certainly have no row. It is a Bloom filter of the keys of a
// table. It is complete when it has
//
//   - the keys of all rows that were read in snapshots with the number from, or later ones;
//   - the keys of all rows that are put by batches which are not in these snapshots. The
//     feed tells of them before anybody can see them.
//
// So a key that is not in it has no row in any snapshot with the number from, or a later one.
// The keys of deleted rows stay in it, until a collection has made the next filter.
//
// A filter has the keys of one number of a table. Whether that is still the number of the
// table, the caller must ask after the filter: see [DB.Catalog].
type keyFilter struct {
	table    string
	prefix   []byte
	from     uint64
	seed     maphash.Seed // so nobody can choose tokens that have the same hash
	complete atomic.Bool
	onDisk   atomic.Bool // see DB.AbsentOnDisk
	keys     atomic.Int64
	layers   atomic.Pointer[[]*layer]

	// mu is held while a key is added that was not there, and for all else before the filter
	// is complete.
	mu   sync.Mutex
	gone bool // whether the filter was removed
}

// A layer has room for some keys. When it is full, the filter gets a further one. Where
// there is no memory for that, the layer takes more.
type layer struct {
	blocks     []block
	keys, room int64
}

// A block has all bits of a key. It is a line of the processor's cache. While a filter is not
// complete, its blocks are changed without atomic operations, for which the processor would
// wait: so a sweep takes 1.1 times as long as one without a collection, and not 1.3 times.
type block [8]uint64

const (
	blockSize = 64
	bitsOfKey = 7    // that are set
	sizeOfKey = 16   // bits; then 2 in 1000 other keys have theirs set by chance
	minOfKey  = 6    // where there is no more memory: 70 in 1000
	minRoom   = 512  // keys, in a kilobyte: there may be many databases
	minMore   = 4096 // keys in each further layer

	addedTogether = 512 // keys of a collection
)

// keyFilters has the filters of all tables of a database.
type keyFilters struct {
	list  atomic.Pointer[[]*keyFilter]
	size  atomic.Int64 // in bytes, of all of them
	limit atomic.Int64 // bytes for each; all may take twice as much
	mu    sync.Mutex   // held while list changes
}

func (fs *keyFilters) all() []*keyFilter {
	if list := fs.list.Load(); list != nil {
		return *list
	}
	return nil
}

// of returns the complete filter that has a key, if it has a row, or nil.
func (fs *keyFilters) of(key []byte) *keyFilter {
	for _, f := range fs.all() {
		if f.complete.Load() && bytes.HasPrefix(key, f.prefix) {
			return f
		}
	}
	return nil
}

// follow is told each change.
func (fs *keyFilters) follow(c Change) {
	if c.Delete {
		return
	}
	for _, f := range fs.all() {
		if c.Key == nil || bytes.HasPrefix(c.Key, f.prefix) && !fs.add(f, c.Key) {
			fs.remove(f)
		}
	}
}

// add adds a key. It reports false if there is no memory for that.
func (fs *keyFilters) add(f *keyFilter, key []byte) bool {
	h := f.hash(key)
	if f.complete.Load() && f.has(h) {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.has(h) || fs.addHashes(f, h)
}

// addHashes adds keys by their hashes. f.mu must be locked.
func (fs *keyFilters) addHashes(f *keyFilter, hashes ...uint64) bool {
	layers := *f.layers.Load()
	last := layers[len(layers)-1]
	complete := f.complete.Load()
	for _, h := range hashes {
		if last.keys >= last.room {
			if further := fs.grow(f, max(f.keys.Load(), minMore)); further != nil {
				last = further
			} else if last.room = maxKeys(last.blocks); last.keys >= last.room {
				return false
			}
		}
		last.keys++
		f.keys.Add(1)
		last.set(h, complete)
	}
	return true
}

// grow adds a layer for a number of keys, or for as many as there is memory for, and
// returns it, or nil. f.mu must be locked, or nobody else knows f.
func (fs *keyFilters) grow(f *keyFilter, keys int64) *layer {
	size, limit := f.size(), fs.limit.Load()
	room := min(limit-size, 2*limit-fs.size.Load()) / blockSize // in blocks
	n := min((keys*sizeOfKey/8+blockSize-1)/blockSize, room)
	if n < minRoom*minOfKey/8/blockSize || f.gone {
		return nil
	}
	added := &layer{blocks: make([]block, n)}
	added.room = min(keys, maxKeys(added.blocks))
	var layers []*layer
	if former := f.layers.Load(); former != nil {
		layers = slices.Clone(*former)
	}
	layers = append(layers, added)
	f.layers.Store(&layers)
	fs.size.Add(n * blockSize)
	return added
}

// maxKeys returns the greatest number of keys in a layer.
func maxKeys(blocks []block) int64 { return int64(len(blocks)) * blockSize * 8 / minOfKey }

// size returns how many bytes f takes.
func (f *keyFilter) size() (n int64) {
	if layers := f.layers.Load(); layers != nil {
		for _, l := range *layers {
			n += int64(len(l.blocks)) * blockSize
		}
	}
	return n
}

func (f *keyFilter) hash(key []byte) uint64 { return maphash.Bytes(f.seed, key) }

func (f *keyFilter) has(h uint64) bool {
	for _, l := range *f.layers.Load() {
		if l.has(h) {
			return true
		}
	}
	return false
}

func (l *layer) has(h uint64) bool {
	b, places := l.block(h)
	for range bitsOfKey {
		if atomic.LoadUint64(&b[places>>6&7])&(1<<(places&63)) == 0 {
			return false
		}
		places >>= 9
	}
	return true
}

func (l *layer) set(h uint64, complete bool) {
	b, places := l.block(h)
	for range bitsOfKey {
		if word, bit := &b[places>>6&7], uint64(1)<<(places&63); complete {
			atomic.OrUint64(word, bit)
		} else {
			*word |= bit
		}
		places >>= 9
	}
}

// block returns the block of a key, and where its bits are, in 9 bits each.
func (l *layer) block(h uint64) (b *block, places uint64) {
	i, _ := bits.Mul64(h, uint64(len(l.blocks)))
	const odd = 0x9e3779b97f4a7c15 // the block depends on the first bits of h
	return &l.blocks[i], h * odd
}

// begin adds a filter that is not complete. It reports false if the table has one, or if
// there is no memory for it.
func (fs *keyFilters) begin(f *keyFilter, keys int64) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, other := range fs.all() {
		switch {
		case other.table != f.table:
		case !other.complete.Load():
			return false
		default:
			keys = other.keys.Load()
		}
	}
	if fs.grow(f, max(keys+keys/4, minRoom)) == nil {
		return false
	}
	fs.set(append(slices.Clone(fs.all()), f))
	return true
}

// end makes a filter complete, and removes the former one.
func (fs *keyFilters) end(f *keyFilter) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !slices.Contains(fs.all(), f) {
		return
	}
	f.mu.Lock()
	f.complete.Store(true) // it and the former one are told of all changes until here
	f.mu.Unlock()
	fs.drop(func(other *keyFilter) bool { return other != f && other.table == f.table })
}

func (fs *keyFilters) remove(f *keyFilter) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.drop(func(other *keyFilter) bool { return other == f })
}

// drop removes filters. fs.mu must be locked.
func (fs *keyFilters) drop(which func(f *keyFilter) bool) {
	var kept []*keyFilter
	for _, f := range fs.all() {
		if !which(f) {
			kept = append(kept, f)
			continue
		}
		f.mu.Lock()
		f.gone = true
		fs.size.Add(-f.size())
		f.mu.Unlock()
	}
	fs.set(kept)
}

func (fs *keyFilters) set(list []*keyFilter) { fs.list.Store(&list) }

// settle notes that what has been deleted is on disk. It is called with the write lock
// locked, which whoever commits holds until then.
func (fs *keyFilters) settle() {
	for _, f := range fs.all() {
		if f.complete.Load() && !f.onDisk.Load() {
			f.onDisk.Store(true)
		}
	}
}

// A Collection collects the keys of a table for a filter.
type Collection struct {
	db     *DB
	f      *keyFilter // nil if there won't be one
	hashes []uint64   // of keys that are not added yet
}

// Collect begins to collect the keys of a table, which begin with prefix. For the filter to
// be complete, the keys of all rows must be passed to Add, but for those that the caller
// deletes. The rows must be read in snapshots that were opened afterwards and passed to In.
// If the table had no filter before, it has room for the given number of rows at first.
// While another collection for the table has not ended, nothing is collected.
func (db *DB) Collect(table string, prefix []byte, rows int64) *Collection {
	c := &Collection{db: db}
	f := &keyFilter{table: table, prefix: bytes.Clone(prefix), seed: maphash.MakeSeed()}
	if db.isObserving() && db.filters.begin(f, rows) {
		// Either this has the end of a batch, or who tells of the batch knows f: see begin
		// in feed.go.
		f.from = db.feed.end.Load()
		c.f = f
	}
	return c
}

// In is called for each snapshot in which rows are read.
func (c *Collection) In(s *Snapshot) {
	if c.f != nil && (!s.observed || s.number < c.f.from) {
		c.Close()
	}
}

// Add adds the key of a row.
func (c *Collection) Add(key []byte) {
	if c.f == nil {
		return
	}
	c.hashes = append(c.hashes, c.f.hash(key))
	if len(c.hashes) == addedTogether {
		c.flush()
	}
}

// flush adds keys together: the processor waits for the memory of many at once.
func (c *Collection) flush() {
	c.f.mu.Lock()
	ok := c.db.filters.addHashes(c.f, c.hashes...)
	c.f.mu.Unlock()
	if c.hashes = c.hashes[:0]; !ok {
		c.Close()
	}
}

// Collects reports whether there may be a filter.
func (c *Collection) Collects() bool { return c.f != nil }

// Done makes the filter complete. All rows have been read.
func (c *Collection) Done() {
	if c.f != nil {
		c.flush()
	}
	if c.f != nil {
		c.db.filters.end(c.f)
		c.f = nil
	}
}

// Close ends a collection that is not done.
func (c *Collection) Close() {
	if c.f != nil {
		c.db.filters.remove(c.f)
		c.f = nil
	}
}

// Absent reports whether it is certain that there is no row with the given key.
func (db *DB) Absent(key []byte) bool {
	f := db.filters.of(key)
	return f != nil && !f.has(f.hash(key)) && db.Writable() == nil // otherwise, older rows may be read
}

// AbsentOnDisk is Absent for what needs no deletion: the row does not come back after a loss
// of power, because its deletion is on disk. While writing hangs, it reports false: what
// hangs may put the row later.
func (db *DB) AbsentOnDisk(key []byte) bool {
	if db.WriteError() != nil {
		return false
	}
	f := db.filters.of(key)
	return f != nil && f.onDisk.Load() && !f.has(f.hash(key))
}

// FilterSize returns how many bytes the filter of a table takes, 0 if it has none.
func (db *DB) FilterSize(table string) int64 {
	for _, f := range db.filters.all() {
		if f.table == table && f.complete.Load() {
			return f.size()
		}
	}
	return 0
}
