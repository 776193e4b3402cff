package chaistore_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
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
	testdb.Long(t)
	testdb.WithoutRace(t)
	const sessions, size, limit = 30_000, 1000, 16 << 20
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
		if n++; n%6000 == 0 {
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
		testdb.CheckOwners(t, db, ownerInData, false)
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
		testdb.CheckOwners(t, db, ownerInData, false)
	})
}

// A session belongs to the owner of its latest commit.
func TestOwnerChanges(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newOwnerStore(t, db)
		last := ""
		for _, owner := range []string{"alice", "bob", "", "alice", "alice", ""} {
			commit(t, s, "a", owner+"|", inAnHour())
			testdb.CheckOwners(t, db, ownerInData, false)
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
	testdb.CheckOwners(t, db, ownerInData, false)
	for i, owner := range owners {
		if n, err := s.DeleteOf(t.Context(), owner); n != 3 || err != nil {
			t.Errorf("DeleteOf(%q) = %d, %v; want 3, nil", owner, n, err)
		}
		wantTokensOf(t, s, owner)
		if all, err := s.All(); err != nil || len(all) != 3*(len(owners)-i-1) {
			t.Fatalf("All after DeleteOf(%q) = %d sessions, %v; want %d, nil", owner, len(all), err, 3*(len(owners)-i-1))
		}
	}
	testdb.CheckOwners(t, db, ownerInData, false)
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
		"large": {20, 400_000},
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
		testdb.CheckOwners(t, db, ownerInData, false)
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
		if !errors.Is(err, chaistore.ErrBusy) || n == 0 || n == 250 || n+left != 250 {
			t.Errorf("DeleteOf = %d, %v, and %d of 250 sessions are left", n, err, left)
		}
		testdb.CheckOwners(t, db, ownerInData, false)
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

// A panic in Owner goes through to the caller, whoever calls it, and leaves nothing locked
// or open. So does the end of the goroutine.
func TestOwnerPanics(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for name, end := range map[string]func(){
		"panic":  func() { panic("the caller's bug") },
		"Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			var ends atomic.Bool
			s := newStoreWith(t, db, chaistore.Config{Owner: func(data []byte) (string, error) {
				if ends.Load() {
					end()
				}
				return ownerInData(data)
			}})
			plain := newStore(t, db)
			commit(t, s, "a", "alice|", inAnHour())
			wantTokensOf(t, s, "alice", "a")
			for i, call := range []func(){
				func() { s.Commit("a", []byte("alice|2"), inAnHour()) },
				func() { tokensOf(t, s, "alice") },
				func() { s.DeleteOf(t.Context(), "alice") },
				func() { commit(t, plain, "b", "alice|", inAnHour()); tokensOf(t, s, "bob") },
				func() { s.DeleteExpired(t.Context()) },
			} {
				ends.Store(true)
				var recovered any
				returned := false
				var wg sync.WaitGroup
				wg.Go(func() {
					defer func() { recovered = recover() }()
					call()
					returned = true
				})
				wg.Wait()
				if returned || (recovered != nil) != (name == "panic") {
					t.Errorf("call %d returned (%v), or panicked with %v", i, returned, recovered)
				}
				ends.Store(false)
				wantFound(t, s, "a", "alice|")
			}
			wantTokensOf(t, s, "alice", "a", "b")
			if n, err := s.DeleteOf(t.Context(), "alice"); n != 2 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 2, nil", n, err)
			}
			if err := db.Close(); err != nil { // reports open snapshots
				t.Errorf("Close: %v", err)
			}
		})
	}
}

