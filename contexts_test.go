package chaistore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

// wantEnding waits until a context is done, and fails the test unless its cause is right.
func wantEnding(t *testing.T, ctx context.Context, cause error) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the context is not done")
	}
	wantDone(t, ctx, cause)
}

// wantDone fails the test unless a context is done now, for the given cause.
func wantDone(t *testing.T, ctx context.Context, cause error) {
	t.Helper()
	if ctx.Err() == nil {
		t.Fatal("the context is not done")
	}
	if got := context.Cause(ctx); !errors.Is(got, cause) || cause == chaistore.ErrEnded && got != cause {
		t.Errorf("the cause is %v, want %v", got, cause)
	}
}

func wantAlive(t *testing.T, ctx context.Context) {
	t.Helper()
	if ctx.Err() != nil {
		t.Fatalf("the context has ended: %v", context.Cause(ctx))
	}
}

// sessionContext returns a context of a session, which is canceled when the test ends.
func sessionContext(t *testing.T, s *chaistore.ChaiStore, token string) context.Context {
	ctx, cancel := s.SessionContext(t.Context(), token)
	t.Cleanup(cancel)
	return ctx
}

// update runs statements in one transaction.
func update(db *chai.DB, statements ...string) error {
	return chaistore.Update(context.Background(), db, func(tx *chai.Tx) error {
		for _, sql := range statements {
			if err := tx.Exec(sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
}

const (
	deleteA   = "DELETE FROM sessions WHERE token = 'a'"
	insertA   = "INSERT INTO sessions (token, data, expiry) VALUES ('a', '\\x61', '2099-01-01T00:00:00Z')"
	createNew = "CREATE TABLE rebuilt (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)"
	copyNew   = "INSERT INTO rebuilt SELECT * FROM sessions"
	renameNew = "ALTER TABLE rebuilt RENAME TO sessions"
	toRenew   = "UPDATE sessions SET expiry = '2099-01-01T00:00:00Z'"
)

// Whatever ends a session ends its contexts, and no others. What a store has deleted has
// ended when the call returns.
func TestSessionContextEnds(t *testing.T) {
	type site struct {
		db    *chai.DB
		s     *chaistore.ChaiStore
		other *chaistore.ChaiStore // without owners
	}
	ctx := context.Background()
	for name, test := range map[string]struct {
		end func(site) error
		sql bool // whether the context is done a moment later
		all bool // whether both sessions end
	}{
		"Delete":            {end: func(x site) error { return x.s.Delete("a") }},
		"Delete and Commit": {end: func(x site) error { return errors.Join(x.s.Delete("a"), x.s.Commit("a", nil, inAnHour())) }},
		"Delete by another": {end: func(x site) error { return x.other.Delete("a") }},
		"DeleteOf":          {end: func(x site) error { _, err := x.s.DeleteOf(ctx, "alice"); return err }},
		"DeleteFunc": {end: func(x site) error {
			_, err := x.other.DeleteFunc(ctx, func(s chaistore.Session) bool { return s.Token == "a" })
			return err
		}},
		"Commit of the past": {end: func(x site) error { return x.s.Commit("a", nil, anHourAgo()) }},
		"Commit by another":  {end: func(x site) error { return x.other.Commit("a", nil, anHourAgo()) }},
		"SQL":                {end: func(x site) error { return x.db.Exec(deleteA) }, sql: true},
		"SQL and Commit":     {end: func(x site) error { return errors.Join(x.db.Exec(deleteA), x.other.Commit("a", nil, inAnHour())) }, sql: true},
		"SQL and SQL":        {end: func(x site) error { return errors.Join(x.db.Exec(deleteA), x.db.Exec(insertA)) }, sql: true},
		"SQL of the past": {end: func(x site) error {
			return x.db.Exec("UPDATE sessions SET expiry = '2001-01-01T00:00:00Z' WHERE token = 'a'")
		}, sql: true},
		"transaction":     {end: func(x site) error { return update(x.db, deleteA) }, sql: true},
		"written out":     {end: func(x site) error { return update(x.db, deleteA, toRenew) }, sql: true},
		"put and deleted": {end: func(x site) error { return update(x.db, deleteA, insertA, toRenew, deleteA) }, sql: true},
		"another token":   {end: func(x site) error { return update(x.db, "UPDATE sessions SET token = 'c' WHERE token = 'a'") }, sql: true},
		"emptied":         {end: func(x site) error { return x.db.Exec("DELETE FROM sessions") }, sql: true, all: true},
		"dropped":         {end: func(x site) error { return x.db.Exec("DROP TABLE sessions") }, sql: true, all: true},
		"dropped and created": {end: func(x site) error {
			return errors.Join(x.db.Exec("DROP TABLE sessions"), x.db.Exec(testdb.CreateTable), x.db.Exec(insertA))
		}, sql: true, all: true},
		"replaced by an empty": {end: func(x site) error { return update(x.db, createNew, "DROP TABLE sessions", renameNew) }, sql: true, all: true},
		"renamed":              {end: func(x site) error { return x.db.Exec("ALTER TABLE sessions RENAME TO former") }, sql: true, all: true},
		"rebuilt and deleted":  {end: func(x site) error { return update(x.db, createNew, copyNew, "DROP TABLE sessions", renameNew, deleteA) }, sql: true},
		"rebuilt, then deleted": {end: func(x site) error {
			return errors.Join(update(x.db, createNew, copyNew, "DROP TABLE sessions", renameNew), x.s.Delete("a"))
		}},
		"rebuilt, then by SQL": {end: func(x site) error {
			return errors.Join(update(x.db, createNew, copyNew, "DROP TABLE sessions", renameNew), x.db.Exec(deleteA))
		}, sql: true},
	} {
		t.Run(name, func(t *testing.T) {
			forEachTable(t, func(t *testing.T, db *chai.DB) {
				testdb.Watchdog(t, time.Minute)
				x := site{db, newOwnerStore(t, db), newStore(t, db)}
				commit(t, x.s, "a", "alice|", inAnHour())
				commit(t, x.s, "b", "bob|", inAnHour())
				contexts := []context.Context{sessionContext(t, x.s, "a"), sessionContext(t, x.other, "a")}
				b := sessionContext(t, x.s, "b")
				if err := test.end(x); err != nil {
					if name == "another token" && strings.Contains(err.Error(), "primary key") {
						t.Skip("SQL can't change a token")
					}
					t.Fatal(err)
				}
				if test.all {
					contexts = append(contexts, b)
				} else {
					wantAlive(t, b)
				}
				for _, ctx := range contexts {
					if test.sql {
						wantEnding(t, ctx, chaistore.ErrEnded)
					} else {
						wantDone(t, ctx, chaistore.ErrEnded)
					}
				}
				if !test.all {
					wantAlive(t, b)
				}
			})
		})
	}
}

// What does not end a session does not end its contexts.
func TestSessionContextGoesOn(t *testing.T) {
	errNo := errors.New("no")
	rolledBack := func(statements ...string) func(db *chai.DB, s *chaistore.ChaiStore) error {
		return func(db *chai.DB, s *chaistore.ChaiStore) error {
			if err := update(db, append(statements, "no statement")...); err == nil || !strings.Contains(err.Error(), "no statement") {
				return errors.Join(errNo, err)
			}
			return nil
		}
	}
	committed := func(statements ...string) func(db *chai.DB, s *chaistore.ChaiStore) error {
		return func(db *chai.DB, s *chaistore.ChaiStore) error { return update(db, statements...) }
	}
	for name, change := range map[string]func(db *chai.DB, s *chaistore.ChaiStore) error{
		"Commit":            func(_ *chai.DB, s *chaistore.ChaiStore) error { return s.Commit("a", []byte("new"), inAnHour()) },
		"Delete of another": func(_ *chai.DB, s *chaistore.ChaiStore) error { return s.Delete("b") },
		"sweep": func(_ *chai.DB, s *chaistore.ChaiStore) error {
			_, err := s.DeleteExpired(context.Background())
			return err
		},
		"UPDATE":               committed(toRenew),
		"UPDATE, written out":  committed(toRenew, toRenew),
		"deleted and put":      committed(deleteA, insertA),
		"and again":            committed(deleteA, insertA, toRenew, deleteA, insertA),
		"rolled back":          rolledBack(deleteA),
		"written out":          rolledBack(deleteA, toRenew, "DELETE FROM sessions"),
		"put, rolled back":     rolledBack(deleteA, insertA, "UPDATE sessions SET expiry = '2001-01-01T00:00:00Z'", toRenew, deleteA),
		"past, rolled back":    rolledBack("UPDATE sessions SET expiry = '2001-01-01T00:00:00Z'", "UPDATE sessions SET data = '\\x62'"),
		"rebuilt":              committed(createNew, copyNew, "DROP TABLE sessions", renameNew),
		"moved":                committed(createNew, copyNew, "DELETE FROM sessions", "DROP TABLE sessions", renameNew),
		"rebuilt by renaming":  committed("ALTER TABLE sessions RENAME TO former", createNew, "INSERT INTO rebuilt SELECT * FROM former", renameNew, "DROP TABLE former"),
		"renamed away":         committed("ALTER TABLE sessions RENAME TO away", "ALTER TABLE away RENAME TO sessions"),
		"rebuild, rolled back": rolledBack(createNew, copyNew, "DROP TABLE sessions", renameNew, deleteA),
		"drop, rolled back":    rolledBack("DROP TABLE sessions"),
		"other tables":         committed("CREATE TABLE other (token TEXT PRIMARY KEY)", "INSERT INTO other (token) VALUES ('a')", "DELETE FROM other", "DROP TABLE other"),
		"index":                committed("CREATE INDEX other_index ON sessions (expiry)", "DROP INDEX other_index"),
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			db := testdb.Memory(t)
			s := newStore(t, db)
			commit(t, s, "a", "alice|", inAnHour())
			commit(t, s, "b", "bob|", inAnHour())
			a := sessionContext(t, s, "a")
			if err := change(db, s); err != nil {
				t.Fatal(err)
			}
			// When this has ended, what was told before has been looked at.
			c := sessionContext(t, newStoreOf(t, db, s), "c")
			if err := db.Exec("DELETE FROM sessions WHERE token = 'c'"); err != nil {
				t.Fatal(err)
			}
			wantEnding(t, c, chaistore.ErrEnded)
			wantAlive(t, a)
			if err := s.Delete("a"); err != nil {
				t.Fatal(err)
			}
			wantDone(t, a, chaistore.ErrEnded)
		})
	}
}

// newStoreOf returns another store on db, after it has committed a session with the token c.
func newStoreOf(t *testing.T, db *chai.DB, s *chaistore.ChaiStore) *chaistore.ChaiStore {
	commit(t, s, "c", "", inAnHour())
	return newStore(t, db)
}

// While a transaction that deletes a session is open, its contexts go on, and new ones can
// be made. They end when it is committed, and not when it is rolled back. Meanwhile others
// end when their sessions expire.
func TestSessionContextBesideOpenTransaction(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		for _, before := range []bool{false, true} { // whether there was a context before
			t.Run(fmt.Sprint(end, before), func(t *testing.T) {
				testdb.Watchdog(t, time.Minute)
				synctest.Test(t, func(t *testing.T) {
					db := testdb.Memory(t)
					s := newStore(t, db)
					commit(t, s, "a", "", inAnHour())
					commit(t, s, "b", "", time.Now().Add(time.Minute))
					var contexts []context.Context
					if before {
						contexts = append(contexts, sessionContext(t, s, "a"))
					}
					b := sessionContext(t, s, "b")
					tx, err := db.Begin(true)
					if err != nil {
						t.Fatal(err)
					}
					defer tx.Rollback()
					err = errors.Join(tx.Exec(deleteA), tx.Exec("UPDATE sessions SET expiry = '2099-01-01T00:00:00Z' WHERE token = 'b'"), tx.Exec("SELECT * FROM sessions"))
					if err != nil {
						t.Fatal(err)
					}
					contexts = append(contexts, sessionContext(t, s, "a"))
					synctest.Wait()
					for _, ctx := range contexts {
						wantAlive(t, ctx)
					}
					wantAlive(t, b)
					time.Sleep(time.Minute)
					synctest.Wait()
					wantDone(t, b, chaistore.ErrEnded) // a find says that it is not there
					if end == "COMMIT" {
						err = tx.Commit()
					} else {
						err = tx.Rollback()
					}
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
					for _, ctx := range contexts {
						if end == "COMMIT" {
							wantDone(t, ctx, chaistore.ErrEnded)
						} else {
							wantAlive(t, ctx)
						}
					}
				})
			})
		}
	}
}

// The first store may be made while a transaction is open, whose changes it does not see.
func TestSessionContextBesideEarlierTransaction(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, insertA)
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	s := newStore(t, db)
	_, cancel := s.SessionContext(t.Context(), "a")
	cancel()
	a := sessionContext(t, s, "a")
	if err := tx.Exec(deleteA); err != nil {
		t.Fatal(err)
	}
	wantAlive(t, a)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	wantEnding(t, a, chaistore.ErrEnded)
}

