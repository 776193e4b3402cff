package chaistore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

func wantStats(t *testing.T, s *chaistore.ChaiStore, want chaistore.Stats) {
	t.Helper()
	got := s.Stats()
	if want.FilterBytes = got.FilterBytes; got != want { // see TestMissingSessionsAreKnown
		t.Fatalf("Stats =\n%+v, want\n%+v", got, want)
	}
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		var want chaistore.Stats
		wantStats(t, s, want)

		commit(t, s, "alice", "one", inAnHour())
		commit(t, s, "bob", "two", time.Now().Add(time.Minute))
		want.Commits, want.Fsyncs = 2, 2
		wantStats(t, s, want)

		wantFound(t, s, "alice", "one")
		wantFound(t, s, "bob", "two")
		want.Finds, want.CacheHits = 2, 2
		wantStats(t, s, want)
		wantMissing(t, s, "carol")
		want.Finds++
		want.CacheHits++
		wantStats(t, s, want)
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 2 { // a transaction, which changes nothing
			t.Fatalf("got %d sessions, want 2", n)
		}
		wantFound(t, s, "alice", "one")
		want.Finds++
		want.CacheHits++
		wantStats(t, s, want)
		testdb.Exec(t, db, "UPDATE sessions SET expiry = expiry") // changes all
		wantFound(t, s, "alice", "one")
		want.Finds++
		wantStats(t, s, want)
		wantFound(t, s, "alice", "one")
		want.Finds++
		want.CacheHits++
		wantStats(t, s, want)
		wantMissing(t, s, strings.Repeat("x", 101)) // too long, so not looked for
		wantStats(t, s, want)

		if err := s.Delete("nobody"); err != nil {
			t.Fatal(err)
		}
		want.Deletes++ // without an fsync
		wantStats(t, s, want)
		if n, err := s.DeleteFunc(t.Context(), func(chaistore.Session) bool { return true }); n != 2 || err != nil {
			t.Fatalf("DeleteFunc = %d, %v; want 2, nil", n, err)
		}
		want.Deletes += 2
		want.Fsyncs++
		wantStats(t, s, want)

		for _, token := range []string{"alice", "bob"} {
			commit(t, s, token, "old", anHourAgo())
			want.Commits++
			want.Fsyncs++
		}
		if n, err := s.DeleteExpired(t.Context()); n != 2 || err != nil {
			t.Fatalf("DeleteExpired = %d, %v; want 2, nil", n, err)
		}
		want.Swept, want.LastSweep = 2, time.Now()
		want.Fsyncs++
		wantStats(t, s, want)
		time.Sleep(time.Second)
		wantStats(t, s, want)

		if err := s.Commit(strings.Repeat("x", 101), nil, inAnHour()); err == nil {
			t.Error("Commit accepted an over-long token")
		}
		wantStats(t, s, want)
	})
}

func TestStatsOfFailedSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, testdb.Memory(t))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.DeleteExpired(ctx); err == nil {
			t.Fatal("no error")
		}
		wantStats(t, s, chaistore.Stats{LastSweep: time.Now(), LastSweepError: context.Canceled.Error()})
		time.Sleep(time.Second)
		if _, err := s.DeleteExpired(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantStats(t, s, chaistore.Stats{LastSweep: time.Now()})
	})
}

// Each store counts its own calls. The fsyncs are counted for the database.
func TestStatsOfTwoStores(t *testing.T) {
	db := testdb.Memory(t)
	one, two := newStore(t, db), newStore(t, db.WithContext(t.Context()))
	commit(t, one, "alice", "one", inAnHour())
	wantStats(t, one, chaistore.Stats{Commits: 1, Fsyncs: 1})
	wantStats(t, two, chaistore.Stats{Fsyncs: 1})
	wantMissing(t, two, "bob") // two has seen the table in the database
	wantFound(t, two, "alice", "one")
	wantStats(t, one, chaistore.Stats{Commits: 1, Fsyncs: 1})
	wantStats(t, two, chaistore.Stats{Finds: 2, CacheHits: 2, Fsyncs: 1})
}

// Commits that share an fsync are counted one by one.
func TestStatsOfSharedFsync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		lock := chaistore.WriteLock(db)
		lock.Lock()
		for i := range 10 {
			go commit(t, s, fmt.Sprint(i), "one", inAnHour())
		}
		synctest.Wait()
		lock.Unlock()
		synctest.Wait()
		wantStats(t, s, chaistore.Stats{Commits: 10, Fsyncs: 1})
	})
}

func TestStatsWhileWritingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		lock := chaistore.WriteLock(db)
		lock.Lock()
		go s.Commit("alice", nil, inAnHour())
		time.Sleep(9 * time.Second)
		wantStats(t, s, chaistore.Stats{})
		err := s.Commit("bob", nil, inAnHour())
		if err == nil {
			t.Fatal("Commit did not hang")
		}
		got := s.Stats()
		if got.BusySince.IsZero() || got.WriteError == "" || !strings.Contains(err.Error(), got.WriteError) {
			t.Errorf("while writing hangs, BusySince = %v and WriteError = %q; want a time and the error of Commit, %q", got.BusySince, got.WriteError, err)
		}
		lock.Unlock()
		synctest.Wait()
		wantStats(t, s, chaistore.Stats{})
		commit(t, s, "alice", "one", inAnHour())
		wantStats(t, s, chaistore.Stats{Commits: 1, Fsyncs: 1})
	})
}

func TestStatsAfterFailure(t *testing.T) {
	testdb.Watchdog(t, 30*time.Second)
	db, err := chai.Open(":memory:")
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err = s.Commit("alice", nil, inAnHour()); err == nil {
		t.Fatal("Commit to a closed database did not fail")
	}
	got := s.Stats()
	if !got.BusySince.IsZero() || !strings.Contains(got.WriteError, "closed") || !strings.Contains(err.Error(), got.WriteError) {
		t.Errorf("on a closed database, BusySince = %v and WriteError = %q; want the zero time and the error of Commit, %q", got.BusySince, got.WriteError, err)
	}
	if got.Commits != 0 || got.Fsyncs != 0 {
		t.Errorf("got %d commits and %d fsyncs, want none", got.Commits, got.Fsyncs)
	}
}

func TestStatsInParallel(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	s := newStore(t, testdb.Memory(t))
	const goroutines, calls = 8, 50
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range calls {
				token := fmt.Sprint(g, i)
				commit(t, s, token, "one", inAnHour())
				if _, _, err := s.Find(token); err != nil {
					t.Error(err)
				}
				if err := s.Delete(token); err != nil {
					t.Error(err)
				}
				if _, err := s.DeleteExpired(t.Context()); err != nil {
					t.Error(err)
				}
				if now := s.Stats(); now.CacheHits > now.Finds || now.LastSweep.IsZero() {
					t.Errorf("Stats = %+v, want no more cache hits than finds, and a sweep", now)
				}
			}
		})
	}
	wg.Wait()
	got := s.Stats()
	if got.Commits != goroutines*calls || got.Finds != goroutines*calls || got.Deletes != goroutines*calls || got.Fsyncs > 2*goroutines*calls {
		t.Errorf("Stats = %+v, want %d of each", got, goroutines*calls)
	}
}

func TestStatsAsJSON(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	commit(t, s, "alice", "one", anHourAgo())
	if _, err := s.DeleteExpired(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := s.Stats()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got chaistore.Stats
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if !got.LastSweep.Equal(want.LastSweep) {
		t.Errorf("LastSweep = %v, want %v", got.LastSweep, want.LastSweep)
	}
	got.LastSweep = want.LastSweep
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s decodes to %+v, want %+v", text, got, want)
	}
}

// A session in the cache expires at its expiry, too.
func TestCachedSessionExpiresAtItsExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, testdb.Memory(t))
		commit(t, s, "alice", "one", time.Now().Add(time.Second))
		time.Sleep(time.Second - time.Microsecond)
		wantFound(t, s, "alice", "one")
		time.Sleep(time.Microsecond)
		wantMissing(t, s, "alice")
		wantStats(t, s, chaistore.Stats{Finds: 2, CacheHits: 2, Commits: 1, Fsyncs: 1})
	})
}

// The cache keeps the committed data, even if callers change the data that they
// passed or got.
func TestCachedDataIsNotTheCallers(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	data := []byte("one")
	if err := s.Commit("alice", data, inAnHour()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		copy(data, "XXX")
		wantFound(t, s, "alice", "one")
		var err error
		if data, _, err = s.Find("alice"); err != nil {
			t.Fatal(err)
		}
		_ = append(data, "grown"...)
	}
	if stats := s.Stats(); stats.CacheHits != 6 {
		t.Errorf("the cache answered %d of %d finds, want all", stats.CacheHits, stats.Finds)
	}
}

