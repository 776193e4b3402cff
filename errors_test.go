package chaistore_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// callsOf returns all calls of a store that return errors, by name.
func callsOf(ctx context.Context, s *chaistore.ChaiStore) map[string]func() error {
	long := strings.Repeat("x", 101)
	return map[string]func() error{
		"Find":             func() error { _, _, err := s.Find("alice"); return err },
		"FindCtx":          func() error { _, _, err := s.FindCtx(ctx, "alice"); return err },
		"Find missing":     func() error { _, _, err := s.Find("nobody"); return err },
		"Find long":        func() error { _, _, err := s.Find(long); return err },
		"Commit":           func() error { return s.Commit("alice", nil, inAnHour()) },
		"CommitCtx":        func() error { return s.CommitCtx(ctx, "alice", nil, inAnHour()) },
		"Commit long":      func() error { return s.Commit(long, nil, inAnHour()) },
		"Commit large":     func() error { return s.Commit("alice", make([]byte, 16<<20+1), inAnHour()) },
		"Commit of nobody": func() error { return s.Commit("alice", []byte(long+"|"), inAnHour()) },
		"Delete":           func() error { return s.Delete("alice") },
		"DeleteCtx":        func() error { return s.DeleteCtx(ctx, "alice") },
		"Delete long":      func() error { return s.Delete(long) },
		"All":              func() error { _, err := s.All(); return err },
		"AllCtx":           func() error { _, err := s.AllCtx(ctx); return err },
		"Sessions":         func() error { return lastError(s.Sessions(ctx)) },
		"SessionsOf":       func() error { return lastError(s.SessionsOf(ctx, "alice")) },
		"SessionsOf long":  func() error { return lastError(s.SessionsOf(ctx, long)) },
		"DeleteFunc": func() error {
			_, err := s.DeleteFunc(ctx, func(chaistore.Session) bool { return true })
			return err
		},
		"DeleteOf":      func() error { _, err := s.DeleteOf(ctx, "alice"); return err },
		"DeleteExpired": func() error { _, err := s.DeleteExpired(ctx); return err },
		"Err":           func() error { return s.Err() },
	}
}

func lastError(sessions func(func(chaistore.Session, error) bool)) (last error) {
	for _, err := range sessions {
		last = err
	}
	return last
}

// Every call on a closed database returns ErrClosed, whichever is the first, and even one
// that would fail or do nothing anyway.
func TestErrClosed(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for name, open := range map[string]func(testing.TB) *chai.DB{"memory": testdb.Memory, "disk": testdb.Disk} {
		for _, first := range slices.Sorted(maps.Keys(callsOf(t.Context(), nil))) {
			t.Run(name+"/"+first, func(t *testing.T) {
				if name == "disk" && first != "Find" {
					testdb.Slow(t)
				}
				t.Parallel()
				db := open(t)
				s := newOwnerStore(t, db)
				withoutOwner := newStore(t, db)
				commit(t, s, "alice", "alice|", inAnHour())
				wantFound(t, s, "alice", "alice|")
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				calls := callsOf(t.Context(), s)
				if err := calls[first](); !errors.Is(err, chaistore.ErrClosed) || !strings.HasPrefix(err.Error(), "chaistore: ") {
					t.Errorf("%s = %v, want %v", first, err, chaistore.ErrClosed)
				}
				maps.Copy(calls, map[string]func() error{
					"Update":        func() error { return chaistore.Update(t.Context(), db, func(*chai.Tx) error { return nil }) },
					"Backup":        func() error { return chaistore.Backup(t.Context(), db, filepath.Join(t.TempDir(), "new")) },
					"NewWithConfig": func() error { _, err := chaistore.NewWithConfig(db, chaistore.Config{}); return err },
					"New":           func() error { _, _, err := chaistore.NewWithCleanupInterval(db, 0).Find("alice"); return err },
					"DeleteOf without an Owner": func() error {
						_, err := withoutOwner.DeleteOf(t.Context(), "alice")
						return err
					},
				})
				for name, call := range calls {
					if err := call(); !errors.Is(err, chaistore.ErrClosed) || !strings.HasPrefix(err.Error(), "chaistore: ") {
						t.Errorf("after that, %s = %v, want %v", name, err, chaistore.ErrClosed)
					}
				}
				s.StopCleanup()
			})
		}
	}
}

