package sessiontable

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

// indexedTables maps a name to the indexes of a table of sessions.
var indexedTables = map[string][]string{
	"expiry":            {testdb.CreateIndex},
	"expiry and token":  {testdb.CreateIndex, "CREATE INDEX by_token ON sessions(token)"},
	"descending":        {"CREATE INDEX latest ON sessions(expiry DESC)"},
	"descending tokens": {"CREATE INDEX by_token ON sessions(token DESC)"},
	"two columns":       {"CREATE INDEX both ON sessions(expiry DESC, token)"},
}

// expiries returns the expiry of each session by token, as read by Chai.
func expiries(t *testing.T, db *chai.DB) map[string]time.Time {
	t.Helper()
	result, err := db.Query("SELECT token, expiry FROM sessions")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	found := make(map[string]time.Time)
	err = result.Iterate(func(r *chai.Row) error {
		var token string
		var expiry time.Time
		err := r.Scan(&token, &expiry)
		found[token] = expiry
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// After any operations of the store and of the application, the entries are, byte for
// byte, those that REINDEX makes. The tables are created on both sides of the
// namespaces whose encoding changes, from 31 to 32 and from 255 to 256. (Only INSERTs
// are rolled back: see TestRolledBackUpdateIsRepaired.)
func TestEntriesMatchReindex(t *testing.T) {
	testdb.Slow(t)
	for name, indexes := range indexedTables {
		for _, others := range []int{0, 20, 243} {
			t.Run(fmt.Sprintf("%s after %d others", name, others), func(t *testing.T) {
				db := testdb.Memory(t)
				inTx(t, db, true, func(tx *chai.Tx) (err error) {
					for i := 0; i < others && err == nil; i++ {
						err = tx.Exec(fmt.Sprintf("CREATE TABLE other%d (id INTEGER PRIMARY KEY)", i))
					}
					return err
				})
				testdb.Exec(t, db, testdb.CreateTable)
				testdb.Exec(t, db, indexes...)
				testRandomOperations(t, db)
			})
		}
	}
}

func testRandomOperations(t *testing.T, db *chai.DB) {
	table := newTable(t, db)
	rng := rand.New(rand.NewPCG(5, 6))
	now := time.Now().UTC().Truncate(time.Microsecond)
	times := append(boundaryExpiries(), now.Add(-time.Hour), now, now.Add(time.Microsecond), now.Add(time.Hour))
	want := make(map[string]time.Time)
	for i := range 300 {
		token, expiry := fmt.Sprint(rng.IntN(30)), times[rng.IntN(len(times))].UTC()
		_, exists := want[token]
		commit := rng.IntN(3) > 0
		var err error
		switch operation := rng.IntN(12); {
		case operation < 5:
			err = table.Upsert(t.Context(), token, []byte(token), expiry)
			want[token] = expiry
		case operation == 5:
			tokens := []string{token, fmt.Sprint(rng.IntN(30)), fmt.Sprint(rng.IntN(30)), token}
			err = table.Delete(t.Context(), tokens...)
			for _, token := range tokens {
				delete(want, token)
			}
		case operation == 6 && i%5 == 0:
			_, err = table.DeleteExpired(t.Context(), now)
			maps.DeleteFunc(want, func(_ string, expiry time.Time) bool { return !expiry.After(now) })
		case !exists:
			inTx(t, db, commit, func(tx *chai.Tx) error {
				return tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", token, []byte(token), expiry)
			})
			if commit {
				want[token] = expiry
			}
		case operation < 9:
			inTx(t, db, true, func(tx *chai.Tx) error {
				return tx.Exec("DELETE FROM sessions WHERE token = ?", token)
			})
			delete(want, token)
		default:
			inTx(t, db, true, func(tx *chai.Tx) error {
				return tx.Exec("UPDATE sessions SET expiry = ? WHERE token = ?", expiry, token)
			})
			want[token] = expiry
		}
		if err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
		if i%50 == 49 {
			testdb.CheckIndexes(t, db)
			if got := expiries(t, db); !maps.EqualFunc(got, want, time.Time.Equal) {
				t.Fatalf("after operation %d, got expiries %v, want %v", i, got, want)
			}
		}
	}
}

// inTx calls f with a transaction of the application, and commits it or rolls it
// back.
func inTx(t testing.TB, db *chai.DB, commit bool, f func(tx *chai.Tx) error) {
	t.Helper()
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	err = f(tx)
	if err == nil && commit {
		err = tx.Commit()
	} else if errRollback := tx.Rollback(); err == nil {
		err = errRollback
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Operations that share a batch see the changes of earlier ones.
func TestEntriesOfOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex, "CREATE INDEX both ON sessions(expiry DESC, token)")
		table := newTable(t, db)
		now := time.Now()
		in := func(d time.Duration) time.Time { return now.Add(d).UTC() }
		upsertAt := func(token string, expiry time.Time) func() error {
			return func() error { return table.Upsert(t.Context(), token, []byte(token), expiry) }
		}
		del := func(tokens ...string) func() error {
			return func() error { return table.Delete(t.Context(), tokens...) }
		}
		sweep := func(deleted int, tokens ...string) func() error {
			return func() error {
				n, err := table.deleteIfExpired(t.Context(), tokens, now)
				if n != deleted {
					t.Errorf("deleteIfExpired(%q) = %d, want %d", tokens, n, deleted)
				}
				return err
			}
		}
		for _, token := range []string{"renewed", "twice", "deleted", "again", "spared", "swept"} {
			upsert(t, table, token, in(-time.Hour))
		}
		e := engine.Open(db, slog.Default)
		before := e.Fsyncs()
		lock := engine.Open(db, nil).Lock()
		lock.Lock()
		for _, operation := range []func() error{
			upsertAt("renewed", in(1)),
			upsertAt("twice", in(2)), upsertAt("twice", in(3)), upsertAt("twice", in(2)),
			upsertAt("deleted", in(4)), del("deleted", "deleted"),
			del("again"), upsertAt("again", in(5)),
			upsertAt("new", in(6)), upsertAt("new", in(7)), del("new"), upsertAt("new", in(8)),
			upsertAt("gone", in(9)), del("gone"), del("gone", "never"),
			upsertAt("spared", in(10*time.Second)), sweep(1, "spared", "swept", "deleted"),
			upsertAt("short", in(-1)), sweep(1, "short", "swept"),
		} {
			go func() {
				if err := operation(); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait()
		}
		lock.Unlock()
		synctest.Wait()
		if n := e.Fsyncs() - before; n != 1 {
			t.Errorf("got %d batches, want 1", n)
		}
		want := map[string]time.Time{"renewed": in(1), "twice": in(2), "again": in(5), "new": in(8), "spared": in(10 * time.Second)}
		for token := range want {
			want[token] = want[token].Truncate(time.Microsecond)
		}
		if got := expiries(t, db); !maps.EqualFunc(got, want, time.Time.Equal) {
			t.Errorf("got expiries %v, want %v", got, want)
		}
		testdb.CheckIndexes(t, db)
	})
}

// A commit that waits while its table gets or loses an index maintains the indexes
// that exist in its turn.
func TestIndexesChangeWhileCommitsWait(t *testing.T) {
	for name, test := range map[string]struct{ before, during []string }{
		"created":  {nil, []string{testdb.CreateIndex}},
		"dropped":  {[]string{testdb.CreateIndex}, []string{"DROP INDEX idx_sessions_expiry"}},
		"replaced": {[]string{testdb.CreateIndex}, []string{"DROP INDEX idx_sessions_expiry", "CREATE INDEX latest ON sessions(expiry DESC)"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := testdb.Memory(t)
				testdb.Exec(t, db, testdb.CreateTable)
				testdb.Exec(t, db, test.before...)
				table := newTable(t, db)
				upsert(t, table, "b", time.Now())
				lock := engine.Open(db, nil).Lock()
				lock.Lock()
				for _, token := range []string{"a", "b"} {
					go func() { upsert(t, table, token, time.Now().Add(time.Hour)) }()
				}
				synctest.Wait()
				testdb.Exec(t, db, test.during...)
				lock.Unlock()
				synctest.Wait()
				if n := len(expiries(t, db)); n != 2 {
					t.Errorf("got %d sessions, want 2", n)
				}
				testdb.CheckIndexes(t, db)
			})
		})
	}
}

