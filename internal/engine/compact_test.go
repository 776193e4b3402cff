package engine

import (
	"bytes"
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// deleted returns a database with files of rows that were deleted, which the engine does
// not merge by itself.
func deleted(t *testing.T, engine *chai.DB) *DB {
	t.Helper()
	db := Open(engine, discard)
	db.UseMemory(16 << 20)
	row := largeRow(4000)
	for _, change := range []func(b *Batch, key []byte){
		func(b *Batch, key []byte) { b.Put(key, row) },
		(*Batch).Delete,
	} {
		write(t, db, func(b *Batch) error {
			for i := range 100 {
				change(b, largeKey(i))
			}
			return nil
		})
		if err := db.pebble().Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// used returns the size of the rows on disk.
func used(t *testing.T, db *DB) uint64 {
	t.Helper()
	n, err := db.pebble().EstimateDiskUsage(firstKey, lastKey)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wantCompact compacts the rows, and fails the test unless their space was freed or not.
func wantCompact(t *testing.T, db *DB, freed bool) {
	t.Helper()
	before := used(t, db)
	if before < 100*4000 {
		t.Fatalf("deleted rows take %d bytes before Compact, want all", before)
	}
	if done, err := db.Compact(t.Context(), firstKey, lastKey); done != freed || err != nil {
		t.Errorf("Compact = %v, %v; want %v, nil", done, err, freed)
	}
	if after := used(t, db); freed && after != 0 || !freed && after != before {
		t.Errorf("deleted rows take %d bytes of %d after Compact, freed = %v", after, before, freed)
	}
}

// A fullDisk is a disk with few free bytes.
type fullDisk struct {
	vfs.FS
	free uint64
}

func (d *fullDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.free}, nil
}

// Compact frees the space of deleted rows.
func TestCompact(t *testing.T) {
	for name, open := range map[string]func(t testing.TB) *chai.DB{"memory": testdb.Memory, "disk": testdb.Disk} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			wantCompact(t, deleted(t, open(t)), true)
		})
	}
}

// Merging needs room for the new files before the old ones are removed. It does not
// fill the disk.
func TestCompactOnAFullDisk(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := &faultDB{dir: t.TempDir()}
	disk := &fullDisk{FS: testdb.NewFaultDisk(db.dir + "/pebble")}
	db.reopen(t, disk)
	defer db.engine.Close()
	deleted(t, db.engine)
	size := used(t, db.DB)
	disk.free = 4*size - 1
	wantCompact(t, db.DB, false)
	disk.free = 4 * size
	wantCompact(t, db.DB, true)
}

// While the engine fails to merge its files, Compact does not try, too.
func TestCompactWhileMergesFail(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := deleted(t, testdb.Memory(t))
	db.state.jobEnded(&db.state.jobs.compaction, syscall.EIO)
	wantCompact(t, db, false)
	db.state.jobEnded(&db.state.jobs.compaction, nil)
	wantCompact(t, db, true)
}

