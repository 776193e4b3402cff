package chaistore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// The tests run this test binary again, as another process that has a database open.
const holdEnv = "CHAISTORE_TEST_HOLD"

// hold opens the database that the environment names, says so, and closes it when the
// standard input ends.
func hold() {
	db, err := chaistore.Open(context.Background(), os.Getenv(holdEnv))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := db.Close(); err != nil {
		log.Fatal(err)
	}
}

// heldByAnother has another process open a database until release is called.
func heldByAnother(t *testing.T, dir string) (release func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the other process says %q (%v)", line, err)
	}
	return func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func mustOpen(t *testing.T, dir string) *chai.DB {
	t.Helper()
	db, err := chaistore.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func mustClose(t *testing.T, db *chai.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// Open makes a directory that only its owner enters, and finds what was committed there.
func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "sessions")
	db := mustOpen(t, dir)
	commit(t, newStore(t, db), "alice", "one", inAnHour())
	mustClose(t, db)
	if info, err := os.Stat(dir); err != nil || runtime.GOOS != "windows" && info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the directory has the mode %v, want drwx------ (%v)", info.Mode(), err)
	}
	db = mustOpen(t, " "+dir+" ") // as Chai does
	defer mustClose(t, db)
	wantFound(t, newStore(t, db), "alice", "one")

	memory := mustOpen(t, ":memory:")
	defer mustClose(t, memory)
	commit(t, newStore(t, memory), "alice", "one", inAnHour())
}

// A database with a relative path stays where it is when the working directory changes.
func TestOpenRelative(t *testing.T) {
	testdb.Watchdog(t, 30*time.Second)
	above := t.TempDir()
	t.Chdir(above)
	db := mustOpen(t, "sessions")
	s := newStore(t, db)
	t.Chdir(t.TempDir())
	for i := range 3 { // needs new files
		commit(t, s, "alice", strings.Repeat("x", i), inAnHour())
		if err := db.DB.Store.DB().Flush(); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, db)
	db = mustOpen(t, filepath.Join(above, "sessions"))
	defer mustClose(t, db)
	wantFound(t, newStore(t, db), "alice", "xx")
}

// Open waits for another process, and says so once, after a second.
func TestOpenWaits(t *testing.T) {
	testdb.Slow(t)
	var logged testdb.Log
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(logged.Logger(slog.LevelInfo))
	dir := t.TempDir()
	release := heldByAnother(t, dir)

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := chaistore.Open(ctx, dir)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("%q: another process has it open: stop that, or wait longer", dir)) {
		t.Errorf("Open = %v, want an error that says what to do", err)
	}
	if logged.String() != "" {
		t.Errorf("in 200ms, Open logged %s", &logged)
	}
	opened := make(chan *chai.DB)
	go func() {
		db, err := chaistore.Open(t.Context(), dir)
		if err != nil {
			t.Error(err)
		}
		opened <- db
	}()
	for start := time.Now(); logged.String() == ""; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			t.Fatal("Open logs nothing while it waits")
		}
	}
	time.Sleep(time.Duration(testdb.Rounds(200, 1500)) * time.Millisecond)
	release()
	if db := <-opened; db != nil {
		defer mustClose(t, db)
		commit(t, newStore(t, db), "alice", "one", inAnHour())
	}
	if text := logged.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "waiting for another process") || !strings.Contains(text, dir) {
		t.Errorf("Open logged %q, want one line with the directory", text)
	}

	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := chaistore.Open(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("Open with an ended context = %v, want %v", err, context.Canceled)
	}
}

// One process can't open a database twice, even by another name.
func TestOpenTwice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	db := mustOpen(t, dir)
	defer mustClose(t, db)
	other := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, other); err != nil {
		t.Skip(err)
	}
	for _, name := range []string{dir, other} {
		if db, err := chaistore.Open(t.Context(), name); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q: open it once in a program", name)) {
			t.Errorf("Open of an open database = %v, %v; want an error that says what to do", db, err)
		}
	}
}