// Without an active session, a context is done at once.
func TestSessionContextOfNoSession(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db)
	commit(t, s, "expired", "", anHourAgo())
	for _, token := range []string{"", "missing", "expired", strings.Repeat("x", 101), strings.Repeat("x", 1<<20)} {
		ctx, cancel := s.SessionContext(t.Context(), token)
		wantDone(t, ctx, chaistore.ErrEnded)
		cancel()
	}
	commit(t, s, "", "", inAnHour())
	wantDone(t, sessionContext(t, s, ""), chaistore.ErrEnded)

	errParent := errors.New("parent")
	commit(t, s, "a", "", inAnHour())
	parent, cancelParent := context.WithCancelCause(t.Context())
	ctx, cancel := s.SessionContext(parent, "a")
	defer cancel()
	wantAlive(t, ctx)
	cancelParent(errParent)
	wantDone(t, ctx, errParent)
	ctx, cancel = s.SessionContext(parent, "a")
	defer cancel()
	wantDone(t, ctx, errParent)

	ctx, cancel = s.SessionContext(t.Context(), "a")
	cancel()
	wantDone(t, ctx, context.Canceled)
	cancel()

	testdb.Exec(t, db, "DROP TABLE sessions")
	if ctx := sessionContext(t, s, "a"); ctx.Err() == nil || !strings.Contains(context.Cause(ctx).Error(), `table "sessions" does not exist`) {
		t.Errorf("without a table, the cause is %v", context.Cause(ctx))
	}
}

