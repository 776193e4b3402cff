package chaistore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"runtime"
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

// tokensOf returns the tokens of an owner's sessions, and fails the test if they are
// not in order.
func tokensOf(t testing.TB, s *chaistore.ChaiStore, owner string) []string {
	t.Helper()
	var tokens []string
	for session, err := range s.SessionsOf(t.Context(), owner) {
		if err != nil {
			t.Error(err)
			break
		}
		tokens = append(tokens, session.Token)
	}
	if !slices.IsSorted(tokens) || len(slices.Compact(slices.Clone(tokens))) < len(tokens) {
		t.Errorf("SessionsOf(%q) = %q, which is not in order", owner, tokens)
	}
	return tokens
}

func wantTokensOf(t testing.TB, s *chaistore.ChaiStore, owner string, want ...string) {
	t.Helper()
	if got := tokensOf(t, s, owner); !slices.Equal(got, want) {
		t.Errorf("SessionsOf(%q) = %q, want %q", owner, got, want)
	}
}

func TestSessionsOf(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newOwnerStore(t, db)
		wantTokensOf(t, s, "alice")
		expiry := inAnHour().In(time.FixedZone("", 3600))
		for _, token := range []string{"b", "", "aa", "a", "\xff", strings.Repeat("z", 100), "a\x00", "b"} {
			commit(t, s, token, "alice|1", expiry)
		}
		commit(t, s, "a1", "bob|1", expiry)
		commit(t, s, "a2", "nobody's", expiry)
		commit(t, s, "a3", "|", expiry)
		commit(t, s, "old", "alice|1", anHourAgo())
		wantTokensOf(t, s, "alice", "", "a", "a\x00", "aa", "b", strings.Repeat("z", 100), "\xff")
		wantTokensOf(t, s, "bob", "a1")
		wantTokensOf(t, s, "")
		wantTokensOf(t, s, "carol")
		wantTokensOf(t, s, strings.Repeat("x", 5000))
		testdb.CheckOwners(t, db, ownerInData)
		for session := range s.SessionsOf(t.Context(), "bob") {
			want := chaistore.Session{Token: "a1", Data: []byte("bob|1"), Expiry: expiry.UTC().Truncate(time.Microsecond)}
			if !reflect.DeepEqual(session, want) {
				t.Errorf("got session %+v, want %+v", session, want)
			}
			session.Data[0] = 'X' // the data is the caller's
		}
		wantFound(t, s, "a1", "bob|1")

		if n, err := s.DeleteOf(t.Context(), "alice"); n != 7 || err != nil {
			t.Errorf("DeleteOf = %d, %v; want 7, nil", n, err)
		}
		if n, err := s.DeleteOf(t.Context(), ""); n != 0 || err != nil {
			t.Errorf("DeleteOf of nobody = %d, %v; want 0, nil", n, err)
		}
		wantAll(t, s, map[string]string{"a1": "bob|1", "a2": "nobody's", "a3": "|"})
		testdb.CheckOwners(t, db, ownerInData)
	})
}

// A session belongs to the owner of its latest commit.
func TestOwnerChanges(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newOwnerStore(t, db)
		last := ""
		for _, owner := range []string{"alice", "bob", "", "alice", "alice", ""} {
			commit(t, s, "a", owner+"|", inAnHour())
			testdb.CheckOwners(t, db, ownerInData)
			for _, other := range []string{"alice", "bob"} {
				if other == owner {
					wantTokensOf(t, s, other, "a")
				} else {
					wantTokensOf(t, s, other)
				}
			}
			last = owner
		}
		if n, err := s.DeleteOf(t.Context(), "alice"); n != 0 || err != nil || last != "" {
			t.Errorf("DeleteOf of a former owner = %d, %v; want 0, nil", n, err)
		}
		wantFound(t, s, "a", "|")
	})
}

