// Opening a database.

package chaistore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
)

// Open opens the database in dir, and creates both if they do not exist. Only the owner can
// enter a directory that Open creates.
//
// To close the database, stop the server and all else that writes, call
// [ChaiStore.StopCleanup], and then Close. After [ErrBusy], Close may never return: end the
// program without it. What was acknowledged is on disk.
//
// Only one process at a time can have a database open. If another process has it open, such
// as one that this process replaces, Open waits until that process closes it, or ctx ends.
// After a second, Open logs with [slog.Default] that it is waiting. Once the database is
// open, ctx has no effect.
//
// dir may be relative: the database stays where it is when the working directory changes.
// It must be on a local file system, with file locks and fsync for directories, and not
// where old files are removed, such as in /tmp. With ":memory:", the database is in memory.
//
// Open refuses a directory that has files but no database. It also refuses one that has a
// database in a subdirectory: a restored copy may be one level too deep, or mv may have
// moved it into the old database.
//
// [chai.Open] works, too, but without all this.
func Open(ctx context.Context, dir string) (*chai.DB, error) {
	dir = strings.TrimSpace(dir) // as Chai does
	if dir == ":memory:" {
		return chai.Open(dir)
	}
	if dir == "" {
		return nil, errors.New(`chaistore: open database in "": pass the path of a directory, or ":memory:"`)
	}
	absolute, err := filepath.Abs(dir)
	if err == nil {
		dir = absolute
		var db *chai.DB
		if db, err = openDir(ctx, dir); err == nil {
			return db, nil
		}
	}
	return nil, fmt.Errorf("chaistore: open database in %q: %w", dir, err)
}

// openDir is Open for an absolute path.
func openDir(ctx context.Context, dir string) (*chai.DB, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); errors.Is(err, fs.ErrNotExist) { // in /proc, for example
		return nil, fmt.Errorf("pass a directory that can be made: %w", err)
	} else if err != nil {
		return nil, remedied(err)
	}
	// One process may open a directory twice if it has two names, and destroy it: what
	// Pebble remembers, since the lock of a file keeps out other processes only, is the
	// name (vfs/file_lock_unix.go).
	if actual, err := filepath.EvalSymlinks(dir); err == nil {
		dir = actual
	}
	start, said := time.Now(), false
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		db, err := tryOpen(dir)
		if !isLocked(err) {
			return db, remedied(err)
		}
		if !said && time.Since(start) >= time.Second {
			said = true
			slog.WarnContext(ctx, "chaistore: waiting for another process that has the database open", "dir", dir)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("another process has it open: stop that, or wait longer: %w", ctx.Err())
		}
	}
}

var opening sync.Mutex // because of a race in Chai's Open

// tryOpen is [chai.Open], with an error instead of a panic.
func tryOpen(dir string) (db *chai.DB, err error) {
	opening.Lock()
	defer opening.Unlock()
	defer func() {
		if r := recover(); r != nil {
			if cause, ok := r.(runtime.Error); ok { // a file is missing
				err = fmt.Errorf("chai panicked: %w", cause)
			} else {
				err = fmt.Errorf("%w: chai panicked: %v", errors.ErrUnsupported, r)
			}
		}
	}()
	return chai.Open(dir)
}

// isLocked reports whether another process has the database open.
func isLocked(err error) bool {
	const sharingViolation = syscall.Errno(32) // on Windows
	return errors.Is(err, syscall.EAGAIN) || runtime.GOOS == "windows" && errors.Is(err, sharingViolation)
}

// remedied returns an error that says what to do.
func remedied(err error) error {
	remedy := "check the disk, or restore a backup"
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		remedy = "give the directory to the user who runs this program"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EEXIST), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL):
		remedy = "pass the path of a directory"
	case errors.Is(err, syscall.ENOSPC):
		remedy = "free space"
	case errors.Is(err, syscall.EROFS):
		remedy = "pass a directory that can be written"
	case errors.Is(err, syscall.ENOLCK), errors.Is(err, errors.ErrUnsupported):
		remedy = "use a local file system, with locks and fsync for directories"
	case strings.Contains(err.Error(), "lock held by current process"): // vfs/file_lock_unix.go
		remedy = "open it once in a program, and share it"
	}
	return fmt.Errorf("%s: %w", remedy, err)
}

const pebbleDir = "pebble" // in a database: Chai makes nothing else there, and Pebble makes only files in it

// checkDir returns an error if Chai would open another database than the one that is meant:
// an empty one beside files, or the old one into which a copy was moved.
func checkDir(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(dir); err == nil {
			return errDangling
		}
		return nil
	}
	if err != nil {
		return remedied(err)
	}
	own := filepath.Join(dir, pebbleDir)
	inside := []string{own}
	other := "" // a file that is not of the database, or a directory with one
	for _, file := range files {
		name := filepath.Join(dir, file.Name())
		switch hidden := strings.HasPrefix(file.Name(), "."); {
		case name == own:
			if _, err := os.Stat(own); errors.Is(err, fs.ErrNotExist) {
				return errDangling
			} else if err != nil {
				return remedied(err)
			}
		case strings.HasPrefix(file.Name(), manifest):
			if filepath.Base(dir) == pebbleDir {
				return fmt.Errorf("pass %s: this directory has the files of the database there", filepath.Dir(dir))
			}
			return fmt.Errorf("move its files into a directory %s in it: they are those of a database", pebbleDir)
		case file.IsDir():
			inside = append(inside, name)
			if !hidden && file.Name() != "lost+found" && !isEmpty(name) {
				other = file.Name()
			}
		case !hidden:
			other = file.Name()
		}
	}
	if below, err := os.ReadDir(own); err == nil {
		for _, file := range below {
			if file.IsDir() {
				inside = append(inside, filepath.Join(own, file.Name()))
			}
		}
	}
	there := isDatabase(dir)
	for _, second := range inside {
		switch {
		case !isDatabase(second):
		case there:
			return fmt.Errorf("move %s out of this database: it is another one; if it is the copy to restore, also move this one away, and then the copy to where this one was", second)
		case filepath.Base(second) == engine.IncompleteDir:
			return errIncomplete
		default:
			return fmt.Errorf("move %s one level up, or pass %s: the database is too deep", filepath.Join(second, pebbleDir), second)
		}
	}
	if _, err := os.Stat(own); err != nil && other != "" {
		if other == engine.IncompleteDir {
			return errIncomplete
		}
		return fmt.Errorf("pass a directory for the database alone: this one has no database, but other files, such as %s", other)
	}
	return nil
}

var (
	errIncomplete = errors.New("use another copy: this one is incomplete")
	errDangling   = errors.New("make or mount what the link points to: it is missing")
)

// manifest is what the name of a file begins with that only Pebble makes, in each database.
const manifest = "MANIFEST-"

// isDatabase reports whether there is a database in a directory.
func isDatabase(dir string) bool {
	files, _ := os.ReadDir(filepath.Join(dir, pebbleDir))
	return slices.ContainsFunc(files, func(file fs.DirEntry) bool { return strings.HasPrefix(file.Name(), manifest) })
}

func isEmpty(dir string) bool {
	files, err := os.ReadDir(dir)
	return err == nil && len(files) == 0
}