// newStaleTable returns a table with the given number of sessions. An older program
// has renewed every third one with ON CONFLICT REPLACE, which leaves the entry of the
// former expiry in each index, and adds none.
func newStaleTable(t testing.TB, sessions int, indexes ...string) (*chai.DB, *Table) {
	t.Helper()
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	now := time.Now()
	var wg sync.WaitGroup
	for g := range 100 {
		wg.Go(func() {
			for i := g; i < sessions; i += 100 {
				upsert(t, table, fmt.Sprintf("%05d", i), now.Add(time.Hour))
			}
		})
	}
	wg.Wait()
	testdb.Exec(t, db, indexes...)
	inTx(t, db, true, func(tx *chai.Tx) (err error) {
		for i := 0; i < sessions && err == nil; i += 3 {
			err = tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT REPLACE",
				fmt.Sprintf("%05d", i), []byte("replaced"), now.Add(2*time.Hour))
		}
		return err
	})
	return db, newTable(t, db)
}

// Without the repair, CheckIndexes would fail in the tests that follow.
func TestReplaceLeavesWrongEntries(t *testing.T) {
	db, table := newStaleTable(t, 10, testdb.CreateIndex)
	l, err := table.layout()
	if err != nil {
		t.Fatal(err)
	}
	if all, wrong := countEntries(t, table, &l.sessions.indexes[0]); all != 10 || wrong != 4 {
		t.Errorf("got %d wrong entries of %d, want 4 of 10", wrong, all)
	}
	if n := len(expiries(t, db)); n != 10 {
		t.Errorf("got %d sessions, want 10", n)
	}
}

