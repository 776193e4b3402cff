package rivals

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/alexedwards/scs/boltstore"
	"github.com/alexedwards/scs/gormstore"
	"github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/sqlite3store"
	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/jackc/pgx/v5/pgxpool"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/bench/internal/conformance"
	"go.elara.ws/chaistore/internal/postgres"
	"go.elara.ws/chaistore/storetest"
)

// TestConformance runs the storetest suite on each store except the yardsticks. The
// stores are set up as for the measurement, but with a cleanup. Advice counts, too. Most
// stores fail some cases, so the test is skipped unless package conformance runs it to
// make its tables.
func TestConformance(t *testing.T) {
	if os.Getenv(conformance.Env) == "" {
		t.Skip("runs only as a part of package conformance")
	}
	log.SetOutput(io.Discard) // errors of cleanups that outlive their databases
	for _, rival := range All() {
		if rival.Kind == Yardstick {
			continue
		}
		t.Run(rival.Name, func(t *testing.T) {
			t.Parallel()
			open := func(t *testing.T) scs.Store {
				store, err := rival.Open(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { store.Close() })
				return withCleanup(t, store)
			}
			opts := []storetest.Option{storetest.Strict(), storetest.Timeout(3 * time.Minute)}
			switch rival.Name {
			case Badgerstore.Name:
				opts = append(opts, storetest.ExpiryResolution(time.Second))
			case Pgxstore.Name:
				open = onServer(t)
				opts = append(opts, storetest.CtxOnly())
			}
			storetest.Run(t, open, opts...)
		})
	}
}

const cleanupInterval = 50 * time.Millisecond

// withCleanup returns a store as an application uses it: without the methods that
// [Store] adds, and with a cleanup, if the store has one.
func withCleanup(t *testing.T, store Store) scs.Store {
	switch s := store.(type) {
	case chaiStore:
		store, err := chaistore.NewWithConfig(s.db, chaistore.Config{CleanupInterval: cleanupInterval})
		if err != nil {
			t.Fatal(err)
		}
		return stopped(t, store)
	case boltStore:
		return stopped(t, boltstore.NewWithCleanupInterval(s.db, cleanupInterval))
	case badgerStore:
		return s.BadgerStore
	case sqlite3Store:
		return stopped(t, sqlite3store.NewWithCleanupInterval(s.db, cleanupInterval))
	case gormStore:
		store, err := gormstore.NewWithCleanupInterval(s.orm, cleanupInterval)
		if err != nil {
			t.Fatal(err)
		}
		return stopped(t, store)
	case memStore:
		return stopped(t, memstore.NewWithCleanupInterval(cleanupInterval))
	}
	t.Fatalf("a store of an unexpected type: %T", store)
	return nil
}

// stopped returns the store, whose cleanup ends with the test. In most stores, a second
// StopCleanup blocks forever. It runs in a goroutine, so that the databases are closed
// even if the test has already stopped the cleanup.
func stopped[S interface {
	scs.Store
	StopCleanup()
}](t *testing.T, store S) scs.Store {
	t.Cleanup(func() { go store.StopCleanup() })
	return store
}

// onServer starts a server that runs until the end of the test. It returns a function
// that makes stores, each with its own schema.
func onServer(t *testing.T) func(t *testing.T) scs.Store {
	server, err := postgres.Start(filepath.Join(t.TempDir(), "postgres"))
	if errors.Is(err, postgres.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	admin, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	n := 0
	return func(t *testing.T) scs.Store {
		n++
		schema := fmt.Sprint("test", n)
		if _, err := admin.Exec(t.Context(), "CREATE SCHEMA "+schema); err != nil {
			t.Fatal(err)
		}
		pool, err := openPool(server.URL()+"&search_path="+schema, 8)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return stopped(t, pgxstore.NewWithCleanupInterval(pool, cleanupInterval))
	}
}