func TestOwners(t *testing.T) {
	db := testdb.Memory(t)
	s := newOwnerStore(t, db)
	owners := []string{
		"a", "aa", "ab", "a\x00", "a\x00b", "\x00", "\x00\x00", "\xff", "\xff\xff", "\xc3\x28", "b", "A", "ä",
		"' OR 1 = 1 --", "a|b", strings.Repeat("a", 99), strings.Repeat("a", 100), strings.Repeat("\xff", 100), strings.Repeat("\x00", 100),
	}
	for i, owner := range owners {
		for _, token := range []string{"", "x", strings.Repeat("x", 90)} {
			commit(t, s, fmt.Sprint(token, i), owner+"|", inAnHour())
		}
	}
	for i, owner := range owners {
		wantTokensOf(t, s, owner, fmt.Sprint(i), fmt.Sprint("x", i), fmt.Sprint(strings.Repeat("x", 90), i))
	}
	testdb.CheckOwners(t, db, ownerInData)
	for i, owner := range owners {
		if n, err := s.DeleteOf(t.Context(), owner); n != 3 || err != nil {
			t.Errorf("DeleteOf(%q) = %d, %v; want 3, nil", owner, n, err)
		}
		wantTokensOf(t, s, owner)
		if all, err := s.All(); err != nil || len(all) != 3*(len(owners)-i-1) {
			t.Fatalf("All after DeleteOf(%q) = %d sessions, %v; want %d, nil", owner, len(all), err, 3*(len(owners)-i-1))
		}
	}
	testdb.CheckOwners(t, db, ownerInData)
}

func TestOwnerTooLong(t *testing.T) {
	s := newOwnerStore(t, testdb.Memory(t))
	commit(t, s, "a", "alice|", inAnHour())
	err := s.Commit("a", []byte(strings.Repeat("x", 101)+"|"), inAnHour())
	if !errors.Is(err, chaistore.ErrOwnerTooLong) || strings.Contains(err.Error(), "xxx") {
		t.Errorf("Commit = %v, want %v", err, chaistore.ErrOwnerTooLong)
	}
	wantFound(t, s, "a", "alice|")
	wantTokensOf(t, s, "alice", "a")
}

// The sessions of an owner are read in pages, which end after a number of sessions or
// of bytes.
func TestSessionsOfReadsEveryPage(t *testing.T) {
	for name, test := range map[string]struct{ sessions, size int }{
		"many":  {2500, 10},
		"large": {40, 400_000},
	} {
		t.Run(name, func(t *testing.T) {
			s := newOwnerStore(t, testdb.Memory(t))
			data := func(owner string) []byte { return []byte(owner + "|" + strings.Repeat("x", test.size)) }
			var want []string
			for i := range test.sessions {
				want = append(want, fmt.Sprintf("%05d", i))
			}
			inParallel(64, test.sessions, func(_ *rand.Rand, i int) {
				owner := []string{"alice", "bob"}[i%2]
				for _, session := range []struct{ token, owner string }{{want[i], "alice"}, {"of " + owner + want[i], owner}} {
					if err := s.Commit(session.token, data(session.owner), inAnHour()); err != nil {
						t.Error(err)
					}
				}
			})
			for i := range test.sessions {
				if i%2 == 0 {
					want = append(want, fmt.Sprintf("of alice%05d", i))
				}
			}
			wantTokensOf(t, s, "alice", want...)
			if n, err := s.DeleteOf(t.Context(), "alice"); n != len(want) || err != nil {
				t.Errorf("DeleteOf = %d, %v; want %d, nil", n, err, len(want))
			}
			wantTokensOf(t, s, "alice")
			if n := len(tokensOf(t, s, "bob")); n != test.sessions/2 {
				t.Errorf("bob has %d sessions, want %d", n, test.sessions/2)
			}
		})
	}
}

func TestSessionsOfBodyUsesTheStore(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newOwnerStore(t, db)
		const sessions = 30
		for i := range sessions {
			commit(t, s, fmt.Sprintf("%02d", i), "alice|old", inAnHour())
		}
		n := 0
		for session, err := range s.SessionsOf(t.Context(), "alice") {
			if err != nil {
				t.Fatal(err)
			}
			switch n++; n % 3 {
			case 0:
				commit(t, s, session.Token, "alice|new", inAnHour())
			case 1:
				commit(t, s, session.Token, "bob|new", inAnHour())
			case 2:
				if err := s.Delete(session.Token); err != nil {
					t.Fatal(err)
				}
			}
			tokensOf(t, s, "bob")
		}
		if a, b := len(tokensOf(t, s, "alice")), len(tokensOf(t, s, "bob")); n != sessions || a != 10 || b != 10 {
			t.Errorf("got %d sessions, then %d of alice and %d of bob; want %d, 10 and 10", n, a, b, sessions)
		}
		testdb.CheckOwners(t, db, ownerInData)
	})
}

