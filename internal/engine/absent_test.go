package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"testing"
	"testing/synctest"
	"time"

	"go.elara.ws/chaistore/internal/testdb"
)

var absentPrefix = cacheKey[:1]

func newAbsentDB(t *testing.T) *DB {
	t.Helper()
	_, e := newDB(t)
	e.GrowCache(16 << 20)
	return e
}

// collected makes the filter of the rows whose keys begin with absentPrefix.
func collected(t *testing.T, e *DB) {
	t.Helper()
	c := e.Collect("table", absentPrefix, 0)
	defer c.Close()
	if err := collectAll(t.Context(), e, c); err != nil {
		t.Fatal(err)
	}
	c.Done()
}

func collectAll(ctx context.Context, e *DB, c *Collection) error {
	return e.Read(ctx, func(s *Snapshot) error {
		c.In(s)
		return s.Scan(absentPrefix, []byte{absentPrefix[0] + 1}, func(key, _ []byte) (bool, error) {
			c.Add(key)
			return true, nil
		})
	})
}

func wantAbsent(t *testing.T, e *DB, key []byte, want bool) {
	t.Helper()
	if got := e.Absent(key); got != want {
		t.Errorf("Absent(%q) = %v, want %v", key, got, want)
	}
}

func TestAbsent(t *testing.T) {
	e := newAbsentDB(t)
	wantAbsent(t, e, cacheKey, false) // there is no filter
	cachePut(t, e, cacheKeyOf("before"), "row")
	collected(t, e)
	wantAbsent(t, e, cacheKey, true)
	wantAbsent(t, e, cacheKeyOf("before"), false)
	wantAbsent(t, e, []byte{78, 98, 1, 'a'}, false) // of another table

	cachePut(t, e, cacheKey, "row")
	wantAbsent(t, e, cacheKey, false)
	cacheDelete(t, e, cacheKey)
	wantAbsent(t, e, cacheKey, false) // but there is none
	collected(t, e)
	wantAbsent(t, e, cacheKey, true)
	wantAbsent(t, e, cacheKeyOf("before"), false)
}

// What is put while a collection goes on is in both filters.
func TestPutDuringCollection(t *testing.T) {
	e := newAbsentDB(t)
	collected(t, e)
	c := e.Collect("table", absentPrefix, 0)
	if err := collectAll(t.Context(), e, c); err != nil {
		t.Fatal(err)
	}
	cachePut(t, e, cacheKey, "row")
	wantAbsent(t, e, cacheKey, false)
	c.Done()
	wantAbsent(t, e, cacheKey, false)
	wantAbsent(t, e, cacheOtherKey, true)
}

// There is one collection at a time for a table. One that is not done leaves the former
// filter, and gives its memory back.
func TestCollections(t *testing.T) {
	e := newAbsentDB(t)
	collected(t, e)
	size := e.filters.size.Load()
	first := e.Collect("table", absentPrefix, 0)
	second := e.Collect("table", absentPrefix, 0)
	other := e.Collect("other", []byte{78}, 0)
	second.Done()
	wantAbsent(t, e, cacheKey, true)
	first.Close()
	wantAbsent(t, e, cacheKey, true)
	if got := e.filters.size.Load(); got != 2*size {
		t.Errorf("a filter and a collection take %d bytes, want %d", got, 2*size)
	}
	other.Close()
	if got, want := e.FilterSize("table"), e.filters.size.Load(); got != size || want != size {
		t.Errorf("a filter takes %d bytes, %d of them for the table; want %d", want, got, size)
	}
}

