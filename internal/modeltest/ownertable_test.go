package modeltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// The table of owners, which other stores and applications change, too.

// A codec that can't decode some data, like that of a program whose types have been
// renamed.
type brokenCodec struct {
	scs.GobCodec
	broken *atomic.Bool
}

func (c brokenCodec) Decode(data []byte) (time.Time, map[string]any, error) {
	if c.broken.Load() && bytes.HasPrefix(data, []byte("new")) {
		return time.Time{}, nil, errors.New("unknown type")
	}
	return time.Time{}, map[string]any{"user": ownerInData(bytes.TrimPrefix(data, []byte("new")))}, nil
}

// A session whose owner can't be read for some time stays its owner's: DeleteOf
// deletes it, and SessionsOf does not leave it out silently.
func TestOwnerCantReadSomeSessions(t *testing.T) {
	var broken atomic.Bool
	readable := func(data []byte) bool { return !broken.Load() || !bytes.HasPrefix(data, []byte("new")) }
	ownerOf := func(data []byte) string { return ownerInData(bytes.TrimPrefix(data, []byte("new"))) }
	byKey := chaistore.OwnerByKey(brokenCodec{broken: &broken}, "user")
	for name, test := range map[string]struct {
		ownerOf func(data []byte) string
		commits bool // whether data that can't be read can be committed
	}{
		"a panic": {ownerOf: func(data []byte) string {
			if !readable(data) {
				panic("unreadable: " + string(data))
			}
			return ownerOf(data)
		}},
		"OwnerByKey":         {byKey, true},
		"OwnerByKey wrapped": {func(data []byte) string { return strings.ToLower(byKey(data)) }, true},
	} {
		call := func(t *testing.T) {
			broken.Store(false)
			db := testdb.Memory(t)
			s := newStore(t, db, chaistore.Config{Owner: test.ownerOf})
			plain := newStore(t, db, chaistore.Config{})
			testdb.InParallel(64, 1500, func(_ *rand.Rand, i int) { // more than a page
				if err := s.Commit(fmt.Sprintf("%04d", i), []byte("alice|"), inAnHour()); err != nil {
					t.Error(err)
				}
			})
			commit(t, s, "0007", "newalice|", inAnHour())
			commit(t, s, "0008", "newalice|", anHourAgo())
			commit(t, s, "changed", "newalice|", inAnHour())
			commit(t, plain, "changed", "bob|", inAnHour())
			commit(t, plain, "added", "newalice|", inAnHour())

			broken.Store(true)
			err := s.Commit("0007", []byte("newalice|2"), inAnHour())
			if test.commits && err != nil || !test.commits && (err == nil || strings.Contains(err.Error(), "alice")) {
				t.Errorf("Commit = %v; want an error without data: %v", err, !test.commits)
			}
			if _, err := s.DeleteExpired(t.Context()); err != nil {
				t.Fatal(err)
			}
			s = newStore(t, db, chaistore.Config{Owner: test.ownerOf}) // matches owners, too
			wantWithError := func(want int, listed func(chaistore.Session) bool) {
				t.Helper()
				n, errs := 0, []error(nil)
				for session, err := range s.SessionsOf(t.Context(), "alice") {
					switch {
					case err != nil:
						errs = append(errs, err)
					case errs != nil || !listed(session):
						t.Errorf("got the session %q after the errors %v", session.Token, errs)
					default:
						n++
					}
				}
				if n != want || len(errs) != 1 || !strings.Contains(errs[0].Error(), "the owner function") {
					t.Errorf("got %d sessions and the errors %v, want %d and one", n, errs, want)
				}
			}
			wantWithError(1498, func(session chaistore.Session) bool {
				return session.Token != "0007" && string(session.Data) == "alice|"
			})

			broken.Store(false)
			if got := tokensOf(t, s, "alice"); len(got) != 1500 || got[1499] != "added" {
				t.Errorf("alice has %d sessions once they can be read, want 1500 with the added one", len(got))
			}

			broken.Store(true)
			if n, err := s.DeleteOf(t.Context(), "alice"); n != 1500 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 1500, nil", n, err)
			}
			wantAll(t, s, map[string]string{"changed": "bob|"})
		}
		t.Run(name, func(t *testing.T) { synctest.Test(t, call) }) // the time stands still: see PageOf
	}
}

// Whichever store commits a session that Owner can't read, no call for an owner leaves
// it out silently, though owners and sessions have been matched before.
func TestCommitOfSessionThatCantBeRead(t *testing.T) {
	synctest.Test(t, testCommitOfSessionThatCantBeRead) // the time stands still: see PageOf
}

