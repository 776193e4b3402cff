package chaistore_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// TestMain fails if a test leaves a cleanup goroutine behind.
func TestMain(m *testing.M) {
	code := m.Run()
	stacks := make([]byte, 4<<20)
	left := func() bool {
		n := runtime.Stack(stacks, true)
		return bytes.Contains(stacks[:n], []byte("chaistore.(*cleanup)"))
	}
	for i := 0; left() && i < 100; i++ { // the last goroutines may be about to end
		time.Sleep(10 * time.Millisecond)
	}
	if left() {
		fmt.Fprintf(os.Stderr, "a cleanup goroutine is left:\n\n%s", stacks)
		code = 1
	}
	os.Exit(code)
}

// underRaceDetector reports whether the test is built with -race.
func underRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// forEachTable runs test as a subtest for each kind of session table.
func forEachTable(t *testing.T, test func(t *testing.T, db *chai.DB)) {
	t.Run("plain", func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		test(t, db)
	})
	t.Run("indexed", func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
		test(t, db)
	})
}

// newStore returns a store on db that logs nothing and sweeps only on demand.
func newStore(t testing.TB, db *chai.DB) *chaistore.ChaiStore {
	t.Helper()
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CleanupInterval: -1,
		CreateTable:     true,
		Logger:          slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func commit(t *testing.T, s scs.Store, token, data string, expiry time.Time) {
	t.Helper()
	if err := s.Commit(token, []byte(data), expiry); err != nil {
		t.Errorf("Commit(%q): %v", token, err)
	}
}

func wantFound(t *testing.T, s scs.Store, token, want string) {
	t.Helper()
	got, found, err := s.Find(token)
	if err != nil || !found || string(got) != want {
		t.Fatalf("Find(%q) = %q, %v, %v; want %q, true, nil", token, got, found, err, want)
	}
}

func wantMissing(t *testing.T, s scs.Store, token string) {
	t.Helper()
	got, found, err := s.Find(token)
	if err != nil || found || got != nil {
		t.Fatalf("Find(%q) = %q, %v, %v; want nil, false, nil", token, got, found, err)
	}
}

func wantAll(t *testing.T, s scs.IterableStore, want map[string]string) {
	t.Helper()
	all, err := s.All()
	if err != nil {
		t.Fatalf("All: %v", err)
	}
	if all == nil {
		t.Fatal("All returned a nil map")
	}
	got := make(map[string]string)
	for token, data := range all {
		got[token] = string(data)
	}
	if !maps.Equal(got, want) {
		t.Fatalf("All = %q, want %q", got, want)
	}
}

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

func anHourAgo() time.Time { return time.Now().Add(-time.Hour) }

// inParallel calls f n times from a number of goroutines, with a random number
// generator for each goroutine and the number of the call.
func inParallel(goroutines, n int, f func(rng *rand.Rand, i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(2, uint64(g)))
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				f(rng, int(i-1))
			}
		})
	}
	wg.Wait()
}

// newStoreWith returns a store configured by cfg that logs nothing and sweeps only on
// demand.
func newStoreWith(t testing.TB, db *chai.DB, cfg chaistore.Config) *chaistore.ChaiStore {
	t.Helper()
	cfg.CleanupInterval, cfg.CreateTable, cfg.Logger = -1, true, slog.New(slog.DiscardHandler)
	s, err := chaistore.NewWithConfig(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ownerInData is an Owner for data that consists of the owner, a bar, and text
// without a bar.
func ownerInData(data []byte) string {
	return string(data[:max(0, bytes.LastIndexByte(data, '|'))])
}

func newOwnerStore(t testing.TB, db *chai.DB) *chaistore.ChaiStore {
	t.Helper()
	return newStoreWith(t, db, chaistore.Config{Owner: ownerInData})
}
