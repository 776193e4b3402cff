// Copying the database's files.

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore/internal/reach"
)

// Backup makes a consistent copy of the database in a directory that only its owner can
// enter, and syncs it. It waits for nobody's transaction. If it fails, it leaves nothing
// behind. It fails when ctx ends, or when Close of the database begins.
func (db *DB) Backup(ctx context.Context, dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("back up to %q: %w", dir, err)
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.Writable(); err != nil {
		return err
	}
	own := dirOf(db.pebble())
	if own == "" {
		return errors.New("the database is in memory: only one in a directory can be copied")
	}
	c := &copying{ctx: ctx, state: db.state, fs: reach.Opts(db.pebble()).FS}
	if c.dir, err = outside(filepath.Dir(own), dir); err != nil {
		return err
	}
	err = db.whileOpen(func() error {
		if err := c.claim(); err != nil {
			return err
		}
		return c.copy(db)
	})
	if err != nil {
		return errors.Join(err, c.undo())
	}
	return nil
}

// outside returns the absolute path of a directory, unless it is the database's own, or in
// it.
func outside(own, dir string) (string, error) {
	if dir == "" {
		return "", errors.New("pass the path of a directory")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	database, err := os.Stat(own)
	if err != nil {
		return "", err
	}
	for above := dir; ; above = filepath.Dir(above) {
		if actual, err := filepath.EvalSymlinks(above); err == nil {
			above = actual
		}
		if info, err := os.Stat(above); err == nil && os.SameFile(info, database) {
			return "", errors.New("pass a directory outside the database's own")
		}
		if above == filepath.Dir(above) {
			return dir, nil
		}
	}
}

// A copying is a backup that is being made. The copy is made in a directory named
// incomplete, which at most one backup to a directory makes, and renamed in the end.
type copying struct {
	ctx   context.Context
	state *state
	fs    vfs.FS // of the database, which starts a goroutine that Close ends
	dir   string

	syncErr error    // of a directory in which Pebble makes the copy
	made    []string // directories that did not exist: dir, and then those above it
	claimed bool     // whether incomplete is ours
	renamed bool     // whether the copy has its final name
}

// IncompleteDir is the directory in which a copy is made. A copy that has it has not ended.
const IncompleteDir = "incomplete"

func (c *copying) incomplete() string { return filepath.Join(c.dir, IncompleteDir) }
func (c *copying) unnamed() string    { return filepath.Join(c.incomplete(), "pebble") }
func (c *copying) named() string      { return filepath.Join(c.dir, "pebble") }

var chmod = os.Chmod // tests change it

// claim makes the directory one that is empty, that only its owner can enter, and whose
// name is on disk.
func (c *copying) claim() error {
	for dir := c.dir; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		c.made = append(c.made, dir)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	errNotEmpty := errors.New("pass a directory that is empty, or does not exist: this one has files")
	if err := os.Mkdir(c.incomplete(), 0o700); errors.Is(err, fs.ErrExist) {
		return errNotEmpty
	} else if err != nil {
		return err
	}
	c.claimed = true
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	if len(entries) > 1 {
		return errNotEmpty
	}
	if err := c.makePrivate(); err != nil {
		return fmt.Errorf("use a directory of this user on a file system with modes, or one mounted for this user alone: %w", err)
	}
	for _, dir := range c.made {
		if err := c.sync(filepath.Dir(dir)); err != nil {
			return fmt.Errorf("make the directory beforehand: %w", err)
		}
	}
	if len(c.made) == 0 { // somebody else may just have made it
		if err := c.sync(filepath.Dir(c.dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return c.sync(c.dir)
}

// makePrivate lets only the owner enter the directory. Some file systems return an error,
// and others do nothing. Windows has no modes.
func (c *copying) makePrivate() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	if err := chmod(c.dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(c.dir)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode != 0o700 {
		return fmt.Errorf("the mode is %v after it was set to %v", mode, fs.FileMode(0o700))
	}
	return nil
}

// copy makes the copy.
func (c *copying) copy(db *DB) error {
	for _, dir := range []string{c.incomplete(), c.unnamed()} {
		copyings.Store(dir, c)
		defer copyings.Delete(dir)
	}
	if err := db.pebble().Checkpoint(c.unnamed()); err != nil {
		return err
	}
	if err := c.goesOn(); err != nil {
		return err
	}
	if err := os.Rename(c.unnamed(), c.named()); err != nil {
		return err
	}
	c.renamed = true
	if err := os.Remove(c.incomplete()); err != nil {
		return err
	}
	return c.sync(c.dir)
}

// goesOn returns why the backup must end, or nil.
func (c *copying) goesOn() error {
	if c.state.isClosed() {
		return ErrClosed
	}
	return cmp.Or(c.syncErr, c.ctx.Err())
}

// synced records the end of a sync of a directory in which Pebble makes the copy. Pebble
// would panic if it failed (Marker.Move in its vfs/atomicfs), and the database would be as
// good as closed.
func (c *copying) synced(err error) {
	if !cannotSync(err) {
		c.syncErr = cmp.Or(c.syncErr, err)
	}
}

// undo removes what was made.
func (c *copying) undo() error {
	var errs []error
	if c.claimed {
		errs = append(errs, os.RemoveAll(c.incomplete()))
	}
	if c.renamed {
		errs = append(errs, os.RemoveAll(c.named()))
	}
	for _, dir := range c.made {
		_ = os.Remove(dir) // if nobody else has used it
	}
	return errors.Join(errs...)
}

// sync makes changes of names in a directory durable, if its file system can.
func (c *copying) sync(dir string) error {
	f, err := c.fs.OpenDir(dir)
	if err != nil {
		return err
	}
	err = uninterrupted(f.Sync)
	if cannotSync(err) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// copyings has the *copying of each backup by the directories in which Pebble makes it.
var copyings sync.Map

func copyingIn(dir string) *copying {
	c, _ := copyings.Load(dir)
	found, _ := c.(*copying)
	return found
}

// Link copies the file instead, if it is for a backup. Whoever overwrites a file of an old
// backup before removing it, with shred for example, would overwrite that of the database.
func (d disk) Link(oldname, newname string) error {
	if copyingIn(filepath.Dir(newname)) == nil {
		return d.FS.Link(oldname, newname)
	}
	return vfs.Copy(d, oldname, newname)
}

// A copyFile is a file of a backup.
type copyFile struct {
	vfs.File
	c *copying
}

func (f copyFile) Write(p []byte) (int, error) {
	if err := f.c.goesOn(); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}
