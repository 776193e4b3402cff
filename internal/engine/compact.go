// Compacting: freeing the space of deleted rows.

package engine

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cockroachdb/pebble"

	"go.elara.ws/chaistore/internal/reach"
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

// partSize is about how many bytes of files are compacted at once.
const partSize = 32 << 20

// Compact compacts the files that have keys from one up to, but not including, another,
// so that the rows deleted from there take no more space, and scans need not pass
// them. Nobody waits for it. It reports whether it is done: it stops if the files can't
// be compacted anyway just now, if that might fill the disk, or if what an earlier call
// has begun still goes on.
//
// When ctx ends, Compact returns its error at once. The part of the files that is being
// compacted then is finished meanwhile. Close of the database waits for that.
func (db *DB) Compact(ctx context.Context, from, to []byte) (done bool, err error) {
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
	compare := reach.Opts(db.pebble()).Comparer.Compare
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

// compactPart is Compact for keys whose files are compacted at once. Pebble first flushes
// rows that are in no file yet, and waits for that without end if the disk is full.
func (db *DB) compactPart(ctx context.Context, from, to []byte) (done bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if !db.merging.TryLock() {
		return false, nil
	}
	compacted := make(chan error, 1)
	go func() {
		defer db.merging.Unlock()
		compacted <- db.whileOpen(func() error { return db.compactOpen(from, to) })
	}()
	failing := time.NewTicker(time.Second)
	defer failing.Stop()
	for {
		select {
		case err := <-compacted:
			err = cmp.Or(err, db.Writable())
			return err == nil, err
		case <-ctx.Done():
			return false, ctx.Err()
		case <-failing.C:
			// Nothing is compacted any more, or not until there is room.
			if err := db.Writable(); err != nil || db.BackgroundError() != nil {
				return false, err
			}
		}
	}
}

// compactOpen is Pebble's Compact, but returns when Close of the database has begun, and
// holds Pebble's commit mutex while it waits for the compaction. Then Pebble finishes what it
// has begun, and never answers who waits for what comes next: the flush of a memtable, or
// the compaction of another level. Compact may need the mutex to begin a flush. It gets it:
// nobody else can want it, because Chai's Close holds the write lock.
func (db *DB) compactOpen(from, to []byte) error {
	returned := make(chan struct{})
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		select {
		case <-returned:
			return
		case <-reach.ClosedCh(db.pebble()):
		}
		db.state.tune() // now so that Compact does not wait for a flush with the mutex locked
		mu := reach.Commit(db.pebble()).Mu()
		mu.Unlock()
		defer mu.Lock()
		for tick := time.NewTicker(time.Millisecond); ; {
			db.answerCompact()
			select {
			case <-returned:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	}()
	defer func() {
		close(returned)
		<-answered
	}()
	return db.pebble().Compact(from, to, false)
}

// answerCompact answers who waits for a flush, or for a compaction that has not begun.
func (db *DB) answerCompact() {
	mu := reach.Mu(db.pebble())
	mu.Lock()
	defer mu.Unlock()
	for _, flushed := range reach.Flushed(db.pebble()) {
		select {
		case flushed <- struct{}{}:
		default: // nobody waits
		}
	}
	for _, done := range reach.ManualDone(db.pebble()) {
		select {
		case done <- ErrClosed:
		default: // it was answered
		}
	}
}