func testCommitOfSessionThatCantBeRead(t *testing.T) {
	var broken atomic.Bool
	db := testdb.Memory(t)
	cfg := chaistore.Config{Owner: chaistore.OwnerByKey(brokenCodec{broken: &broken}, "user")}
	s, other := newStore(t, db, cfg), newStore(t, db, cfg)
	sweep := func() {
		t.Helper()
		for _, store := range []*chaistore.ChaiStore{s, other} {
			if _, err := store.DeleteExpired(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantError := func(want bool) {
		t.Helper()
		for _, store := range []*chaistore.ChaiStore{s, other} {
			var last error
			for _, err := range store.SessionsOf(t.Context(), "bob") {
				last = err
			}
			for _, err := range store.SessionsOf(t.Context(), "") {
				t.Errorf("SessionsOf nobody: %v, want none", err)
			}
			if (last != nil) != want {
				t.Errorf("SessionsOf ended with %v, want an error: %v", last, want)
			}
			if n, err := store.DeleteOf(t.Context(), "alice"); n != 0 || (err != nil) != want {
				t.Errorf("DeleteOf = %d, %v; want 0 and an error: %v", n, err, want)
			}
		}
	}
	commit(t, s, "his", "newbob|", inAnHour())
	sweep()
	wantError(false)
	broken.Store(true)
	commit(t, s, "his", "bob|", inAnHour())
	commit(t, s, "his", "newbob|", inAnHour()) // its owner is known
	broken.Store(false)
	wantError(false)
	commit(t, s, "his", "bob|", inAnHour())
	for i, end := range []func(){ // what ends the error
		func() {
			broken.Store(false)
			if n, err := other.DeleteOf(t.Context(), "alice"); n != 1 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 1, nil", n, err)
			}
		},
		func() {
			if err := s.Delete("hers"); err != nil {
				t.Fatal(err)
			}
		},
		func() { testdb.Exec(t, db, "DELETE FROM sessions WHERE token = 'hers'") },
		func() { commit(t, s, "hers", "bob|", inAnHour()) },
	} {
		if i%2 == 1 {
			commit(t, s, "hers", "|", inAnHour()) // nobody's, before she signs in
		}
		broken.Store(true)
		commit(t, s, "hers", "newalice|", inAnHour())
		wantError(true)
		sweep()
		wantError(true)
		end()
		wantError(false)
		if err := s.Delete("hers"); err != nil {
			t.Fatal(err)
		}
	}
}

// When sessions change without their owners, SessionsOf returns no session of
// somebody else, and none that has ended. A sweep corrects the owners.
func TestSessionsChangeWithoutTheirOwners(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB, _ bool) {
		s := newStore(t, db, chaistore.Config{Owner: ownerInData})
		plain := newStore(t, db, chaistore.Config{})
		reset := func() {
			t.Helper()
			for _, token := range []string{"a", "b", "c"} {
				commit(t, s, token, "alice|", inAnHour())
			}
			commit(t, s, "x", "bob|", inAnHour())
			for _, token := range []string{"0", "d", "z"} {
				if err := s.Delete(token); err != nil {
					t.Fatal(err)
				}
			}
			wantTokensOf(t, s, "alice", "a", "b", "c")
			testdb.CheckOwners(t, db, ownerInData)
		}
		// Each change ends b, makes c bob's, and adds 0, d and z.
		for name, change := range map[string]func(){
			"store": func() {
				if err := plain.Delete("b"); err != nil {
					t.Fatal(err)
				}
				commit(t, plain, "c", "bob|", inAnHour())
				for token, owner := range map[string]string{"0": "alice", "d": "alice", "z": "bob"} {
					commit(t, plain, token, owner+"|", inAnHour())
				}
			},
			"SQL": func() {
				testdb.Exec(t, db, "DELETE FROM sessions WHERE token = 'b'")
				if err := db.Exec("UPDATE sessions SET data = ? WHERE token = 'c'", []byte("bob|")); err != nil {
					t.Fatal(err)
				}
				for token, owner := range map[string]string{"0": "alice", "d": "alice", "z": "bob"} {
					if err := db.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", token, []byte(owner+"|"), inAnHour()); err != nil {
						t.Fatal(err)
					}
				}
			},
		} {
			t.Run(name, func(t *testing.T) {
				reset()
				change()
				wantTokensOf(t, s, "alice", "a")
				wantTokensOf(t, s, "bob", "x")
				if _, err := s.DeleteExpired(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantTokensOf(t, s, "alice", "0", "a", "d")
				wantTokensOf(t, s, "bob", "x", "z")
				commit(t, s, "c", "bob|", inAnHour())
				wantTokensOf(t, s, "bob", "c", "x", "z")
				testdb.CheckOwners(t, db, ownerInData)
				if n, err := s.DeleteOf(t.Context(), "alice"); n != 3 || err != nil {
					t.Errorf("DeleteOf = %d, %v; want 3, nil", n, err)
				}
				testdb.CheckOwners(t, db, ownerInData)
			})
		}
	})
}

