package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore/internal/testdb"
)

// A hookedDisk is a file system that calls a function before each operation of a backup,
// which is one on a file or a directory outside the database.
type hookedDisk struct {
	vfs.FS
	hook *atomic.Pointer[func(op, name string) error]
}

func (d hookedDisk) before(op, name string) error {
	if hook := d.hook.Load(); hook != nil {
		return (*hook)(op, name)
	}
	return nil
}

func (d hookedDisk) Create(name string) (vfs.File, error) {
	if err := d.before("create", name); err != nil {
		return nil, err
	}
	f, err := d.FS.Create(name)
	return hookedFile{f, d, name}, err
}

func (d hookedDisk) OpenDir(name string) (vfs.File, error) {
	if err := d.before("open", name); err != nil {
		return nil, err
	}
	f, err := d.FS.OpenDir(name)
	return hookedFile{f, d, name}, err
}

func (d hookedDisk) Link(oldname, newname string) error {
	return errors.Join(d.before("link", newname), d.FS.Link(oldname, newname))
}

type hookedFile struct {
	vfs.File
	d    hookedDisk
	name string
}

func (f hookedFile) Write(p []byte) (int, error) {
	if err := f.d.before("write", f.name); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f hookedFile) Sync() error { return errors.Join(f.d.before("sync", f.name), f.File.Sync()) }

// newHookedDB returns a database on disk with rows in sstables and in the log, and a
// function that has a hook called for the operations of backups to directories in another
// one.
func newHookedDB(t *testing.T) (db *faultDB, backups string, hook func(f func(op, name string) error)) {
	t.Helper()
	disk := hookedDisk{vfs.Default.(disk).FS, new(atomic.Pointer[func(op, name string) error])}
	db, backups = &faultDB{dir: t.TempDir()}, t.TempDir()
	db.reopen(t, disk)
	t.Cleanup(func() { _ = db.engine.Close() })
	createTable(t, db.engine)
	for i, k := range []string{"a", "b", "c"} {
		write(t, db.DB, set(k, i+1))
		if i < 2 {
			if err := db.engine.DB.Store.DB().Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return db, backups, func(f func(op, name string) error) {
		each := func(op, name string) error {
			if !strings.HasPrefix(name, backups) {
				return nil
			}
			return f(op, name)
		}
		disk.hook.Store(&each)
	}
}

// wantEmpty fails the test if there is anything in a directory.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 || err != nil {
		t.Errorf("the backup has left %v (%v), want nothing", entries, err)
	}
}

func wantBackup(t *testing.T, dir string) {
	t.Helper()
	engine, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	for i, k := range []string{"a", "b", "c"} {
		wantValue(t, Open(engine, discard), k, i+1)
	}
}

// A backup in which operations fail from any one on, or after which its context ends, or Close
// begins, leaves nothing, not even the directories that it has made. The last operation is
// an fsync.
func TestBackupFailsAnywhere(t *testing.T) {
	testdb.Watchdog(t, 2*time.Minute)
	for name, test := range map[string]struct {
		fail func(cancel context.CancelFunc) error
		want error
	}{
		"operation fails": {func(context.CancelFunc) error { return syscall.EIO }, syscall.EIO},
		"context ends":    {func(cancel context.CancelFunc) error { cancel(); return nil }, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			db, backups, hook := newHookedDB(t)
			failures, last := 0, ""
			for n := 1; ; n++ {
				ctx, cancel := context.WithCancel(t.Context())
				i := 0
				hook(func(op, name string) error {
					if i++; i < n {
						return nil
					} else if i == n {
						last = op + " " + name
					}
					return test.fail(cancel) // an operation may be tried again in another way
				})
				dir := filepath.Join(backups, "of", "alice")
				err := db.Backup(ctx, dir)
				cancel()
				if i < n {
					if err != nil {
						t.Fatalf("Backup = %v, want nil", err)
					}
					wantBackup(t, dir)
					break
				}
				if err == nil && test.want == context.Canceled && strings.HasSuffix(last, " "+dir) { // the last fsync: too late
					wantBackup(t, dir)
					if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if !errors.Is(err, test.want) {
					t.Fatalf("Backup = %v after %s, want %v", err, last, test.want)
				}
				wantEmpty(t, backups)
				failures++
			}
			if failures < 20 || !strings.HasPrefix(last, "sync "+backups) {
				t.Errorf("%d operations failed, the last one of them %q; want at least 20, and a sync", failures, last)
			}
			for i, k := range []string{"a", "b", "c"} {
				wantValue(t, db.DB, k, i+1)
			}
			write(t, db.DB, set("d", 4))
		})
	}
}

