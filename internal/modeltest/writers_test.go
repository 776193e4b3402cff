package modeltest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// Goroutines of an application that write beside a store.

const createVisits = "CREATE TABLE visits (id INTEGER PRIMARY KEY)"

// An application goroutine that writes without the lock and eight goroutines that
// commit all make progress.
func TestApplicationWritesWithoutLock(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB, _ bool) {
		s := newStore(t, db, chaistore.Config{})
		testdb.Exec(t, db, createVisits)
		const each = 200
		var commits, inserts atomic.Int64
		ended := func() bool { return commits.Load() >= each && inserts.Load() >= each || t.Failed() }
		var wg sync.WaitGroup
		wg.Go(func() {
			for !ended() {
				if err := db.Exec("INSERT INTO visits (id) VALUES (?)", inserts.Add(1)); err != nil {
					t.Errorf("insert: %v", err)
				}
			}
		})
		for g := range 8 {
			wg.Go(func() {
				for !ended() {
					data := fmt.Sprint(commits.Add(1))
					commit(t, s, fmt.Sprint(g), data, inAnHour())
					if got, found, err := s.Find(fmt.Sprint(g)); string(got) != data || !found || err != nil {
						t.Errorf("Find = %q, %v, %v; want %q", got, found, err, data)
					}
				}
			})
		}
		wg.Wait()
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM visits"); n != int(inserts.Load()) {
			t.Errorf("got %d visits, want %d", n, inserts.Load())
		}
		testdb.CheckIndexes(t, db)
	})
}

// deadlockInChai makes two goroutines of the application write until they deadlock:
// one waits in a commit for a lock that the other one holds while it waits to begin.
// They never end.
func deadlockInChai(db *chai.DB) {
	for range 2 {
		go func() {
			for i := 0; ; i++ {
				_ = db.Exec("INSERT INTO visits (id) VALUES (?) ON CONFLICT DO NOTHING", i)
			}
		}()
	}
	stacks := make([]byte, 4<<20)
	for begins, commits := false, false; !begins || !commits; {
		time.Sleep(10 * time.Millisecond)
		begins, commits = false, false
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			_, state, _ := strings.Cut(stack[:strings.Index(stack, "\n")], "[")
			begins = begins || strings.HasPrefix(state, "sync.Mutex.Lock") && strings.Contains(stack, "database.(*Database).BeginTx")
			commits = commits || strings.HasPrefix(state, "sync.RWMutex.Lock") && strings.Contains(stack, "database.(*Transaction).Commit")
		}
	}
}

// When the application has deadlocked itself in Chai, finds still work, and writes
// fail in time.
func TestApplicationDeadlocksItself(t *testing.T) {
	testdb.Long(t)                   // waits for ten seconds
	db, err := chai.Open(":memory:") // can't be closed any more
	if err != nil {
		t.Fatal(err)
	}
	t.Parallel() // it spends its time waiting
	testdb.Watchdog(t, time.Minute)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex, createVisits)
	var log testdb.Log
	s, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1, Logger: log.Logger(slog.LevelInfo)})
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, "alice", "one", inAnHour())
	commit(t, s, "old", "one", anHourAgo())
	deadlockInChai(db)

	failed := make(chan error)
	for range 4 {
		go func() { failed <- s.Commit("alice", []byte("two"), inAnHour()) }()
	}
	for range 100 {
		wantFound(t, s, "alice", "one")
		wantAll(t, s, map[string]string{"alice": "one"})
	}
	for name, call := range writesWithContext(s) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	select {
	case err := <-failed:
		t.Fatalf("Commit failed before finds, All and contexts were done: %v", err)
	default:
	}
	for range 4 {
		if err := <-failed; !errors.Is(err, chaistore.ErrBusy) {
			t.Errorf("Commit: %v", err)
		}
	}
	calls := writesWithContext(s)
	calls["DeleteCtx"] = func(ctx context.Context) error { return s.DeleteCtx(ctx, "alice") }
	for name, call := range calls { // fails at once, or the watchdog ends the test
		for range 10 {
			if err := call(t.Context()); !errors.Is(err, chaistore.ErrBusy) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	wantFound(t, s, "alice", "one")
	for log.String() == "" { // the hang is logged after all callers have their answers
		time.Sleep(time.Millisecond)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("got %d log lines, want one error:\n%s", n, &log)
	}
}

// writesWithContext returns the methods of a store that write until their context ends.
func writesWithContext(s *chaistore.ChaiStore) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"CommitCtx":     func(ctx context.Context) error { return s.CommitCtx(ctx, "alice", []byte("two"), inAnHour()) },
		"DeleteExpired": func(ctx context.Context) error { _, err := s.DeleteExpired(ctx); return err },
	}
}

