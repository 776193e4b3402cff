package robustness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
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

var closes = flag.Int("closes", 8, "how often TestCloseBesideCalls closes a database in memory, and one on disk")

// Close waits for calls under way, sweeps of a store that was not stopped among them, and
// later calls return an error. None panics or hangs, and no goroutine is left.
func TestCloseBesideCalls(t *testing.T) {
	testdb.Slow(t)
	for _, kind := range []string{"memory", "disk"} {
		t.Run(kind, func(t *testing.T) {
			dir := ":memory:"
			if kind == "disk" {
				dir = t.TempDir()
			}
			goroutines := runtime.NumGoroutine()
			for round := range *closes {
				watchdog := time.AfterFunc(20*time.Second, func() {
					panic(fmt.Sprintf("round %d still runs\n%s", round, strings.Join(stacks(), "\n\n")))
				})
				closeBesideCalls(t, dir, round)
				watchdog.Stop()
				if t.Failed() {
					return
				}
			}
			for start := time.Now(); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
				if time.Since(start) > 5*time.Second {
					t.Fatalf("got %d goroutines, want %d as before:\n%s", runtime.NumGoroutine(), goroutines, strings.Join(stacks(), "\n\n"))
				}
			}
		})
	}
}

func stacks() (all []string) {
	for _, stack := range goroutineStacks() {
		all = append(all, stack)
	}
	return all
}

func closeBesideCalls(t *testing.T, dir string, round int) {
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable: true, CleanupInterval: time.Millisecond, Memory: -1, Owner: ownerInData, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if round == 0 || dir == ":memory:" {
		testdb.InParallel(64, 500, func(_ *rand.Rand, i int) {
			commit(t, s, fmt.Sprintf("%04d", i), "alice|"+strings.Repeat("x", 300))
		})
	}
	if err := db.Exec("CREATE TABLE IF NOT EXISTS app (k INTEGER PRIMARY KEY, v INTEGER)"); err != nil {
		t.Fatal(err)
	}
	backups := t.TempDir()
	var number atomic.Int64
	calls := map[string]func() error{
		"Find":   func() error { _, _, err := s.Find("0100"); return err },
		"Commit": func() error { return s.Commit("0200", []byte("alice|"), time.Now().Add(time.Hour)) },
		"expired": func() error {
			return s.Commit(fmt.Sprint("e", number.Add(1)), []byte("alice|"+strings.Repeat("y", 2000)), time.Now().Add(-time.Hour))
		},
		"All": func() error { _, err := s.All(); return err },
		"SessionsOf": func() error {
			for _, err := range s.SessionsOf(context.Background(), "alice") {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"DeleteExpired": func() error { _, err := s.DeleteExpired(context.Background()); return err },
		"Update": func() error {
			return chaistore.Update(context.Background(), db, func(tx *chai.Tx) error {
				if err := tx.Exec("DELETE FROM app"); err != nil {
					return err
				}
				if n := number.Add(1); n%2 == 0 {
					return tx.Exec("INSERT INTO app (k, v) VALUES (?, 1), (?, 2)", 2*n, 2*n+1)
				}
				return errUndo
			})
		},
		"Backup": func() error {
			return chaistore.Backup(t.Context(), db, filepath.Join(backups, fmt.Sprint(round, "-", number.Add(1))))
		},
	}
	var made atomic.Int64
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			for {
				err := call()
				if err == errUndo || dir == ":memory:" && name == "Backup" && err != nil && strings.Contains(err.Error(), "in memory") {
					err = nil
					runtime.Gosched()
				}
				if err != nil {
					if !errors.Is(err, chaistore.ErrClosed) {
						t.Errorf("%s = %v, want %v", name, err, chaistore.ErrClosed)
					}
					return
				}
				made.Add(1)
			}
		})
	}
	for made.Load() < int64(7*round%50) {
		runtime.Gosched()
	}
	if err := db.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
	s.StopCleanup()
}