// A panic of Owner in the cleanup goroutine has no caller. It does not end the process, and
// the next sweep tries again. So with the end of the goroutine.
func TestOwnerPanicsInCleanup(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(data []byte)
		want string
	}{
		"panic":  {func(data []byte) { panic(string(data)) }, "sweep for expired sessions panicked"},
		"Goexit": {func([]byte) { runtime.Goexit() }, "has ended the goroutine of a sweep"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := testdb.Memory(t)
				commit(t, newStore(t, db), "a", "secret|", time.Now().Add(24*time.Hour))
				var log testdb.Log
				var broken atomic.Bool
				broken.Store(true)
				s, err := chaistore.NewWithConfig(db, chaistore.Config{
					CleanupInterval: time.Hour, Logger: log.Logger(slog.LevelError),
					Owner: func(data []byte) (string, error) {
						if broken.Load() {
							test.end(data)
						}
						return ownerInData(data)
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer s.StopCleanup()
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if got := log.String(); !strings.Contains(got, test.want) || strings.Contains(got, "secret") {
					t.Errorf("logged %q, want %q, without data", got, test.want)
				}
				if got := s.Stats().LastSweepError; got == "" {
					t.Error("the last sweep has no error")
				}
				broken.Store(false)
				time.Sleep(time.Hour)
				synctest.Wait()
				if got := s.Stats(); got.LastSweepError != "" || time.Since(got.LastSweep) > time.Hour {
					t.Errorf("the last sweep was %v ago, and ended with %q; want a new one without an error", time.Since(got.LastSweep), got.LastSweepError)
				}
				wantTokensOf(t, s, "secret", "a")
			})
		})
	}
}

// DeleteOf ends a session that was the owner's and can't be read now. One that has become
// nobody's stays.
func TestDeleteOfEndsSessionsThatCantBeRead(t *testing.T) {
	db := testdb.Memory(t)
	s := newStoreWith(t, db, chaistore.Config{Owner: func(data []byte) (string, error) {
		if string(data) == "unreadable" {
			return "", errors.New("renamed type")
		}
		return ownerInData(data)
	}})
	for token, data := range map[string]string{
		"nobody's": "|", "bob's": "bob|", "alice's": "alice|2", "unreadable": "unreadable",
	} {
		commit(t, s, token, "alice|", inAnHour())
		commit(t, s, token, data, inAnHour())
	}
	wantUnread := func(owner string, want ...string) {
		t.Helper()
		var got []string
		var last error
		for session, err := range s.SessionsOf(t.Context(), owner) {
			if last = err; err == nil {
				got = append(got, session.Token)
			}
		}
		if !slices.Equal(got, want) || !errors.Is(last, chaistore.ErrOwnerUnreadable) {
			t.Errorf("SessionsOf(%s) = %q, %v; want %q and %v", owner, got, last, want, chaistore.ErrOwnerUnreadable)
		}
	}
	wantUnread("alice", "alice's")
	wantUnread("bob", "bob's")
	if n, err := s.DeleteOf(t.Context(), "carol"); n != 0 || !errors.Is(err, chaistore.ErrOwnerUnreadable) {
		t.Errorf("DeleteOf = %d, %v; want 0, %v", n, err, chaistore.ErrOwnerUnreadable)
	}
	if n, err := s.DeleteOf(t.Context(), "alice"); n != 2 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 2, nil", n, err)
	}
	wantAll(t, s, map[string]string{"nobody's": "|", "bob's": "bob|"})
	wantTokensOf(t, s, "bob", "bob's")
}

