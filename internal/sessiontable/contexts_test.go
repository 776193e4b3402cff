package sessiontable

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

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
