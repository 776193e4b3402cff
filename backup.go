// Copying the database while it is used.

package chaistore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
)

// Backup copies the whole database, with the tables of the application, to the
// directory dir while it is used. The copy has everything that was acknowledged before
// the call, and is on disk when Backup returns nil.
//
// Backup creates dir, and returns an error if there is anything in it. Only the owner
// of dir can enter it: the tokens in a copy are as good as those in the database. If
// dir is on the same file system, the copy shares files with the database that neither
// changes, so it takes little time and space at first. If the process ends meanwhile,
// what it leaves in dir is named incomplete.
//
// To restore a copy, stop the program, move the copy to where the database was, and
// open it with [chai.Open]. It must be all that is there. Copy the directory of an open
// database with Backup only. The other ways give copies that can't be opened, and when
// they are taken in the same process, closing the file pebble/LOCK also gives up its
// lock: then a second process can open the directory, and destroy what both write.
//
// Backup can't copy a database that is in memory, is closed, or has failed for good.
// It may be called at any time from many goroutines.
func Backup(db *chai.DB, dir string) (err error) {
	if isNil(db) {
		return errNilDatabase
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("chaistore: back up to %q: %w", dir, err)
		}
	}()
	if err := engine.For(db, nil).Writable(); err != nil {
		return err
	}
	incomplete, err := claim(dir)
	if err != nil {
		return err
	}
	defer func() {
		_ = os.RemoveAll(incomplete)
		if err != nil {
			_ = os.Remove(dir) // if nobody else has used it
		}
	}()
	made := filepath.Join(incomplete, "pebble")
	if err := engine.For(db, nil).Checkpoint(made); err != nil {
		return err
	}
	if _, err := os.Stat(made); errors.Is(err, fs.ErrNotExist) {
		return errors.New("the database is in memory")
	}
	if err := os.Rename(made, filepath.Join(dir, "pebble")); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// claim makes dir an empty directory that only its owner can enter, and in it the
// directory of an incomplete backup, which at most one call makes.
func claim(dir string) (incomplete string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) > 0 {
		return "", errors.New("the directory is not empty")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return "", err
	}
	incomplete = filepath.Join(dir, "incomplete")
	return incomplete, os.Mkdir(incomplete, 0o700)
}

// syncDir makes changes of names in a directory durable. Windows has no way to do it.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