func TestSessionsOfBreak(t *testing.T) {
	db := testdb.Memory(t)
	s := newOwnerStore(t, db)
	inParallel(64, 1500, func(_ *rand.Rand, i int) {
		if err := s.Commit(fmt.Sprint(i), []byte("alice|"), inAnHour()); err != nil {
			t.Error(err)
		}
	})
	goroutines := runtime.NumGoroutine()
	for _, stop := range []int{1, 999, 1000, 1001, 1500} {
		n := 0
		for range s.SessionsOf(t.Context(), "alice") {
			if n++; n == stop {
				break
			}
		}
		if n != stop {
			t.Errorf("got %d sessions, want %d", n, stop)
		}
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("got %d goroutines, want at most %d", n, goroutines)
	}
	if err := db.Close(); err != nil { // reports open snapshots and iterators
		t.Errorf("Close: %v", err)
	}
}

func TestSessionsOfYieldsAnErrorOnce(t *testing.T) {
	for name, test := range map[string]struct {
		after int // this number of sessions
		end   func(db *chai.DB, cancel func())
		want  string
	}{
		"done context":     {0, func(_ *chai.DB, cancel func()) { cancel() }, "context canceled"},
		"ending context":   {500, func(_ *chai.DB, cancel func()) { cancel() }, "context canceled"},
		"missing table":    {500, func(db *chai.DB, _ func()) { testdb.Exec(t, db, "DROP TABLE sessions") }, `table "sessions" does not exist`},
		"missing owners":   {500, func(db *chai.DB, _ func()) { testdb.Exec(t, db, "DROP TABLE sessions_owners") }, `table "sessions_owners" does not exist`},
		"closed database":  {500, func(db *chai.DB, _ func()) { db.Close() }, "closed"},
		"missing at first": {0, func(db *chai.DB, _ func()) { testdb.Exec(t, db, "DROP TABLE sessions_owners") }, `table "sessions_owners" does not exist`},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			s := newOwnerStore(t, db)
			inParallel(64, 1500, func(_ *rand.Rand, i int) {
				if err := s.Commit(fmt.Sprintf("%04d", i), []byte("alice|"), inAnHour()); err != nil {
					t.Error(err)
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.after == 0 {
				test.end(db, cancel)
			}
			var errs []error
			n := 0
			for session, err := range s.SessionsOf(ctx, "alice") {
				if err != nil {
					errs = append(errs, err)
					if session.Token != "" || session.Data != nil {
						t.Error("a session came with the error")
					}
					continue // the sequence ends anyway
				}
				if n++; n == test.after {
					test.end(db, cancel)
				}
			}
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), test.want) {
				t.Fatalf("got errors %v, want one that says %q", errs, test.want)
			}
			if canceled := errors.Is(errs[0], context.Canceled); n < test.after || n > 1000 || canceled && n > test.after {
				t.Errorf("got %d sessions, want an end after %d", n, test.after)
			}
			if test.after > 0 {
				return
			}
			if ctx.Err() != nil {
				return // DeleteOf goes on
			}
			// The owner "" and too long owners get the error, too.
			for _, owner := range []string{"alice", "", strings.Repeat("x", 101)} {
				if n, err := s.DeleteOf(ctx, owner); n != 0 || err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("DeleteOf(%q) = %d, %v; want 0, and an error that says %q", owner, n, err, test.want)
				}
			}
		})
	}
}

func TestDeleteOfCountsDeletedSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newOwnerStore(t, db)
		for i := range 250 {
			commit(t, s, fmt.Sprintf("%03d", i), "alice|", inAnHour())
		}
		// The sessions are deleted in three turns. The lock keeps the second one waiting
		// until it hangs.
		lock := chaistore.WriteLock(db)
		lock.Lock()
		var n int
		var err error
		go func() { n, err = s.DeleteOf(t.Context(), "alice") }()
		synctest.Wait()
		go lock.Lock() // it is next after the first turn
		synctest.Wait()
		lock.Unlock()
		time.Sleep(11 * time.Second)
		lock.Unlock()
		synctest.Wait()
		left := len(tokensOf(t, s, "alice"))
		if err == nil || !strings.Contains(err.Error(), "hung") || n == 0 || n == 250 || n+left != 250 {
			t.Errorf("DeleteOf = %d, %v, and %d of 250 sessions are left", n, err, left)
		}
		testdb.CheckOwners(t, db, ownerInData)
	})
}