func TestMemory(t *testing.T) {
	for _, test := range []struct {
		name  string
		sizes []int64
		hits  uint64
	}{
		{"default", []int64{0}, 1},
		{"negative", []int64{-1}, 0},
		{"negative, then default", []int64{-1, 0}, 1},
		{"default, then negative", []int64{0, -1}, 1},
		{"a megabyte", []int64{1_000_000}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable)
			var s *chaistore.ChaiStore
			for _, size := range test.sizes {
				var err error
				if s, err = chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1, Memory: size}); err != nil {
					t.Fatal(err)
				}
			}
			commit(t, s, "alice", "one", inAnHour())
			wantFound(t, s, "alice", "one")
			if got := s.Stats().CacheHits; got != test.hits {
				t.Errorf("the cache answered %d finds, want %d", got, test.hits)
			}
		})
	}
}

var million = flag.Bool("million", false, "TestCacheKeepsItsSize finds a million sessions")

// Finding each of many sessions once grows the heap by the memory for copies, and at
// most a tenth more.
func TestCacheKeepsItsSize(t *testing.T) {
	testdb.Long(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, 10*time.Minute)
	size, sessions := int64(4<<20), 30_000 // a quarter of Memory
	if *million {
		size, sessions = 16<<20, 1_000_000 // of the default
	}
	// What earlier tests have left may be freed in between.
	var grown int64
	for range 3 {
		grown = heapOfFinds(t, size, sessions)
		t.Logf("%d sessions found once left %d bytes on the heap, %.3f of the size of the cache", sessions, grown, float64(grown)/float64(size))
		if grown <= size*11/10 && grown >= size*3/4 {
			return
		}
	}
	t.Errorf("the heap has grown by %d bytes, want about %d", grown, size)
}

// heapOfFinds returns by how much the heap grows while each of many sessions is found
// once, in a new database with the given number of bytes for copies.
func heapOfFinds(t *testing.T, size int64, sessions int) int64 {
	t.Helper()
	db := testdb.Disk(t)
	s, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1, CreateTable: true, Memory: -1})
	if err != nil {
		t.Fatal(err)
	}
	token := func(i int) string { return fmt.Sprintf("%043d", i) }
	commit(t, s, token(0), strings.Repeat("x", 300), inAnHour())
	copySession(t, db, token, sessions)
	// From here on, the engine's memory stays the same.
	if err := db.DB.Store.DB().Flush(); err != nil {
		t.Fatal(err)
	}
	find := func(s *chaistore.ChaiStore, sessions int) {
		testdb.InParallel(8, sessions, func(_ *rand.Rand, i int) {
			if _, found, err := s.Find(token(i)); !found || err != nil {
				t.Errorf("Find = %v, %v", found, err)
			}
		})
	}
	find(s, sessions/10)
	before := testdb.HeapInUse()
	if s, err = chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1, Memory: 4 * size}); err != nil {
		t.Fatal(err)
	}
	find(s, sessions)
	return testdb.HeapInUse() - before
}

// copySession makes copies of the session token(0), with other tokens of the same
// length. Writing them beneath the store takes a tenth of the time.
func copySession(t *testing.T, db *chai.DB, token func(i int) string, sessions int) {
	t.Helper()
	engine := db.DB.Store.DB()
	rows, err := engine.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for ok := rows.First(); ok && !bytes.HasSuffix(rows.Key(), []byte(token(0))); {
		ok = rows.Next()
	}
	key, row := bytes.Clone(rows.Key()), bytes.Clone(rows.Value())
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	place := bytes.Index(row, []byte(token(0)))
	batch := engine.NewBatch()
	for i := range sessions {
		copy(key[len(key)-len(token(i)):], token(i))
		copy(row[place:], token(i))
		_ = batch.Set(key, row, nil)
		if batch.Count() == 1000 || i == sessions-1 {
			if err := batch.Commit(nil); err != nil {
				t.Fatal(err)
			}
			batch.Reset()
		}
	}
}