// Neither a snapshot that is older than the collection, nor one from before batches are
// observed, makes a filter complete.
func TestCollectionOfOldSnapshot(t *testing.T) {
	for name, snapshot := range map[string]func(s *Snapshot) *Snapshot{
		"old":          func(s *Snapshot) *Snapshot { return s },
		"not observed": func(s *Snapshot) *Snapshot { return &Snapshot{number: s.number + 1000} },
	} {
		t.Run(name, func(t *testing.T) {
			e := newAbsentDB(t)
			err := e.Read(t.Context(), func(s *Snapshot) error {
				cachePut(t, e, cacheKey, "row")
				c := e.Collect("table", absentPrefix, 0)
				c.In(snapshot(s))
				c.Done()
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if size := e.filters.size.Load(); size != 0 {
				t.Errorf("there is a filter of %d bytes", size)
			}
		})
	}
}

// A batch that may have put any row ends the filters. One that may have deleted any does not.
func TestFiltersAreToldOfRanges(t *testing.T) {
	e := newAbsentDB(t)
	collected(t, e)
	e.filters.follow(Change{Delete: true, End: 1})
	wantAbsent(t, e, cacheKey, true)
	e.filters.follow(Change{End: 1})
	wantAbsent(t, e, cacheKey, false)
	if size := e.filters.size.Load(); size != 0 {
		t.Errorf("the filters take %d bytes, want 0", size)
	}
}

// A filter takes few other keys for its own: up to 5 in 1000, when it was made for as many
// as it has, and 15 when it has grown. It has all of its own.
func TestFilterErrs(t *testing.T) {
	const keys, others = 100_000, 100_000
	for name, test := range map[string]struct {
		estimate int64
		most     int
	}{"made for its keys": {keys, 5}, "grown": {0, 15}} {
		t.Run(name, func(t *testing.T) {
			fs := new(keyFilters)
			fs.limit.Store(1 << 20)
			f := &keyFilter{table: "table", seed: maphash.MakeSeed()}
			if !fs.begin(f, test.estimate) {
				t.Fatal("no memory")
			}
			for i := range keys {
				if !fs.add(f, fmt.Append(nil, i)) {
					t.Fatal("no memory")
				}
			}
			for i := range keys {
				if !f.has(f.hash(fmt.Append(nil, i))) {
					t.Fatalf("the key %d is not there", i)
				}
			}
			wrong := 0
			for i := range others {
				if f.has(f.hash(fmt.Append(nil, keys+i))) {
					wrong++
				}
			}
			if got := f.keys.Load(); got > keys || got < keys*98/100 {
				t.Errorf("got %d keys, want %d", got, keys)
			}
			t.Logf("%d of %d other keys, %d bytes, %d layers", wrong, others, f.size(), len(*f.layers.Load()))
			if wrong > others/1000*test.most {
				t.Errorf("%d of %d other keys are taken for its own, want %d at most", wrong, others, others/1000*test.most)
			}
		})
	}
}

// A filter takes no more memory than it may, and what it takes is taken from the cache. When
// it is full, it is removed, and the next one is made for as many keys as there are.
func TestFilterMemory(t *testing.T) {
	e := newAbsentDB(t)
	fs := &e.filters
	fs.limit.Store(64 << 10)
	room := e.cache.room()
	collected(t, e)
	if got := e.cache.room(); got != room-int(e.FilterSize("table"))/len(e.cache.shards) {
		t.Errorf("got room for %d bytes of copies with a filter, and %d without", got, room)
	}
	n := 0
	for ; e.FilterSize("table") > 0 && n < 1_000_000; n++ {
		if size := e.FilterSize("table"); size > 64<<10 {
			t.Fatalf("the filter takes %d bytes", size)
		}
		fs.follow(Change{Key: cacheKeyOf(fmt.Sprint(n)), End: 1})
	}
	if n < 64<<10*8/sizeOfKey*3/2 || n == 1_000_000 {
		t.Errorf("the filter was removed after %d keys", n)
	}
	wantAbsent(t, e, cacheKey, false)
	if got := e.cache.room(); got != room {
		t.Errorf("got room for %d bytes of copies without a filter, want %d", got, room)
	}

	c := e.Collect("table", absentPrefix, 10_000)
	for i := range 10_000 {
		c.Add(cacheKeyOf(fmt.Sprint(i)))
	}
	c.Done()
	first := e.FilterSize("table")
	again := e.Collect("table", absentPrefix, 0)
	for i := range 10_000 {
		again.Add(cacheKeyOf(fmt.Sprint(i)))
	}
	again.Done()
	if got := e.FilterSize("table"); got > first*11/10 || got < first*9/10 {
		t.Errorf("the next filter takes %d bytes, and the first one %d", got, first)
	}

	none := newAbsentDB(t)
	none.filters.limit.Store(0)
	collected(t, none)
	wantAbsent(t, none, cacheKey, false)
}

// A renewed row takes no room in a filter.
func TestFilterOfRenewedRow(t *testing.T) {
	e := newAbsentDB(t)
	collected(t, e)
	for range 10 * minMore {
		e.filters.follow(Change{Key: cacheKey, End: 1})
	}
	if got, want := e.FilterSize("table"), int64(minRoom*sizeOfKey/8); got != want {
		t.Errorf("the filter takes %d bytes, want %d", got, want)
	}
}

// A deletion is on disk once the filter was complete in a turn. While writing hangs, what
// hangs may put the row later.
func TestAbsentOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newAbsentDB(t)
		want := func(want bool) {
			t.Helper()
			if got := e.AbsentOnDisk(cacheKey); got != want {
				t.Errorf("AbsentOnDisk = %v, want %v", got, want)
			}
		}
		want(false)
		cachePut(t, e, cacheOtherKey, "row")
		collected(t, e)
		want(false)
		write(t, e, func(b *Batch) error { return nil })
		want(true)

		hang := make(chan struct{})
		wantError(t, e.Write(t.Context(), 0, func(b *Batch) error { <-hang; b.Put(cacheKey, []byte("row")); return nil }), ErrBusy)
		want(false)
		close(hang)
		synctest.Wait()
		want(false)
		time.Sleep(time.Second)
		want(false)
	})
}