// Open refuses what is no directory of a database, with an error that has the path and
// says what to do, and writes nothing there.
func TestOpenRefuses(t *testing.T) {
	db := testdb.Disk(t)
	commit(t, newStore(t, db), "alice", "one", inAnHour())
	mkdir := func(t *testing.T, dir string) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := func(t *testing.T, name string) {
		mkdir(t, filepath.Dir(name))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	database := func(t *testing.T, dir string) {
		mkdir(t, filepath.Dir(dir))
		if err := chaistore.Backup(t.Context(), db, dir+".copy"); err != nil {
			t.Fatal(err)
		}
		mkdir(t, dir)
		if err := os.CopyFS(dir, os.DirFS(dir+".copy")); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir + ".copy"); err != nil {
			t.Fatal(err)
		}
	}
	link := func(t *testing.T, name string) {
		if err := os.Symlink("nothing", name); err != nil {
			t.Skip(err)
		}
	}
	for name, test := range map[string]struct {
		in   func(t *testing.T, dir string)
		want string // "" if it is not refused
	}{
		"nothing":             {func(t *testing.T, dir string) {}, ""},
		"empty":               {mkdir, ""},
		"new volume":          {func(t *testing.T, dir string) { mkdir(t, filepath.Join(dir, "lost+found")) }, ""},
		"hidden":              {func(t *testing.T, dir string) { file(t, filepath.Join(dir, ".gitkeep")) }, ""},
		"begun":               {func(t *testing.T, dir string) { mkdir(t, filepath.Join(dir, "pebble")) }, ""},
		"files":               {func(t *testing.T, dir string) { file(t, filepath.Join(dir, "photo.jpg")) }, "pass a directory for the database alone: this one has no database, but other files, such as photo.jpg"},
		"file below":          {func(t *testing.T, dir string) { file(t, filepath.Join(dir, "a", "photo.jpg")) }, "other files, such as a"},
		"too deep":            {func(t *testing.T, dir string) { database(t, filepath.Join(dir, "sessions-2026-11-30")) }, filepath.Join("sessions-2026-11-30", "pebble") + " one level up"},
		"hidden and too deep": {func(t *testing.T, dir string) { database(t, filepath.Join(dir, ".sessions")) }, filepath.Join(".sessions", "pebble") + " one level up"},
		"empty directories":   {func(t *testing.T, dir string) { mkdir(t, filepath.Join(dir, "#recycle")) }, ""},
		"beside": {func(t *testing.T, dir string) {
			database(t, dir)
			file(t, filepath.Join(dir, "uploads", "pebble", "cat.jpg"))
			mkdir(t, filepath.Join(dir, "pebble", "pebble"))
		}, ""},
		"deeper":        {func(t *testing.T, dir string) { database(t, filepath.Join(dir, "pebble")) }, filepath.Join("pebble", "pebble") + " one level up"},
		"deeper, too":   {func(t *testing.T, dir string) { database(t, dir); database(t, filepath.Join(dir, "pebble")) }, filepath.Join("sessions", "pebble") + " out of this database"},
		"in its files":  {func(t *testing.T, dir string) { database(t, dir); database(t, filepath.Join(dir, "pebble", "copy")) }, filepath.Join("pebble", "copy") + " out of this database"},
		"too high":      {func(t *testing.T, dir string) { file(t, filepath.Join(dir, "MANIFEST-000001")) }, "move its files into a directory pebble"},
		"incomplete":    {func(t *testing.T, dir string) { database(t, filepath.Join(dir, "incomplete")) }, "use another copy"},
		"killed backup": {func(t *testing.T, dir string) { file(t, filepath.Join(dir, "incomplete", "000001.log")) }, "use another copy"},
		"files missing": {func(t *testing.T, dir string) {
			database(t, dir)
			for _, pattern := range []string{"CURRENT", "marker.*"} {
				names, _ := filepath.Glob(filepath.Join(dir, "pebble", pattern))
				for _, name := range names {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
			}
		}, "check the disk, or restore a backup: chai"},
		"dangling":       {func(t *testing.T, dir string) { mkdir(t, filepath.Dir(dir)); link(t, dir) }, "make or mount what the link points to"},
		"dangling files": {func(t *testing.T, dir string) { mkdir(t, dir); link(t, filepath.Join(dir, "pebble")) }, "make or mount what the link points to"},
		"NUL":            {nil, "pass the path of a directory"},
		"a file":         {file, "pass the path of a directory"},
		"in a file":      {func(t *testing.T, dir string) { file(t, filepath.Dir(dir)) }, "pass the path of a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "files missing" && runtime.GOOS == "windows" {
				t.Skip("Chai panics with files open, which can't be removed there")
			}
			dir := filepath.Join(t.TempDir(), "above", "sessions")
			if test.in != nil {
				test.in(t, dir)
			} else {
				dir += "\x00"
			}
			before, _ := os.ReadDir(dir)
			db, err := chaistore.Open(t.Context(), dir)
			if test.want == "" {
				if err != nil {
					t.Fatalf("Open = %v, want nil", err)
				}
				mustClose(t, db)
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("chaistore: open database in %q: ", dir)) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Open = %v, want an error that says %q", err, test.want)
			}
			if after, _ := os.ReadDir(dir); len(after) != len(before) {
				t.Errorf("Open has made files: %v", after)
			}
		})
	}
	inside := filepath.Join(t.TempDir(), "pebble")
	file(t, filepath.Join(inside, "MANIFEST-000001"))
	if _, err := chaistore.Open(t.Context(), inside); err == nil || !strings.Contains(err.Error(), "pass "+filepath.Dir(inside)+":") {
		t.Errorf("Open of the files of a database = %v, want an error that says to pass its directory", err)
	}
	for _, dir := range []string{"", " "} {
		if _, err := chaistore.Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "pass the path of a directory") {
			t.Errorf("Open(%q) = %v, want an error that says what to do", dir, err)
		}
	}
}

