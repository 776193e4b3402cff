// Package testdb has what the tests of several packages need: databases, a
// limit on how long a test may hang, and a log that can be looked at.
package testdb

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"
)

// The tables of sessions that there are: the one that the library creates, and
// the one of older setups.
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
	return open(t, ":memory:")
}

// Disk returns an empty database on disk, which is closed when the test ends.
func Disk(t testing.TB) *chai.DB {
	t.Helper()
	return open(t, t.TempDir())
}

func open(t testing.TB, path string) *chai.DB {
	t.Helper()
	db, err := chai.Open(path)
	if err != nil {
		t.Fatalf("open database: %v", err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Exec runs statements, and fails the test if it can't. It must not be used
// beside a store that writes.
func Exec(t testing.TB, db *chai.DB, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if err := db.Exec(sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// CheckIndexes fails the test unless the entries of all indexes are, byte for
// byte, the ones that REINDEX makes. Nobody may write meanwhile.
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
		t.Errorf("of %d keys in the database REINDEX has removed %d and added %d", len(before), wrong, missing)
	}
}

// pairs returns all that is stored in db.
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
	}
	if err := rows.Error(); err != nil {
		t.Fatal(err)
	}
	return all
}

// Watchdog ends the process with the stacks of all goroutines if the test still
// runs after limit, because a deadlock in the engine can't be undone.
func Watchdog(t testing.TB, limit time.Duration) {
	timer := time.AfterFunc(limit, func() {
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		panic(fmt.Sprintf("%s still runs after %v\n\n%s", t.Name(), limit, stacks))
	})
	t.Cleanup(func() { timer.Stop() })
}

// A Log keeps what is logged to its logger, for many goroutines.
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

// String returns what has been logged.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Logger returns a logger that logs everything from level on to l.
func (l *Log) Logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level}))
}