// What waits too long for its turn returns ErrBusy, which names the remedy first. When the
// hang ends, all is as before.
func TestErrBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newOwnerStore(t, db)
		commit(t, s, "alice", "alice|", inAnHour())
		writes := callsOf(t.Context(), s)
		for name := range writes {
			switch name {
			case "Commit", "CommitCtx", "Delete", "DeleteCtx", "DeleteFunc", "DeleteOf", "Err":
			default:
				delete(writes, name)
			}
		}
		writes["Update"] = func() error { return chaistore.Update(t.Context(), db, func(*chai.Tx) error { return nil }) }
		lock := chaistore.WriteLock(db)
		lock.Lock()
		if err := s.Err(); err != nil {
			t.Errorf("Err = %v before anything hangs, want nil", err)
		}
		start := time.Now()
		if err := s.Commit("alice", nil, inAnHour()); !errors.Is(err, chaistore.ErrBusy) {
			t.Errorf("Commit = %v, want %v", err, chaistore.ErrBusy)
		}
		if got, want := s.Stats().BusySince, start.Add(10*time.Second); !got.Equal(want) {
			t.Errorf("BusySince = %v, want %v", got, want)
		}
		for name, write := range writes {
			began := time.Now()
			err := write()
			if d := time.Since(began); !errors.Is(err, chaistore.ErrBusy) || !strings.HasPrefix(err.Error(), "chaistore: ") || d > 0 {
				t.Errorf("%s = %v after %v, want %v at once", name, err, d, chaistore.ErrBusy)
			}
		}
		wantFound(t, s, "alice", "alice|")
		if text := chaistore.ErrBusy.Error(); !strings.HasPrefix(text, "the database is busy: in handlers, write with chaistore.Update") {
			t.Errorf("ErrBusy begins with %.70q, want the remedy", text)
		}
		lock.Unlock()
		synctest.Wait()
		for name, write := range writes {
			if err := write(); err != nil {
				t.Errorf("afterwards, %s = %v, want nil", name, err)
			}
		}
	})
}

// Err says what a commit would.
func TestErrOfTable(t *testing.T) {
	db := testdb.Memory(t)
	s := chaistore.NewWithCleanupInterval(db, 0)
	for range 2 {
		commitErr, err := s.Commit("alice", nil, inAnHour()), s.Err()
		if commitErr == nil || err == nil || !strings.Contains(err.Error(), `"sessions" does not exist: create it, for example with Config.CreateTable`) {
			t.Fatalf("without a table, Commit = %v, Err = %v; want errors that say what to do", commitErr, err)
		}
		testdb.Exec(t, db, testdb.CreateTable)
		commit(t, s, "alice", "one", inAnHour())
		if err := s.Err(); err != nil {
			t.Fatalf("Err = %v, want nil", err)
		}
		testdb.Exec(t, db, "DROP TABLE sessions")
	}
}

// All calls of the zero ChaiStore return an error that says what to do.
func TestZeroChaiStore(t *testing.T) {
	var s chaistore.ChaiStore
	for name, call := range callsOf(t.Context(), &s) {
		if err := call(); err == nil || !strings.HasPrefix(err.Error(), "chaistore: ") || !strings.Contains(err.Error(), "NewWithConfig") {
			t.Errorf("%s = %v, want an error that says what to do", name, err)
		}
	}
	if got := s.Stats(); got.WriteError == "" {
		t.Errorf("Stats = %+v, want a WriteError", got)
	}
	ctx, cancel := s.SessionContext(t.Context(), "token")
	defer cancel()
	if err := context.Cause(ctx); err == nil || !strings.Contains(err.Error(), "NewWithConfig") {
		t.Errorf("the cause of SessionContext = %v, want an error that says what to do", err)
	}
	s.StopCleanup()
}