// When the database is closed, contexts end with that error.
func TestSessionContextOfClosedDatabase(t *testing.T) {
	for _, goroutines := range []int{1, 100} {
		db := testdb.Disk(t)
		s := newStore(t, db)
		commit(t, s, "a", "", inAnHour())
		var contexts []context.Context
		for range goroutines {
			contexts = append(contexts, sessionContext(t, s, "a"))
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		for _, ctx := range contexts {
			wantEnding(t, ctx, engine.ErrClosed)
		}
		wantDone(t, sessionContext(t, s, "a"), engine.ErrClosed)
	}
}

// A context ends when its session expires, at once, and not with a sweep. A commit, or SQL,
// moves that in both directions.
func TestSessionContextExpires(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		in := func(d time.Duration) time.Time { return time.Now().Add(d) }
		for i := range 10 { // in any order
			commit(t, s, fmt.Sprint(i), "", in(time.Duration(i*7%10+1)*time.Hour))
		}
		contexts := make([]context.Context, 10)
		for i := range contexts {
			contexts[i] = sessionContext(t, s, fmt.Sprint(i))
		}
		for hour := 1; hour <= 10; hour++ {
			time.Sleep(time.Hour - time.Nanosecond)
			for i, ctx := range contexts {
				if due := i*7%10 + 1; due < hour {
					wantDone(t, ctx, chaistore.ErrEnded)
				} else {
					wantAlive(t, ctx)
				}
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			for i, ctx := range contexts {
				if i*7%10+1 == hour {
					wantDone(t, ctx, chaistore.ErrEnded)
				}
			}
		}

		for name, move := range map[string]func(expiry time.Time) error{
			"Commit": func(expiry time.Time) error { return s.Commit("a", nil, expiry) },
			"SQL":    func(expiry time.Time) error { return db.Exec("UPDATE sessions SET expiry = ?", expiry) },
		} {
			commit(t, s, "a", "", in(time.Hour))
			ctx := sessionContext(t, s, "a")
			for _, d := range []time.Duration{3 * time.Hour, 2 * time.Hour, 30 * time.Minute} {
				if err := move(in(d)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(d / 2) // the former expiry may pass
				wantAlive(t, ctx)
			}
			time.Sleep(15*time.Minute - time.Nanosecond)
			wantAlive(t, ctx)
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if ctx.Err() == nil {
				t.Errorf("after %s, the context goes on after the expiry", name)
			}
		}
	})
}

// Contexts of a session that was put after its deletion go on.
func TestSessionContextOfSessionPutAgain(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	s := newStore(t, db)
	commit(t, s, "a", "", inAnHour())
	for range 200 {
		former := sessionContext(t, s, "a")
		if err := errors.Join(db.Exec(deleteA), db.Exec(insertA)); err != nil {
			t.Fatal(err)
		}
		next := sessionContext(t, s, "a")
		wantEnding(t, former, chaistore.ErrEnded)
		wantAlive(t, next)
		if err := s.Delete("a"); err != nil {
			t.Fatal(err)
		}
		wantDone(t, next, chaistore.ErrEnded)
		commit(t, s, "a", "", inAnHour())
	}
}

// Contexts take little memory and no goroutines, and give back what they take.
func TestSessionContextMemory(t *testing.T) {
	testdb.Long(t)
	testdb.WithoutRace(t)
	const contexts, sessions, mostBytes, mostGoroutines = 10_000, 100, 2000, 50
	s := newStore(t, testdb.Memory(t))
	for i := range sessions {
		commit(t, s, fmt.Sprint(i), "", inAnHour())
	}
	// The runtime keeps what goroutines have taken. As many as may be notified at once take it
	// before anything is measured.
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for range contexts {
		wg.Go(func() { <-begin })
	}
	close(begin)
	wg.Wait()
	for name, end := range map[string]func(cancels []context.CancelFunc, cancelParent context.CancelFunc){
		"canceled": func(cancels []context.CancelFunc, _ context.CancelFunc) {
			for _, cancel := range cancels {
				cancel()
			}
		},
		"end of their parent": func(_ []context.CancelFunc, cancelParent context.CancelFunc) { cancelParent() },
		"deleted": func([]context.CancelFunc, context.CancelFunc) {
			if n, err := s.DeleteFunc(context.Background(), func(chaistore.Session) bool { return true }); n != sessions || err != nil {
				t.Errorf("DeleteFunc = %d, %v", n, err)
			}
			for i := range sessions {
				commit(t, s, fmt.Sprint(i), "", inAnHour())
			}
		},
	} {
		heap := testdb.HeapInUse()
		for last := heap + 1<<20; heap < last-256<<10; { // databases of earlier tests may still be collected
			last, heap = heap, testdb.HeapInUse()
		}
		goroutines := runtime.NumGoroutine()
		parent, cancelParent := context.WithCancel(context.Background())
		var all []context.Context
		var cancels []context.CancelFunc
		for i := range contexts {
			ctx, cancel := s.SessionContext(parent, fmt.Sprint(i%sessions))
			ctx.Done() // whoever waits for it
			all, cancels = append(all, ctx), append(cancels, cancel)
		}
		used, running := (testdb.HeapInUse()-heap)/contexts, runtime.NumGoroutine()-goroutines
		t.Logf("%s: each context takes %d bytes, all %d goroutines", name, used, running)
		if used > mostBytes || running > mostGoroutines {
			t.Errorf("%s: each context takes %d bytes and all %d goroutines, want at most %d and %d", name, used, running, mostBytes, mostGoroutines)
		}
		if used < 100 {
			t.Errorf("%s: each context takes %d bytes: the measurement is wrong", name, used)
		}
		end(cancels, cancelParent)
		for _, ctx := range all {
			if ctx.Err() == nil {
				t.Fatalf("%s: a context goes on", name)
			}
		}
		clear(all)
		clear(cancels)
		cancelParent()
		left := testdb.HeapInUse() - heap - int64(cap(all)*16+cap(cancels)*8)
		t.Logf("%s: %d bytes are left", name, left)
		if most := int64(200_000); left > most {
			t.Errorf("%s: %d bytes are left, want at most %d", name, left, most)
		}
		if running := runtime.NumGoroutine() - goroutines; running > 2 {
			t.Errorf("%s: %d goroutines are left", name, running)
		}
		runtime.KeepAlive(all)
		runtime.KeepAlive(cancels)
	}
}

// StoredToken returns the token that the store has.
func TestStoredToken(t *testing.T) {
	for _, hash := range []bool{false, true} {
		s := newStore(t, testdb.Memory(t))
		manager := scs.New()
		manager.Store, manager.HashTokenInStore = s, hash
		var tokens []string
		var ended []bool
		handler := manager.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			token := chaistore.StoredToken(r.Context(), manager)
			ctx, cancel := s.SessionContext(r.Context(), token)
			defer cancel()
			tokens, ended = append(tokens, token), append(ended, ctx.Err() != nil)
			manager.Put(r.Context(), "user", "alice")
		}))
		first := httptest.NewRecorder()
		handler.ServeHTTP(first, httptest.NewRequest("GET", "/", nil))
		second := httptest.NewRequest("GET", "/", nil)
		second.AddCookie(first.Result().Cookies()[0])
		handler.ServeHTTP(httptest.NewRecorder(), second)
		if tokens[0] != "" || !ended[0] {
			t.Errorf("before the first commit, the token is %q, and the context ended is %v", tokens[0], ended[0])
		}
		all, err := s.All()
		if _, ok := all[tokens[1]]; !ok || ended[1] || err != nil {
			t.Errorf("HashTokenInStore=%v: the token %q is not that of a session (context ended: %v, %v)", hash, tokens[1], ended[1], err)
		}
		if hash == (tokens[1] == second.Cookies()[0].Value) {
			t.Errorf("HashTokenInStore=%v: the token is that of the cookie: %v", hash, !hash)
		}
	}
}
