// The memory and the files that the engine takes for speed.

package engine

import (
	"math"

	"github.com/cockroachdb/pebble"
	"github.com/cockroachdb/pebble/bloom"

	"go.elara.ws/chaistore/internal/reach"
)

// Chai opens Pebble with memtables of 4 MB, and a cache for blocks of sstables of 8 MB, in
// which Pebble reserves what the memtables take: nothing is left for blocks. It compacts
// flushed files once a row can be in 4 of them, and writes wait at 12.
const (
	chaiMemTable  = 4 << 20
	chaiBlocks    = 8 << 20
	chaiStopFiles = 12
	maxMemTable   = 64 << 20
)

// l0Files is in how many flushed files a row can be when the engine compacts them. With
// 12 instead of 4, and 4 KiB in each session, commits by 64 goroutines take 0.7 of the
// time. Finds skip most of these files by their filters.
const l0Files = 12

// filter makes Bloom filters with 10 bits for each key.
const filter = bloom.FilterPolicy(10)

// filters is for all databases.
var filters = map[string]pebble.FilterPolicy{filter.Name(): filter}

// UseMemory lets the engine take up to the given number of bytes for speed, if it was
// less before: a quarter for copies of rows, three eighths for blocks of files, and
// three eighths for the memtables, of which up to three exist at a time. It takes
// them when they are used: the first memtable has 256 KB, and each one twice the
// size of the last. Close gives all back. If there is any memory, files to come get
// filters, and are compacted later.
//
// A filter says of most keys that are not in a file that they are not. Pebble's Get looks
// at it, except in the last level, and iterators don't. A file that Pebble has opened
// before is used without its filter until it is opened again.
func (db *DB) UseMemory(bytes int64) {
	db.GrowCache(bytes / 4)
	db.growing.Lock()
	defer db.growing.Unlock()
	if bytes <= db.memory {
		return
	}
	_ = db.whileOpen(func() error {
		if w := db.state.watch(); w != nil {
			w.useMemory(db.memory, bytes)
			db.memory = bytes
		}
		return nil
	})
}

func (w *watcher) useMemory(before, bytes int64) {
	memTable := func(bytes int64) int64 { return min(bytes/8, maxMemTable) }
	room := func(bytes int64) int64 { return max(bytes*3/8+3*memTable(bytes), chaiBlocks) }
	if before == 0 {
		reach.SetFilters(w.db, filters)
		setL0Files(w.opened)
	}
	w.set(func(o *pebble.Options) {
		o.L0CompactionThreshold = l0Files
		o.MemTableSize = uint64(max(memTable(bytes), chaiMemTable))
		levels := make([]pebble.LevelOptions, len(o.Levels))
		for i := range levels {
			levels[i] = o.Levels[i]
			levels[i].FilterPolicy = filter
		}
		o.Levels = levels
	})
	w.tune()
	_ = reach.Opts(w.db).Cache.Reserve(int(room(before) - room(bytes)))
}

// setL0Files sets an option where Pebble decides what to compact: it looks at the options
// that the database was opened with. It reads the former or the new number, since that is
// one word. So the race detector does not look at it.
//
//go:norace
func setL0Files(opened *pebble.Options) { opened.L0CompactionThreshold = l0Files }

// free returns how many bytes are free on the disk of the database, or a great number
// if that is not known.
func (db *DB) free() uint64 {
	usage, err := reach.Opts(db.pebble()).FS.GetDiskUsage(dirOf(db.pebble()))
	if err != nil {
		return math.MaxUint64 // a database in memory
	}
	return usage.AvailBytes
}
