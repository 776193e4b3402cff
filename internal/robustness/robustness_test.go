// Package robustness has tests that kill processes, fill disks and run for a long
// time. CONTRIBUTING.md describes their flags.
package robustness

import (
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// TestMain lets more tests run in parallel than there are CPUs, because most of them
// wait for other processes. All of them are slow.
func TestMain(m *testing.M) {
	runChild()
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped: slow")
		return
	}
	if err := flag.Set("test.parallel", "6"); err != nil {
		log.Fatal(err)
	}
	os.Exit(m.Run())
}

// openStore opens a database on vfs.Default and makes a store.
func openStore(dir string) (*chai.DB, *chaistore.ChaiStore) {
	db, err := chai.Open(dir)
	must(err)
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable: true, CleanupInterval: -1, Logger: slog.New(slog.DiscardHandler),
	})
	must(err)
	return db, s
}

// newStore returns a store on db that logs nothing and sweeps only on demand.
func newStore(t *testing.T, db *chai.DB, owner func(data []byte) (string, error)) *chaistore.ChaiStore {
	t.Helper()
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CleanupInterval: -1, CreateTable: true, Owner: owner, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func commit(t *testing.T, s *chaistore.ChaiStore, token, data string) {
	t.Helper()
	if err := s.Commit(token, []byte(data), inAnHour()); err != nil {
		t.Errorf("Commit(%q): %v", token, err)
	}
}

func inAnHour() time.Time  { return time.Now().Add(time.Hour) }
func anHourAgo() time.Time { return time.Now().Add(-time.Hour) }

func wantFound(t *testing.T, s *chaistore.ChaiStore, token, want string) {
	t.Helper()
	if b, found, err := s.Find(token); string(b) != want || !found || err != nil {
		t.Errorf("Find(%q) = %q, %v, %v; want %q, true, nil", token, b, found, err, want)
	}
}
