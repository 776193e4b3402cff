package engine

import (
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// resident returns the memory of the process, Go's and C's, after a collection.
func resident(t *testing.T) (bytes int64) {
	t.Helper()
	for range 3 { // finalizers and cleanups free more
		debug.FreeOSMemory()
		time.Sleep(time.Millisecond)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rss, &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes << 10
}

// A database takes memory when it needs it, up to its budget, and Close gives it back:
// Go's heap, and the process, which does not grow with the second database. (C's
// allocator keeps some memory for itself.)
func TestMemoryKeepsItsBudget(t *testing.T) {
	testdb.Long(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, 2*time.Minute)
	const budget, rows, size = 32 << 20, 9000, 4096
	var process []int64
	for range 2 {
		heap := testdb.HeapInUse()
		engine, err := chai.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		db := Open(engine, discard)
		db.UseMemory(budget)
		if taken := testdb.HeapInUse() - heap; taken > budget/8 {
			t.Errorf("a new database takes %d bytes, want much less than %d", taken, budget)
		}
		random := rand.NewChaCha8([32]byte{1})
		var wg sync.WaitGroup
		for i := range rows {
			row := make([]byte, size)
			random.Read(row)
			wg.Go(func() {
				write(t, db, func(b *Batch) error { b.Put(key(fmt.Sprintf("%010d", i)), row); return nil })
			})
			if i%256 == 255 {
				wg.Wait()
			}
		}
		wg.Wait()
		for i := range rows {
			key := key(fmt.Sprintf("%010d", i))
			if err := db.Read(t.Context(), func(s *Snapshot) error { _, err := s.Find(key); return err }); err != nil {
				t.Fatal(err)
			}
		}
		metrics := db.pebble().Metrics()
		copies, blocks := int64(db.cache.bytes()), metrics.BlockCache.Size
		tables := int64(metrics.MemTable.Size + metrics.MemTable.ZombieSize)
		process = append(process, resident(t))
		t.Logf("copies %d, blocks %d, memory tables %d, heap %d, process %d bytes",
			copies, blocks, tables, testdb.HeapInUse()-heap, process[len(process)-1])
		if got := copies + blocks + tables; got > budget {
			t.Errorf("the database takes %d bytes, want at most %d", got, budget)
		}
		if copies < budget/5 || blocks < budget/8 {
			t.Errorf("got %d bytes of copies and %d of blocks, want the budget used", copies, blocks)
		}
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
		left := testdb.HeapInUse() - heap
		for closed := time.Now(); left > budget/8 && time.Since(closed) < 10*time.Second; { // on a loaded machine
			left = testdb.HeapInUse() - heap
		}
		if left > budget/8 {
			t.Errorf("after Close %d bytes are left on the heap, want nearly none", left)
		}
	}
	if first, last := process[0], process[len(process)-1]; last > first+budget {
		t.Errorf("the process has grown from %d to %d bytes with its second database", first, last)
	}
}

// bytes returns the size of all copies.
func (c *cache) bytes() (n int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.size
		s.mu.Unlock()
	}
	return n
}

// Many databases that are hardly used take no more memory with a budget than without.
func TestMemoryOfManyDatabases(t *testing.T) {
	testdb.Long(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, time.Minute)
	const databases = 100
	used := func(budget int64) (tables, heap int64) {
		heap = -testdb.HeapInUse()
		for range databases {
			engine := testdb.Memory(t)
			defer engine.Close()
			db := Open(engine, discard)
			db.UseMemory(budget)
			write(t, db, set("a", 1))
			wantValue(t, db, "a", 1)
			metrics := db.pebble().Metrics()
			tables += int64(metrics.MemTable.Size) + metrics.BlockCache.Size
		}
		return tables, heap + testdb.HeapInUse()
	}
	used(-1) // the first ones fill pools
	tables, heap := used(-1)
	tablesWith, heapWith := used(64 << 20)
	t.Logf("%d databases: %d bytes of tables and blocks and %d on the heap without a budget, %d and %d with one", databases, tables, heap, tablesWith, heapWith)
	if tablesWith > tables || heapWith > heap+databases*(16<<10) {
		t.Error("want as much with a budget as without one")
	}
}

// A process that opens one database after another, and uses up their budgets, keeps the
// memory of none.
func TestMemoryOfManyLives(t *testing.T) {
	testdb.Long(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, 2*time.Minute)
	const databases, budget, rows, size = 100, 8 << 20, 500, 8 << 10
	row := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(row)
	var process, heap int64
	for life := range databases {
		engine, err := chai.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		db := Open(engine, discard)
		db.UseMemory(budget)
		for first := 0; first < rows; first += 100 {
			write(t, db, func(b *Batch) error {
				for i := range 100 {
					b.Put(key(fmt.Sprint(first+i)), row)
				}
				return nil
			})
		}
		if copies := int64(db.cache.bytes()); copies < budget/5 || copies > budget/4 {
			t.Fatalf("got %d bytes of copies, want them used", copies)
		}
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
		if life == databases/2 { // C's allocator has taken what it keeps
			process, heap = resident(t), testdb.HeapInUse()
		}
	}
	moreProcess, moreHeap := resident(t)-process, testdb.HeapInUse()-heap
	t.Logf("after %d more databases, the process has %d bytes more, and the heap %d", databases/2, moreProcess, moreHeap)
	if moreProcess > 2*budget || moreHeap > budget/8 {
		t.Error("want no more than before")
	}
}

// A smaller budget changes nothing, and the memory is the same however it has grown.
func TestBudgetGrows(t *testing.T) {
	db := Open(testdb.Memory(t), discard)
	for _, test := range []struct {
		budget              int64
		limit, table, files int64
		blocks              int64 // and three memory tables, in MiB
	}{
		{-1, 0, 4 << 20, 4, 8},
		{0, 0, 4 << 20, 4, 8},
		{16 << 20, 4 << 20, 4 << 20, 12, 6 + 3*2},
		{64 << 20, 16 << 20, 8 << 20, 12, 24 + 3*8},
		{32 << 20, 16 << 20, 8 << 20, 12, 24 + 3*8},
		{1 << 30, 256 << 20, 64 << 20, 12, 384 + 3*64},
	} {
		db.UseMemory(test.budget)
		if got := db.cache.limit.Load(); got != test.limit {
			t.Errorf("UseMemory(%d): got %d bytes for copies, want %d", test.budget, got, test.limit)
		}
		if got := reach.Opts(db.pebble()).MemTableSize; got != uint64(test.table) {
			t.Errorf("UseMemory(%d): got memory tables of %d bytes, want %d", test.budget, got, test.table)
		}
		if got := reach.Opts(db.pebble()).L0CompactionThreshold; got != int(test.files) {
			t.Errorf("UseMemory(%d): the engine merges %d files, want %d", test.budget, got, test.files)
		}
		if o := reach.Opts(db.pebble()); o.L0StopWritesThreshold < 2*o.L0CompactionThreshold {
			t.Errorf("UseMemory(%d): writes wait at %d files, hardly later than files are merged, at %d", test.budget, o.L0StopWritesThreshold, o.L0CompactionThreshold)
		}
		if got := blockRoom(db); got != test.blocks {
			t.Errorf("UseMemory(%d): got %d MiB for blocks and memory tables, want %d", test.budget, got, test.blocks)
		}
	}
}

// blockRoom returns how many MiB are not reserved in the engine's cache of blocks.
func blockRoom(db *DB) int64 {
	var bytes int64
	shards := reflect.ValueOf(reach.Opts(db.pebble()).Cache).Elem().FieldByName("shards")
	for i := range shards.Len() {
		bytes += shards.Index(i).FieldByName("maxSize").Int() - shards.Index(i).FieldByName("reservedSize").Int()
	}
	return (bytes + 1<<19) >> 20 // the first memory table takes a quarter of one
}

// With a budget, too, a write can be larger than a memory table.
func TestWriteLargerThanAMemoryTable(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := Open(testdb.Memory(t), discard)
	db.UseMemory(40 << 20)
	row := make([]byte, 6<<20)
	if uint64(len(row)) <= reach.Opts(db.pebble()).MemTableSize {
		t.Fatal("the memory table is too large for the test")
	}
	for _, k := range []string{"a", "b"} {
		write(t, db, func(b *Batch) error { b.Put(key(k), row); return nil })
		if got := cacheFind(t, db, key(k)); len(got) != len(row) {
			t.Errorf("Find = %d bytes, want %d", len(got), len(row))
		}
	}
}

// With a budget, files have filters, which tell that rows are missing. Without one,
// filters are neither written nor used, and nothing else changes.
func TestFilters(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	dir := t.TempDir()
	const rows = 1000
	use := func(budget int64, first int) (hits int64, files map[string]int) {
		engine, err := chai.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer engine.Close()
		db := Open(engine, discard)
		db.UseMemory(budget)
		for i := range rows {
			if i%2 == first { // several files for the same keys
				write(t, db, set(fmt.Sprint(i), i))
			}
		}
		if err := db.pebble().Flush(); err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			wantValue(t, db, fmt.Sprint(i, "missing"), 0)
			if i%2 <= first {
				wantValue(t, db, fmt.Sprint(i), i)
			}
		}
		files = make(map[string]int)
		levels, err := db.pebble().SSTables(pebble.WithProperties())
		if err != nil {
			t.Fatal(err)
		}
		for _, level := range levels {
			for _, file := range level {
				files[file.Properties.FilterPolicyName]++
			}
		}
		return db.pebble().Metrics().Filter.Hits, files
	}
	if hits, files := use(64<<20, 0); hits < rows*9/10 || files[filter.Name()] == 0 || len(files) != 1 {
		t.Errorf("with a budget, filters were used %d times, in the files %v; want nearly %d times, in all", hits, files, rows)
	}
	if hits, files := use(-1, 1); hits != 0 || files[""] == 0 {
		t.Errorf("without a budget, filters were used %d times, in the files %v; want 0, and a file without one", hits, files)
	}
}

// Memory can be taken while files are written and merged.
func TestUseMemoryWhileFilesAreWritten(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	for range 10 {
		db := Open(testdb.Memory(t), discard)
		start := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range 20 {
				if i == 5 {
					close(start)
				}
				write(t, db, set("a", i))
				if err := db.pebble().Flush(); err != nil {
					t.Error(err)
				}
			}
		})
		<-start
		db.UseMemory(64 << 20)
		wg.Wait()
		wantValue(t, db, "a", 19)
	}
}
