package modeltest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// commitMany commits sessions in parallel.
func commitMany(t *testing.T, s *chaistore.ChaiStore, sessions int) {
	var wg sync.WaitGroup
	const goroutines = 64
	for g := range goroutines {
		wg.Go(func() {
			for i := g; i < sessions; i += goroutines {
				commit(t, s, busyToken(i), strings.Repeat("x", 300), inAnHour())
			}
		})
	}
	wg.Wait()
}

func busyToken(i int) string { return fmt.Sprintf("%043d", i) }

// findAll finds each of the sessions once.
func findAll(t *testing.T, s *chaistore.ChaiStore, sessions int) {
	t.Helper()
	for i := range sessions {
		if _, found, err := s.Find(busyToken(i)); !found || err != nil {
			t.Fatalf("Find = %v, %v; want true, nil", found, err)
		}
	}
}

// wantHits fails the test unless at least the given part of the finds since a former
// state came from memory.
func wantHits(t *testing.T, s *chaistore.ChaiStore, since chaistore.Stats, want float64) {
	t.Helper()
	stats := s.Stats()
	finds, hits := stats.Finds-since.Finds, stats.CacheHits-since.CacheHits
	t.Logf("the cache answered %d of %d finds", hits, finds)
	if float64(hits) < want*float64(finds) {
		t.Errorf("the cache answered %d of %d finds, want at least %v of them", hits, finds, want)
	}
}

// An application inserts into, and selects from, a table of its own without a pause.
// Sessions are found in memory.
func TestFindsBesideBusyApplication(t *testing.T) {
	testdb.Slow(t)
	t.Parallel()
	const sessions, rounds = 200, 200
	for name, test := range map[string]struct {
		change bool // one of the sessions in each round
		want   float64
	}{"other tables": {false, 0.98}, "one session": {true, 0.95}} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			db := testdb.Memory(t)
			s := newStore(t, db, chaistore.Config{})
			testdb.Exec(t, db, "CREATE TABLE visits (id INTEGER PRIMARY KEY, page TEXT)")
			commitMany(t, s, sessions)
			findAll(t, s, sessions)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			changes := make(chan int)
			visits := 0
			wg.Go(func() { // the only goroutine that writes
				for ; ctx.Err() == nil; visits++ {
					var err error
					select {
					case i := <-changes:
						err = db.Exec("UPDATE sessions SET data = ? WHERE token = ?", []byte("changed"), busyToken(i))
					default:
						err = db.Exec("INSERT INTO visits (id, page) VALUES (?, '/')", visits)
					}
					if err != nil {
						t.Error(err)
					}
					testdb.Query(t, db, "SELECT id FROM visits WHERE id = ?", func(*chai.Row) error { return nil }, visits)
				}
			})
			before := s.Stats()
			for i := range rounds {
				if test.change {
					changes <- i % sessions
				}
				findAll(t, s, sessions)
			}
			cancel()
			wg.Wait()
			t.Logf("beside %d visits", visits)
			wantHits(t, s, before, test.want)
		})
	}
}

// A database of sessions keeps all of them in memory while an application inserts many
// rows into a table of its own.
func TestRowsOfOtherTablesTakeNoRoom(t *testing.T) {
	testdb.Slow(t)
	sessions, rows := testdb.Rounds(2_000, 20_000), testdb.Rounds(10_000, 1_000_000)
	size := int64(testdb.Rounds(4*2_000*1200, 0)) // a quarter is for copies; or the default
	testdb.Watchdog(t, 10*time.Minute)
	db := testdb.Disk(t)
	s := newStore(t, db, chaistore.Config{Memory: size})
	testdb.Exec(t, db, "CREATE TABLE visits (id INTEGER PRIMARY KEY, page TEXT)")
	commitMany(t, s, sessions)
	before := s.Stats()
	page := strings.Repeat("/", 300)
	for i := 0; i < rows && !t.Failed(); i += 1000 {
		err := db.Update(func(tx *chai.Tx) error {
			for id := i; id < i+1000; id++ {
				if err := tx.Exec("INSERT INTO visits (id, page) VALUES (?, ?)", id, page); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		testdb.Query(t, db, "SELECT page FROM visits WHERE id >= ?", func(*chai.Row) error { return nil }, i)
		findAll(t, s, sessions/100)
	}
	findAll(t, s, sessions)
	wantHits(t, s, before, 1)
}