// A sweep matches owners with sessions, even if all sessions are gone and others have
// come.
func TestSweepMatchesOwnersWithSessions(t *testing.T) {
	testdb.Slow(t)
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
				testdb.CheckOwners(t, db, ownerInData)
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
		testdb.CheckOwners(t, db, ownerInData)
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
		cfg := chaistore.Config{CleanupInterval: -1, Logger: slog.New(slog.DiscardHandler), Owner: func(data []byte) string {
			if calls.Add(1) == sessions/2 {
				lock.Lock() // keeps the second page from being written
			}
			return ownerInData(data)
		}}
		s := newStore(t, db, cfg)
		for _, err := range s.SessionsOf(t.Context(), "alice") {
			if err == nil || !strings.Contains(err.Error(), "hung") {
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
		testdb.CheckOwners(t, db, ownerInData)
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
		"other columns":  {[]string{"CREATE TABLE sessions_owners (id INTEGER PRIMARY KEY, owner TEXT)"}, `column 1 of table "sessions_owners" is not "token"`},
		"other type":     {[]string{"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner INTEGER)"}, "is of type integer, not text"},
		"more columns":   {[]string{"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT, at TIMESTAMP)"}, "columns other than token, owner"},
		"no primary key": {[]string{"CREATE TABLE sessions_owners (token TEXT, owner TEXT)"}, "primary key"},
		"no index":       {[]string{"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT)"}, "no index on owner and token"},
		"other index": {[]string{
			"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT)",
			"CREATE INDEX one ON sessions_owners (owner)", "CREATE INDEX two ON sessions_owners (token, owner)",
		}, "no index on owner and token"},
		"descending index": {[]string{
			"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT)", "CREATE INDEX one ON sessions_owners (owner, token DESC)",
		}, "no index on owner and token"},
		"unique index": {[]string{
			"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT)", "CREATE UNIQUE INDEX one ON sessions_owners (owner)",
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
		"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT)",
		"CREATE INDEX one ON sessions_owners (owner)", "CREATE INDEX two ON sessions_owners (owner, token)",
		"CREATE INDEX three ON sessions_owners (owner DESC, token)")
	s := newStore(t, db, chaistore.Config{Owner: ownerInData})
	for _, owner := range []string{"alice", "bob"} {
		commit(t, s, "a", owner+"|", inAnHour())
		commit(t, s, "b", owner+"|", inAnHour())
	}
	wantTokensOf(t, s, "alice")
	wantTokensOf(t, s, "bob", "a", "b")
	testdb.CheckOwners(t, db, ownerInData)
	if n, err := s.DeleteOf(t.Context(), "bob"); n != 2 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 2, nil", n, err)
	}
	testdb.CheckOwners(t, db, ownerInData)
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
	testdb.CheckOwners(t, db, ownerInData)
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
	s = newStore(t, db, chaistore.Config{Owner: func(data []byte) string { return "user " + ownerInData(data) }})
	wantTokensOf(t, s, "user alice", "a")
	wantTokensOf(t, s, "alice")
}

// The application's SQL reads the table of owners through its index.
func TestOwnersBySQL(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{Owner: ownerInData})
	for i := range 10 {
		commit(t, s, fmt.Sprint(i), fmt.Sprintf("user%d|", i%2), inAnHour())
	}
	const sql = "SELECT token FROM sessions_owners WHERE owner = ?"
	plan := ""
	testdb.Query(t, db, "EXPLAIN "+sql, func(row *chai.Row) error { return row.Scan(&plan) }, "user1")
	if !strings.Contains(plan, "sessions_owners_by_owner") {
		t.Errorf("the plan is %s, want one with sessions_owners_by_owner", plan)
	}
	var tokens []string
	testdb.Query(t, db, sql, func(row *chai.Row) error {
		tokens = append(tokens, "")
		return row.Scan(&tokens[len(tokens)-1])
	}, "user1")
	if want := []string{"1", "3", "5", "7", "9"}; !slices.Equal(tokens, want) {
		t.Errorf("got %q by SQL, want %q", tokens, want)
	}
}
