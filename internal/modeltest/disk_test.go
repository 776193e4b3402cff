package modeltest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

var opening sync.Mutex // for vfs.Default, and because of a race in Chai

// openFaultDisk opens the database in a directory of a file system.
func openFaultDisk(t *testing.T, fs vfs.FS, dir string) *chai.DB {
	t.Helper()
	opening.Lock()
	defer opening.Unlock()
	former := vfs.Default
	vfs.Default = engine.OnDisk(fs)
	defer func() { vfs.Default = former }()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatalf("open database: %v", err)
	}
	return db
}

// The disk becomes full in an application's transaction that has written out changes
// of sessions and their owners. Update returns, and everything is read as committed
// at once, now and after a restart.
func TestDiskFullInUpdate(t *testing.T) {
	large := make([]byte, 20_000)
	rand.NewChaCha8([32]byte{}).Read(large)
	exec := func(tx *chai.Tx, sql string, args ...any) {
		if err := tx.Exec(sql, args...); err != nil {
			panic(err)
		}
	}
	errNo := errors.New("no")
	for name, test := range map[string]struct {
		full    func(tx *chai.Tx) error // goes on after the disk is full
		want    error                   // of Update, or its panic
		isPanic bool
	}{
		"large inserts": {func(tx *chai.Tx) error {
			for i := range 100 {
				exec(tx, "INSERT INTO app (k, v) VALUES (?, ?)", i, large)
			}
			return nil
		}, syscall.ENOSPC, false},
		"reads of what was written": {func(tx *chai.Tx) error {
			for i := range 10_000 {
				exec(tx, "INSERT INTO app (k, v) VALUES (?, ?)", i, large[:2000])
				row, err := tx.QueryRow("SELECT v FROM app WHERE k = ?", i)
				if err != nil || row == nil { // what is written is dropped now
					return errNo
				}
			}
			return nil
		}, errNo, false},
		"commit":   {func(*chai.Tx) error { return nil }, syscall.ENOSPC, false},
		"rollback": {func(*chai.Tx) error { return errNo }, errNo, false},
		"panic":    {func(*chai.Tx) error { panic(errNo) }, errNo, true},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			dir := t.TempDir()
			disk := testdb.NewFaultDisk(dir + "/pebble")
			db := openFaultDisk(t, disk, dir)
			s := newStore(t, db, chaistore.Config{Owner: ownerInData})
			testdb.Exec(t, db, "CREATE TABLE app (k INTEGER PRIMARY KEY, v BLOB NOT NULL)")
			want := make(map[string]string)
			var alice []string
			expiry := inAnHour()
			for i := range 20 {
				token := fmt.Sprintf("s%02d", i)
				want[token] = fmt.Sprintf("alice|%d", i)
				alice = append(alice, token)
				commit(t, s, token, want[token], expiry)
			}

			err := func() (err error) {
				defer func() {
					if r := recover(); r != nil {
						if !test.isPanic {
							t.Errorf("Update panicked: %v", r)
						}
						err = r.(error)
					} else if test.isPanic {
						t.Errorf("Update = %v, want a panic", err)
					}
				}()
				return chaistore.Update(t.Context(), db, func(tx *chai.Tx) error {
					// New, changed and deleted sessions: first, last, and between.
					for _, token := range []string{"a", "s05x", "z"} {
						exec(tx, "INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", token, []byte("alice|new"), expiry)
						exec(tx, "INSERT INTO sessions_owners (owner, token) VALUES (?, ?)", "alice", token)
					}
					for _, token := range []string{"s00", "s07", "s19"} {
						exec(tx, "DELETE FROM sessions WHERE token = ?", token)
						exec(tx, "DELETE FROM sessions_owners WHERE token = ?", token)
					}
					for _, token := range []string{"s01", "s08", "s18"} {
						exec(tx, "UPDATE sessions SET data = ? WHERE token = ?", []byte("bob|new"), token)
						exec(tx, "UPDATE sessions_owners SET owner = ? WHERE token = ?", "bob", token)
					}
					if _, err := tx.QueryRow("SELECT token FROM sessions"); err != nil { // writes out the rest
						return err
					}
					disk.Break(&testdb.Fault{Op: "write", Err: syscall.ENOSPC, Times: math.MaxInt})
					return test.full(tx)
				})
			}()
			if !errors.Is(err, test.want) {
				t.Errorf("Update = %v, want %v", err, test.want)
			}

			wantCommitted := func() {
				t.Helper()
				began := time.Now()
				for _, token := range []string{"a", "s05x", "z"} {
					wantMissing(t, s, token)
				}
				for token, data := range want {
					wantFound(t, s, token, data)
				}
				wantAll(t, s, want)
				wantTokensOf(t, s, "alice", alice...)
				wantTokensOf(t, s, "bob")
				var tokens []string
				for session, err := range s.Sessions(t.Context()) {
					if err != nil {
						t.Error(err)
					}
					tokens = append(tokens, session.Token)
				}
				if !slices.Equal(tokens, alice) {
					t.Errorf("Sessions = %q, want %q", tokens, alice)
				}
				if d := time.Since(began); d > 2*time.Second {
					t.Errorf("reading took %v, want less than 2s", d)
				}
			}
			wantCommitted()
			if test.want == syscall.ENOSPC && !errors.Is(err, chaistore.ErrReadOnly) {
				t.Errorf("Update = %v, want %v", err, chaistore.ErrReadOnly)
			}
			for name, err := range map[string]error{
				"Delete": s.Delete("s00"),
				"Update": chaistore.Update(t.Context(), db, func(*chai.Tx) error { return nil }),
				"Err":    s.Err(),
			} {
				if !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, chaistore.ErrReadOnly) {
					t.Errorf("%s = %v, want %v with %v", name, err, chaistore.ErrReadOnly, syscall.ENOSPC)
				}
			}
			if got := s.Stats(); !strings.Contains(got.WriteError, "free space on its disk") || !got.BusySince.IsZero() {
				t.Errorf("WriteError = %q and BusySince = %v; want the remedy, and the zero time", got.WriteError, got.BusySince)
			}
			wantCommitted()
			_ = db.Close()

			disk.Mend()
			db = openFaultDisk(t, disk, dir)
			s = newStore(t, db, chaistore.Config{Owner: ownerInData})
			wantCommitted()
			commit(t, s, "more", "bob|", expiry)
			if err := db.Close(); err != nil {
				t.Errorf("Close = %v, want nil", err)
			}
		})
	}
}

