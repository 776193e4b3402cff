package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// newCacheDB returns a database with a cache of the given size, in which cacheKey has
// the row "one".
func newCacheDB(t *testing.T, db *chai.DB, size int64) *DB {
	t.Helper()
	testdb.Watchdog(t, 30*time.Second)
	e := Open(db, func() *slog.Logger { return slog.New(slog.DiscardHandler) })
	e.GrowCache(size)
	cachePut(t, e, cacheKey, "one")
	return e
}

// The keys are encoded as in Chai: the number of a table, which no table has, and a
// text.
var cacheKey, cacheOtherKey = cacheKeyOf("key"), cacheKeyOf("other")

func cacheKeyOf(text string) []byte {
	return append([]byte{79, 98, byte(len(text))}, text...)
}

func cachePut(t *testing.T, e *DB, key []byte, row string) {
	t.Helper()
	if err := e.Write(t.Context(), len(row), func(b *Batch) error { b.Put(key, []byte(row)); return nil }); err != nil {
		t.Fatal(err)
	}
}

func cacheDelete(t *testing.T, e *DB, key []byte) {
	t.Helper()
	if err := e.Write(t.Context(), 0, func(b *Batch) error { b.Delete(key); return nil }); err != nil {
		t.Fatal(err)
	}
}

// cacheFind finds a row in a new snapshot, and returns it.
func cacheFind(t *testing.T, e *DB, key []byte) (row []byte) {
	t.Helper()
	err := e.Read(t.Context(), func(s *Snapshot) (err error) {
		row, err = s.Find(key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// A cacheTx is a transaction of Chai whose rows are changed as an SQL statement does.
type cacheTx struct {
	session interface {
		Put(key, row []byte) error
		Get(key []byte) ([]byte, error)
		Delete(key []byte) error
		Close() error
	}
	commit, rollback func() error
	unlock           func()
}

func begin(t *testing.T, e *DB) cacheTx {
	t.Helper()
	tx, err := e.handle.DB.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	return cacheTx{tx.Session, tx.Commit, tx.Rollback, tx.WriteTxMu.Unlock}
}

func (tx cacheTx) Commit() error   { return tx.commit() }
func (tx cacheTx) Rollback() error { return tx.rollback() }

func (tx cacheTx) put(t *testing.T, key []byte, row string) {
	t.Helper()
	if err := tx.session.Put(key, []byte(row)); err != nil {
		t.Fatal(err)
	}
}

// writeOut makes tx write out its changes, by reading a row that it has changed.
func (tx cacheTx) writeOut(t *testing.T, key []byte) {
	t.Helper()
	if _, err := tx.session.Get(key); err != nil {
		t.Fatal(err)
	}
}

// closeSession does the first half of a rollback: others see what was written out.
func closeSession(t *testing.T, tx cacheTx) {
	t.Helper()
	if err := tx.session.Close(); err != nil {
		t.Fatal(err)
	}
}

// transact changes a row in a transaction of Chai.
func transact(t *testing.T, e *DB, key []byte, row string) {
	t.Helper()
	tx := begin(t, e)
	tx.put(t, key, row)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

func wantCached(t *testing.T, e *DB, key []byte, want string) {
	t.Helper()
	if got := e.Cached(key); string(got) != want {
		t.Errorf("Cached = %q, want %q", got, want)
	}
}

func TestCommittedRowIsCached(t *testing.T) {
	e := newCacheDB(t, testdb.Memory(t), 1<<20)
	for i := range 100 { // each row is cached before Write returns
		cachePut(t, e, cacheKey, fmt.Sprint(i))
		wantCached(t, e, cacheKey, fmt.Sprint(i))
	}
	cacheDelete(t, e, cacheKey)
	wantCached(t, e, cacheKey, "")
	if n := e.cache.check(t); n != 0 {
		t.Errorf("got %d rows in the cache, want none", n)
	}
}

func TestFoundRowIsCached(t *testing.T) {
	e := newCacheDB(t, testdb.Memory(t), 1<<20)
	transact(t, e, cacheOtherKey, "two")
	wantCached(t, e, cacheKey, "one")
	wantCached(t, e, cacheOtherKey, "")
	if got := cacheFind(t, e, cacheOtherKey); string(got) != "two" {
		t.Errorf("Find = %q, want two", got)
	}
	wantCached(t, e, cacheOtherKey, "two")
}

// A transaction of Chai makes the copies of what it changes invalid, and no others.
func TestTransactionsInvalidateCopies(t *testing.T) {
	t.Run("a commit", func(t *testing.T) {
		e := newCacheDB(t, testdb.Memory(t), 1<<20)
		cachePut(t, e, cacheOtherKey, "other")
		transact(t, e, cacheKey, "two")
		wantCached(t, e, cacheKey, "")
		wantCached(t, e, cacheOtherKey, "other")
	})
	t.Run("operations", func(t *testing.T) {
		e := newCacheDB(t, testdb.Memory(t), 1<<20)
		transact(t, e, cacheKey, "two")
		var got []byte
		err := e.Write(t.Context(), 0, func(b *Batch) (err error) {
			got, err = b.Get(cacheKey)
			return err
		})
		if err != nil || string(got) != "two" {
			t.Errorf("Get = %q, %v; want two, nil", got, err)
		}
	})
	for name, end := range map[string]struct {
		end        func(tx cacheTx) error
		find, next string // what is found once it has ended, and cached then
	}{
		"rolled back after it wrote out changes": {cacheTx.Rollback, "one", "one"},
		"committed after it wrote out changes":   {cacheTx.Commit, "two", "two"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newCacheDB(t, testdb.Memory(t), 1<<20)
			tx := begin(t, e)
			tx.put(t, cacheKey, "two")
			wantCached(t, e, cacheKey, "one")
			tx.writeOut(t, cacheKey)
			wantCached(t, e, cacheKey, "")
			if got := cacheFind(t, e, cacheKey); string(got) != "one" {
				t.Errorf("Find beside the transaction = %q, want one", got)
			}
			wantCached(t, e, cacheKey, "") // the snapshot is older
			if err := end.end(tx); err != nil {
				t.Fatal(err)
			}
			wantCached(t, e, cacheKey, "")
			if got := cacheFind(t, e, cacheKey); string(got) != end.find {
				t.Errorf("Find after the transaction = %q, want %q", got, end.find)
			}
			wantCached(t, e, cacheKey, end.next)
			err := e.Read(t.Context(), func(s *Snapshot) error {
				if !e.undo.absent(s.number) {
					t.Error("notes are looked for after they were removed")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("while it is rolled back", func(t *testing.T) {
		db := testdb.Memory(t)
		e := newCacheDB(t, db, 1<<20)
		tx := begin(t, e)
		tx.put(t, cacheKey, "two")
		tx.writeOut(t, cacheKey)
		closeSession(t, tx)
		if got := cacheFind(t, e, cacheKey); string(got) != "one" {
			t.Errorf("Find before the changes are undone = %q, want one", got)
		}
		wantCached(t, e, cacheKey, "")
		if err := db.DB.Store.Rollback(); err != nil {
			t.Fatal(err)
		}
		tx.unlock()
		if got := cacheFind(t, e, cacheKey); string(got) != "one" {
			t.Errorf("Find = %q, want one", got)
		}
		wantCached(t, e, cacheKey, "one")
	})
	t.Run("written out before the cache observed", func(t *testing.T) {
		db := testdb.Memory(t)
		e := &DB{handle: db, writeLock: reach.Writetxmu(db), shared: &shared{}} // not a database that tests use
		tx := begin(t, e)
		tx.put(t, cacheKey, "two")
		tx.writeOut(t, cacheKey)
		e = Open(db, discard)
		e.GrowCache(1 << 20)
		if got := cacheFind(t, e, cacheKey); got != nil {
			t.Errorf("Find beside the transaction = %q, want nothing", got)
		}
		wantCached(t, e, cacheKey, "")
		closeSession(t, tx) // finds would wait until the changes are undone
		if err := db.DB.Store.Rollback(); err != nil {
			t.Fatal(err)
		}
		tx.unlock()
		cachePut(t, e, cacheKey, "three")
		wantCached(t, e, cacheKey, "three")
	})
	t.Run("deletion of a range", func(t *testing.T) {
		db := testdb.Memory(t)
		e := newCacheDB(t, db, 1<<20)
		if err := db.DB.Store.DB().DeleteRange([]byte{79}, []byte{80}, nil); err != nil {
			t.Fatal(err)
		}
		wantCached(t, e, cacheKey, "")
		if got := cacheFind(t, e, cacheKey); got != nil {
			t.Errorf("Find = %q, want nothing", got)
		}
	})
	t.Run("deletion of all rows", func(t *testing.T) { // from the empty key
		db := testdb.Memory(t)
		e := newCacheDB(t, db, 1<<20)
		if err := db.DB.Store.DB().DeleteRange(nil, []byte{80}, nil); err != nil {
			t.Fatal(err)
		}
		wantCached(t, e, cacheKey, "")
		if got := cacheFind(t, e, cacheKey); got != nil {
			t.Errorf("Find = %q, want nothing", got)
		}
	})
	t.Run("a kind of change that Chai does not make", func(t *testing.T) {
		db := testdb.Memory(t)
		e := newCacheDB(t, db, 1<<20)
		if err := db.DB.Store.DB().SingleDelete(cacheKey, nil); err != nil {
			t.Fatal(err)
		}
		wantCached(t, e, cacheKey, "")
	})
	t.Run("a large batch", func(t *testing.T) { // Pebble treats it as a memory table
		db := testdb.Memory(t)
		e := newCacheDB(t, db, 1<<20)
		tx := begin(t, e)
		tx.put(t, cacheKey, "two")
		tx.put(t, cacheOtherKey, strings.Repeat("x", 9<<20))
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		wantCached(t, e, cacheKey, "")
		if got := cacheFind(t, e, cacheKey); string(got) != "two" {
			t.Errorf("Find = %q, want two", got)
		}
	})
}

// A reader does not enter a row that has changed since its snapshot.
func TestOvertakenReaderEntersNothing(t *testing.T) {
	for name, test := range map[string]struct {
		by   func(t *testing.T, e *DB)
		want string
	}{
		"a commit":   {func(t *testing.T, e *DB) { cachePut(t, e, cacheKey, "two") }, "two"},
		"a deletion": {func(t *testing.T, e *DB) { cacheDelete(t, e, cacheKey) }, ""},
		"a deletion, and a commit of another row": {func(t *testing.T, e *DB) {
			cacheDelete(t, e, cacheKey)
			cachePut(t, e, cacheOtherKey, "two")
		}, ""},
		"a transaction": {func(t *testing.T, e *DB) { transact(t, e, cacheKey, "two") }, ""},
		"a deletion of a range": {func(t *testing.T, e *DB) {
			if err := e.pebble().DeleteRange([]byte{79}, []byte{80}, nil); err != nil {
				t.Fatal(err)
			}
		}, ""},
		"another row": {func(t *testing.T, e *DB) { transact(t, e, cacheOtherKey, "two") }, "one"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newCacheDB(t, testdb.Memory(t), 1<<20)
			transact(t, e, cacheKey, "one") // not cached
			err := e.Read(t.Context(), func(s *Snapshot) error {
				test.by(t, e)
				row, err := s.Find(cacheKey)
				if string(row) != "one" {
					t.Errorf("Find = %q, want one", row)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			wantCached(t, e, cacheKey, test.want)
		})
	}
}

// A row is not entered if its key is marked while the reader waits to enter it.
func TestReaderLooksAtTheMarkUnderTheLock(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	c := cache{seed: maphash.MakeSeed(), filters: new(keyFilters)}
	c.limit.Store(1 << 20)
	s, mark := c.shard(cacheKey)
	s.mu.Lock()
	filled := make(chan struct{})
	go func() {
		c.fill(1, cacheKey, []byte("one"))
		close(filled)
	}()
	until(func() bool {
		stacks := make([]byte, 1<<20)
		for _, g := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(g, "(*cache).fill") && strings.Contains(g, "(*Mutex).Lock") {
				return true
			}
		}
		return false
	})
	*mark = 2
	s.mu.Unlock()
	<-filled
	if got := c.get(cacheKey); got != nil {
		t.Errorf("get = %q, want nothing", got)
	}
}

// The copies of a batch are entered before anybody else may change their rows.
func TestCopiesAreEnteredBeforeTheWriteLockIsFree(t *testing.T) {
	e := newCacheDB(t, testdb.Memory(t), 1<<20)
	s, _ := e.cache.shard(cacheKey)
	waits := func(in string) bool {
		stacks := make([]byte, 1<<20)
		for _, g := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(g, in) && strings.Contains(g, "(*Mutex).Lock") {
				return true
			}
		}
		return false
	}
	for seen := false; !seen; {
		s.mu.Lock()
		done := make(chan error, 1)
		go func() {
			done <- e.Write(context.Background(), 0, func(b *Batch) error { b.Put(cacheKey, []byte("two")); return nil })
		}()
		until(func() bool {
			if waits("(*cache).mark") {
				s.mu.Unlock()
				s.mu.Lock() // again before committed does, or else in the next round
			}
			seen = waits("(*cache).committed")
			return seen || len(done) > 0
		})
		if seen && e.quiet() {
			t.Error("the write lock is free before the row is cached")
		}
		s.mu.Unlock()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// The rows of a batch whose commit panics are not cached: they may or may not have
// been committed.
func TestRowsOfUnknownResultAreNotCached(t *testing.T) {
	db, err := chai.Open(":memory:")
	if err != nil {
		t.Fatal(err)
	}
	// The database can't be closed: Chai would wait for the write lock.
	e := newCacheDB(t, db, 1<<20)
	cachePut(t, e, cacheOtherKey, "two")
	err = e.Write(t.Context(), 0, func(b *Batch) error {
		b.Put(cacheKey, []byte("two"))
		return db.DB.Store.DB().Close() // makes the commit panic
	})
	if err == nil {
		t.Fatal("Write did not fail")
	}
	wantCached(t, e, cacheKey, "")
	wantCached(t, e, cacheOtherKey, "")
}

// Nor are those of a batch whose commit fails.
func TestRowsOfFailedCommitAreNotCached(t *testing.T) {
	db := testdb.Memory(t)
	e := newCacheDB(t, db, 1<<20)
	setReadOnly(db, true)
	err := e.Write(t.Context(), 0, func(b *Batch) error { b.Put(cacheKey, []byte("two")); return nil })
	setReadOnly(db, false)
	if err == nil {
		t.Fatal("Write did not fail")
	}
	wantCached(t, e, cacheKey, "one")
}

func TestFailedOperationIsNotCached(t *testing.T) {
	db := testdb.Memory(t)
	e := newCacheDB(t, db, 1<<20)
	errFailed := errors.New("failed")
	lock := e.Lock()
	lock.Lock()
	results := make(chan error, 2)
	for i, op := range []Op{
		func(b *Batch) error { b.Put(cacheKey, []byte("two")); return nil },
		func(b *Batch) error {
			b.Put(cacheKey, []byte("three"))
			b.Put(cacheOtherKey, []byte("three"))
			return errFailed
		},
	} {
		go func() { results <- e.Write(context.Background(), 0, op) }()
		until(func() bool {
			e.queue.mu.Lock()
			defer e.queue.mu.Unlock()
			return e.queue.waiting.Len() == i+1
		})
	}
	lock.Unlock()
	if err := errors.Join(<-results, <-results); !errors.Is(err, errFailed) {
		t.Fatalf("Write = %v, want %v", err, errFailed)
	}
	wantCached(t, e, cacheKey, "two")
	wantCached(t, e, cacheOtherKey, "")
}

func TestOnlyRowsThatExistAreCached(t *testing.T) {
	e := newCacheDB(t, testdb.Memory(t), 1<<20)
	if row := cacheFind(t, e, cacheOtherKey); row != nil {
		t.Errorf("Find = %q, want nil", row)
	}
	if n := e.cache.check(t); n != 1 {
		t.Errorf("got %d rows in the cache after a find of a missing row, want 1", n)
	}
	if err := e.Write(t.Context(), 0, func(b *Batch) error { b.PutEntry(cacheOtherKey, []byte{0}); return nil }); err != nil {
		t.Fatal(err)
	}
	cacheDelete(t, e, cacheKeyOf("none"))
	if n := e.cache.check(t); n != 1 {
		t.Errorf("got %d rows in the cache, want 1", n)
	}
}

func TestGrowCache(t *testing.T) {
	db := testdb.Memory(t)
	e := newCacheDB(t, db, -1)
	wantCached(t, e, cacheKey, "")
	cacheFind(t, e, cacheKey)
	if n := e.cache.check(t); n != 0 {
		t.Errorf("got %d rows in a cache without a size, want none", n)
	}
	other := Open(db, nil)
	other.GrowCache(1 << 20)
	other.GrowCache(1 << 10)
	cacheFind(t, e, cacheKey)
	wantCached(t, e, cacheKey, "one")
	wantCached(t, other, cacheKey, "one")
	if got := e.cache.limit.Load(); got != 1<<20 {
		t.Errorf("got a cache of %d bytes, want the largest size, %d", got, 1<<20)
	}
}

// check fails the test if the bookkeeping of a shard is inconsistent. It returns the
// number of rows in the cache.
func (c *cache) check(t *testing.T) (rows int) {
	t.Helper()
	for i := range c.shards {
		c.shards[i].check(t, c.room())
		rows += len(c.shards[i].entries)
	}
	return rows
}

func (s *shard) check(t *testing.T, limit int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	size := 0
	for i, e := range s.clock {
		if e.place != i || s.entries[e.key] != e {
			t.Fatalf("entry %d of the clock is not in its place", i)
		}
		size += e.size()
	}
	for _, e := range s.clock[len(s.clock):cap(s.clock)] {
		if e != nil {
			t.Fatal("the clock keeps a removed entry")
		}
	}
	if len(s.entries) != len(s.clock) || s.size != size || s.size > limit {
		t.Fatalf("got %d entries in the map, %d in the clock, and a size of %d bytes; want %d, at most %d",
			len(s.entries), len(s.clock), s.size, size, limit)
	}
}

func TestShardKeepsItsLimit(t *testing.T) {
	const limit = 50_000
	rng := rand.New(rand.NewPCG(1, 0))
	var s shard
	rows := make(map[string]string) // the latest of each key
	for i := range 20_000 {
		key := fmt.Sprint(rng.IntN(300))
		switch rng.IntN(10) {
		case 0:
			s.remove(key)
			delete(rows, key)
		case 1:
			s.put(key, make([]byte, limit), limit)
			delete(rows, key)
		default:
			row := strings.Repeat(key, rng.IntN(300))
			s.put(key, []byte(row), limit)
			rows[key] = row
		}
		if i%200 == 0 {
			s.check(t, limit)
		}
		if entry, ok := s.entries[key]; ok {
			entry.used = rng.IntN(2) == 0
			if want, ok := rows[key]; !ok || string(entry.row) != want {
				t.Fatalf("got the row %q for %s, want %q (%v)", entry.row, key, want, ok)
			}
		}
	}
	if s.size < limit*9/10 {
		t.Errorf("got a size of %d bytes, want nearly %d", s.size, limit)
	}
}

func TestShardRemovesUnusedEntries(t *testing.T) {
	const hot, cold, entries = 50, 10_000, 200
	c := &cache{seed: maphash.MakeSeed(), filters: new(keyFilters)}
	c.limit.Store(1 << 30)
	row := make([]byte, 100)
	var s *shard
	var keys [][]byte // of one shard
	for i := 0; len(keys) < hot+cold; i++ {
		key := fmt.Appendf(nil, "%08d", i)
		if s == nil {
			s, _ = c.shard(key)
		}
		if other, _ := c.shard(key); other == s {
			keys = append(keys, key)
		}
	}
	limit := entries * (&entry{key: string(keys[0]), row: row}).size()
	c.limit.Store(int64(limit * len(c.shards)))
	for _, key := range keys[:hot] {
		c.fill(0, key, row)
	}
	missed := 0
	for i, key := range keys[hot:] {
		c.fill(0, key, row)
		if c.get(keys[i%hot]) == nil {
			missed++
			c.fill(0, keys[i%hot], row)
		}
	}
	s.check(t, limit)
	if missed > cold/100 {
		t.Errorf("%d of %d finds of the same %d rows missed, want at most %d", missed, cold, hot, cold/100)
	}
}

func TestLargeRowReplacesSmallOne(t *testing.T) {
	e := newCacheDB(t, testdb.Memory(t), 32<<10)
	cachePut(t, e, cacheKey, strings.Repeat("x", 2000))
	wantCached(t, e, cacheKey, "")
	var s shard
	s.put("key", []byte("one"), 1000)
	s.put("key", make([]byte, 1000), 1000)
	s.check(t, 0)
}

// Rows that fill the limit to the last byte stay in the cache.
func TestShardKeepsWhatFits(t *testing.T) {
	row := make([]byte, 100)
	size := (&entry{key: "a", row: row}).size()
	var s shard
	for n, keys := range []string{"a", "ab"} {
		limit := (n + 1) * size
		for _, key := range keys {
			s.put(string(key), row, limit)
		}
		s.check(t, limit)
		if got := len(s.entries); got != n+1 {
			t.Errorf("got %d rows in %d bytes, want %d", got, limit, n+1)
		}
	}
}

// A row that takes the place of another one costs the same however many rows there are:
// what holds them is not made again.
func TestShardReplacesRowsCheaply(t *testing.T) {
	const entries = 1000
	keys := make([]string, 4*entries)
	for i := range keys {
		keys[i] = fmt.Sprintf("%06d", i)
	}
	row := make([]byte, 100)
	limit := entries * (&entry{key: keys[0], row: row}).size()
	var s shard
	next := 0
	put := func() {
		s.put(keys[next%len(keys)], row, limit)
		next++
	}
	for range 2 * entries {
		put()
	}
	if n := testing.AllocsPerRun(entries, put); n > 2 {
		t.Errorf("a row took %v allocations, want 1", n)
	}
	s.check(t, limit)
}

// The allocator rounds the sizes of rows up. The cache counts that, so large rows
// take no more memory than its limit.
func TestCacheCountsWhatRowsTake(t *testing.T) {
	for _, test := range []struct {
		row         int
		least, most float64 // of what the cache counts
	}{
		{20, 0.75, 1.3}, // grows the map often
		{1000, 0.75, 1.1},
		{9000, 0.75, 1.1},
		{32<<10 + 1, 0.97, 1.03}, // takes 40 KiB
		{40 << 10, 0.97, 1.03},
		{100_000, 0.97, 1.03},
	} {
		keys := make([][]byte, 4<<20/(test.row+entryOverhead))
		for i := range keys {
			keys[i] = fmt.Appendf(nil, "%043d", i)
		}
		var s shard
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, key := range keys {
			s.put(string(key), make([]byte, test.row), 1<<30)
		}
		runtime.ReadMemStats(&after)
		took := after.TotalAlloc - before.TotalAlloc
		if got := float64(took) / float64(s.size); got < test.least || got > test.most {
			t.Errorf("%d rows of %d bytes took %d bytes, and were counted as %d", len(keys), test.row, took, s.size)
		}
	}
}

// The cache takes as much of the heap as it counts, within a tenth, for rows of any
// size. Some sizes waste much of what the allocator gives them.
func TestCacheTakesItsSize(t *testing.T) {
	testdb.Long(t)
	testdb.WithoutRace(t)
	const size = 4 << 20
	before := testdb.HeapInUse()
	for _, row := range []int{20, 60, 300, 1000, 1025, 2049, 4000, 4097, 8193} {
		c := &cache{seed: maphash.MakeSeed(), filters: new(keyFilters)}
		c.limit.Store(size)
		rng := rand.New(rand.NewPCG(2, 0))
		for range 4 * size / (row + entryOverhead) {
			c.fill(0, cacheKeyOf(fmt.Sprintf("%027x%016x", rng.Uint64(), rng.Uint64())), make([]byte, row))
		}
		grown := testdb.HeapInUse() - before
		t.Logf("%d rows of %d bytes take %.3f of the size", c.check(t), row, float64(grown)/size)
		if grown > size*11/10 || grown < size*3/4 {
			t.Errorf("rows of %d bytes: the heap has grown by %d bytes, want about %d", row, grown, size)
		}
		runtime.KeepAlive(c)
	}
}

// Parallel readers and writers always find the newest rows, under the race detector.
func TestCacheInParallel(t *testing.T) {
	e := newCacheDB(t, testdb.Memory(t), 20<<10)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(g)))
			key := cacheKeyOf(fmt.Sprint(g))
			for i := range 500 {
				row := bytes.Repeat([]byte(fmt.Sprint(i, " ")), rng.IntN(50)+1)
				cachePut(t, e, key, string(row))
				got := e.Cached(key)
				if got == nil {
					got = cacheFind(t, e, key)
				}
				if !bytes.Equal(got, row) {
					t.Errorf("got row %q, want %q", got, row)
					return
				}
				cacheFind(t, e, cacheKeyOf(fmt.Sprint(rng.IntN(8))))
			}
		})
	}
	wg.Wait()
	e.cache.check(t)
}