func TestStoreWithoutOwners(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	commit(t, s, "a", "alice|", inAnHour())
	for _, err := range s.SessionsOf(t.Context(), "alice") {
		if err == nil || !strings.Contains(err.Error(), "Config.Owner") {
			t.Errorf("SessionsOf yields the error %v, want one about Config.Owner", err)
		}
	}
	if n, err := s.DeleteOf(t.Context(), "alice"); n != 0 || err == nil || !strings.Contains(err.Error(), "Config.Owner") {
		t.Errorf("DeleteOf = %d, %v; want 0, and an error", n, err)
	}
}

// A panic in Owner fails its commit and nothing else. The error contains no data of
// the session.
func TestOwnerPanics(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	s := newStoreWith(t, db, chaistore.Config{Owner: func(data []byte) string {
		switch string(data) {
		case "secret":
			panic(fmt.Sprintf("bad data: %q", data))
		case "secret error":
			panic(fmt.Errorf("bad data: %q", data))
		case "index":
			return string(data[5:][len(data)])
		case "nil":
			panic(nil)
		}
		return ownerInData(data)
	}})
	commit(t, s, "a", "alice|", inAnHour())
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				commit(t, s, fmt.Sprint(g, "-", i), "bob|", inAnHour())
			}
		})
	}
	for data, want := range map[string]string{
		"secret": "panicked", "secret error": "panicked", "index": "index out of range", "nil": "nil",
	} {
		err := s.Commit("a", []byte(data), inAnHour())
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "bad") {
			t.Errorf("with %s, Commit = %v; want an error that says %q", data, err, want)
		}
		wantFound(t, s, "a", "alice|")
	}
	wg.Wait()
	wantTokensOf(t, s, "alice", "a")
	if n := len(tokensOf(t, s, "bob")); n != 200 {
		t.Errorf("bob has %d sessions, want 200", n)
	}
	// A store without an Owner can commit such sessions.
	plain := newStore(t, db)
	commit(t, plain, "b", "index", inAnHour())
	if _, err := s.DeleteExpired(t.Context()); err != nil {
		t.Errorf("DeleteExpired: %v", err)
	}
	if s.Stats().WriteError != "" {
		t.Errorf("WriteError = %q, want none", s.Stats().WriteError)
	}
}

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
		t.Run(name, func(t *testing.T) {
			broken.Store(false)
			db := testdb.Memory(t)
			s := newStoreWith(t, db, chaistore.Config{Owner: test.ownerOf})
			plain := newStore(t, db)
			inParallel(64, 1500, func(_ *rand.Rand, i int) { // more than a page
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
			s = newStoreWith(t, db, chaistore.Config{Owner: test.ownerOf}) // matches owners, too
			n, errs := 0, []error(nil)
			for session, err := range s.SessionsOf(t.Context(), "alice") {
				switch {
				case err != nil:
					errs = append(errs, err)
				case errs != nil || session.Token == "0007" || string(session.Data) != "alice|":
					t.Errorf("got the session %q after the errors %v", session.Token, errs)
				default:
					n++
				}
			}
			if n != 1498 || len(errs) != 1 || !strings.Contains(errs[0].Error(), "the owner function") {
				t.Errorf("got %d sessions and the errors %v, want 1498 and one", n, errs)
			}

			broken.Store(false)
			if got := len(tokensOf(t, s, "alice")); got != 1499 {
				t.Errorf("alice has %d sessions once they can be read, want 1499", got)
			}
			if _, err := s.DeleteExpired(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := tokensOf(t, s, "alice"); len(got) != 1500 || got[1499] != "added" {
				t.Errorf("alice has %d sessions after a sweep, want 1500 with the added one", len(got))
			}

			broken.Store(true)
			if n, err := s.DeleteOf(t.Context(), "alice"); n != 1500 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 1500, nil", n, err)
			}
			wantAll(t, s, map[string]string{"changed": "bob|"})
		})
	}
}