// While Chai undoes a transaction, and has to wait for the disk, sessions are read as
// they were before it, at once.
func TestReadWhileMuchIsUndone(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	dir := t.TempDir()
	disk := testdb.NewFaultDisk(dir + "/pebble")
	db := openFaultDisk(t, disk, dir)
	s := newStore(t, db, chaistore.Config{Owner: ownerInData})
	commit(t, s, "token", "alice|old", inAnHour())
	large := make([]byte, 1<<20)
	testdb.Exec(t, db, "CREATE TABLE app (k INTEGER PRIMARY KEY, v BLOB)")
	for k := range 4 {
		if err := db.Exec("INSERT INTO app (k, v) VALUES (?, ?)", -k, large); err != nil {
			t.Fatal(err)
		}
	}

	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	for k := range 3000 {
		if err := tx.Exec("INSERT INTO app (k) VALUES (?)", k+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		tx.Exec("UPDATE app SET v = ? WHERE k <= 0", []byte("new")),
		tx.Exec("UPDATE sessions SET data = ?", []byte("bob|new")),
		tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", "bob's", []byte("bob|new"), inAnHour()),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.QueryRow("SELECT token FROM sessions"); err != nil { // writes out the rest
		t.Fatal(err)
	}
	// To put the large rows back, Pebble begins a new log, and waits for a file.
	fault := &testdb.Fault{Op: "create", File: ".log", Err: syscall.EMFILE, Times: math.MaxInt}
	disk.Break(fault)
	done := make(chan error)
	go func() { done <- tx.Rollback() }()
	for fault.Failed() == 0 {
		time.Sleep(time.Millisecond)
	}

	const limit = 2 * time.Second
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		began := time.Now()
		data, found, err := s.FindCtx(ctx, "token")
		if err != nil || !found || string(data) != "alice|old" {
			t.Errorf("FindCtx = %q, %v, %v; want alice|old, true, nil", data, found, err)
		}
		wantMissing(t, s, "bob's")
		all, err := s.AllCtx(ctx)
		if err != nil || len(all) != 1 || string(all["token"]) != "alice|old" {
			t.Errorf("AllCtx = %q, %v; want one session", all, err)
		}
		wantTokensOf(t, s, "alice", "token")
		wantTokensOf(t, s, "bob")
		if d := time.Since(began); d > limit {
			t.Errorf("reading took %v, want less than %v", d, limit)
		}
		cancel()
		if _, err := s.AllCtx(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("AllCtx = %v, want %v", err, context.Canceled)
		}
	}
	select {
	case err := <-done:
		t.Fatalf("Rollback returned %v too early", err)
	default:
	}
	disk.Mend()
	if err := <-done; err != nil {
		t.Errorf("Rollback: %v", err)
	}
	wantFound(t, s, "token", "alice|old")
	commit(t, s, "token", "bob|1", inAnHour())
	wantTokensOf(t, s, "bob", "token")
	if err := db.Close(); err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
}