// Owner is called once for each commit, in the goroutine that commits, before its
// turn: it may use the store.
func TestOwnerUsesTheStore(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	var s *chaistore.ChaiStore
	var calls atomic.Int32
	s = newStoreWith(t, testdb.Memory(t), chaistore.Config{Owner: func(data []byte) (string, error) {
		if calls.Add(1); strings.HasPrefix(string(data), "inner|") {
			return "inner", nil
		}
		if err := s.Commit("inner", fmt.Append([]byte("inner|"), calls.Load()), inAnHour()); err != nil {
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
	testdb.Long(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, time.Minute)
	const outer = 4 // which take all the memory that writes may take while they wait
	padding := strings.Repeat("x", 8<<20)
	var calls atomic.Int32
	all := make(chan struct{})
	var s *chaistore.ChaiStore
	s = newStoreWith(t, testdb.Memory(t), chaistore.Config{Owner: func(data []byte) (string, error) {
		owner, err := ownerInData(data)
		if owner == "outer" {
			if calls.Add(1) == outer {
				close(all)
			}
			<-all
			commit(t, s, "inner", "inner|"+padding[:1<<20], inAnHour())
		}
		return owner, err
	}})
	testdb.InParallel(outer, outer, func(_ *rand.Rand, i int) { commit(t, s, fmt.Sprint(i), "outer|"+padding, inAnHour()) })
	if n := len(tokensOf(t, s, "outer")); n != outer {
		t.Errorf("got %d sessions, want %d", n, outer)
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
		if got, err := ownerOf(data); got != test.want || err != nil {
			t.Errorf("%s: got the owner %q, %v; want %q", name, got, err, test.want)
		}
	}
	for _, data := range [][]byte{nil, {}, []byte("undecodable"), {0xff, 0xff, 0xff, 0xff}} {
		if got, err := ownerOf(data); got != "" || err == nil {
			t.Errorf("for the data %q, got the owner %q, %v; want an error", data, got, err)
		}
	}
	const unknown = "unknown"
	for _, test := range []struct {
		value any
		want  string
	}{
		{nil, ""}, {"alice", "alice"}, {userID(7), "7"}, {uint8(200), "200"}, {uint64(math.MaxUint64), "18446744073709551615"},
		{int64(math.MinInt64), "-9223372036854775808"}, {json.Number("1000000"), "1000000"},
		{json.Number("1e+06"), "1000000"}, {json.Number("-1.50E1"), "-15"}, {json.Number("70e-1"), "7"}, {json.Number("-0"), "0"},
		{json.Number("1e+21"), "1000000000000000000000"}, {json.Number("123456789012345678901234567890"), "123456789012345678901234567890"},
		{json.Number("0.5"), unknown}, {json.Number("1e-1"), unknown}, {json.Number("1e1000000000"), unknown}, {json.Number("1e99999999999999999999"), unknown},
		{json.Number(""), unknown}, {json.Number("alice"), unknown}, {json.Number("null"), unknown}, {json.Number("0x10"), unknown}, {json.Number("4/2"), unknown}, {json.Number(" 7"), unknown},
		{json.Number(strings.Repeat("7", 101)), unknown},
		{1e6, "1000000"}, {123456789.0, "123456789"}, {-1e6, "-1000000"}, {0.0, "0"}, {math.Copysign(0, -1), "0"},
		{float64(1<<53 - 1), "9007199254740991"}, {-float64(1<<53 - 1), "-9007199254740991"},
		{float64(1 << 53), unknown}, {1e300, unknown}, {0.5, unknown}, {math.NaN(), unknown}, {math.Inf(1), unknown}, {math.Inf(-1), unknown},
		{float32(7), unknown}, {true, unknown}, {struct{ ID int }{7}, unknown}, {[]byte("alice"), unknown}, {new(int), unknown}, {(*int)(nil), unknown},
		{[16]byte{}, unknown}, {time.Time{}, unknown}, {complex(1, 0), unknown},
	} {
		got, err := chaistore.OwnerByKey(valueCodec{test.value}, "user")(nil)
		if err != nil {
			got = unknown
		}
		if got != test.want {
			t.Errorf("got the owner %q for the %T %v, want %q", got, test.value, test.value, test.want)
		}
	}
}

// Sessions are decoded as scs.GobCodec decodes them, whatever types they have, and in
// whichever order they come. Data that it can't decode is an error, and the sessions that
// come after it are decoded.
func TestOwnerByKeyDecodesAsGobCodec(t *testing.T) {
	type (
		inner struct{ Name string }
		outer struct{ Any any }
		other struct{ N int }
	)
	for _, value := range []any{inner{}, outer{}, other{}, []any{}, time.Time{}} {
		gob.Register(value)
	}
	var codec scs.GobCodec
	deadline := inAnHour()
	encoded, err := deadline.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var sessions [][]byte
	for i, values := range []map[string]any{
		{},
		{"a": 1, "b": "text", "c": []byte("bytes")},
		{"a": time.Unix(1, 0)}, // defines a type further on, as what follows
		{"a": inner{"a"}},
		{"a": other{1}, "b": inner{"b"}},
		{"a": outer{inner{"a"}}},
		{"a": outer{other{2}}},
		{"a": []any{inner{"a"}, 1, outer{nil}}},
	} {
		for j := range 4 {
			values["user"] = fmt.Sprint("user", i, j)
			data, err := codec.Encode(deadline, values)
			if err != nil {
				t.Fatal(err)
			}
			sessions = append(sessions, data)
		}
	}
	// A session that defines a type further on ends the use of decoders that have read the
	// first ones.
	for _, sessions := range [][][]byte{sessions, sessions[:8]} {
		ownerOf := chaistore.OwnerByKey(codec, "user")
		testdb.InParallel(8, testdb.Rounds(2000, 8000), func(rng *rand.Rand, i int) {
			data := sessions[rng.IntN(len(sessions))]
			switch rng.IntN(8) {
			case 0: // of an unknown version
				data = bytes.Replace(data, encoded, append([]byte{9}, encoded[1:]...), 1)
			case 1, 2:
				data = bytes.Clone(data)
				data[rng.IntN(len(data))] ^= byte(1 + rng.IntN(255))
				data = data[:len(data)-rng.IntN(2)*rng.IntN(len(data))]
			}
			_, values, wantErr := codec.Decode(data)
			want, _ := values["user"].(string)
			if _, isString := values["user"].(string); wantErr == nil && values["user"] != nil && !isString {
				return
			}
			if got, err := ownerOf(data); got != want || (err == nil) != (wantErr == nil) {
				t.Errorf("got the owner %q, %v for the data %q; scs.GobCodec decodes %q, %v", got, err, data, want, wantErr)
			}
		})
	}
}

// DeleteOf finds the sessions of every ID, though a JSON codec decodes IDs as
// floating-point numbers.
func TestOwnerByKeyWithJSON(t *testing.T) {
	s := newStoreWith(t, testdb.Memory(t), chaistore.Config{Owner: chaistore.OwnerByKey(bareJSONCodec{}, "user")})
	for _, id := range []int64{0, 1, 7, 42, 999_999, 1_000_000, 1_000_001, 12_345_678, 1 << 31, 1e12, 1e15, 1<<53 - 1, -1_000_000} {
		data, err := bareJSONCodec{}.Encode(inAnHour(), map[string]any{"user": id})
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, "a", string(data), inAnHour())
		if n, err := s.DeleteOf(t.Context(), fmt.Sprint(id)); n != 1 || err != nil {
			t.Errorf("DeleteOf(%d) = %d, %v; want 1, nil", id, n, err)
		}
	}
}

// With a session that Owner can't read, SessionsOf and DeleteOf do all the rest, and return
// ErrOwnerUnreadable. DeleteFunc ends the session. The error wraps that of Owner or the codec,
// and quotes nothing of it.
func TestErrOwnerUnreadable(t *testing.T) {
	secret := errors.New("invalid user Q")
	for name, test := range map[string]struct {
		owner func(data []byte) (string, error)
		want  string
	}{
		"codec": {chaistore.OwnerByKey(bareJSONCodec{}, "user"), ": the codec has returned a *json.SyntaxError"},
		"owner": {func(data []byte) (string, error) {
			if data[0] == 'Q' {
				return "", fmt.Errorf("parse: %w", secret)
			}
			return "alice", nil
		}, ": it has returned a *fmt.wrapError"},
	} {
		t.Run(name, func(t *testing.T) {
			var logged testdb.Log
			s := newStoreWith(t, testdb.Memory(t), chaistore.Config{Owner: test.owner, Logger: logged.Logger(slog.LevelDebug)})
			commit(t, s, "1", `{"user":"alice"}`, inAnHour())
			commit(t, s, "2", `{"user":"alice"}`, inAnHour())
			commit(t, s, "3", "Q", inAnHour())
			check := func(call string, err error) {
				t.Helper()
				var syntax *json.SyntaxError
				switch {
				case !errors.Is(err, chaistore.ErrOwnerUnreadable) || !errors.Is(err, secret) && !errors.As(err, &syntax):
					t.Errorf("%s = %v; want %v, and the reason in it", call, err, chaistore.ErrOwnerUnreadable)
				case !strings.HasSuffix(err.Error(), test.want) || strings.Contains(fmt.Sprintf("%+v", err), "Q"):
					t.Errorf("%s = %+v; want an error that ends with %q", call, err, test.want)
				}
			}
			var tokens []string
			var last error
			for session, err := range s.SessionsOf(t.Context(), "alice") {
				if last = err; err == nil {
					tokens = append(tokens, session.Token)
				}
			}
			if !slices.Equal(tokens, []string{"1", "2"}) {
				t.Errorf("SessionsOf has %q, want 1 and 2", tokens)
			}
			check("SessionsOf", last)
			n, err := s.DeleteOf(t.Context(), "alice")
			check("DeleteOf", err)
			wantAll(t, s, map[string]string{"3": "Q"})
			if n != 2 {
				t.Errorf("DeleteOf has deleted %d sessions, want 2", n)
			}
			if _, err := s.DeleteExpired(t.Context()); err != nil {
				t.Error(err)
			}
			if text := logged.String(); strings.Contains(text, "Q") {
				t.Errorf("a log has data of a session: %s", text)
			}
			n, err = s.DeleteFunc(t.Context(), func(session chaistore.Session) bool {
				_, err := test.owner(session.Data)
				return err != nil
			})
			if n != 1 || err != nil {
				t.Errorf("DeleteFunc = %d, %v; want 1, nil", n, err)
			}
			if n, err := s.DeleteOf(t.Context(), "alice"); n != 0 || err != nil {
				t.Errorf("afterwards, DeleteOf = %d, %v; want 0, nil", n, err)
			}
		})
	}
}

// What could not do the rest does not return ErrOwnerUnreadable.
func TestNotErrOwnerUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStoreWith(t, db, chaistore.Config{Owner: chaistore.OwnerByKey(bareJSONCodec{}, "user")})
		commit(t, s, "1", `{"user":"alice"}`, inAnHour())
		commit(t, s, "2", "Q", inAnHour())
		if n, err := s.DeleteOf(t.Context(), "bob"); n != 0 || !errors.Is(err, chaistore.ErrOwnerUnreadable) {
			t.Fatalf("DeleteOf = %d, %v; want 0, %v", n, err, chaistore.ErrOwnerUnreadable)
		}
		lock := chaistore.WriteLock(db)
		lock.Lock()
		n, err := s.DeleteOf(t.Context(), "alice")
		if n != 0 || !errors.Is(err, chaistore.ErrBusy) || errors.Is(err, chaistore.ErrOwnerUnreadable) {
			t.Errorf("DeleteOf = %d, %v; want 0, %v", n, err, chaistore.ErrBusy)
		}
		lock.Unlock()
		synctest.Wait()
	})
}