// DeleteOf deletes a session that the store knows to be the owner's, although Owner
// calls it nobody's: some return "" for data that they can't read.
func TestDeleteOfEndsSessionsThatSayNothing(t *testing.T) {
	db := testdb.Memory(t)
	s, plain := newOwnerStore(t, db), newStore(t, db)
	for token, data := range map[string]string{
		"nobody's": "unreadable", "bob's": "bob|", "alice's": "alice|2", "too long": strings.Repeat("x", 101) + "|",
	} {
		commit(t, s, token, "alice|", inAnHour())
		commit(t, plain, token, data, inAnHour())
	}
	wantTokensOf(t, s, "alice", "alice's")
	if n, err := s.DeleteOf(t.Context(), "alice"); n != 2 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 2, nil", n, err)
	}
	wantMissing(t, s, "nobody's")
	wantMissing(t, s, "alice's")
	wantFound(t, s, "bob's", "bob|")
}

// An Owner that ends its goroutine leaves nothing open.
func TestOwnerEndsItsGoroutine(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	var exits atomic.Bool
	s := newStoreWith(t, db, chaistore.Config{Owner: func(data []byte) string {
		if exits.Load() {
			runtime.Goexit()
		}
		return ownerInData(data)
	}})
	commit(t, s, "a", "alice|", inAnHour())
	commit(t, newStore(t, db), "b", "alice|", inAnHour()) // needs an owner
	exits.Store(true)
	var wg sync.WaitGroup
	for _, call := range []func(){
		func() { s.Commit("c", []byte("alice|"), inAnHour()) },
		func() { tokensOf(t, s, "alice") },
		func() { s.DeleteOf(t.Context(), "alice") },
		func() { s.DeleteExpired(t.Context()) },
	} {
		wg.Go(func() {
			call()
			t.Error("a call returned, although Owner ended its goroutine")
		})
	}
	wg.Wait()
	exits.Store(false)
	wantTokensOf(t, s, "alice", "a")
	if n, err := s.DeleteOf(t.Context(), "alice"); n != 1 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 1, nil", n, err)
	}
	if err := db.Close(); err != nil { // reports open snapshots
		t.Errorf("Close: %v", err)
	}
}

// Owner is called once for each commit, in the goroutine that commits, before its
// turn: it may use the store.
func TestOwnerUsesTheStore(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	var s *chaistore.ChaiStore
	var calls atomic.Int32
	s = newStoreWith(t, testdb.Memory(t), chaistore.Config{Owner: func(data []byte) string {
		if calls.Add(1); string(data) == "inner|" {
			return "inner"
		}
		if err := s.Commit("inner", []byte("inner|"), inAnHour()); err != nil {
			t.Error(err)
		}
		if _, _, err := s.Find("inner"); err != nil {
			t.Error(err)
		}
		return ownerInData(data)
	}})
	inParallel(8, 100, func(_ *rand.Rand, i int) {
		if err := s.Commit(fmt.Sprint(i), []byte("outer|"), inAnHour()); err != nil {
			t.Error(err)
		}
	})
	if n := calls.Load(); n != 200 {
		t.Errorf("Owner was called %d times, want 200", n)
	}
	if n := len(tokensOf(t, s, "outer")); n != 100 {
		t.Errorf("got %d sessions, want 100", n)
	}
}

// Owner may commit large sessions, too: no call waits for memory that its caller holds.
func TestOwnerCommitsLargeSessions(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	padding := strings.Repeat("x", 10<<20)
	var s *chaistore.ChaiStore
	s = newStoreWith(t, testdb.Memory(t), chaistore.Config{Owner: func(data []byte) string {
		owner := ownerInData(data)
		if owner == "outer" {
			commit(t, s, "inner", "inner|"+padding, inAnHour())
		}
		return owner
	}})
	inParallel(4, 4, func(_ *rand.Rand, i int) { commit(t, s, fmt.Sprint(i), "outer|"+padding, inAnHour()) })
	if n := len(tokensOf(t, s, "outer")); n != 4 {
		t.Errorf("got %d sessions, want 4", n)
	}
}