// An operation knows what those before it in its turn have put.
func TestAbsentInBatch(t *testing.T) {
	e := newAbsentDB(t)
	collected(t, e)
	write(t, e, func(b *Batch) error {
		if !b.Absent(cacheKey) || b.Absent([]byte{78}) {
			t.Error("got the wrong keys for missing")
		}
		b.Put(cacheKey, []byte("row"))
		if b.Absent(cacheKey) {
			t.Error("a row is taken for missing after it was put")
		}
		b.Delete(cacheKey)
		if b.Absent(cacheKey) {
			t.Error("a row need not be deleted after it was")
		}
		return nil
	})
}

// Where older rows may be read, and after Close, nothing is known to be missing.
func TestAbsentAfterFailure(t *testing.T) {
	for name, fail := range map[string]func(e *DB){
		"read-only": func(e *DB) { e.state.watch().fail(errNo) },
		"closed":    func(e *DB) { _ = e.handle.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			db, e := newBreakableDB(t)
			e.GrowCache(16 << 20)
			collected(t, e)
			write(t, e, func(*Batch) error { return nil })
			wantAbsent(t, e, cacheKey, true)
			fail(e)
			wantAbsent(t, e, cacheKey, false)
			if e.AbsentOnDisk(cacheKey) {
				t.Error("AbsentOnDisk = true")
			}
			_ = db
		})
	}
}

// A transaction has written out a row when a collection begins, and is committed when that
// has ended. It is not in the snapshots that readers share meanwhile.
func TestCollectionBesideTransaction(t *testing.T) {
	db, e := newDB(t)
	e.GrowCache(16 << 20)
	info, err := db.DB.Catalog().GetTableInfo("t")
	if err != nil {
		t.Fatal(err)
	}
	prefix := []byte{byte(info.StoreNamespace) + 48}
	collected(t, e) // and observed
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Exec("INSERT INTO t (k, v) VALUES (1, 1)"); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.QueryRow("SELECT v FROM t"); err != nil { // writes out
		t.Fatal(err)
	}
	c := e.Collect("t", prefix, 0)
	err = e.Read(t.Context(), func(s *Snapshot) error {
		c.In(s)
		return s.Scan(prefix, []byte{prefix[0] + 1}, func(key, _ []byte) (bool, error) { c.Add(key); return true, nil })
	})
	if err = errors.Join(err, tx.Commit()); err != nil {
		t.Fatal(err)
	}
	c.Done()
	if key := []byte{prefix[0], 49}; e.Absent(key) {
		t.Error("a row is taken for missing that a transaction has put")
	}
	_ = testdb.Count(t, db, "SELECT COUNT(*) FROM t")
}
