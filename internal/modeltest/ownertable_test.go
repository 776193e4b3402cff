package modeltest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// The table of owners, which other stores and applications change, too.

// A sweep lists all sessions, and no others, even if all are gone and others have come.
func TestSweepOfOwners(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	t.Parallel()
	forEachTable(t, func(t *testing.T, db *chai.DB, _ bool) {
		s := newStore(t, db, chaistore.Config{Owner: ownerInData})
		plain := newStore(t, db, chaistore.Config{})
		for _, between := range []int{0, 1, 3, 7} { // unmatched owners or sessions between two matching ones
			for _, gone := range []bool{false, true} {
				testdb.Exec(t, db, "DELETE FROM sessions")
				if _, err := s.DeleteExpired(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions_owners"); n != 0 {
					t.Fatalf("got %d owners without sessions, want 0", n)
				}
				testdb.InParallel(64, 1300, func(_ *rand.Rand, i int) {
					store, token := s, fmt.Sprintf("%04d", i)
					if !gone && i%(between+1) != 0 {
						store = plain
					}
					expiry := inAnHour()
					if i%10 == 0 {
						expiry = anHourAgo()
					}
					if err := store.Commit(token, fmt.Appendf(nil, "user%d|", i%5), expiry); err != nil {
						t.Error(err)
					}
				})
				for i := 0; gone && i < 1300; i++ {
					if i%(between+1) != 0 || between == 0 {
						if err := plain.Delete(fmt.Sprintf("%04d", i)); err != nil {
							t.Fatal(err)
						}
					}
				}
				if _, err := s.DeleteExpired(t.Context()); err != nil {
					t.Fatal(err)
				}
				testdb.CheckOwners(t, db, ownerInData, true)
				if t.Failed() {
					t.Fatalf("failed with %d between two (gone: %v)", between, gone)
				}
			}
		}
	})
}

// A table with sessions gets owners, and nobody is signed out.
func TestOwnersOfTableWithSessions(t *testing.T) {
	testdb.Slow(t)
	t.Parallel()
	testdb.Watchdog(t, 2*time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB, _ bool) {
		const sessions, users = 10_000, 50
		plain := newStore(t, db, chaistore.Config{})
		want := make(map[string]string)
		var mu sync.Mutex
		testdb.InParallel(256, sessions, func(_ *rand.Rand, i int) {
			token, data := fmt.Sprintf("%05d", i), fmt.Sprintf("user%d|%d", i%users, i)
			mu.Lock()
			want[token] = data
			mu.Unlock()
			if err := plain.Commit(token, []byte(data), inAnHour()); err != nil {
				t.Error(err)
			}
		})
		// Meanwhile, others commit without owners, and with owners as soon as they can.
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var owners atomic.Pointer[chaistore.ChaiStore]
		for g := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(5, uint64(g)))
				for ctx.Err() == nil {
					s := plain
					if with := owners.Load(); with != nil && g%2 == 0 {
						s = with
					}
					token := fmt.Sprintf("%05d", rng.IntN(sessions))
					mu.Lock()
					data := want[token]
					mu.Unlock()
					if err := s.Commit(token, []byte(data), inAnHour()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		s := newStore(t, db, chaistore.Config{Owner: ownerInData})
		owners.Store(s)
		tokensOf(t, s, "user0") // when all have an owner
		cancel()
		wg.Wait()
		testdb.CheckOwners(t, db, ownerInData, false)
		wantAll(t, s, want)
		for user := range users {
			if n := len(tokensOf(t, s, fmt.Sprint("user", user))); n != sessions/users {
				t.Errorf("user %d has %d sessions, want %d", user, n, sessions/users)
			}
		}
	})
}

