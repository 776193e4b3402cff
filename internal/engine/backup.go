// Copying the database's files.

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Backup makes a consistent copy of the database in a directory that only its owner can
// enter, and syncs it. It waits for nobody's transaction. If it fails, it leaves nothing
// behind.
func (db *DB) Backup(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("back up to %q: %w", dir, err)
		}
	}()
	if err := db.Writable(); err != nil {
		return err
	}
	if dirOf(db.pebble()) == "" {
		return errors.New("the database is in memory")
	}
	incomplete, err := claimDir(dir)
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
	if err := db.whileOpen(func() error { return db.pebble().Checkpoint(made) }); err != nil {
		return err
	}
	if err := os.Rename(made, filepath.Join(dir, "pebble")); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// claimDir makes dir an empty directory that only its owner can enter, and in it the
// directory of an incomplete backup, which at most one call makes.
func claimDir(dir string) (incomplete string, err error) {
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
