package chaistore_test

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
	"go.elara.ws/chaistore/storetest"
)

// TestConformance runs the suite for SCS stores, advice included, on each kind of
// database and table, while the cleanup sweeps all the time.
func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name string
		open func(t testing.TB) *chai.DB
		cfg  chaistore.Config
	}{
		{"memory", testdb.Memory, chaistore.Config{CreateTable: true}},
		{"disk", testdb.Disk, chaistore.Config{CreateTable: true}},
		{"custom table", testdb.Memory, chaistore.Config{CreateTable: true, TableName: "Web_Sessions2"}},
		{"index", func(t testing.TB) *chai.DB {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
			return db
		}, chaistore.Config{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.CleanupInterval = 50 * time.Millisecond
			table := cmp.Or(test.cfg.TableName, "sessions")
			runConformance(t, test.open, test.cfg, storetest.Rows(func(store scs.Store) (n int, err error) {
				row, err := store.(storeOnDB).db.QueryRow("SELECT COUNT(*) FROM " + table)
				if err != nil {
					return 0, err
				}
				err = row.Scan(&n)
				return n, err
			}))
		})
	}
}

// A storeOnDB is a store with its database.
type storeOnDB struct {
	*chaistore.ChaiStore
	db *chai.DB
}

func runConformance(t *testing.T, open func(t testing.TB) *chai.DB, cfg chaistore.Config, opts ...storetest.Option) {
	cfg.Logger = slog.New(slog.DiscardHandler)
	storetest.Run(t, func(t *testing.T) scs.Store {
		db := open(t)
		store, err := chaistore.NewWithConfig(db, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(store.StopCleanup)
		return storeOnDB{store, db}
	}, append(opts, storetest.Strict())...)
}

// A store that remembers ended sessions passes all cases but those that storetest says
// it fails by design.
func TestConformanceWithRememberEnded(t *testing.T) {
	const child = "CHAISTORE_TEST_CHILD"
	if os.Getenv(child) != "" {
		runConformance(t, testdb.Memory, chaistore.Config{CreateTable: true, RememberEnded: time.Hour, CleanupInterval: 50 * time.Millisecond})
		return
	}
	readme, err := os.ReadFile("storetest/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, pattern, _ := strings.Cut(string(readme), "go test -run TestStore -skip 'TestStore/")
	pattern, _, ok := strings.Cut(pattern, "'\n")
	if !ok {
		t.Fatal("storetest/README.md does not say which cases to skip")
	}
	name := t.Name()
	for skip, pass := range map[string]bool{name + "/" + pattern: true, "none": false} {
		t.Run(skip, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+name+"$", "-test.skip", skip, "-test.parallel", "16")
			cmd.Env = append(os.Environ(), child+"=1")
			out, err := cmd.CombinedOutput()
			const failed = "4 failed: Ctx/Twins, Store/Concurrent, Store/Delete, Store/DeleteMissing"
			if (err == nil) != pass || !pass && !strings.Contains(string(out), failed) {
				t.Errorf("with -skip '%s', the suite ends with %v:\n%s", skip, err, out)
			}
		})
	}
}

// TestConformanceWithStaleIndex runs the suite on a table of an older setup. A
// program has renewed 10,000 sessions in it with ON CONFLICT REPLACE, which does not
// maintain the index. All of them have expired. With the race detector, which makes
// Chai slow, there are 1,000.
func TestConformanceWithStaleIndex(t *testing.T) {
	sessions := 10_000
	if underRaceDetector() {
		sessions = 1000
	}
	dir := t.TempDir()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() // if the test ends early
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for i := range sessions {
		for _, expiry := range []time.Time{inAnHour(), anHourAgo()} {
			err := tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT REPLACE",
				fmt.Sprintf("%043d", i), []byte("old"), expiry)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := countByIndex(t, db, time.Now()); n != sessions {
		t.Fatalf("got %d active sessions in the stale index, want %d", n, sessions)
	}
	if err := db.DB.Store.DB().Flush(); err != nil { // makes the copies open fast
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	openCopy := func(t testing.TB) *chai.DB {
		t.Helper()
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		db, err := chai.Open(copied)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}

	t.Run("repair", func(t *testing.T) {
		db := openCopy(t)
		s := newStore(t, db)
		wantAll(t, s, map[string]string{})
		commit(t, s, "alice", "one", inAnHour())
		if n, err := s.DeleteExpired(t.Context()); n != sessions || err != nil {
			t.Fatalf("DeleteExpired = %d, %v; want %d, nil", n, err, sessions)
		}
		if n := countByIndex(t, db, time.Unix(0, 0)); n != 1 {
			t.Fatalf("got %d sessions in the index after the sweep, want 1", n)
		}
	})
	// Without the methods that only call others, to save time.
	runConformance(t, openCopy, chaistore.Config{CleanupInterval: -1}, storetest.CtxOnly())
}

// countByIndex returns the number of sessions that expire after t0 according to the
// index on expiry.
func countByIndex(t testing.TB, db *chai.DB, t0 time.Time) int {
	t.Helper()
	return testdb.Count(t, db, "SELECT COUNT(*) FROM sessions WHERE expiry > ?", t0)
}