// When sessions change without their owners, SessionsOf returns no session of
// somebody else, and none that has ended. A sweep corrects the owners.
func TestSessionsChangeWithoutTheirOwners(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newOwnerStore(t, db)
		plain := newStore(t, db)
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
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newOwnerStore(t, db)
		plain := newStore(t, db)
		for _, between := range []int{0, 1, 3, 7} { // unmatched owners or sessions between two matching ones
			for _, gone := range []bool{false, true} {
				testdb.Exec(t, db, "DELETE FROM sessions")
				if _, err := s.DeleteExpired(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions_owners"); n != 0 {
					t.Fatalf("got %d owners without sessions, want 0", n)
				}
				inParallel(64, 1300, func(_ *rand.Rand, i int) {
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
	testdb.Watchdog(t, 2*time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		const sessions, users = 10_000, 50
		plain := newStore(t, db)
		want := make(map[string]string)
		var mu sync.Mutex
		inParallel(256, sessions, func(_ *rand.Rand, i int) {
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
		s := newOwnerStore(t, db)
		owners.Store(s)
		newOwnerStore(t, db) // again
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

// If adding the owners is interrupted, making a store again completes it.
func TestInterruptedOwnersAreCompleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		plain := newStore(t, db)
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
		if _, err := chaistore.NewWithConfig(db, cfg); err == nil || !strings.Contains(err.Error(), "hung") {
			t.Fatalf("NewWithConfig = %v, want an error that writing has hung", err)
		}
		lock.Unlock()
		synctest.Wait()
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions_owners"); n == 0 || n == sessions {
			t.Fatalf("got %d of %d owners, want some", n, sessions)
		}
		if n := len(tokensOf(t, newOwnerStore(t, db), "alice")); n != sessions {
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
	s := newOwnerStore(t, db)
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
	s := newOwnerStore(t, db)
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
	newOwnerStore(t, db)
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
			s := newStoreWith(t, db, chaistore.Config{TableName: name, Owner: ownerInData})
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
	users := newOwnerStore(t, db)
	admins := newStoreWith(t, db, chaistore.Config{TableName: "admins", Owner: ownerInData})
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
	s := newOwnerStore(t, db)
	commit(t, s, "a", "alice|", inAnHour())
	testdb.Exec(t, db, "DROP TABLE sessions_owners")
	s = newStoreWith(t, db, chaistore.Config{Owner: func(data []byte) string { return "user " + ownerInData(data) }})
	wantTokensOf(t, s, "user alice", "a")
	wantTokensOf(t, s, "alice")
}

// The application's SQL reads the table of owners through its index.
func TestOwnersBySQL(t *testing.T) {
	db := testdb.Memory(t)
	s := newOwnerStore(t, db)
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

func TestOwnerByKey(t *testing.T) {
	type userID int64
	var codec scs.GobCodec
	ownerOf := chaistore.OwnerByKey(codec, "user")
	for name, test := range map[string]struct {
		values map[string]any
		want   string
	}{
		"string":       {map[string]any{"user": "alice", "other": "bob"}, "alice"},
		"empty string": {map[string]any{"user": ""}, ""},
		"percent":      {map[string]any{"user": "100%d"}, "100%d"},
		"int":          {map[string]any{"user": 42}, "42"},
		"negative":     {map[string]any{"user": int64(-1)}, "-1"},
		"zero":         {map[string]any{"user": 0}, "0"},
		"missing":      {map[string]any{"other": "bob"}, ""},
		"nothing":      {nil, ""},
	} {
		data, err := codec.Encode(inAnHour(), test.values)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := ownerOf(data); got != test.want {
			t.Errorf("%s: got the owner %q, want %q", name, got, test.want)
		}
	}
	for _, data := range [][]byte{nil, {}, []byte("undecodable"), {0xff, 0xff, 0xff, 0xff}} {
		func() {
			defer func() {
				if err, ok := recover().(error); !ok || !strings.Contains(err.Error(), "can't decode") {
					t.Errorf("for the data %q, the function panicked with %v", data, err)
				}
			}()
			t.Errorf("got the owner %q of %q, want a panic", ownerOf(data), data)
		}()
	}
	for _, value := range []any{nil, "alice", userID(7)} {
		of := chaistore.OwnerByKey(valueCodec{value}, "user")
		want := map[any]string{nil: "", "alice": "alice", userID(7): "7"}[value]
		if got := of(nil); got != want {
			t.Errorf("got the owner %q for the value %v, want %q", got, value, want)
		}
	}
}

// A valueCodec decodes anything as a session with one value.
type valueCodec struct{ value any }

func (c valueCodec) Encode(time.Time, map[string]any) ([]byte, error) { return nil, nil }

func (c valueCodec) Decode([]byte) (time.Time, map[string]any, error) {
	return time.Time{}, map[string]any{"user": c.value}, nil
}
