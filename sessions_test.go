package chaistore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// collect returns the sessions of the store by token, and fails the test if one comes
// twice or out of order.
func collect(t *testing.T, s *chaistore.ChaiStore) map[string]chaistore.Session {
	t.Helper()
	sessions := make(map[string]chaistore.Session)
	last := ""
	for session, err := range s.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if len(sessions) > 0 && session.Token <= last {
			t.Fatalf("the session %q comes after %q", session.Token, last)
		}
		last = session.Token
		sessions[last] = session
	}
	return sessions
}

func TestSessions(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		if got := collect(t, s); len(got) > 0 {
			t.Errorf("got sessions %v of an empty store, want none", got)
		}
		expiry := inAnHour().In(time.FixedZone("", 3600))
		commit(t, s, "", "one", expiry)
		commit(t, s, "\xff", "two", expiry)
		commit(t, s, "\xff\xff", "", expiry)
		commit(t, s, "old", "three", anHourAgo())
		got := collect(t, s)
		if len(got) != 3 {
			t.Errorf("got %d sessions, want 3: %q", len(got), slices.Collect(maps.Keys(got)))
		}
		for token, data := range map[string]string{"": "one", "\xff": "two", "\xff\xff": ""} {
			session := got[token]
			if string(session.Data) != data || !session.Expiry.Equal(expiry.Truncate(time.Microsecond)) || session.Expiry.Location() != time.UTC {
				t.Errorf("got session %+v for %q, want the data %q and the expiry %v", session, token, data, expiry)
			}
		}
	})
}

// Sessions that do not change are seen exactly once, with their own data, while
// others come and go.
func TestSessionsBesideWriters(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	s := newStore(t, testdb.Memory(t))
	want := make(map[string]string)
	for i := range 3000 {
		token := fmt.Sprintf("%05d-stays", i*7)
		want[token] = fmt.Sprint(i)
		commit(t, s, token, want[token], inAnHour())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for ctx.Err() == nil {
				token := fmt.Sprintf("%05d-moves", rng.IntN(21000))
				if rng.IntN(2) == 0 {
					commit(t, s, token, token, inAnHour())
				} else if err := s.Delete(token); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		got := make(map[string]string)
		for token, session := range collect(t, s) {
			if strings.HasSuffix(token, "-stays") {
				got[token] = string(session.Data)
			} else if string(session.Data) != token {
				t.Errorf("got the data %q of session %s, want its token", session.Data, token)
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("got %d sessions that stay, want %d, all with their data", len(got), len(want))
		}
	}
	cancel()
	wg.Wait()
}

func TestSessionsBodyUsesTheStore(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		for i := range 30 {
			commit(t, s, fmt.Sprintf("%02d", i), "old", inAnHour())
		}
		n := 0
		for session, err := range s.Sessions(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			if n%2 == 0 {
				commit(t, s, session.Token, "new", inAnHour())
			} else if err := s.Delete(session.Token); err != nil {
				t.Fatal(err)
			}
			if _, err := s.All(); err != nil {
				t.Fatal(err)
			}
			session.Data[0] = 'X' // the data is the caller's
		}
		all, err := s.All()
		if n != 30 || len(all) != 15 || err != nil {
			t.Errorf("got %d sessions, then %d from All (%v); want 30 and 15", n, len(all), err)
		}
		for token, data := range all {
			if string(data) != "new" {
				t.Errorf("got the data %q of session %s, want new", data, token)
			}
		}
	})
}

