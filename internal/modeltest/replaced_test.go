package modeltest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// wantedCalls returns the numbers of calls that the tests of replaced tables make.
func wantedCalls() (finds, sessionsOf int64) {
	return int64(testdb.Rounds(20_000, 10_000_000)), int64(testdb.Rounds(2_000, 1_000_000))
}

// An application renames the table of sessions, creates a new one, and changes the
// sessions of the former one. No find returns a session of the former table.
func TestFindsBesideRenames(t *testing.T) {
	const sessions = 20
	finds, _ := wantedCalls()
	testdb.Watchdog(t, time.Minute+time.Duration(finds)*100*time.Microsecond)
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{})
	old := newStore(t, db, chaistore.Config{TableName: "old"})
	testdb.Exec(t, db, "DROP TABLE old")
	for i := range sessions {
		commit(t, s, fmt.Sprint(i), "right", inAnHour())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var found, missing, errs atomic.Int64
	for g := range 64 {
		wg.Go(func() {
			for i := g; ctx.Err() == nil; i++ {
				runtime.Gosched() // lets the application work
				data, ok, err := s.Find(fmt.Sprint(i % sessions))
				switch {
				case ok && string(data) == "right":
					found.Add(1)
				case err != nil && strings.Contains(err.Error(), `table "sessions" does not exist`):
					errs.Add(1)
				case ok || err != nil:
					t.Errorf("Find = %q, %v, %v; want right, nothing, or the error that there is no table", data, ok, err)
					return
				default:
					missing.Add(1)
				}
			}
		})
	}
	rounds := 0
	for ; found.Load()+missing.Load()+errs.Load() < finds && !t.Failed(); rounds++ {
		steps := []string{
			"ALTER TABLE sessions RENAME TO old",
			testdb.CreateTable,
			`UPDATE old SET data = '\x77726f6e67'`,
		}
		var err error
		if rounds%2 == 0 {
			err = (&rebuilder{db: db}).run(steps...)
		} else {
			testdb.Exec(t, db, steps...)
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range sessions {
			commit(t, old, fmt.Sprint(i), "wrong", inAnHour()) // into the cache
			commit(t, s, fmt.Sprint(i), "right", inAnHour())
		}
		testdb.Exec(t, db, "DROP TABLE old")
	}
	cancel()
	wg.Wait()
	t.Logf("%d sessions found, %d not found, and %d finds without a table, beside %d renames", found.Load(), missing.Load(), errs.Load(), rounds)
}

// An application rebuilds the tables of sessions and owners, and the index of owners.
// Each is there at any time: each call finds what is committed, and what has ended
// stays ended.
func TestCallsBesideRebuilds(t *testing.T) {
	testdb.Slow(t)
	t.Parallel()
	const sessions, owners = 40, 8
	forEachTable(t, func(t *testing.T, db *chai.DB, indexed bool) {
		wantFinds, wantSessionsOf := wantedCalls()
		wantFinds, wantSessionsOf = wantFinds/2, wantSessionsOf/2 // of each table
		testdb.Watchdog(t, time.Minute+time.Duration(wantFinds+10*wantSessionsOf)*100*time.Microsecond)
		s := newStore(t, db, chaistore.Config{Owner: ownerInData, RememberEnded: 24 * time.Hour})
		data := func(i int) string { return fmt.Sprintf("owner%d|%d", i%owners, i) }
		for i := range sessions {
			commit(t, s, fmt.Sprint(i), data(i), inAnHour())
		}
		commit(t, s, "ended", data(0), inAnHour())
		if err := s.Delete("ended"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		loop := func(goroutines int, f func(n int)) (calls *atomic.Int64) {
			calls = new(atomic.Int64)
			for range goroutines {
				wg.Go(func() {
					for ctx.Err() == nil && !t.Failed() {
						f(int(calls.Add(1)))
						runtime.Gosched() // lets the application work
					}
				})
			}
			return calls
		}
		finds := loop(32, func(n int) {
			got, found, err := s.Find(fmt.Sprint(n % sessions))
			if err != nil || !found || string(got) != data(n%sessions) {
				t.Errorf("Find(%d) = %q, %v, %v; want %q", n%sessions, got, found, err, data(n%sessions))
			}
		})
		sessionsOf := loop(4, func(n int) {
			if got := tokensOf(t, s, fmt.Sprint("owner", n%owners)); len(got) != sessions/owners {
				t.Errorf("SessionsOf = %q, want %d sessions", got, sessions/owners)
			}
		})
		deletesOf := loop(1, func(n int) {
			token := fmt.Sprint("deleted", n)
			commit(t, s, token, fmt.Sprint("deleted", n%2, "|1"), inAnHour())
			if deleted, err := s.DeleteOf(t.Context(), fmt.Sprint("deleted", n%2)); deleted != 1 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 1, nil", deleted, err)
			}
			for _, token := range []string{token, "ended"} {
				if err := s.Commit(token, nil, inAnHour()); !errors.Is(err, chaistore.ErrEnded) {
					t.Errorf("Commit of an ended session = %v, want %v", err, chaistore.ErrEnded)
				}
				if _, found, err := s.Find(token); found || err != nil {
					t.Errorf("Find of an ended session = %v, %v; want false, nil", found, err)
				}
			}
		})
		r := newRebuilder(db, indexed)
		for i := 0; (finds.Load() < wantFinds || sessionsOf.Load() < wantSessionsOf || i < 16) && !t.Failed(); i++ {
			if err := r.rebuild(i); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		wg.Wait()
		again := newStore(t, db, chaistore.Config{Owner: ownerInData, RememberEnded: time.Hour})
		if err := again.Commit("ended", nil, inAnHour()); !errors.Is(err, chaistore.ErrEnded) {
			t.Errorf("Commit of an ended session to a new store = %v, want %v", err, chaistore.ErrEnded)
		}
		t.Logf("%d finds, %d SessionsOf and %d DeleteOf beside %d rebuilds", finds.Load(), sessionsOf.Load(), deletesOf.Load(), r.rebuilds)
		testdb.CheckOwners(t, db, ownerInData, false)
		testdb.CheckIndexes(t, db)
	})
}

// An application rebuilds the table of sessions, and rolls that back. Until Chai has
// undone it, others see what it has written out. Chai undoes only the first change of
// a row, and no deletion of an index entry, so each round has a database of its own,
// and a table without an index.
func TestCallsBesideRolledBackRebuild(t *testing.T) {
	testdb.Watchdog(t, 10*time.Minute)
	const sessions = 20
	rounds := testdb.Rounds(20, 2000)
	calls := new(atomic.Int64)
	for round := 0; round < rounds && !t.Failed(); round++ {
		db, err := chai.Open(":memory:")
		if err != nil {
			t.Fatal(err)
		}
		s := newStore(t, db, chaistore.Config{})
		for i := range sessions {
			commit(t, s, fmt.Sprint(i), "right", inAnHour())
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil && !t.Failed(); i++ {
					if data, found, err := s.Find(fmt.Sprint(i % sessions)); err != nil || !found || string(data) != "right" {
						t.Errorf("Find = %q, %v, %v; want right", data, found, err)
					}
					if i%sessions == 0 {
						if all, err := s.All(); err != nil || len(all) != sessions {
							t.Errorf("All = %d sessions, %v; want %d", len(all), err, sessions)
						}
					}
					calls.Add(1)
					runtime.Gosched() // lets the application work
				}
			})
		}
		before := calls.Load()
		for calls.Load() < before+100 && !t.Failed() {
			runtime.Gosched()
		}
		steps := copied("sessions", createLike("rebuilt"), 4*(round%2))
		if err := (&rebuilder{db: db}).run(append(steps, "no statement")...); err == nil {
			t.Error("no error")
		}
		for i := range sessions {
			commit(t, s, fmt.Sprint(i), "right", inAnHour())
		}
		cancel()
		wg.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d calls", calls.Load())
}
