// Package testdb has helpers for the tests of several packages: databases, a disk that
// fails, checks of tables, calls in parallel, a watchdog for tests that hang, a log that
// can be read, and the heap.
package testdb

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"
)

// The table of sessions that the library creates, and the index of older setups.
const (
	CreateTable = `CREATE TABLE sessions (
		token  TEXT      PRIMARY KEY,
		data   BLOB      NOT NULL,
		expiry TIMESTAMP NOT NULL
	)`
	CreateIndex = `CREATE INDEX idx_sessions_expiry ON sessions(expiry)`
)

// Memory returns an empty database in memory, which is closed when the test ends.
func Memory(t testing.TB) *chai.DB {
	t.Helper()
	return Open(t, ":memory:")
}

// Disk returns an empty database on disk, which is closed when the test ends.
func Disk(t testing.TB) *chai.DB {
	t.Helper()
	return Open(t, t.TempDir())
}

// Open opens a database, which is closed when the test ends. Tests that run in parallel
// must open their databases with it, because Chai has a race in Open.
func Open(t testing.TB, path string) *chai.DB {
	t.Helper()
	opening.Lock()
	defer opening.Unlock()
	db, err := chai.Open(path)
	if err != nil {
		t.Fatalf("open database: %v", err)
	}
	t.Cleanup(func() {
		db.Close()
		if time.Now().Year() == 2000 { // in a bubble of testing/synctest
			// Pebble keeps buffers in a pool (sstable/writer.go), with channels of the bubble,
			// which are fatal to use outside it. Two collections empty the pool.
			runtime.GC()
			runtime.GC()
		}
	})
	return db
}

var opening sync.Mutex

// Killed opens a copy of what a kill of the process would leave of a database on disk.
func Killed(t testing.TB, db *chai.DB) *chai.DB {
	t.Helper()
	dir, files := t.TempDir(), db.DB.Store.DB()
	if err := errors.Join(files.Flush(), files.Checkpoint(filepath.Join(dir, "pebble"))); err != nil {
		t.Fatal(err)
	}
	return Open(t, dir)
}

// Slow skips a test that takes about half a second or more, with -short.
func Slow(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("slow")
	}
}

// WithoutRace skips a test with the race detector, which makes it slow and sees no more
// there than in other tests: it is about the disk, the heap, or processes that are killed.
func WithoutRace(t testing.TB) {
	t.Helper()
	if race() {
		t.Skip("with the race detector")
	}
}

func race() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

var full = flag.Bool("full", false, "run tests as long as they are meant to, with all combinations of what they vary")

// Rounds returns how often a test repeats something: a few times, or many with -full.
func Rounds(few, many int) int {
	if *full {
		return many
	}
	return few
}

// Long skips a test that takes some seconds of CPU time, and looks for what other tests
// would hardly miss, unless -full is set.
func Long(t testing.TB) {
	t.Helper()
	if !*full {
		t.Skip("long: use -full")
	}
}

// Sampled reports whether a test tries a combination, of values with the given places in
// their lists: one in n, in which each value still meets most of the others, or all with
// -full. With the race detector, it is half as many.
func Sampled(n int, places ...int) bool {
	sum := 0
	for _, place := range places {
		sum += place
	}
	if race() {
		n *= 2
	}
	return *full || sum%n == 0
}