// A nil database or function is an error where there is one to return, and otherwise a
// panic with a text.
func TestNilArguments(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db)
	for name, nilDB := range map[string]*chai.DB{"nil": nil, "empty": new(chai.DB)} {
		for call, err := range map[string]error{
			"NewWithConfig": func() error { _, err := chaistore.NewWithConfig(nilDB, chaistore.Config{}); return err }(),
			"Update":        chaistore.Update(t.Context(), nilDB, func(*chai.Tx) error { return nil }),
		} {
			if err == nil || !strings.HasPrefix(err.Error(), "chaistore: the database is nil: ") {
				t.Errorf("%s with a handle that is %s: %v, want an error that says so", call, name, err)
			}
		}
		wantPanic(t, "chaistore: the database is nil: ", func() { chaistore.New(nilDB) })
		wantPanic(t, "chaistore: the database is nil: ", func() { chaistore.NewWithCleanupInterval(nilDB, time.Minute) })
		wantPanic(t, "chaistore: the database is nil: ", func() { chaistore.WriteLock(nilDB) })
	}
	if err := chaistore.Update(t.Context(), db, nil); err == nil || !strings.HasPrefix(err.Error(), "chaistore: ") {
		t.Errorf("Update with a nil function = %v, want an error that says so", err)
	}
	commit(t, s, "alice", "one", inAnHour())
	if n, err := s.DeleteFunc(t.Context(), nil); n != 0 || err == nil || !strings.HasPrefix(err.Error(), "chaistore: ") {
		t.Errorf("DeleteFunc with a nil function = %d, %v; want 0 and an error that says so", n, err)
	}
	wantPanic(t, "chaistore: the codec is nil: ", func() { chaistore.OwnerByKey(nil, "user") })
	wantPanic(t, "chaistore: the session manager is nil: ", func() { chaistore.LoadAndSave(nil, http.NotFoundHandler()) })
	wantPanic(t, "chaistore: the handler is nil: ", func() { chaistore.LoadAndSave(scs.New(), nil) })
	wantPanic(t, "chaistore: the codec is nil: ", func() { chaistore.OwnerByKey(new(scs.SessionManager).Codec, "user") })
}

func wantPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if text, ok := recover().(string); !ok || !strings.HasPrefix(text, want) {
			t.Errorf("panic with %q, want %q", text, want)
		}
	}()
	f()
}

// Errors of Update begin with the name of the package, but for those of its function,
// which are its own.
func TestErrorsOfUpdate(t *testing.T) {
	db := testdb.Memory(t)
	own := errors.New("of the application")
	if err := chaistore.Update(t.Context(), db, func(*chai.Tx) error { return own }); err != own {
		t.Errorf("Update = %v, want %v itself", err, own)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"ended context":     chaistore.Update(ctx, db, func(*chai.Tx) error { return nil }),
		"ended transaction": chaistore.Update(t.Context(), db, func(tx *chai.Tx) error { return tx.Commit() }),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "chaistore: update: ") {
			t.Errorf("%s: Update = %v, want an error that begins with chaistore: update", name, err)
		}
	}
}

// Each error says what to do.
func TestErrorsNameTheRemedy(t *testing.T) {
	db := testdb.Memory(t)
	unreadable := newStoreWith(t, db, chaistore.Config{
		RememberEnded: time.Minute,
		Owner:         func([]byte) (string, error) { return "", errors.New("unreadable") },
	})
	commit(t, unreadable, "alice", "one", inAnHour())
	_, withoutOwner := newStore(t, db).DeleteOf(t.Context(), "alice")
	_, unread := unreadable.DeleteOf(t.Context(), "alice")
	tooLong := newOwnerStore(t, db).Commit("bob", []byte(strings.Repeat("x", 101)+"|"), inAnHour())
	if err := unreadable.Delete("alice"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		err, is error
		want    string
	}{
		{chaistore.ErrClosed, chaistore.ErrClosed, "open it again and make a new store"},
		{chaistore.ErrBusy, chaistore.ErrBusy, "write with chaistore.Update"},
		{chaistore.ErrReadOnly, chaistore.ErrReadOnly, "free space on its disk, or check the disk, and restart"},
		{unreadable.Commit(strings.Repeat("x", 101), nil, inAnHour()), chaistore.ErrTokenTooLong, "use SCS's tokens"},
		{unreadable.Commit("bob", make([]byte, 16<<20+1), inAnHour()), chaistore.ErrDataTooLarge, "keep large values elsewhere"},
		{unreadable.Commit("alice", nil, inAnHour()), chaistore.ErrEnded, "send its visitor to the sign-in page"},
		{tooLong, chaistore.ErrOwnerTooLong, "return a shorter one from Config.Owner"},
		{withoutOwner, withoutOwner, "set Config.Owner, for example to chaistore.OwnerByKey"},
		{unread, unread, "end such sessions with DeleteFunc"},
	} {
		if !errors.Is(test.err, test.is) || test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("got %v, want %v, which says %q", test.err, test.is, test.want)
		}
	}
}

