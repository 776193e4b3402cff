package chaistore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
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
			inParallel(64, 1500, func(_ *rand.Rand, i int) {
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
	if testing.Short() {
		t.Skip("it commits 100,000 sessions")
	}
	const sessions, size, limit = 100_000, 300, 16 << 20
	s := newStore(t, testdb.Disk(t))
	data := strings.Repeat("x", size)
	inParallel(256, sessions, func(_ *rand.Rand, i int) {
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
		inParallel(64, sessions, func(_ *rand.Rand, i int) {
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
	inParallel(64, sessions, func(_ *rand.Rand, i int) {
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

func TestSweepIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		var log testdb.Log
		s, err := chaistore.NewWithConfig(db, chaistore.Config{
			CleanupInterval: time.Minute, CreateTable: true, Logger: log.Logger(slog.LevelDebug),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.StopCleanup()
		commit(t, s, "old", "one", anHourAgo())
		commit(t, s, "alice", "one", inAnHour())
		for i, sweep := range []func(){
			func() { time.Sleep(time.Minute); synctest.Wait() },
			func() { _, _ = s.DeleteExpired(t.Context()) },
		} {
			sweep()
			line := strings.Split(log.String(), "\n")[i]
			if want := fmt.Sprintf("scanned=%d deleted=%d duration=", 2-i, 1-i); !strings.Contains(line, "DEBUG") || !strings.Contains(line, want) {
				t.Errorf("sweep %d was logged as %q, want %q at debug level", i, line, want)
			}
		}
	})
}

// StopCleanup does not wait for the end of a sweep.
func TestStopCleanupDuringSweep(t *testing.T) {
	if testing.Short() {
		t.Skip("it commits 50,000 sessions")
	}
	testdb.Watchdog(t, 2*time.Minute)
	db := testdb.Disk(t)
	const sessions = 50_000
	filled := newStore(t, db)
	inParallel(256, sessions, func(_ *rand.Rand, i int) {
		commit(t, filled, fmt.Sprintf("%043d", i), "x", anHourAgo())
	})
	s := newStoreWithCleanup(t, db, time.Millisecond)
	for begun := false; !begun; {
		_, err := db.QueryRow("SELECT token FROM sessions WHERE token = ?", fmt.Sprintf("%043d", 0))
		begun = chai.IsNotFoundError(err)
	}
	s.StopCleanup()
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n == 0 {
		t.Error("got no sessions, want some: the sweep was not interrupted")
	}
}
