package chaistore_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

func TestStopCleanup(t *testing.T) {
	testdb.Watchdog(t, 30*time.Second)
	db := testdb.Memory(t)
	t.Run("at once", func(t *testing.T) {
		for range 100 {
			chaistore.New(db).StopCleanup()
		}
	})
	t.Run("twice", func(t *testing.T) {
		s := chaistore.New(db)
		s.StopCleanup()
		s.StopCleanup()
	})
	t.Run("from ten goroutines", func(t *testing.T) {
		s := chaistore.New(db)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(s.StopCleanup)
		}
		wg.Wait()
	})
	t.Run("without a goroutine", func(t *testing.T) {
		chaistore.NewWithCleanupInterval(db, 0).StopCleanup()
		chaistore.NewWithCleanupInterval(db, -1).StopCleanup()
		newStore(t, testdb.Memory(t)).StopCleanup()
	})
}

// A blockingHandler is a log handler that blocks until it is closed.
type blockingHandler struct {
	slog.Handler
	closed chan struct{}
}

func (h blockingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h blockingHandler) Handle(context.Context, slog.Record) error {
	<-h.closed
	return nil
}

func TestStopCleanupWaitsForTheGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := blockingHandler{slog.DiscardHandler, make(chan struct{})}
		s, err := chaistore.NewWithConfig(testdb.Memory(t), chaistore.Config{
			CleanupInterval: time.Minute, CreateTable: true, Logger: slog.New(log),
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait() // until the sweep ends and logs
		stopped := false
		go func() {
			s.StopCleanup()
			stopped = true
		}()
		synctest.Wait()
		if stopped {
			t.Error("StopCleanup returned while the goroutine was sweeping")
		}
		close(log.closed)
		synctest.Wait()
		if !stopped {
			t.Error("StopCleanup did not return after the goroutine ended")
		}
	})
}

func TestNothingIsSweptAfterStopCleanup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStoreWithCleanup(t, testdb.Memory(t), time.Minute)
		s.StopCleanup()
		commit(t, s, "old", "one", anHourAgo())
		time.Sleep(time.Hour)
		if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
			t.Errorf("DeleteExpired after StopCleanup = %d, %v; want 1, nil", n, err)
		}
	})
}

// newStoreWithCleanup returns a store on db that sweeps at an interval. It creates
// the table.
func newStoreWithCleanup(t *testing.T, db *chai.DB, interval time.Duration) *chaistore.ChaiStore {
	t.Helper()
	s, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: interval, CreateTable: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.StopCleanup)
	return s
}

func TestCleanupInterval(t *testing.T) {
	tests := map[string]struct {
		newStore func(t *testing.T, db *chai.DB) *chaistore.ChaiStore
		want     time.Duration // 0: never
	}{
		"New": {func(t *testing.T, db *chai.DB) *chaistore.ChaiStore { return chaistore.New(db) }, 5 * time.Minute},
		"NewWithCleanupInterval 30m": {func(t *testing.T, db *chai.DB) *chaistore.ChaiStore {
			return chaistore.NewWithCleanupInterval(db, 30*time.Minute)
		}, 30 * time.Minute},
		"NewWithCleanupInterval 0": {func(t *testing.T, db *chai.DB) *chaistore.ChaiStore {
			return chaistore.NewWithCleanupInterval(db, 0)
		}, 0},
		"NewWithConfig": {func(t *testing.T, db *chai.DB) *chaistore.ChaiStore {
			return newStoreWithCleanup(t, db, 0)
		}, 5 * time.Minute},
		"NewWithConfig 1m": {func(t *testing.T, db *chai.DB) *chaistore.ChaiStore {
			return newStoreWithCleanup(t, db, time.Minute)
		}, time.Minute},
		"NewWithConfig negative": {func(t *testing.T, db *chai.DB) *chaistore.ChaiStore {
			return newStoreWithCleanup(t, db, -1)
		}, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := testdb.Memory(t)
				testdb.Exec(t, db, testdb.CreateTable)
				s := test.newStore(t, db)
				defer s.StopCleanup()
				commit(t, s, "old", "one", anHourAgo())
				commit(t, s, "alice", "one", time.Now().Add(1000*time.Hour))
				if test.want == 0 {
					time.Sleep(100 * time.Hour)
					synctest.Wait()
					if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 2 {
						t.Fatalf("got %d sessions without sweeps, want 2", n)
					}
					return
				}
				// The first sweep comes soon.
				start := time.Now()
				time.Sleep(test.want/50 + time.Millisecond)
				synctest.Wait()
				if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 1 {
					t.Fatalf("got %d sessions after the first tick, want 1", n)
				}
				first := s.Stats().LastSweep
				if got := first.Sub(start); got < test.want/100 || got > test.want/50 {
					t.Errorf("the first sweep came after %v, want a hundredth of %v or up to twice that", got, test.want)
				}
				commit(t, s, "old", "one", anHourAgo())
				for tick := range 3 {
					time.Sleep(time.Until(first.Add(time.Duration(tick+1)*test.want - time.Millisecond)))
					synctest.Wait()
					if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 2 {
						t.Fatalf("got %d sessions before the tick, want 2", n)
					}
					time.Sleep(time.Millisecond)
					synctest.Wait()
					if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 1 {
						t.Fatalf("got %d sessions after the tick, want 1", n)
					}
					commit(t, s, "old", "one", anHourAgo())
				}
			})
		})
	}
}

func TestFailedSweepIsLoggedAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		var log testdb.Log
		s, err := chaistore.NewWithConfig(db, chaistore.Config{
			CleanupInterval: time.Minute,
			Logger:          log.Logger(slog.LevelInfo),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.StopCleanup()
		testdb.Exec(t, db, "DROP TABLE sessions")
		time.Sleep(time.Minute + 2*time.Second)
		synctest.Wait()
		if n := strings.Count(log.String(), "level=ERROR"); n != 2 || !strings.Contains(log.String(), "does not exist") {
			t.Fatalf("got %d logged errors in two ticks, want 2:\n%s", n, &log)
		}
		testdb.Exec(t, db, testdb.CreateTable)
		commit(t, s, "old", "one", anHourAgo())
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 0 {
			t.Errorf("got %d sessions after the table came back, want 0", n)
		}
	})
}

// StopCleanup interrupts a sweep that waits for its turn, which is not logged as a failure.
func TestStopCleanupWhileSweepWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		var log testdb.Log
		s, err := chaistore.NewWithConfig(db, chaistore.Config{
			CreateTable: true, CleanupInterval: time.Minute, Logger: log.Logger(slog.LevelInfo),
		})
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, "old", "one", anHourAgo())
		lock := chaistore.WriteLock(db)
		lock.Lock()
		time.Sleep(2 * time.Second) // the first sweep has begun
		synctest.Wait()
		start := time.Now()
		s.StopCleanup()
		if waited := time.Since(start); waited > 0 {
			t.Errorf("StopCleanup took %v", waited)
		}
		lock.Unlock()
		if log.String() != "" {
			t.Errorf("got the log lines\n%s\nwant none", &log)
		}
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 1 {
			t.Errorf("got %d sessions, want 1", n)
		}
	})
}

// The cleanup of a database that is closed without StopCleanup says so, and ends.
func TestCleanupAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		var log testdb.Log
		s, err := chaistore.NewWithConfig(db, chaistore.Config{
			CleanupInterval: time.Minute,
			CreateTable:     true,
			Logger:          log.Logger(slog.LevelDebug),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		s.StopCleanup()
		for text, want := range map[string]int{"swept expired": 0, "level=ERROR": 1, "closed": 1, "the cleanup has ended": 1} {
			if n := strings.Count(log.String(), text); n != want {
				t.Errorf("got %d lines with %q after Close, want %d:\n%s", n, text, want, &log)
			}
		}
	})
}

func TestDeleteExpiredInSeveralTurns(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		const sessions = 3500
		want, expired := make(map[string]string), 0
		for i := range sessions {
			token := fmt.Sprintf("%04d", i)
			// First all sessions have expired, then some, then none.
			if i < 1200 || (i < 2000 && i%3 == 0) {
				commit(t, s, token, "old", anHourAgo())
				expired++
			} else {
				commit(t, s, token, "new", inAnHour())
				want[token] = "new"
			}
		}
		if n, err := s.DeleteExpired(t.Context()); n != expired || err != nil {
			t.Fatalf("DeleteExpired = %d, %v; want %d, nil", n, err, expired)
		}
		wantAll(t, s, want)
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != len(want) {
			t.Errorf("got %d sessions, want %d", n, len(want))
		}
	})
}

func TestConcurrentSweepsCountExactly(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	s := newStore(t, db)
	const sessions = 3000
	for i := range sessions {
		commit(t, s, fmt.Sprint(i), "old", anHourAgo())
	}
	var counts [2]int
	var wg sync.WaitGroup
	for i := range counts {
		wg.Go(func() {
			var err error
			if counts[i], err = newStore(t, db).DeleteExpired(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if counts[0]+counts[1] != sessions {
		t.Errorf("two sweeps deleted %d and %d sessions, want %d together", counts[0], counts[1], sessions)
	}
}

// A store that nobody refers to is not swept any more, even if the functions in its Config
// refer to it. A copy of a store, and a struct that has one, refers to it.
func TestCleanupOfUnreachableStoreEnds(t *testing.T) {
	for name, keep := range map[string]func(s *chaistore.ChaiStore) any{
		"forgotten": func(*chaistore.ChaiStore) any { return nil },
		"kept":      func(s *chaistore.ChaiStore) any { return s },
		"copied":    func(s *chaistore.ChaiStore) any { return *s },
		"embedded":  func(s *chaistore.ChaiStore) any { return &struct{ chaistore.ChaiStore }{*s} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := testdb.Memory(t)
				var sweeps atomic.Int64
				kept := func() any {
					manager := &scs.SessionManager{Codec: scs.GobCodec{}} // New starts a goroutine
					s, err := chaistore.NewWithConfig(db, chaistore.Config{
						CleanupInterval: time.Minute,
						CreateTable:     true,
						Owner:           func(data []byte) (string, error) { return chaistore.OwnerByKey(manager.Codec, "user")(data) },
						Logger: slog.New(funcHandler{slog.DiscardHandler, func() {
							sweeps.Add(1)
							_ = manager.Codec
						}}),
					})
					if err != nil {
						t.Fatal(err)
					}
					manager.Store = s
					time.Sleep(10 * time.Minute)
					return keep(s)
				}()
				synctest.Wait()
				if n := sweeps.Load(); n < 9 {
					t.Errorf("got %d sweeps in 10 minutes, want 9", n)
				}
				for range 3 {
					runtime.GC()
				}
				sweeps.Store(0)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if n := sweeps.Load(); (n > 0) != (kept != nil) {
					t.Errorf("got %d sweeps after a collection, want some: %v", n, kept != nil)
				}
				if s, ok := kept.(interface{ StopCleanup() }); ok {
					s.StopCleanup()
				}
			})
		})
	}
}

// A store may be forgotten in a bubble: nothing of it is left to wait for in the bubble,
// nor does it touch the bubble when it is collected later.
func TestStoreForgottenInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		chaistore.New(db)
		time.Sleep(time.Hour)
	})
	for range 3 {
		runtime.GC()
		time.Sleep(time.Millisecond) // lets cleanups of collected objects run
	}
}

