package sessiontable

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

// A session may change after it was found, and before it gets its first context: it may be
// renewed, or deleted, and even be put again.
func TestSessionChangesBeforeItsContext(t *testing.T) {
	for name, test := range map[string]struct {
		change func(table *Table) error
		ends   bool
	}{
		"renewed": {func(table *Table) error {
			return table.Upsert(context.Background(), "a", nil, time.Now().Add(2*time.Hour))
		}, false},
		"deleted": {func(table *Table) error { return table.Delete(context.Background(), "a") }, true},
		"deleted and put": {func(table *Table) error {
			return errors.Join(table.Delete(context.Background(), "a"), table.Upsert(context.Background(), "a", nil, time.Now().Add(time.Hour)))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := testdb.Memory(t)
				testdb.Exec(t, db, testdb.CreateTable)
				table := New(db, Options{Name: "sessions"})
				if err := table.Upsert(t.Context(), "a", nil, time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				x := table.contexts
				ctx, cancel := context.WithCancelCause(t.Context())
				l := &look{session: x.find("a")}
				number, err := x.read(ctx, table, []*look{l})
				if err != nil || !l.exists {
					t.Fatalf("found %v, %v", l.exists, err)
				}
				if err := test.change(table); err != nil {
					t.Fatal(err)
				}
				added := x.add(ctx, table, &sessionContext{session: l.session, number: number, cancel: cancel}, l, 0)
				if added == test.ends {
					t.Fatalf("add = %v, want %v", added, !test.ends)
				}
				if added {
					time.Sleep(2*time.Hour - time.Nanosecond)
					if ctx.Err() != nil {
						t.Error("the context has ended before the session")
					}
					time.Sleep(time.Nanosecond)
					synctest.Wait()
					if !errors.Is(context.Cause(ctx), ErrEnded) {
						t.Errorf("after the expiry, the cause is %v", context.Cause(ctx))
					}
				}
				x.mu.Lock()
				defer x.mu.Unlock()
				if x.sessions != nil || x.suspects != nil || x.byExpiry != nil || x.count != 0 || x.watched.Load() != 0 || x.timer != nil || x.stop != nil {
					t.Errorf("without contexts, something is left: %+v", x)
				}
			})
		})
	}
}

// A session that SQL has deleted, or whose table it has dropped, ends even if it is there
// again when it is looked at.
func TestSessionIsBackBeforeItIsLookedAt(t *testing.T) {
	const (
		remove = "DELETE FROM sessions"
		insert = "INSERT INTO sessions (token, data, expiry) VALUES ('a', '\\x61', '2099-01-01T00:00:00Z')"
	)
	for name, transactions := range map[string][][]string{
		"deleted":               {{remove}, {insert}},
		"deleted, then twice":   {{remove}, {insert}, {remove, insert}},
		"deleted, then by it":   {{remove}, {remove, insert}},
		"twice":                 {{remove, insert, remove}, {insert}},
		"dropped":               {{"DROP TABLE sessions"}, {testdb.CreateTable, insert}},
		"renamed":               {{"ALTER TABLE sessions RENAME TO away"}, {"ALTER TABLE away RENAME TO sessions"}},
		"dropped, then renamed": {{"DROP TABLE sessions"}, {testdb.CreateTable, insert, "ALTER TABLE sessions RENAME TO away", "ALTER TABLE away RENAME TO sessions"}},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable, insert)
			table := New(db, Options{Name: "sessions"})
			ctx, cancel := table.Context(t.Context(), "a")
			defer cancel()
			table.contexts.settling.Lock() // nobody looks
			for _, statements := range transactions {
				err := table.db.Update(t.Context(), func(tx *chai.Tx) (err error) {
					for _, sql := range statements {
						err = errors.Join(err, tx.Exec(sql))
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			next, cancel := table.Context(t.Context(), "a")
			defer cancel()
			table.contexts.settling.Unlock()
			<-ctx.Done()
			if context.Cause(ctx) != ErrEnded {
				t.Errorf("the cause is %v, want %v", context.Cause(ctx), ErrEnded)
			}
			table.contexts.settle(table)
			if next.Err() != nil {
				t.Errorf("a context of the session that was put has ended: %v", context.Cause(next))
			}
		})
	}
}

// SQL may delete a session after it was found, and before its context has a goroutine that
// would hear of it.
func TestSQLDeletesBeforeTheFirstContext(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := New(db, Options{Name: "sessions"})
	x := table.contexts
	for range 2 { // the first time, it is not known which keys to follow
		if err := table.Upsert(t.Context(), "a", nil, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		l := &look{session: x.find("a")}
		number, err := x.read(ctx, table, []*look{l})
		if err != nil {
			t.Fatal(err)
		}
		testdb.Exec(t, db, "DELETE FROM sessions")
		if !x.add(ctx, table, &sessionContext{session: l.session, number: number, cancel: cancel}, l, 0) {
			t.Fatal("it was not added")
		}
		<-ctx.Done()
		if context.Cause(ctx) != ErrEnded {
			t.Errorf("the cause is %v, want %v", context.Cause(ctx), ErrEnded)
		}
	}
}

// When its parent ends, or it is canceled, nothing is left of a context.
func TestContextIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := New(db, Options{Name: "sessions"})
		if err := table.Upsert(t.Context(), "a", nil, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		for _, canceled := range []bool{false, true} {
			parent, cancelParent := context.WithCancel(t.Context())
			_, cancel := table.Context(parent, "a")
			if table.contexts.watched.Load() != 1 {
				t.Error("the session is not watched")
			}
			if canceled {
				cancel()
			}
			cancelParent()
			synctest.Wait()
			x := table.contexts
			if x.sessions != nil || x.count != 0 || x.watched.Load() != 0 || x.byExpiry != nil || x.stop != nil {
				t.Errorf("canceled: %v, and something is left: %+v", canceled, x)
			}
			cancel()
		}
	})
}