// Breaking out of the loop leaves nothing open that would keep the database from
// being closed.
func TestSessionsBreak(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db)
	for i := range 2500 {
		commit(t, s, fmt.Sprintf("%04d", i), "one", inAnHour())
	}
	goroutines := runtime.NumGoroutine()
	for _, stop := range []int{1, 999, 1000, 1001, 2500} {
		n := 0
		for range s.Sessions(t.Context()) {
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

func TestSessionsYieldsAnErrorOnce(t *testing.T) {
	for name, test := range map[string]struct {
		after int // this number of sessions
		end   func(db *chai.DB, cancel func())
		want  string
	}{
		"done context":   {0, func(_ *chai.DB, cancel func()) { cancel() }, "context canceled"},
		"ending context": {500, func(_ *chai.DB, cancel func()) { cancel() }, "context canceled"},
		"missing table":  {500, func(db *chai.DB, _ func()) { testdb.Exec(t, db, "DROP TABLE sessions") }, "does not exist"},
		"closed":         {500, func(db *chai.DB, _ func()) { db.Close() }, "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			s := newStore(t, db)
			testdb.InParallel(64, 1500, func(_ *rand.Rand, i int) {
				commit(t, s, fmt.Sprintf("%04d", i), "one", inAnHour())
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.after == 0 {
				test.end(db, cancel)
			}
			var errs []error
			n := 0
			for session, err := range s.Sessions(ctx) {
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
				t.Errorf("got errors %v, want one that says %q", errs, test.want)
			}
			// When the context ends, the rest of the current page is not yielded.
			if atOnce := errors.Is(errs[0], context.Canceled); n < test.after || n > 1000 || atOnce && n > test.after {
				t.Errorf("got %d sessions, want an end after %d", n, test.after)
			}
		})
	}
}

func TestSessionsTakesLittleMemory(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	const sessions, size, limit = 100_000, 300, 16 << 20
	s := newStore(t, testdb.Disk(t))
	data := strings.Repeat("x", size)
	testdb.InParallel(256, sessions, func(_ *rand.Rand, i int) {
		commit(t, s, fmt.Sprintf("%043d", i), data, inAnHour())
	})
	before, most, n := testdb.HeapInUse(), int64(0), 0
	for _, err := range s.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%20_000 == 0 {
			most = max(most, testdb.HeapInUse()-before)
		}
	}
	if n != sessions || most > limit {
		t.Errorf("got %d sessions with up to %d bytes on the heap, want %d with at most %d", n, most, sessions, limit)
	}
	t.Logf("%d sessions of %d bytes took up to %d bytes on the heap", n, size, most)
}

func TestDeleteFunc(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		const sessions = 1300 // more than a page, and many batches
		want := make(map[string]string)
		testdb.InParallel(64, sessions, func(_ *rand.Rand, i int) {
			commit(t, s, fmt.Sprintf("%04d", i), fmt.Sprint(i%3), inAnHour())
		})
		for i := range sessions {
			if i%3 != 0 {
				want[fmt.Sprintf("%04d", i)] = fmt.Sprint(i % 3)
			}
		}
		commit(t, s, "expired", "0", anHourAgo())
		n, err := s.DeleteFunc(t.Context(), func(session chaistore.Session) bool {
			if session.Token == "expired" {
				t.Error("del was called for an expired session")
			}
			// The session may be committed again meanwhile, and del may call the store.
			if session.Token == "0000" {
				commit(t, s, session.Token, "again", inAnHour())
			}
			return string(session.Data) == "0"
		})
		if n != sessions-len(want) || err != nil {
			t.Fatalf("DeleteFunc = %d, %v; want %d, nil", n, err, sessions-len(want))
		}
		wantAll(t, s, want)
		if n, err := s.DeleteFunc(t.Context(), func(chaistore.Session) bool { return false }); n != 0 || err != nil {
			t.Errorf("DeleteFunc of none = %d, %v; want 0, nil", n, err)
		}
	})
}

// When its context ends, DeleteFunc deletes the sessions chosen before, and no more.
func TestDeleteFuncEndsWithItsContext(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	const sessions = 2000
	testdb.InParallel(64, sessions, func(_ *rand.Rand, i int) {
		commit(t, s, fmt.Sprintf("%04d", i), "one", inAnHour())
	})
	ctx, cancel := context.WithCancel(t.Context())
	n, err := s.DeleteFunc(ctx, func(session chaistore.Session) bool {
		if session.Token == "0234" {
			cancel()
		}
		return true
	})
	if !errors.Is(err, context.Canceled) || n != 235 {
		t.Errorf("DeleteFunc = %d, %v; want 235, %v", n, err, context.Canceled)
	}
	if all, err := s.All(); err != nil || len(all) != sessions-n {
		t.Errorf("All = %d sessions, %v; want %d, nil", len(all), err, sessions-n)
	}
}