// If adding the owners is interrupted, the next one who needs them completes it.
func TestInterruptedOwnersAreCompleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		plain := newStore(t, db, chaistore.Config{})
		const sessions = 5000
		for i := range sessions {
			commit(t, plain, fmt.Sprintf("%04d", i), "alice|", inAnHour())
		}
		var calls atomic.Int64
		lock := chaistore.WriteLock(db)
		cfg := chaistore.Config{CleanupInterval: -1, Logger: slog.New(slog.DiscardHandler), Owner: func(data []byte) (string, error) {
			if calls.Add(1) == sessions/2 {
				lock.Lock() // keeps the second page from being written
			}
			return ownerInData(data)
		}}
		s := newStore(t, db, cfg)
		for _, err := range s.SessionsOf(t.Context(), "alice") {
			if !errors.Is(err, chaistore.ErrBusy) {
				t.Fatalf("SessionsOf = %v, want an error that writing has hung", err)
			}
		}
		lock.Unlock()
		synctest.Wait()
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions_owners"); n == 0 || n == sessions {
			t.Fatalf("got %d of %d owners, want some", n, sessions)
		}
		if n := len(tokensOf(t, s, "alice")); n != sessions {
			t.Errorf("alice has %d sessions, want %d", n, sessions)
		}
		testdb.CheckOwners(t, db, ownerInData, false)
	})
}

// Stores may be made at the same time.
func TestManyStoresCreateOwners(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for range 10 {
		db := testdb.Memory(t)
		stores := make([]*chaistore.ChaiStore, 16)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range stores {
			wg.Go(func() {
				<-start
				var err error
				stores[i], err = chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, CleanupInterval: -1, Owner: ownerInData})
				if err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
		if t.Failed() {
			return
		}
		commit(t, stores[0], "a", "alice|", inAnHour())
		wantTokensOf(t, stores[15], "alice", "a")
	}
}

func TestWrongTableOfOwners(t *testing.T) {
	for name, test := range map[string]struct {
		setup []string
		want  string
	}{
		"other columns":  {[]string{"CREATE TABLE sessions_owners (id INTEGER PRIMARY KEY, owner TEXT)"}, `column 1 of table "sessions_owners" is not "owner"`},
		"other type":     {[]string{"CREATE TABLE sessions_owners (owner INTEGER, token TEXT, PRIMARY KEY (owner, token))"}, "is of type integer, not text"},
		"more columns":   {[]string{"CREATE TABLE sessions_owners (owner TEXT, token TEXT, at TIMESTAMP, PRIMARY KEY (owner, token))"}, "columns other than owner, token"},
		"no primary key": {[]string{"CREATE TABLE sessions_owners (owner TEXT, token TEXT)"}, "primary key"},
		"descending":     {[]string{"CREATE TABLE sessions_owners (owner TEXT, token TEXT, PRIMARY KEY (owner, token DESC))"}, "primary key"},
		"other order":    {[]string{"CREATE TABLE sessions_owners (owner TEXT, token TEXT, PRIMARY KEY (token, owner))"}, "primary key"},
		"former":         {[]string{"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT)"}, "rename the table"},
		"unique index": {[]string{
			"CREATE TABLE sessions_owners (owner TEXT, token TEXT, PRIMARY KEY (owner, token))", "CREATE UNIQUE INDEX one ON sessions_owners (owner)",
		}, "unique"},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable)
			testdb.Exec(t, db, test.setup...)
			_, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1, Owner: ownerInData})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), `"sessions_owners"`) {
				t.Errorf("NewWithConfig = %v, want an error that says %q", err, test.want)
			}
		})
	}
}

// A table of owners made by hand may have further indexes.
func TestTableOfOwnersWithMoreIndexes(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable,
		"CREATE TABLE sessions_owners (owner TEXT, token TEXT, PRIMARY KEY (owner, token))",
		"CREATE INDEX one ON sessions_owners (owner)", "CREATE INDEX two ON sessions_owners (owner, token)",
		"CREATE INDEX three ON sessions_owners (owner DESC, token)")
	s := newStore(t, db, chaistore.Config{Owner: ownerInData})
	for _, owner := range []string{"alice", "bob"} {
		commit(t, s, "a", owner+"|", inAnHour())
		commit(t, s, "b", owner+"|", inAnHour())
	}
	wantTokensOf(t, s, "alice")
	wantTokensOf(t, s, "bob", "a", "b")
	testdb.CheckOwners(t, db, ownerInData, false)
	if n, err := s.DeleteOf(t.Context(), "bob"); n != 2 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 2, nil", n, err)
	}
	testdb.CheckOwners(t, db, ownerInData, false)
}

