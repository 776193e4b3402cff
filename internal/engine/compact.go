// Compacting: freeing the space of deleted rows.

package engine

import (
	"cmp"
	"time"
)

// SizeOfFiles returns about how many bytes the keys from one up to, but not including,
// another take in files, with their rows.
func (db *DB) SizeOfFiles(from, to []byte) (size int64, err error) {
	defer db.failures.rescue(&err, db.failures.failAll)
	if err := db.Usable(); err != nil {
		return 0, err
	}
	n, err := db.pebble().EstimateDiskUsage(from, to)
	return int64(n), err
}

// Compact merges the files that have keys from one up to, but not including, another,
// so that the rows deleted from there take no more space, and scans need not pass
// them. Nobody waits for it. It does nothing if the files are not merged anyway just
// now, because that fails, or if it might fill the disk.
func (db *DB) Compact(from, to []byte) (err error) {
	defer db.failures.rescue(&err, db.failures.failAll)
	if err := db.Writable(); err != nil {
		return err
	}
	size, err := db.SizeOfFiles(from, to)
	if err != nil || db.BackgroundError() != nil || db.free()/4 < uint64(size) {
		return err
	}
	merged := make(chan error, 1)
	go func() {
		var err error
		defer func() { merged <- err }()
		defer db.failures.rescue(&err, db.failures.failAll)
		err = db.pebble().Compact(from, to, false)
	}()
	failed := time.NewTicker(time.Second)
	defer failed.Stop()
	for {
		select {
		case err := <-merged:
			return cmp.Or(err, db.failures.writing())
		case <-failed.C:
			if err := db.failures.writing(); err != nil {
				return err // nothing is merged any more
			}
		}
	}
}
