// Compacting: freeing the space of deleted rows.

package engine

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cockroachdb/pebble"
)

// SizeOfFiles returns about how many bytes the keys from one up to, but not including,
// another take in files, with their rows.
func (db *DB) SizeOfFiles(from, to []byte) (size int64, err error) {
	err = db.whileOpen(func() error {
		n, err := db.pebble().EstimateDiskUsage(from, to)
		size = int64(n)
		return err
	})
	return size, err
}

// partSize is about how many bytes of files are merged at once.
const partSize = 32 << 20

// Compact merges the files that have keys from one up to, but not including, another,
// so that the rows deleted from there take no more space, and scans need not pass
// them. Nobody waits for it. It reports whether it is done: it stops if the files can't
// be merged anyway just now, if that might fill the disk, or if what an earlier call has
// begun still goes on.
//
// When ctx ends, Compact returns its error at once. The part of the files that is being
// merged then is finished meanwhile.
func (db *DB) Compact(ctx context.Context, from, to []byte) (done bool, err error) {
	defer db.failures.rescue(&err, db.failures.failAll)
	if err := db.Writable(); err != nil {
		return false, err
	}
	ends, err := db.parts(from, to, partSize)
	if err != nil {
		return false, err
	}
	for _, end := range ends {
		size, err := db.SizeOfFiles(from, end)
		if err != nil || db.BackgroundError() != nil || db.free()/4 < uint64(size) {
			return false, err
		}
		if done, err := db.compactPart(ctx, from, end); !done || err != nil {
			return false, err
		}
		from = end
	}
	return true, nil
}

// parts divides the keys from one up to another where files end, so that those of each
// part have about the given size. It returns the ends of the parts.
func (db *DB) parts(from, to []byte, limit uint64) (ends [][]byte, err error) {
	var levels [][]pebble.SSTableInfo
	err = db.whileOpen(func() (err error) {
		levels, err = db.pebble().SSTables(pebble.WithKeyRangeFilter(from, to))
		return err
	})
	if err != nil {
		return nil, err
	}
	compare := options(db.pebble()).Comparer.Compare
	files := slices.Concat(levels...)
	slices.SortFunc(files, func(a, b pebble.SSTableInfo) int { return compare(a.Largest.UserKey, b.Largest.UserKey) })
	size := uint64(0)
	for _, file := range files {
		size += file.Size
		if end := file.Largest.UserKey; size >= limit && compare(from, end) < 0 && compare(end, to) < 0 {
			ends, from, size = append(ends, end), end, 0
		}
	}
	return append(ends, to), nil
}

// compactPart is Compact for keys whose files are merged at once. Pebble first flushes
// rows that are in no file yet, and waits for that without end if the disk is full.
func (db *DB) compactPart(ctx context.Context, from, to []byte) (done bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if !db.merging.TryLock() {
		return false, nil
	}
	merged := make(chan error, 1)
	go func() {
		var err error
		defer func() { merged <- err }()
		defer db.merging.Unlock()
		defer db.failures.rescue(&err, db.failures.failAll)
		err = db.merge(from, to)
	}()
	failing := time.NewTicker(time.Second)
	defer failing.Stop()
	for {
		select {
		case err := <-merged:
			err = cmp.Or(err, db.failures.writing())
			return err == nil, err
		case <-ctx.Done():
			return false, ctx.Err()
		case <-failing.C:
			// Nothing is merged any more, or not until there is room.
			if err := db.failures.writing(); err != nil || db.BackgroundError() != nil {
				return false, err
			}
		}
	}
}