// If the table of owners is dropped, calls return an error until a store creates it
// again.
func TestTableOfOwnersIsDropped(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{Owner: ownerInData})
	commit(t, s, "a", "alice|", inAnHour())
	testdb.Exec(t, db, "DROP TABLE sessions_owners")
	_, _, findErr := s.Find("a")
	_, sweepErr := s.DeleteExpired(t.Context())
	for call, err := range map[string]error{
		"Find": findErr, "Commit": s.Commit("a", []byte("bob|"), inAnHour()), "Delete": s.Delete("a"), "DeleteExpired": sweepErr,
	} {
		if err == nil || !strings.Contains(err.Error(), `table "sessions_owners" does not exist`) {
			t.Errorf("%s = %v, want an error about the missing table of owners", call, err)
		}
	}
	newStore(t, db, chaistore.Config{Owner: ownerInData})
	wantTokensOf(t, s, "alice", "a")
	commit(t, s, "b", "alice|", inAnHour())
	wantTokensOf(t, s, "alice", "a", "b")
	testdb.CheckOwners(t, db, ownerInData, false)
}

// A store that can't be made leaves no table of owners behind.
func TestOwnersOfNoTable(t *testing.T) {
	for name, setup := range map[string][]string{
		"missing": nil,
		"wrong":   {"CREATE TABLE sessions (id INTEGER PRIMARY KEY)"},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, setup...)
			_, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1, Owner: ownerInData})
			if err == nil || !strings.Contains(err.Error(), `table "sessions"`) {
				t.Errorf("NewWithConfig = %v, want an error about the table of sessions", err)
			}
			if n := testdb.Count(t, db, "SELECT COUNT(*) FROM __chai_catalog WHERE name = 'sessions_owners'"); n != 0 {
				t.Error("the table of owners was created")
			}
		})
	}
}

// Owners survive a restart, even with the longest table name.
func TestOwnersSurviveReopening(t *testing.T) {
	for _, name := range []string{"sessions", strings.Repeat("n", 100)} {
		dir := t.TempDir()
		for i := range 3 {
			db, err := chai.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			s := newStore(t, db, chaistore.Config{TableName: name, Owner: ownerInData})
			var want []string
			for j := range i {
				want = append(want, fmt.Sprint(j))
			}
			wantTokensOf(t, s, "alice", want...)
			commit(t, s, fmt.Sprint(i), "alice|", inAnHour())
			commit(t, s, "other", "bob|", inAnHour())
			if n := testdb.Count(t, db, "SELECT COUNT(*) FROM "+name+"_owners WHERE owner = 'alice'"); n != i+1 {
				t.Errorf("got %d sessions of alice by SQL, want %d", n, i+1)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Two tables of one database have separate owners.
func TestOwnersOfTwoTables(t *testing.T) {
	db := testdb.Memory(t)
	users := newStore(t, db, chaistore.Config{Owner: ownerInData})
	admins := newStore(t, db, chaistore.Config{TableName: "admins", Owner: ownerInData})
	commit(t, users, "a", "alice|", inAnHour())
	commit(t, admins, "b", "alice|", inAnHour())
	wantTokensOf(t, users, "alice", "a")
	wantTokensOf(t, admins, "alice", "b")
	if n, err := users.DeleteOf(t.Context(), "alice"); n != 1 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 1, nil", n, err)
	}
	wantTokensOf(t, admins, "alice", "b")
}

// When Owner changes, dropping the table of owners makes the next store build it
// anew.
func TestOwnerFunctionChanges(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{Owner: ownerInData})
	commit(t, s, "a", "alice|", inAnHour())
	testdb.Exec(t, db, "DROP TABLE sessions_owners")
	s = newStore(t, db, chaistore.Config{Owner: func(data []byte) (string, error) {
		owner, err := ownerInData(data)
		return "user " + owner, err
	}})
	wantTokensOf(t, s, "user alice", "a")
	wantTokensOf(t, s, "alice")
}