// While the application has a transaction open, the store finds committed sessions.
// Its writes wait until their context ends.
func TestApplicationHasATransactionOpen(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for name, begin := range map[string]func(db *chai.DB) (exec func(string, ...any) error, end func() error, err error){
		"Begin": func(db *chai.DB) (func(string, ...any) error, func() error, error) {
			tx, err := db.Begin(true)
			if err != nil {
				return nil, nil, err
			}
			return tx.Exec, tx.Commit, nil
		},
		"SQL": func(db *chai.DB) (func(string, ...any) error, func() error, error) {
			return db.Exec, func() error { return db.Exec("COMMIT") }, db.Exec("BEGIN")
		},
	} {
		t.Run(name, func(t *testing.T) {
			forEachTable(t, func(t *testing.T, db *chai.DB, _ bool) {
				s := newStore(t, db, chaistore.Config{})
				testdb.Exec(t, db, createVisits)
				commit(t, s, "alice", "one", inAnHour())
				commit(t, s, "bob", "one", inAnHour())
				commit(t, s, "old", "one", anHourAgo())
				exec, end, err := begin(db)
				if err != nil {
					t.Fatal(err)
				}
				for _, sql := range []string{
					"INSERT INTO visits (id) VALUES (1)",
					`UPDATE sessions SET data = '\x78' WHERE token = 'alice'`,
					"DELETE FROM sessions WHERE token = 'bob'",
					"INSERT INTO visits (id) VALUES (2)",
				} {
					if err := exec(sql); err != nil {
						t.Fatalf("%s: %v", sql, err)
					}
				}
				done := make(chan error)
				go func() { done <- s.Commit("carol", []byte("one"), inAnHour()) }()
				updated := make(chan error)
				go func() {
					updated <- chaistore.Update(t.Context(), db, func(tx *chai.Tx) error {
						return tx.Exec("INSERT INTO visits (id) VALUES (3)")
					})
				}()
				for name, call := range writesWithContext(s) {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
					if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%s: %v", name, err)
					}
					cancel()
				}
				wantFound(t, s, "alice", "one")
				wantFound(t, s, "bob", "one")
				wantMissing(t, s, "carol")
				wantAll(t, s, map[string]string{"alice": "one", "bob": "one"})
				select {
				case err := <-done:
					t.Errorf("Commit did not wait: %v", err)
				case err := <-updated:
					t.Errorf("Update did not wait: %v", err)
				default:
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(<-done, <-updated); err != nil {
					t.Error(err)
				}
				wantAll(t, s, map[string]string{"alice": "x", "carol": "one"})
				if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
					t.Errorf("DeleteExpired = %d, %v; want 1, nil", n, err)
				}
				if n := testdb.Count(t, db, "SELECT COUNT(*) FROM visits"); n != 3 {
					t.Errorf("got %d visits, want 3", n)
				}
				testdb.CheckIndexes(t, db)
			})
		})
	}
}

// Many goroutines of the application that use Update, and many that commit, all make
// progress.
func TestApplicationUsesUpdate(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{})
	testdb.Exec(t, db, createVisits)
	const goroutines, each = 8, 50
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				handle := db.WithContext(t.Context()) // another handle, the same database
				err := chaistore.Update(t.Context(), handle, func(tx *chai.Tx) error {
					return tx.Exec("INSERT INTO visits (id) VALUES (?)", g*each+i)
				})
				if err != nil {
					t.Errorf("Update: %v", err)
				}
			}
		})
		wg.Go(func() {
			for i := range each {
				commit(t, s, fmt.Sprint(g), fmt.Sprint(i), inAnHour())
			}
		})
	}
	wg.Wait()
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM visits"); n != goroutines*each {
		t.Errorf("got %d visits, want %d", n, goroutines*each)
	}
	if all, err := s.All(); len(all) != goroutines || err != nil {
		t.Errorf("All = %d sessions, %v; want %d, nil", len(all), err, goroutines)
	}
}

func TestApplicationWritesWithWriteLock(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{})
	testdb.Exec(t, db, createVisits)
	lock := chaistore.WriteLock(db.WithContext(t.Context())) // another handle, the same database
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				commit(t, s, fmt.Sprint(g), "one", inAnHour())
				lock.Lock()
				err := db.Exec("INSERT INTO visits (id) VALUES (?)", g*100+i)
				lock.Unlock()
				if err != nil {
					t.Errorf("insert: %v", err)
				}
			}
		})
	}
	wg.Wait()
}