// Open refuses a database into which a copy was moved. After what the error says, it finds
// what the copy has.
func TestOpenRefusesTwo(t *testing.T) {
	above := t.TempDir()
	dir, backup := filepath.Join(above, "sessions"), filepath.Join(above, "copy")
	db := mustOpen(t, dir)
	s := newStore(t, db)
	commit(t, s, "alice", "one", inAnHour())
	if err := chaistore.Backup(t.Context(), db, backup); err != nil {
		t.Fatal(err)
	}
	commit(t, s, "alice", "two", inAnHour())
	mustClose(t, db)
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	inside := filepath.Join(dir, "copy")
	rename(backup, inside)
	want := fmt.Sprintf("chaistore: open database in %q: move %s out of this database: it is another one; if it is the copy to restore, also move this one away, and then the copy to where this one was", dir, inside)
	if db, err := chaistore.Open(t.Context(), dir); err == nil || err.Error() != want {
		t.Fatalf("Open = %v, %v; want the error %q", db, err, want)
	}
	rename(inside, backup)
	rename(dir, filepath.Join(above, "old"))
	rename(backup, dir)
	db = mustOpen(t, dir)
	defer mustClose(t, db)
	wantFound(t, newStore(t, db), "alice", "one")
}

// What the system refuses is an error that says what to do, even where Chai panics.
func TestOpenFails(t *testing.T) {
	for name, test := range map[string]struct {
		fault *testdb.Fault
		want  string
	}{
		"full disk":    {&testdb.Fault{Op: "create", Err: syscall.ENOSPC, Times: 1 << 30}, "free space"},
		"read-only":    {&testdb.Fault{Op: "create", Err: syscall.EROFS, Times: 1 << 30}, "pass a directory that can be written"},
		"foreign":      {&testdb.Fault{Op: "create", Err: syscall.EACCES, Times: 1 << 30}, "give the directory to the user who runs this program"},
		"a panic":      {&testdb.Fault{Op: "sync", File: "directory", Err: syscall.EIO, Times: 1 << 30}, "local file system"},
		"what is left": {&testdb.Fault{Op: "create", Err: errors.New("unknown"), Times: 1 << 30}, "check the disk, or restore a backup: unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			disk := testdb.NewFaultDisk(filepath.Join(dir, "pebble"))
			disk.Break(test.fault)
			former := vfs.Default
			vfs.Default = disk
			defer func() { vfs.Default = former }()
			if _, err := chaistore.Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open = %v, want an error that says %q", err, test.want)
			}
		})
	}
}