// A funcHandler is a log handler that calls a function for each record.
type funcHandler struct {
	slog.Handler
	f func()
}

func (h funcHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h funcHandler) Handle(context.Context, slog.Record) error {
	h.f()
	return nil
}

// A sweep that has deleted much gives the space back, although nothing is written
// afterwards.
func TestSweepFreesSpace(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, time.Minute)
	dir := t.TempDir()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CleanupInterval: -1, CreateTable: true, Logger: slog.New(slog.DiscardHandler),
		Owner: func([]byte) (string, error) { return "alice", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	const sessions, size = 10_000, 3000
	data := make([]byte, sessions*size)
	rand.NewChaCha8([32]byte{1}).Read(data) // can't be compressed
	testdb.InParallel(64, sessions, func(_ *rand.Rand, i int) {
		expiry := anHourAgo()
		if i%100 == 0 {
			expiry = inAnHour()
		}
		if err := s.Commit(fmt.Sprintf("%05d", i), data[i*size:(i+1)*size], expiry); err != nil {
			t.Errorf("Commit: %v", err)
		}
	})
	rows := func() (bytes int64) {
		files, err := filepath.Glob(filepath.Join(dir, "pebble", "*.sst"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil {
				bytes += info.Size()
			}
		}
		return bytes
	}
	before := rows()
	if n, err := s.DeleteExpired(t.Context()); n != sessions*99/100 || err != nil {
		t.Fatalf("DeleteExpired = %d, %v; want %d, nil", n, err, sessions*99/100)
	}
	// Pebble deletes files a moment later.
	after := rows()
	for deadline := time.Now().Add(10 * time.Second); after > sessions*size/20 && time.Now().Before(deadline); after = rows() {
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("%d bytes before the sweep, %d after", before, after)
	if before < sessions*size/4 || after > sessions*size/20 {
		t.Errorf("got files of %d bytes before the sweep, %d after; want at most a 20th of %d", before, after, sessions*size)
	}
	if all, err := s.All(); len(all) != sessions/100 || err != nil {
		t.Errorf("All = %d sessions, %v; want %d, nil", len(all), err, sessions/100)
	}
}

func TestSweepIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		var log testdb.Log
		s, err := chaistore.NewWithConfig(db, chaistore.Config{
			CleanupInterval: time.Minute, CreateTable: true, Logger: log.Logger(slog.LevelDebug),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.StopCleanup()
		commit(t, s, "old", "one", anHourAgo())
		commit(t, s, "alice", "one", inAnHour())
		for i, sweep := range []func(){
			func() { time.Sleep(time.Minute); synctest.Wait() },
			func() { _, _ = s.DeleteExpired(t.Context()) },
		} {
			sweep()
			line := strings.Split(log.String(), "\n")[i]
			if want := fmt.Sprintf("scanned=%d deleted=%d active=1 duration=", 2-i, 1-i); !strings.Contains(line, "DEBUG") || !strings.Contains(line, want) {
				t.Errorf("sweep %d was logged as %q, want %q at debug level", i, line, want)
			}
		}
	})
}

// StopCleanup does not wait for the end of a sweep.
func TestStopCleanupDuringSweep(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, 2*time.Minute)
	db := testdb.Disk(t)
	const sessions = 50_000
	filled := newStore(t, db)
	testdb.InParallel(256, sessions, func(_ *rand.Rand, i int) {
		commit(t, filled, fmt.Sprintf("%043d", i), "x", anHourAgo())
	})
	s := newStoreWithCleanup(t, db, time.Millisecond)
	for begun := false; !begun; {
		_, err := db.QueryRow("SELECT token FROM sessions WHERE token = ?", fmt.Sprintf("%043d", 0))
		begun = chai.IsNotFoundError(err)
	}
	s.StopCleanup()
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n == 0 {
		t.Error("got no sessions, want some: the sweep was not interrupted")
	}
}