// DeleteFunc ends the sessions of one user where Iterate and Destroy can't.
func TestDeleteFuncWithHashedTokens(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	manager := scs.New()
	manager.Store = s
	manager.HashTokenInStore = true
	tokens := make(map[string][]string) // by user
	for i := range 30 {
		user := fmt.Sprint("user", i%3)
		ctx, err := manager.Load(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		manager.Put(ctx, "user", user)
		token, _, err := manager.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		tokens[user] = append(tokens[user], token)
	}
	err := manager.Iterate(t.Context(), func(ctx context.Context) error { return manager.Destroy(ctx) })
	if all, _ := s.All(); err != nil || len(all) != 30 {
		t.Fatalf("Destroy in Iterate now deletes sessions (%d are left, %v): DeleteFunc's comment is out of date", len(all), err)
	}
	n, err := s.DeleteFunc(t.Context(), func(session chaistore.Session) bool {
		_, values, err := manager.Codec.Decode(session.Data)
		if err != nil {
			t.Error(err)
		}
		return values["user"] == "user1"
	})
	if n != 10 || err != nil {
		t.Fatalf("DeleteFunc = %d, %v; want 10, nil", n, err)
	}
	for user, tokens := range tokens {
		for _, token := range tokens {
			ctx, err := manager.Load(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			if signedIn := manager.GetString(ctx, "user") == user; signedIn != (user != "user1") {
				t.Errorf("%s is signed in: %v, want %v", user, signedIn, !signedIn)
			}
		}
	}
}

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
	testdb.Slow(t)
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
			testdb.InParallel(64, test.sessions, func(_ *rand.Rand, i int) {
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
	testdb.InParallel(64, 1500, func(_ *rand.Rand, i int) {
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
			testdb.InParallel(64, 1500, func(_ *rand.Rand, i int) {
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

// While Owner can't read a session that has no owner yet, no call for an owner leaves it
// out silently, however many other sessions there are.
func TestSessionThatHasNoOwnerYet(t *testing.T) {
	for _, others := range []int{0, 1, 2, 1001} { // 1001 are more than a page
		call := func(t *testing.T) {
			db := testdb.Memory(t)
			plain := newStore(t, db)
			for i := range others {
				commit(t, plain, fmt.Sprint(i), "alice|", inAnHour())
			}
			commit(t, plain, "unread", "alice|unreadable", inAnHour())
			var broken atomic.Bool
			broken.Store(true)
			s := newStoreWith(t, db, chaistore.Config{Owner: func(data []byte) string {
				if broken.Load() && strings.HasSuffix(string(data), "unreadable") {
					panic("unreadable")
				}
				return ownerInData(data)
			}})
			for range 2 {
				n, errs := 0, []error(nil)
				for _, err := range s.SessionsOf(t.Context(), "alice") {
					if err != nil {
						errs = append(errs, err)
					} else {
						n++
					}
				}
				if n != others || len(errs) != 1 {
					t.Errorf("SessionsOf returned %d sessions and the errors %v, want %d and one", n, errs, others)
				}
			}
			if n, err := s.DeleteOf(t.Context(), "alice"); n != others || err == nil {
				t.Errorf("DeleteOf = %d, %v; want %d and an error", n, err, others)
			}
			wantFound(t, s, "unread", "alice|unreadable")
			broken.Store(false)
			if n, err := s.DeleteOf(t.Context(), "alice"); n != 1 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 1, nil", n, err)
			}
		}
		t.Run(fmt.Sprint(others), func(t *testing.T) { synctest.Test(t, call) }) // the time stands still: see PageOf
	}
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
		wg.Wait()
	}
	exits.Store(false)
	wantTokensOf(t, s, "alice", "a", "b")
	if n, err := s.DeleteOf(t.Context(), "alice"); n != 2 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 2, nil", n, err)
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
	testdb.InParallel(8, 100, func(_ *rand.Rand, i int) {
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
	testdb.Slow(t)
	testdb.WithoutRace(t)
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
	testdb.InParallel(4, 4, func(_ *rand.Rand, i int) { commit(t, s, fmt.Sprint(i), "outer|"+padding, inAnHour()) })
	if n := len(tokensOf(t, s, "outer")); n != 4 {
		t.Errorf("got %d sessions, want 4", n)
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