// Close of the database waits for no more of a backup than what is being written.
func TestCloseEndsBackup(t *testing.T) {
	testdb.Watchdog(t, 30*time.Second)
	db, backups, hook := newHookedDB(t)
	closed := make(chan error, 1)
	begun := false
	hook(func(op, name string) error {
		if op == "create" && !begun {
			begun = true
			go func() { closed <- db.engine.Close() }()
			for !db.state.isClosed() {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	})
	wantError(t, db.Backup(t.Context(), filepath.Join(backups, "a")), ErrClosed)
	wantEmpty(t, backups)
	if err := <-closed; err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
}

// A file system without links will do.
func TestBackupLinksNothing(t *testing.T) {
	db, backups, hook := newHookedDB(t)
	hook(func(op, name string) error {
		if op == "link" {
			t.Errorf("Backup links %s", name)
		}
		return nil
	})
	dir := filepath.Join(backups, "a")
	wantError(t, db.Backup(t.Context(), dir), nil)
	wantBackup(t, dir)
}

// Where directories can't be synced, a backup works.
func TestBackupWithoutSyncOfDirectories(t *testing.T) {
	db, backups, hook := newHookedDB(t)
	dir := filepath.Join(backups, "a")
	synced := 0
	hook(func(op, name string) error {
		if info, err := os.Stat(name); op == "sync" && err == nil && info.IsDir() {
			synced++
			return syscall.EINVAL
		}
		return nil
	})
	wantError(t, db.Backup(t.Context(), dir), nil)
	if synced < 5 {
		t.Errorf("%d directories were synced, want at least 5", synced)
	}
	wantBackup(t, dir)
}

// Where modes can't be set, a backup fails before anything is copied, and leaves nothing.
func TestBackupWithoutModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	defer func() { chmod = os.Chmod }()
	db, backups, hook := newHookedDB(t)
	hook(func(op, name string) error {
		if op == "create" {
			t.Errorf("Backup creates %s", name)
		}
		return nil
	})
	made := filepath.Join(backups, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(string, fs.FileMode) error{
		"refused": func(string, fs.FileMode) error { return syscall.EPERM },
		"ignored": func(string, fs.FileMode) error { return nil },
	} {
		chmod = f
		if err := db.Backup(t.Context(), made); err == nil || !strings.Contains(err.Error(), "use a directory of this user on a file system with modes") {
			t.Errorf("%s: Backup = %v, want an error that says what to do", name, err)
		}
		wantEmpty(t, made)
	}
}

// The parent of a backup may be one that can be entered, but not read. Then its directory
// must have been made beforehand: the error comes before anything is copied.
func TestBackupBelowUnreadableDirectory(t *testing.T) {
	db, backups, hook := newHookedDB(t)
	created := false
	hook(func(op, name string) error {
		created = created || op == "create"
		if op == "open" && name == backups {
			return syscall.EACCES
		}
		return nil
	})
	dir := filepath.Join(backups, "a")
	if err := db.Backup(t.Context(), dir); err == nil || created || !strings.Contains(err.Error(), "make the directory beforehand") {
		t.Errorf("Backup = %v, want an error that says what to do; has it copied anything: %v", err, created)
	}
	wantEmpty(t, backups)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wantError(t, db.Backup(t.Context(), dir), nil)
	wantBackup(t, dir)
}
