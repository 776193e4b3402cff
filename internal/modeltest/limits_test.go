package modeltest

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// The disk fails while NewWithConfig creates the tables. It returns the error, and the next
// call does, too.
func TestDiskFailsInNewWithConfig(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for _, op := range []string{"write", "sync"} {
		for after := range 4 {
			dir := t.TempDir()
			disk := testdb.NewFaultDisk(dir + "/pebble")
			db := openFaultDisk(t, disk, dir)
			if _, err := chaistore.NewWithConfig(db, chaistore.Config{TableName: "other", CreateTable: true, CleanupInterval: -1}); err != nil {
				t.Fatal(err)
			}
			fault := &testdb.Fault{Op: op, File: ".log", Err: syscall.EIO, After: after, Times: math.MaxInt}
			disk.Break(fault)
			for range 3 {
				s, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, CleanupInterval: -1, Owner: ownerInData})
				if fault.HasStruck() && fault.Failed() > 0 && (err == nil || s != nil) {
					t.Errorf("%s after %d: NewWithConfig = %v, %v; want an error", op, after, s, err)
				}
			}
			_ = db.Close()
		}
	}
}

// SQL adds rows with tokens that are too long for a session. Sweeps and listings pass over
// them, and all else goes on.
func TestRowsThatAreNoSessions(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{})
	want := make(map[string]string)
	for i := range 50 {
		token := fmt.Sprintf("%02d", i)
		want[token] = token
		commit(t, s, token, token, inAnHour())
	}
	for _, length := range []int{101, 127, 128, 300, 20_000} {
		for _, first := range []string{"0", "25", "z"} {
			token := first + strings.Repeat("x", length-len(first))
			testdb.Exec(t, db, fmt.Sprintf("INSERT INTO sessions (token, data, expiry) VALUES ('%s', '\\x00', '2001-01-01T00:00:00Z')", token))
		}
	}
	for range 3 {
		if n, err := s.DeleteExpired(t.Context()); n != 0 || err != nil {
			t.Errorf("DeleteExpired = %d, %v; want 0, nil", n, err)
		}
		wantAll(t, s, want)
		for token, data := range want {
			wantFound(t, s, token, data)
		}
		commit(t, s, "25", "25", inAnHour())
	}
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != 65 {
		t.Errorf("got %d rows, want 65", n)
	}
}

// A database in memory can't be backed up, and nothing is left of the attempt.
func TestBackupOfMemory(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{})
	for i := range 1000 {
		commit(t, s, fmt.Sprint(i), strings.Repeat("x", 1000), inAnHour())
	}
	before := testdb.HeapInUse()
	for i := range 20 {
		if err := chaistore.Backup(t.Context(), db, fmt.Sprint(t.TempDir(), "/", i)); err == nil || !strings.Contains(err.Error(), "in memory") {
			t.Errorf("Backup = %v, want an error that says that the database is in memory", err)
		}
	}
	if n := testdb.HeapInUse() - before; n > 5<<20 {
		t.Errorf("20 backups have left %d bytes", n)
	}
}

// Right after Close, without any other call, Stats says that writes don't work.
func TestStatsAfterClose(t *testing.T) {
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.Stats().WriteError; !strings.Contains(got, "closed") {
		t.Errorf("WriteError = %q, want one that says that the database is closed", got)
	}
	if _, _, err := s.Find("a"); err == nil || errors.Unwrap(err) == nil {
		t.Errorf("Find = %v, want an error that wraps one", err)
	}
}