// While sessions are committed whose owner can't be read, a line a minute says so, without
// what Owner's error quotes.
func TestUnreadableOwnersAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged testdb.Log
		s := newStoreWith(t, testdb.Memory(t), chaistore.Config{
			Owner:  func(data []byte) (string, error) { return "", fmt.Errorf("%s: %w", data, errors.ErrUnsupported) },
			Logger: logged.Logger(slog.LevelInfo),
		})
		for i := range 10 {
			commit(t, s, fmt.Sprint(i), "secret", inAnHour())
			time.Sleep(15 * time.Second)
		}
		const want = "Config.Owner can't read a session"
		if n, text := strings.Count(logged.String(), want), logged.String(); n != 3 || strings.Count(text, "\n") != 3 || strings.Contains(text, "secret") || strings.Count(text, "*fmt.wrapError") != 3 {
			t.Errorf("got %d lines with %q in two and a half minutes, want 3, with the type of the error alone:\n%s", n, want, text)
		}
	})
}

// A bareJSONCodec encodes sessions as JSON.
type bareJSONCodec struct{}

func (bareJSONCodec) Encode(_ time.Time, values map[string]any) ([]byte, error) {
	return json.Marshal(values)
}

func (bareJSONCodec) Decode(data []byte) (_ time.Time, values map[string]any, err error) {
	err = json.Unmarshal(data, &values)
	return time.Time{}, values, err
}