// countEntries returns the number of entries in an index, and how many of them belong
// to no row.
func countEntries(t *testing.T, table *Table, ix *index) (all, wrong int) {
	t.Helper()
	err := table.db.Read(t.Context(), func(s *engine.Snapshot) error {
		return s.Scan(appendInt(nil, ix.namespace), appendInt(nil, ix.namespace+1), func(e, _ []byte) (bool, error) {
			all++
			ok, err := ix.isRight(s.Get, e)
			if !ok {
				wrong++
			}
			return true, err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, wrong
}

func TestStaleTableWorksAtOnce(t *testing.T) {
	for name, indexes := range indexedTables {
		t.Run(name, func(t *testing.T) {
			db, table := newStaleTable(t, 30, indexes...)
			now := time.Now()
			if row, found, err := find(t, table, "00000"); string(row.Data) != "replaced" || !found || err != nil {
				t.Errorf("Find = %q, %v, %v; want replaced, true, nil", row.Data, found, err)
			}
			upsert(t, table, "00000", now.Add(3*time.Hour))
			upsert(t, table, "00003", now.Add(-time.Hour))
			if err := table.Delete(t.Context(), "00006", "00007"); err != nil {
				t.Error(err)
			}
			if rows, next, err := table.Page(t.Context(), ""); len(rows) != 28 || next != "" || err != nil {
				t.Errorf("Page = %d rows, %q, %v; want 28 rows, none, nil", len(rows), next, err)
			}
			sweep, err := table.DeleteExpired(t.Context(), now)
			if want := (Sweep{Scanned: 28, Deleted: 1, Active: 27}); sweep != want || err != nil {
				t.Errorf("DeleteExpired = %+v, %v; want %+v, nil", sweep, err, want)
			}
			testdb.CheckIndexes(t, db)
		})
	}
}

// When Chai rolls an UPDATE back, it does not restore the former entry: its value
// equals the mark of a key that did not exist (internal/kv, rollback.go, tombStone).
func TestRolledBackUpdateIsRepaired(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	upsert(t, newTable(t, db), "a", time.Now().Add(time.Hour))
	inTx(t, db, false, func(tx *chai.Tx) error {
		return tx.Exec("UPDATE sessions SET expiry = ? WHERE token = 'a'", time.Now())
	})
	table := newTable(t, db)
	if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	testdb.CheckIndexes(t, db)
}

// repairLen is more sessions than a sweep scans in one snapshot. A third of them have
// wrong entries, many times as many as a turn changes.
const repairLen = sweepScan + sweepScan/2

func TestStaleTableIsRepaired(t *testing.T) {
	t.Run("in several turns", func(t *testing.T) { testStaleTableIsRepaired(t, 3*sweepWrite+1) })
	t.Run("in several snapshots", func(t *testing.T) {
		testdb.Slow(t)
		testdb.WithoutRace(t)
		testStaleTableIsRepaired(t, repairLen)
	})
}

func testStaleTableIsRepaired(t *testing.T, sessions int) {
	testdb.Watchdog(t, 3*time.Minute)
	db, table := newStaleTable(t, sessions, testdb.CreateIndex, "CREATE INDEX both ON sessions(expiry DESC, token)")
	sweep, err := table.DeleteExpired(t.Context(), time.Now())
	if want := (Sweep{Scanned: sessions, Active: sessions}); sweep != want || err != nil {
		t.Fatalf("DeleteExpired = %+v, %v; want %+v, nil", sweep, err, want)
	}
	testdb.CheckIndexes(t, db)
	// Sweeps of a repaired table write nothing, and the Table that repaired an index
	// does not check it again.
	before := table.db.Fsyncs()
	for _, table := range []*Table{table, newTable(t, db)} {
		if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if n := table.db.Fsyncs() - before; n != 0 {
		t.Errorf("got %d commits by sweeps of a repaired table, want none", n)
	}
}

func TestRepairBesideCommits(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, 3*time.Minute)
	db, table := newStaleTable(t, repairLen, testdb.CreateIndex)
	now := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(g)))
			for ctx.Err() == nil {
				token := fmt.Sprintf("%05d", rng.IntN(repairLen))
				if rng.IntN(4) > 0 {
					upsert(t, table, token, now.Add(time.Duration(rng.IntN(7200))*time.Second))
				} else if err := table.Delete(t.Context(), token); err != nil {
					t.Error(err)
				}
			}
		})
	}
	_, err := table.DeleteExpired(t.Context(), now)
	cancel()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	testdb.CheckIndexes(t, db)
}