// Numbers without their units are refused, with the value that was given.
func TestSenselessConfig(t *testing.T) {
	db := testdb.Memory(t)
	for want, cfg := range map[string]chaistore.Config{
		"chaistore: the interval of the cleanup is 5ns: ":       {CleanupInterval: 5},
		"chaistore: the interval of the cleanup is 999.999µs: ": {CleanupInterval: time.Millisecond - 1},
		"chaistore: Config.RememberEnded is 600ns: ":            {RememberEnded: 600},
		"chaistore: Config.RememberEnded is 999.999µs: ":        {RememberEnded: time.Millisecond - 1},
		"chaistore: Config.RememberEnded is -1m0s: ":            {RememberEnded: -time.Minute},
		"chaistore: Config.Memory is 64 bytes: ":                {Memory: 64},
		"chaistore: Config.Memory is 999999 bytes: ":            {Memory: 999_999},
	} {
		cfg.CreateTable = true
		if s, err := chaistore.NewWithConfig(db, cfg); s != nil || err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("NewWithConfig = %v, want an error that says %q", err, want)
		}
	}
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM __chai_catalog WHERE name = 'sessions'"); n != 0 {
		t.Error("NewWithConfig has created a table")
	}
	for _, cfg := range []chaistore.Config{
		{CleanupInterval: time.Millisecond}, {CleanupInterval: -1}, {RememberEnded: time.Millisecond}, {Memory: 1_000_000}, {Memory: -1},
	} {
		cfg.CreateTable = true
		s, err := chaistore.NewWithConfig(db, cfg)
		if err != nil {
			t.Errorf("NewWithConfig(%+v) = %v, want nil", cfg, err)
			continue
		}
		s.StopCleanup()
	}
	wantPanic(t, "chaistore: the interval of the cleanup is 30ns: ", func() { chaistore.NewWithCleanupInterval(db, 30) })
}

// The example of a health check gives a busy database a minute, and no other failure any
// time.
func TestHealthz(t *testing.T) {
	want := func(s *chaistore.ChaiStore, status int, text string) {
		t.Helper()
		response := httptest.NewRecorder()
		healthz(s)(response, httptest.NewRequest("GET", "/healthz", nil))
		if response.Code != status || !strings.Contains(response.Body.String(), text) {
			t.Errorf("/healthz answers %d %q, want %d %q", response.Code, response.Body, status, text)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		want(s, 200, "ok")
		lock := chaistore.WriteLock(db)
		lock.Lock()
		go s.Commit("alice", nil, inAnHour())
		time.Sleep(10*time.Second + time.Millisecond)
		want(s, 200, "busy")
		time.Sleep(59 * time.Second)
		want(s, 200, "busy")
		time.Sleep(time.Second)
		want(s, 503, "write with chaistore.Update")
		lock.Unlock()
		synctest.Wait()
		want(s, 200, "ok")
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		want(s, 503, "the database is closed")
	})
}

// A health check learns of a hang that no store has met.
func TestErrNoticesAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		lock := chaistore.WriteLock(db)
		lock.Lock()
		for range 100 {
			if err := s.Err(); err != nil {
				t.Errorf("Err = %v at first, want nil", err)
			}
		}
		time.Sleep(11 * time.Second)
		if err := s.Err(); !errors.Is(err, chaistore.ErrBusy) {
			t.Errorf("Err = %v while the write lock is held, want %v", err, chaistore.ErrBusy)
		}
		lock.Unlock()
		synctest.Wait()
		if err := s.Err(); err != nil {
			t.Errorf("Err = %v after the hang, want nil", err)
		}
		if fsyncs := s.Stats().Fsyncs; fsyncs != 0 {
			t.Errorf("Err took %d fsyncs", fsyncs)
		}
	})
}

// A find on a closed database says so, also if its table does not exist.
func TestClosedWithoutTable(t *testing.T) {
	db, err := chai.Open(":memory:")
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s := chaistore.New(db)
	defer s.StopCleanup()
	for name, call := range callsOf(t.Context(), s) {
		if err := call(); !errors.Is(err, chaistore.ErrClosed) {
			t.Errorf("%s = %v, want %v", name, err, chaistore.ErrClosed)
		}
	}
}