// A find of a session that does not exist is answered from memory: on a new table at once,
// and on a large one that was there before after its first sweep.
func TestMissingSessionsAreKnown(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db)
	wantKnown := func(s *chaistore.ChaiStore, want bool) {
		t.Helper()
		before := s.Stats()
		for i := range 100 {
			wantMissing(t, s, fmt.Sprint("missing", i))
		}
		after := s.Stats()
		if got := after.CacheHits-before.CacheHits > 90; got != want || (after.FilterBytes > 0) != want {
			t.Errorf("%d of %d finds were answered from memory, with a filter of %d bytes", after.CacheHits-before.CacheHits, 100, after.FilterBytes)
		}
	}
	wantKnown(s, true)
	testdb.Exec(t, db, "CREATE TABLE large (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)")
	const sessions = 5001
	err := chaistore.Update(t.Context(), db, func(tx *chai.Tx) error {
		for i := range sessions {
			if err := tx.Exec("INSERT INTO large (token, data, expiry) VALUES (?, ?, ?)", fmt.Sprint(i), []byte("data"), inAnHour()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	large := newStoreWith(t, db, chaistore.Config{TableName: "large"})
	wantKnown(large, false)
	if _, err := large.DeleteExpired(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantKnown(large, true)
	if got := large.Stats().Active; got != sessions {
		t.Errorf("got %d active sessions, want %d", got, sessions)
	}
	wantKnown(newStoreWith(t, db, chaistore.Config{TableName: "large"}), true) // stores share it
	wantFound(t, large, "17", "data")
}

// To delete what does not exist takes neither an fsync nor a turn: it does not wait for
// whoever holds the write lock. It is remembered, if that is wanted, in a turn without an
// fsync.
func TestDeleteOfNothing(t *testing.T) {
	for name, cfg := range map[string]chaistore.Config{"": {}, "remembered": {RememberEnded: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			db := testdb.Disk(t)
			s := newStoreWith(t, db, cfg)
			commit(t, s, "alice", "one", inAnHour())
			before := s.Stats()
			for i := range 400 {
				if err := s.Delete(fmt.Sprint("none", i%40)); err != nil {
					t.Fatal(err)
				}
			}
			after := s.Stats()
			if after.Fsyncs != before.Fsyncs || after.Deletes != before.Deletes+400 {
				t.Errorf("400 deletions of nothing took %d fsyncs, and %d were counted", after.Fsyncs-before.Fsyncs, after.Deletes-before.Deletes)
			}
			want := cfg.RememberEnded == 0
			if err := s.Commit("none7", nil, inAnHour()); (err == nil) != want {
				t.Errorf("Commit of what was deleted before it existed = %v", err)
			}
			lock := chaistore.WriteLock(db)
			lock.Lock()
			defer lock.Unlock()
			if !want {
				return
			}
			if err := s.Delete(""); err != nil { // SCS does so for who has no session
				t.Errorf("Delete = %v while the write lock is held", err)
			}
		})
	}
}

// Who sweeps while somebody else deletes the expired sessions does not count these as active.
func TestActiveSessionsOfTwoSweeps(t *testing.T) {
	const expired = 3000
	s := newStore(t, testdb.Memory(t))
	testdb.InParallel(64, expired, func(_ *rand.Rand, i int) {
		if err := s.Commit(fmt.Sprint(i), nil, anHourAgo()); err != nil {
			t.Error(err)
		}
	})
	commit(t, s, "alice", "one", inAnHour())
	testdb.InParallel(4, 4, func(*rand.Rand, int) {
		if _, err := s.DeleteExpired(t.Context()); err != nil {
			t.Error(err)
		}
		if got := s.Stats().Active; got != 1 {
			t.Errorf("got %d active sessions, want 1", got)
		}
	})
}

// The first find of what does not exist may come while a transaction has written out changes.
// Then a later one makes the filter.
func TestFilterAfterTransaction(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	s := chaistore.New(db)
	t.Cleanup(s.StopCleanup)
	err := chaistore.Update(t.Context(), db, func(tx *chai.Tx) error {
		if err := tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES ('a', '\\x00', ?)", inAnHour()); err != nil {
			return err
		}
		if _, err := tx.QueryRow("SELECT token FROM sessions"); err != nil { // writes out
			return err
		}
		wantMissing(t, s, "a")
		wantMissing(t, s, "b")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wantMissing(t, s, "b")
	before := s.Stats().CacheHits
	wantMissing(t, s, "c")
	if s.Stats().CacheHits == before || s.Stats().FilterBytes == 0 {
		t.Error("there is no filter after the transaction")
	}
	wantFound(t, s, "a", "\x00")
}
