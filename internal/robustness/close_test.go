package robustness

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// Close waits for calls under way, sweeps of a store that was not stopped among them, and
// later calls return an error.
func TestCloseBesideCalls(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	dir, backups := t.TempDir(), t.TempDir()
	const sessions = 2000
	for round := range 40 {
		db, err := chai.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		s, err := chaistore.NewWithConfig(db, chaistore.Config{
			CreateTable: true, CleanupInterval: time.Millisecond, CacheSize: -1, Owner: ownerInData, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			testdb.InParallel(64, sessions, func(_ *rand.Rand, i int) {
				commit(t, s, fmt.Sprintf("%04d", i), "alice|"+strings.Repeat("x", 300))
			})
		}
		var calls, copies atomic.Int64
		var wg sync.WaitGroup
		for name, call := range map[string]func() error{
			"Find":   func() error { _, _, err := s.Find("0100"); return err },
			"Commit": func() error { return s.Commit("0200", []byte("alice|"), time.Now().Add(time.Hour)) },
			"All":    func() error { _, err := s.All(); return err },
			"SessionsOf": func() error {
				for _, err := range s.SessionsOf(t.Context(), "alice") {
					if err != nil {
						return err
					}
				}
				return nil
			},
			"DeleteExpired": func() error { _, err := s.DeleteExpired(t.Context()); return err },
			"Backup": func() error {
				return chaistore.Backup(db, filepath.Join(backups, fmt.Sprint(round, "-", copies.Add(1))))
			},
		} {
			wg.Go(func() {
				for {
					if err := call(); err != nil {
						if !strings.Contains(err.Error(), "pebble: closed") {
							t.Errorf("%s = %v, want an error that says that the database is closed", name, err)
						}
						return
					}
					calls.Add(1)
				}
			})
		}
		for calls.Load() < int64(round) {
			time.Sleep(time.Millisecond)
		}
		if err := db.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		wg.Wait()
		s.StopCleanup()
		if t.Failed() {
			return
		}
	}
}