// Close begins while Compact waits for a flush, for a compaction, or for the next one. Compact
// returns, Close waits for it, and no goroutine is left. Pebble's own waits for ever.
func TestCloseWhileCompacting(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	before := runtime.NumGoroutine()
	rounds := testdb.Rounds(15, 40)
	for round := range rounds {
		watchdog := time.AfterFunc(20*time.Second, func() { panic("hangs") })
		db := newFaultDB(t)
		for i := range 60 {
			db.size = 20_000
			if err := db.put(i % 30); err != nil {
				t.Fatal(err)
			}
			if i%20 == 0 {
				if err := db.pebble().Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		db.disk.Break(&testdb.Fault{Op: "sync", File: ".sst", Err: nil, Times: math.MaxInt}) // each takes a millisecond
		var wg sync.WaitGroup
		began := make(chan struct{})
		wg.Go(func() {
			close(began)
			for {
				if _, err := db.Compact(context.Background(), firstKey, lastKey); err != nil {
					wantError(t, err, ErrClosed)
					return
				}
				_ = db.put(1)
			}
		})
		<-began
		time.Sleep(8 * time.Millisecond * time.Duration(round) / time.Duration(rounds))
		if err := db.engine.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		files, err := db.disk.List(db.dir + "/pebble")
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		later, err := db.disk.List(db.dir + "/pebble")
		slices.Sort(files)
		slices.Sort(later)
		if !slices.Equal(files, later) || err != nil {
			t.Errorf("got files %q after Close, and %q, %v later", files, later, err)
		}
		watchdog.Stop()
	}
	until(func() bool { return runtime.NumGoroutine() <= before })
}

// Close gets the mutex that Pebble's Compact waits for to flush rows, and holds it while it
// waits for the compaction, which gets it nevertheless.
func TestCloseBeforeCompactFlushes(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for _, full := range []bool{false, true} {
		db := newFaultDB(t)
		deleted(t, db.engine)
		if err := db.put(1); err != nil {
			t.Fatal(err)
		}
		if full { // a write would wait for a flush, which Close does not begin any more
			w := db.state.watch()
			w.set(func(o *pebble.Options) { o.MemTableStopWritesThreshold = 0 })
		}
		mu := reach.Commit(db.pebble()).Mu()
		mu.Lock()
		closed, compacted := make(chan error, 1), make(chan error, 1)
		go func() { closed <- db.pebble().Close() }()
		until(func() bool { return isWaiting("github.com/cockroachdb/pebble.(*DB).Close") })
		go func() {
			_, err := db.Compact(context.Background(), firstKey, lastKey)
			compacted <- err
		}()
		until(func() bool { return isWaiting("github.com/cockroachdb/pebble.(*DB).Compact") })
		mu.Unlock() // Close gets it
		if err := <-closed; err != nil {
			t.Errorf("Close = %v", err)
		}
		wantError(t, <-compacted, ErrClosed)
		db.reopen(t, db.disk)
		db.wantRows(t, 1)
		if err := db.engine.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
}

// isWaiting reports whether a goroutine waits for a mutex in a function.
func isWaiting(function string) bool {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range bytes.SplitSeq(stacks, []byte("\n\n")) {
		if bytes.Contains(stack, []byte("[sync.Mutex.Lock")) && bytes.Contains(stack, []byte(function+"(")) {
			return true
		}
	}
	return false
}

// Compact reports a failure while it merges, after which nothing can be written.
func TestCompactFails(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := newFaultDB(t)
	deleted(t, db.engine)
	db.disk.Break(&testdb.Fault{Op: "write", File: "MANIFEST", Err: syscall.ENOSPC, Times: 1})
	_, err := db.Compact(t.Context(), firstKey, lastKey)
	wantError(t, err, syscall.ENOSPC)
	_ = db.engine.Close()
}

// Compact first flushes rows that are in no file yet. If no new log can be created for
// that, writing ends, but finds go on, and Close returns.
func TestCompactCreatesNoLog(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := newFaultDB(t)
	deleted(t, db.engine)
	if err := db.put(1); err != nil {
		t.Fatal(err)
	}
	db.disk.Break(&testdb.Fault{Op: "create", File: ".log", Err: syscall.EIO, Times: 1})
	_, err := db.Compact(t.Context(), firstKey, lastKey)
	wantError(t, err, syscall.EIO)
	wantError(t, returns(t, "Write", func() error { return db.put(2) }), syscall.EIO)
	db.wantRows(t, 1)
	if err := returns(t, "Close", db.engine.Close); err != nil && strings.Contains(err.Error(), "panic") {
		t.Errorf("Close = %v", err)
	}
}

// While rows can't be flushed, Compact waits neither longer than its context nor longer
// than about a second. Another call does not begin what the first one still does.
func TestCompactDoesNotWaitForRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := newFaultDB(t)
		deleted(t, db.engine)
		wantCompact := func(limit time.Duration, wantDone bool, want error) {
			t.Helper()
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			start := time.Now()
			done, err := db.Compact(ctx, firstKey, lastKey)
			if done != wantDone || !errors.Is(err, want) || time.Since(start) > min(limit, time.Second) {
				t.Errorf("Compact = %v, %v after %v; want %v, %v", done, err, time.Since(start), wantDone, want)
			}
		}
		for i, test := range []struct {
			limit time.Duration
			want  error
		}{{100 * time.Millisecond, context.DeadlineExceeded}, {time.Hour, nil}} {
			if err := db.put(i + 1); err != nil {
				t.Fatal(err)
			}
			db.disk.Break(&testdb.Fault{Op: "create", File: ".sst", Err: syscall.ENOSPC, Times: math.MaxInt})
			wantCompact(test.limit, false, test.want)
			db.disk.Mend()
			time.Sleep(maxBackoff) // until it is flushed, and merged
			wantCompact(time.Hour, true, nil)
		}
		db.wantRows(t, 2)
		if err := db.engine.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The files are merged in parts of about the same size.
func TestParts(t *testing.T) {
	db := Open(testdb.Disk(t), discard)
	put := func(i int) {
		write(t, db, func(b *Batch) error { b.Put(largeKey(i), largeRow(40_000)); return nil })
	}
	for i := range 400 {
		put(i)
	}
	if err := db.pebble().Compact(firstKey, lastKey, false); err != nil {
		t.Fatal(err)
	}
	const limit, file = 4 << 20, 4 << 20 // the largest file has about 2 MB
	for last := 100; last < 400; last += 10 {
		from, to := largeKey(50), largeKey(last)
		ends, err := db.parts(from, to, limit)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(ends); n > 1+last*40_000/limit || !bytes.Equal(ends[n-1], to) {
			t.Fatalf("got %d parts up to row %d, the last to %x, want it to %x", n, last, ends[n-1], to)
		}
		for i, end := range ends {
			size, err := db.SizeOfFiles(from, end)
			if err != nil || size > limit+file || size < limit/2 && i < len(ends)-1 {
				t.Errorf("part %d up to row %d has %d bytes, %v; want about %d", i, last, size, err, limit)
			}
			from = end
		}
	}

	// Files may end at the same key, and where all parts do.
	for i := 0; i < 400; i += 399 {
		put(i)
	}
	if err := db.pebble().Flush(); err != nil {
		t.Fatal(err)
	}
	all, err := db.parts(firstKey, lastKey, 1)
	if err != nil || len(all) < 5 {
		t.Fatalf("got %d parts, %v; want one for each of several files", len(all), err)
	}
	for _, to := range all {
		from := firstKey
		ends, err := db.parts(from, to, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i, end := range ends {
			if bytes.Compare(from, end) >= 0 || bytes.Compare(end, to) > 0 {
				t.Errorf("part %d of %d, up to %x, is from %x to %x", i, len(ends), to, from, end)
			}
			from = end
		}
	}
}

// Neither a closed database nor a range whose end comes first is compacted.
func TestCompactReturnsErrors(t *testing.T) {
	engine, db := newBreakableDB(t)
	if _, err := db.Compact(t.Context(), lastKey, firstKey); err == nil {
		t.Error("Compact of a range whose end comes first = nil, want an error")
	}
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := db.Compact(t.Context(), firstKey, lastKey)
	wantError(t, err, ErrClosed)
	_, err = db.compactPart(t.Context(), firstKey, lastKey) // closed meanwhile
	wantError(t, err, ErrClosed)
}