// Exec runs statements, and fails the test if one fails. It must not be used while a
// store writes.
func Exec(t testing.TB, db *chai.DB, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if err := db.Exec(sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// CheckIndexes fails the test unless the entries of all indexes are, byte for byte,
// those that REINDEX makes. Nobody may write meanwhile.
func CheckIndexes(t testing.TB, db *chai.DB) {
	t.Helper()
	before := pairs(t, db)
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := tx.Exec("REINDEX"); err != nil {
		t.Fatalf("REINDEX: %v", err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	after := pairs(t, db)
	wrong, missing := 0, 0
	for key, value := range before {
		if got, ok := after[key]; !ok || got != value {
			wrong++
		}
	}
	for key := range after {
		if _, ok := before[key]; !ok {
			missing++
		}
	}
	if wrong+missing > 0 {
		t.Errorf("REINDEX removed or changed %d and added %d of %d keys, want none", wrong, missing, len(before))
	}
}

// pairs returns all keys and values stored in db.
func pairs(t testing.TB, db *chai.DB) map[string]string {
	t.Helper()
	rows, err := db.DB.Store.DB().NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := make(map[string]string)
	for ok := rows.First(); ok; ok = rows.Next() {
		all[string(rows.Key())] = string(rows.Value())
		if bytes.Equal(rows.Value(), []byte{1}) { // an entry that was put back after a crash
			all[string(rows.Key())] = "\x00"
		}
	}
	if err := rows.Error(); err != nil {
		t.Fatal(err)
	}
	return all
}

// Watchdog ends the process with the stacks of all goroutines if the test still runs
// after limit, because a deadlock in the engine can't be undone.
func Watchdog(t testing.TB, limit time.Duration) {
	timer := time.AfterFunc(limit, func() {
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		panic(fmt.Sprintf("%s still runs after %v\n\n%s", t.Name(), limit, stacks))
	})
	t.Cleanup(func() { timer.Stop() })
}

// A Log keeps the output of its loggers. Many goroutines may use it.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns everything logged so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Logger returns a logger that logs to l, from level on.
func (l *Log) Logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level}))
}

// Query calls each for each row of a reading statement.
func Query(t testing.TB, db *chai.DB, sql string, each func(*chai.Row) error, args ...any) {
	t.Helper()
	result, err := db.Query(sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer result.Close()
	if err := result.Iterate(each); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Count returns the result of a statement that counts.
func Count(t testing.TB, db *chai.DB, sql string, args ...any) int {
	t.Helper()
	row, err := db.QueryRow(sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := row.Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// CheckOwners checks that the table of owners lists each session for its owner. After a
// sweep, it must list no session that is gone, and none twice.
func CheckOwners(t testing.TB, db *chai.DB, ownerOf func(data []byte) (string, error), swept bool) {
	t.Helper()
	owners := make(map[string]string)
	Query(t, db, "SELECT token, data FROM sessions", func(row *chai.Row) error {
		var token string
		var data []byte
		if err := row.Scan(&token, &data); err != nil {
			return err
		}
		owner, err := ownerOf(data) // "" if there is an error
		owners[token] = owner
		if err == nil && owner == "" {
			owners[token] = nobody
		}
		return nil
	})
	listed := make(map[[2]string]bool)
	times := make(map[string]int)
	Query(t, db, "SELECT owner, token FROM sessions_owners", func(row *chai.Row) error {
		var owner, token string
		err := row.Scan(&owner, &token)
		listed[[2]string{owner, token}] = true
		times[token]++
		return err
	})
	for token, owner := range owners {
		if owner != nobody && !listed[[2]string{owner, token}] {
			t.Errorf("the session %q is not listed for its owner %q", token, owner)
		}
	}
	if !swept {
		return
	}
	for token, n := range times {
		if _, ok := owners[token]; !ok {
			t.Errorf("the session %q is listed, but does not exist", token)
		} else if n > 1 && owners[token] != "" {
			t.Errorf("the session %q is listed %d times", token, n)
		}
	}
}

const nobody = "\x00 nobody"

// HeapInUse returns the size of the reachable heap, once the databases of earlier
// tests have been collected. That takes several rounds, and on a loaded machine some
// time between two of them.
func HeapInUse() int64 {
	least := uint64(math.MaxUint64)
	for same := 0; same < 10; same++ {
		runtime.GC()
		time.Sleep(10 * time.Millisecond) // lets cleanups of collected objects run
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		if stats.HeapAlloc+64<<10 < least {
			least, same = stats.HeapAlloc, 0
		}
	}
	return int64(least)
}

// InParallel calls f n times from a number of goroutines, with a random number
// generator for each goroutine and the number of the call.
func InParallel(goroutines, n int, f func(rng *rand.Rand, i int)) {
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