// A hookContext's Err returns nil n times, and then the result of hook.
type hookContext struct {
	context.Context
	n    int
	hook func() error
}

func (c *hookContext) Err() error {
	if c.n--; c.n >= 0 {
		return nil
	}
	return c.hook()
}

func canceled() error { return context.Canceled }

// If a sweep is interrupted at any point, the next one does the rest.
func TestInterruptedRepairIsFinished(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, 3*time.Minute)
	db, table := newStaleTable(t, repairLen, testdb.CreateIndex)
	interrupted, fsyncs := 0, table.db.Fsyncs()
	for n := repairLen + 100; ; n += 2000 {
		_, err := table.DeleteExpired(&hookContext{t.Context(), n, canceled}, time.Now())
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		interrupted++
	}
	if n := table.db.Fsyncs() - fsyncs; interrupted < 5 || n < 2*repairLen/3/sweepWrite {
		t.Errorf("got %d interruptions and %d commits, want at least 5 and %d", interrupted, n, 2*repairLen/3/sweepWrite)
	}
	testdb.CheckIndexes(t, db)
}

// A session may change at any moment of the repair, even so that its wrong entry
// becomes right again.
func TestRepairWhileSessionChanges(t *testing.T) {
	former, now := time.Now().Add(time.Hour), time.Now()
	for name, change := range map[string]func(table *Table) error{
		"renewed":      func(table *Table) error { return table.Upsert(t.Context(), "a", nil, former.Add(time.Minute)) },
		"as it was":    func(table *Table) error { return table.Upsert(t.Context(), "a", nil, former) },
		"deleted":      func(table *Table) error { return table.Delete(t.Context(), "a") },
		"sweep beside": func(table *Table) error { _, err := table.DeleteExpired(t.Context(), now); return err },
	} {
		for moment, more := 0, true; more; moment++ {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
			table := newTable(t, db)
			upsert(t, table, "a", former)
			inTx(t, db, true, func(tx *chai.Tx) error {
				return tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES ('a', '', ?) ON CONFLICT REPLACE", former.Add(time.Hour))
			})
			more = false
			ctx := &hookContext{t.Context(), moment, func() error {
				if !more {
					more = true
					if err := change(table); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				return nil
			}}
			if err := table.repairIndexes(ctx); err != nil {
				t.Fatalf("%s at moment %d: %v", name, moment, err)
			}
			testdb.CheckIndexes(t, db)
		}
	}
}

// The application may change the indexes and the table during the repair.
func TestRepairWhileIndexesChange(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, 3*time.Minute)
	for name, change := range map[string][]string{
		"dropped":  {"DROP INDEX idx_sessions_expiry"},
		"created":  {"CREATE INDEX latest ON sessions(expiry DESC)"},
		"replaced": {"DROP INDEX idx_sessions_expiry", testdb.CreateIndex},
		"table":    {"DROP TABLE sessions", testdb.CreateTable, testdb.CreateIndex},
	} {
		t.Run(name, func(t *testing.T) {
			const sessions = 3*sweepWrite + 1 // with wrong entries, a third of all
			for _, at := range []int{3*sessions + 10, 4*sessions + 10, 7*sessions + 10, 7*sessions + 200} {
				db, table := newStaleTable(t, 3*sessions, testdb.CreateIndex)
				before, err := table.layout()
				if err != nil {
					t.Fatal(err)
				}
				changed := false
				ctx := &hookContext{t.Context(), at, func() error {
					if !changed {
						changed = true
						testdb.Exec(t, db, change...)
					}
					return nil
				}}
				if _, err := table.DeleteExpired(ctx, time.Now()); err != nil || !changed {
					t.Fatalf("DeleteExpired: %v; changed: %v", err, changed)
				}
				if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
					t.Fatal(err)
				}
				testdb.CheckIndexes(t, db)
				if all, _ := countEntries(t, table, &before.sessions.indexes[0]); all > 0 && name != "created" {
					t.Errorf("got %d entries of a dropped index, want none", all)
				}
			}
		})
	}
}