// A valueCodec decodes anything as a session with one value.
type valueCodec struct{ value any }

func (c valueCodec) Encode(time.Time, map[string]any) ([]byte, error) { return nil, nil }

func (c valueCodec) Decode([]byte) (time.Time, map[string]any, error) {
	return time.Time{}, map[string]any{"user": c.value}, nil
}

// A session that is printed or logged shows neither its token nor its data.
func TestSessionIsNotPrinted(t *testing.T) {
	session := chaistore.Session{Token: "secret-token", Data: []byte("secret-data"), Expiry: time.Date(2026, time.January, 2, 3, 4, 5, 0, time.UTC)}
	var text strings.Builder
	for _, value := range []any{session, &session, []chaistore.Session{session}, struct{ S chaistore.Session }{session}, map[string]chaistore.Session{"": session}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
			fmt.Fprintf(&text, verb+"\n", value)
		}
	}
	var logged testdb.Log
	logged.Logger(slog.LevelInfo).Info("text", "session", session, "pointer", &session)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("json", "session", session, "pointer", &session)
	for _, got := range []string{text.String(), logged.String()} {
		for _, secret := range []string{"secret", fmt.Sprintf("%x", "secret"), fmt.Sprint([]byte("secret"))[1:20], "0x73, 0x65", "c2VjcmV0"} {
			if strings.Contains(got, secret) {
				t.Errorf("%q is in\n%s", secret, got)
			}
		}
	}
	if got, want := fmt.Sprint(session), "session of 11 bytes until 2026-01-02T03:04:05Z"; got != want {
		t.Errorf("Session prints as %q, want %q", got, want)
	}
	if want := "session.bytes=11 session.expiry=2026-01-02T03:04:05.000Z"; !strings.Contains(logged.String(), want) {
		t.Errorf("Session is logged as %q, want %q", &logged, want)
	}
}

