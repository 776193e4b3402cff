package robustness

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// A backup made while sessions are committed has those that were acknowledged before,
// and Chai opens it without this library.
func TestBackup(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Disk(t)
	s := newStore(t, db, ownerInData)
	testdb.Exec(t, db, "CREATE TABLE notes (line TEXT)", "INSERT INTO notes (line) VALUES ('of the application')")
	for i := range 100 { // some of it in files that the copy shares
		commit(t, s, fmt.Sprintf("%03d", i), "alice|")
		if i == 50 {
			if err := db.DB.Store.DB().Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			commit(t, s, fmt.Sprintf("later-%03d", i%100), "bob|"+strings.Repeat("x", 10_000))
		}
	})
	for i := range 5 {
		dir := filepath.Join(t.TempDir(), "made", "of", "two")
		commit(t, s, "number", fmt.Sprint("|", i))
		if err := chaistore.Backup(t.Context(), db, dir); err != nil {
			t.Fatal(err)
		}
		restored, err := chai.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		testdb.Exec(t, restored, "CREATE TABLE later (line TEXT)", "DROP TABLE later") // has no rows of another table
		if n := testdb.Count(t, restored, "SELECT COUNT(*) FROM sessions WHERE data = ?", []byte("alice|")); n != 100 {
			t.Errorf("the backup has %d sessions of alice, want 100", n)
		}
		if n := testdb.Count(t, restored, "SELECT COUNT(*) FROM notes"); n != 1 {
			t.Errorf("the backup has %d notes, want 1", n)
		}
		wantFound(t, newStore(t, restored, ownerInData), "number", fmt.Sprint("|", i))
		testdb.CheckOwners(t, restored, ownerInData, false)
		if err := restored.Close(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
}

// Nobody else can enter a backup, whatever the modes of its files.
func TestBackupIsPrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	db := testdb.Disk(t)
	newStore(t, db, nil)
	made := filepath.Join(t.TempDir(), "made")
	if err := os.Mkdir(made, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(t.TempDir(), "new"), made} {
		if err := chaistore.Backup(t.Context(), db, dir); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s has the mode %v, want drwx------ (%v)", dir, info.Mode(), err)
		}
	}
}

func TestBackupRefuses(t *testing.T) {
	closed, onDisk, inMemory := testdb.Disk(t), testdb.Disk(t), testdb.Memory(t)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	full := t.TempDir()
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		db   *chai.DB
		dir  string
		want string
	}{
		"no database":    {nil, filepath.Join(t.TempDir(), "new"), "nil"},
		"empty handle":   {new(chai.DB), filepath.Join(t.TempDir(), "new"), "nil"},
		"closed":         {closed, filepath.Join(t.TempDir(), "new"), "closed"},
		"in memory":      {inMemory, filepath.Join(t.TempDir(), "new"), "in memory"},
		"full directory": {onDisk, full, "pass a directory that is empty"},
		"file":           {onDisk, file, "not a directory"},
		"no directory":   {onDisk, "", "pass the path of a directory"},
		"ended context":  {onDisk, filepath.Join(t.TempDir(), "new"), "context canceled"},
		"already a backup": {onDisk, func() string {
			dir := filepath.Join(t.TempDir(), "backup")
			if err := chaistore.Backup(t.Context(), onDisk, dir); err != nil {
				t.Fatal(err)
			}
			return dir
		}(), "pass a directory that is empty"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if test.want == "context canceled" {
			cancel()
		}
		err := chaistore.Backup(ctx, test.db, test.dir)
		cancel()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Backup = %v, want an error that says %q", name, err, test.want)
		}
		if _, err := os.Stat(test.dir); filepath.Base(test.dir) == "new" && err == nil {
			t.Errorf("%s: Backup left a directory behind", name)
		}
	}
}

// Of several backups to one directory, one succeeds, and the others don't spoil it.
func TestBackupsToOneDirectory(t *testing.T) {
	db := testdb.Disk(t)
	commit(t, newStore(t, db, nil), "alice", "one")
	dir := filepath.Join(t.TempDir(), "backup")
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = chaistore.Backup(t.Context(), db, dir) })
	}
	wg.Wait()
	succeeded := 0
	for _, err := range errs {
		if err == nil {
			succeeded++
		}
	}
	if succeeded != 1 {
		t.Errorf("%d of %d backups to one directory succeeded, want 1: %v", succeeded, len(errs), errs)
	}
	restored, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	wantFound(t, newStore(t, restored, nil), "alice", "one")
}

// A backup must not be in the directory of its database, whatever the name of that.
func TestBackupRefusesOwnDirectory(t *testing.T) {
	dir := t.TempDir()
	db := testdb.Open(t, dir)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Skip(err)
	}
	before, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{dir, link} {
		for _, to := range []string{"", "pebble", "backup", filepath.Join("pebble", "backup"), filepath.Join("back", "up")} {
			to := filepath.Join(in, to)
			if err := chaistore.Backup(t.Context(), db, to); err == nil || !strings.Contains(err.Error(), "pass a directory outside the database's own") {
				t.Errorf("Backup to %s = %v, want an error that says what to do", to, err)
			}
		}
	}
	if after, err := filepath.Glob(filepath.Join(dir, "*", "*")); len(after) != len(before) || err != nil {
		t.Errorf("there are %q in the database's directory (%v), want %q", after, err, before)
	}
	t.Chdir(dir)
	if err := chaistore.Backup(t.Context(), db, "backup"); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("Backup to a relative path = %v, want an error", err)
	}
}

// Overwriting all files of a copy, as shred does, does no harm to the database.
func TestBackupSharesNoFile(t *testing.T) {
	dir := t.TempDir()
	db, err := chaistore.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, db, nil)
	const sessions = 1000
	for i := range sessions {
		commit(t, s, fmt.Sprint(i), strings.Repeat("x", 100))
	}
	if err := db.DB.Store.DB().Flush(); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if err := chaistore.Backup(t.Context(), db, backup); err != nil {
		t.Fatal(err)
	}
	overwritten := 0
	err = filepath.WalkDir(backup, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		overwritten++
		_, err = f.Write(make([]byte, info.Size()))
		return err
	})
	if err != nil || overwritten < 4 {
		t.Fatalf("%d files were overwritten (%v), want at least 4", overwritten, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = chaistore.Open(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s = newStore(t, db, nil)
	for i := range sessions {
		wantFound(t, s, fmt.Sprint(i), strings.Repeat("x", 100))
	}
}

// A restored copy has the sessions that were ended after it was made.
func TestRestoredBackupHasEndedSessions(t *testing.T) {
	db := testdb.Disk(t)
	s := newStore(t, db, nil)
	commit(t, s, "alice", "one")
	dir := filepath.Join(t.TempDir(), "backup")
	if err := chaistore.Backup(t.Context(), db, dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete("alice"); err != nil {
		t.Fatal(err)
	}
	restored, err := chaistore.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	wantFound(t, newStore(t, restored, nil), "alice", "one")
}