// When an Owner is not the one that has listed the sessions, the store says so once, and
// lists them again: in a program that was restarted, and in one with another store.
func TestOtherOwner(t *testing.T) {
	newOwner := func(data []byte) (string, error) {
		owner, err := ownerInData(data)
		if owner == "" {
			return "", err
		}
		return "id of " + owner, err
	}
	for name, restart := range map[string]bool{"restarted": true, "another store": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db := mustOpen(t, dir)
			s := newOwnerStore(t, db)
			for i := range 200 {
				commit(t, s, fmt.Sprintf("%03d", i), fmt.Sprintf("user %d|", i%50), inAnHour())
			}
			if n := len(ofOwner(t, s, "user 7")); n != 4 {
				t.Fatalf("user 7 has %d sessions, want 4", n)
			}
			if restart {
				mustClose(t, db)
				db = mustOpen(t, dir)
			}
			defer func() { mustClose(t, db) }()
			var logged testdb.Log
			cfg := chaistore.Config{CleanupInterval: -1, Owner: newOwner, Logger: logged.Logger(slog.LevelInfo)}
			s, err := chaistore.NewWithConfig(db, cfg)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if n := len(ofOwner(t, s, "id of user 7")); n != 4 {
					t.Errorf("user 7 has %d sessions for the new Owner, want 4", n)
				}
			}
			if n, err := s.DeleteOf(t.Context(), "id of user 8"); n != 4 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 4, nil", n, err)
			}
			if n := len(ofOwner(t, s, "user 7")); n != 0 {
				t.Errorf("%d sessions are found for the former Owner, want none", n)
			}
			if text := logged.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "Config.Owner is not the one that has listed the sessions") {
				t.Errorf("got the log %q, want one line", text)
			}
			if _, err := s.DeleteExpired(t.Context()); err != nil {
				t.Error(err)
			}
			testdb.CheckOwners(t, db, newOwner, true)

			// The same Owner is not taken for another one, even if many sessions are nobody's now.
			for i := range 200 {
				if i%50 != 49 {
					commit(t, s, fmt.Sprintf("%03d", i), "nobody's", inAnHour())
				}
			}
			before := logged.String()
			if s, err = chaistore.NewWithConfig(db, cfg); err != nil {
				t.Fatal(err)
			}
			if n := len(ofOwner(t, s, "id of user 49")); n != 4 {
				t.Errorf("user 49 has %d sessions, want 4", n)
			}
			if text := logged.String(); text != before {
				t.Errorf("got the log line %q", strings.TrimPrefix(text, before))
			}
		})
	}
}

// ofOwner returns the tokens of an owner's sessions.
func ofOwner(t *testing.T, s *chaistore.ChaiStore, owner string) (tokens []string) {
	t.Helper()
	for session, err := range s.SessionsOf(t.Context(), owner) {
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, session.Token)
	}
	return tokens
}
