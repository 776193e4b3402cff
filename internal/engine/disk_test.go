package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"
	"github.com/cockroachdb/pebble/record"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// A faultDB is a database on a disk that can fail.
type faultDB struct {
	*DB
	engine *chai.DB
	disk   *testdb.FaultDisk
	dir    string
	size   int // of rows
}

// newFaultDB returns a database with an empty table large. The test must close it.
func newFaultDB(t *testing.T) *faultDB {
	t.Helper()
	dir := t.TempDir()
	db := &faultDB{disk: testdb.NewFaultDisk(dir + "/pebble"), dir: dir, size: 4000}
	db.reopen(t, db.disk)
	testdb.Exec(t, db.engine, "CREATE TABLE large (k INTEGER PRIMARY KEY, v BLOB NOT NULL)")
	return db
}

var opening sync.Mutex // for vfs.Default, and because of a race in Chai

// reopen opens the database on a file system.
func (db *faultDB) reopen(t *testing.T, fs vfs.FS) {
	t.Helper()
	opening.Lock()
	defer opening.Unlock()
	former := vfs.Default
	vfs.Default = OnDisk(fs)
	defer func() { vfs.Default = former }()
	engine, err := chai.Open(db.dir)
	if err != nil {
		t.Fatalf("open database: %v", err)
	}
	db.engine, db.DB = engine, Open(engine, discard)
}

// returns calls f, and fails the test if it takes too long. A panic becomes an error.
func returns(t *testing.T, name string, f func() error) (err error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		var err error
		defer func() {
			switch r := recover().(type) {
			case nil:
			case error:
				err = fmt.Errorf("panic: %w", r)
			default:
				err = fmt.Errorf("panic: %v", r)
			}
			result <- err
		}()
		err = f()
	}()
	select {
	case err := <-result:
		return err
	case <-time.After(5 * time.Second):
		t.Fatalf("%s has not returned for 5 seconds", name)
		return nil
	}
}

// largeRow returns a row that does not compress.
func largeRow(size int) []byte {
	row := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(row)
	return row
}

func largeKey(i int) []byte { return key(fmt.Sprintf("%06d", i)) }

func (db *faultDB) put(i int) error {
	return db.Write(context.Background(), db.size, func(b *Batch) error {
		b.Put(largeKey(i), largeRow(db.size))
		return nil
	})
}

const insertLarge = "INSERT INTO large (k, v) VALUES (?, ?)"

// writers are the ways to write a row with a number.
var writers = map[string]func(db *faultDB, i int) error{
	"Write": func(db *faultDB, i int) error { return db.put(i) },
	"Update": func(db *faultDB, i int) error {
		return Open(db.engine, discard).Update(context.Background(), func(tx *chai.Tx) error { return tx.Exec(insertLarge, i, largeRow(db.size)) })
	},
	"Exec of Chai": func(db *faultDB, i int) error { return db.engine.Exec(insertLarge, i, largeRow(db.size)) },
	"Update of Chai": func(db *faultDB, i int) error {
		return db.engine.Update(func(tx *chai.Tx) error { return tx.Exec(insertLarge, i, largeRow(db.size)) })
	},
}

// found returns the numbers of the rows written with a writer, in order.
func (db *faultDB) found(t *testing.T, writer string) (numbers []int) {
	t.Helper()
	if writer != "Write" {
		testdb.Query(t, db.engine, "SELECT k FROM large", func(row *chai.Row) error {
			var k int
			err := row.Scan(&k)
			numbers = append(numbers, k)
			return err
		})
		return numbers
	}
	if err := db.Read(t.Context(), func(s *Snapshot) error {
		return s.Scan(firstKey, lastKey, func(key, _ []byte) (bool, error) {
			k, err := strconv.Atoi(string(key[4:]))
			numbers = append(numbers, k)
			return true, err
		})
	}); err != nil {
		t.Fatal(err)
	}
	for _, i := range numbers {
		if row := cacheFind(t, db.DB, largeKey(i)); len(row) != db.size {
			t.Fatalf("Find of row %d = %d bytes, want %d", i, len(row), db.size)
		}
	}
	return numbers
}

// An operation on the disk fails, once or from then on. No write is acknowledged that is not on disk,
// all later ones return the same error at once, reads go on, and the database can be
// closed and opened again.
func TestDiskFails(t *testing.T) {
	testdb.Slow(t)
	for n, fault := range []struct {
		name, op, file string
		err            error
	}{
		{"log sync", "sync", ".log", syscall.EIO},
		{"log write", "write", ".log", syscall.ENOSPC},
		{"log creation", "create", ".log", syscall.EIO},
		{"directory sync", "sync", "directory", syscall.EIO},
		{"MANIFEST write", "write", "MANIFEST", syscall.ENOSPC},
		{"MANIFEST sync", "sync", "MANIFEST", syscall.EIO},
	} {
		for i := range 2 * len(writers) {
			if !testdb.Sampled(3, n, i/2, i%2) {
				continue
			}
			writer, times := slices.Sorted(maps.Keys(writers))[i/2], []int{1, math.MaxInt}[i%2]
			t.Run(fmt.Sprint(fault.name, "/", writer, "/", times), func(t *testing.T) {
				testdb.Watchdog(t, time.Minute)
				db := newFaultDB(t)
				db.size = 40_000 // Pebble flushes what has 4 MB
				db.GrowCache(1 << 20)
				write := func(i int) error {
					return returns(t, writer, func() error { return writers[writer](db, i) })
				}
				acknowledged := 0
				for ; acknowledged < 20; acknowledged++ {
					if err := write(acknowledged); err != nil {
						t.Fatal(err)
					}
				}
				db.disk.Break(&testdb.Fault{Op: fault.op, File: fault.file, Err: fault.err, Times: times})
				var first error
				for ; acknowledged < 1000; acknowledged++ {
					if first = write(acknowledged); first != nil {
						break
					}
					time.Sleep(100 * time.Microsecond) // so that flushes keep up
				}
				if !errors.Is(first, fault.err) {
					t.Fatalf("got error %v after %d writes, want %v", first, acknowledged, fault.err)
				}
				wantAcknowledged := func(state string) {
					t.Helper()
					found := db.found(t, writer)
					for i := range acknowledged {
						if _, ok := slices.BinarySearch(found, i); !ok {
							t.Fatalf("%s: row %d of %d acknowledged ones is missing", state, i, acknowledged)
						}
					}
					if n := len(found); n > acknowledged+1 {
						t.Errorf("%s: got %d rows, want %d, or one more", state, n, acknowledged)
					}
				}

				failure := db.WriteError()
				wantError(t, failure, fault.err)
				began, fsyncs := time.Now(), db.Fsyncs()
				for range 3 {
					wantError(t, db.put(-1), failure)
					wantError(t, Open(db.engine, discard).Write(t.Context(), 10, set("x", 1)), failure)
					wantError(t, Open(db.engine, discard).Update(t.Context(), func(*chai.Tx) error { t.Error("called"); return nil }), failure)
				}
				wantAcknowledged("after the failure") // reads up to 80 MB
				if d := time.Since(began); d > 2*time.Second {
					t.Errorf("calls after the failure took %v", d)
				}
				if n := db.Fsyncs() - fsyncs; n != 0 {
					t.Errorf("got %d committed batches after the failure, want none", n)
				}
				// The application's own writes fail, too, and don't hang.
				for range 3 {
					for _, own := range []string{"Exec of Chai", "Update of Chai"} {
						if err := returns(t, own, func() error { return writers[own](db, 1_000_000) }); err == nil {
							t.Errorf("%s succeeded after the failure", own)
						}
					}
				}
				wantAcknowledged("after other writes")
				if err := returns(t, "Close", db.engine.Close); err != nil && strings.Contains(err.Error(), "panic") {
					t.Errorf("Close = %v", err)
				}

				db.disk.Mend()
				for state, fs := range map[string]vfs.FS{"without power": db.disk.Cut(testdb.KeepNothing), "opened again": db.disk} {
					db.reopen(t, fs)
					wantAcknowledged(state)
					if err := write(2_000_000); err != nil {
						t.Errorf("%s: %v", state, err)
					}
					if err := returns(t, "Close", db.engine.Close); err != nil {
						t.Errorf("%s: Close = %v, want nil", state, err)
					}
				}
			})
		}
	}
}

// bubble runs f in a bubble of synctest. Pebble keeps channels in pools, which other
// tests must not find there: two collections empty a pool.
func bubble(t *testing.T, f func(t *testing.T)) {
	runtime.GC()
	runtime.GC()
	defer runtime.GC()
	defer runtime.GC()
	synctest.Test(t, f)
}

// Nothing can be flushed, because files of rows can't be created. Commits go on, the
// error is in BackgroundError as long as it lasts and logged at most once a minute,
// and flushes are tried again at intervals of up to 5 seconds.
func TestFlushFails(t *testing.T) {
	testdb.Slow(t)
	bubble(t, func(t *testing.T) {
		log := new(recorder)
		db := newFaultDB(t)
		db.logger = log.logger
		if err := db.BackgroundError(); err != nil {
			t.Errorf("BackgroundError = %v, want nil", err)
		}
		fault := &testdb.Fault{Op: "create", File: ".sst", Err: syscall.ENOSPC, Times: math.MaxInt}
		db.disk.Break(fault)
		n := 0
		commit := func() {
			t.Helper()
			n++
			if err := db.put(n); err != nil {
				t.Fatal(err)
			}
		}
		for fault.Failed() == 0 {
			commit()
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Second) // until the longest interval
		const minutes = 30
		attempts := fault.Failed()
		if attempts < 5 || attempts > 9 {
			t.Errorf("got %d attempts in 10 seconds, want about 7: after 0, 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 seconds", attempts)
		}
		for range minutes {
			time.Sleep(time.Minute)
			commit()
			wantError(t, db.BackgroundError(), syscall.ENOSPC)
			if err := db.WriteError(); err != nil {
				t.Errorf("WriteError = %v, want nil", err)
			}
		}
		if n := fault.Failed() - attempts; n > minutes*60/5+1 || n < minutes*60/5-2 {
			t.Errorf("got %d attempts in %d minutes, want one each 5 seconds", n, minutes)
		}
		log.mu.Lock()
		if n := len(log.lines); n < minutes-1 || n > minutes+1 {
			t.Errorf("got %d lines in %d minutes, want one a minute: %q", n, minutes, log.lines)
		}
		log.mu.Unlock()

		db.disk.Mend()
		time.Sleep(5*time.Second + 10*time.Millisecond)
		if err := db.BackgroundError(); err != nil {
			t.Errorf("BackgroundError = %v, want nil", err)
		}
		db.wantRows(t, n)
		if err := db.engine.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	})
}

// wantRows fails the test unless db has the rows from 1 to n.
func (db *faultDB) wantRows(t *testing.T, n int) {
	t.Helper()
	found := db.found(t, "Write")
	if len(found) != n || n > 0 && (found[0] != 1 || found[n-1] != n) {
		t.Errorf("got %d rows, want %d", len(found), n)
	}
}

// Close does not wait until a failed flush is tried again.
func TestCloseEndsBackoff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := newFaultDB(t)
		fault := &testdb.Fault{Op: "create", File: ".sst", Err: syscall.ENOSPC, Times: math.MaxInt}
		db.disk.Break(fault)
		n := 0
		for ; fault.Failed() == 0; n++ {
			if err := db.put(n + 1); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Second)
		attempts := fault.Failed()
		for fault.Failed() == attempts {
			time.Sleep(10 * time.Millisecond)
		}
		attempts++
		began := time.Now()
		_ = db.engine.Close()
		if d := time.Since(began); d > time.Second {
			t.Errorf("Close took %v, want less than the back-off", d)
		}
		time.Sleep(time.Minute)
		if got := fault.Failed(); got > attempts+1 {
			t.Errorf("got %d attempts after Close, want at most 1", got-attempts)
		}
		db.disk.Mend()
		db.reopen(t, db.disk)
		db.wantRows(t, n)
		if err := db.engine.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	})
}

// A job fails and is tried again.
func TestJobEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		log := new(recorder)
		db := &DB{logger: log.logger}
		defer runtime.KeepAlive(db)
		s := new(state)
		s.jobs.logTo(db)
		wait := func(j *job, want time.Duration) {
			t.Helper()
			start := time.Now()
			s.awaitTurn(j)
			if got := time.Since(start); got != want {
				t.Errorf("waited %v, want %v", got, want)
			}
		}
		for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
			s.jobEnded(&s.jobs.compaction, syscall.EIO)
			wait(&s.jobs.compaction, want*time.Millisecond)
		}
		wait(&s.jobs.flush, 0)
		s.jobEnded(&s.jobs.flush, syscall.ENOSPC)
		wait(&s.jobs.flush, minBackoff)
		wantError(t, s.jobs.error(), syscall.ENOSPC)
		s.jobEnded(&s.jobs.flush, nil)
		wantError(t, s.jobs.error(), syscall.EIO)
		s.jobEnded(&s.jobs.compaction, nil)
		wait(&s.jobs.compaction, 0)
		if err := s.jobs.error(); err != nil {
			t.Errorf("jobs fail with %v after a success, want nil", err)
		}
		lines := func(want int) {
			t.Helper()
			synctest.Wait()
			log.mu.Lock()
			defer log.mu.Unlock()
			if len(log.lines) != want {
				t.Errorf("got %d lines, want %d: %q", len(log.lines), want, log.lines)
			}
		}
		lines(1)
		time.Sleep(logEvery - time.Since(s.jobs.logged) - 1)
		s.jobEnded(&s.jobs.compaction, syscall.EIO)
		lines(1)
		time.Sleep(time.Nanosecond)
		s.jobEnded(&s.jobs.compaction, syscall.EIO)
		lines(2)
	})
}

// The first logger there is hears of failures in the background, even if others use
// the same database.
func TestFailuresInTheBackgroundAreLogged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		engine := testdb.Memory(t)
		first, second := new(recorder), new(recorder)
		dbs := []*DB{Open(engine, nil), Open(engine, first.logger), Open(engine, second.logger)}
		defer runtime.KeepAlive(dbs)
		dbs[0].state.jobEnded(&dbs[0].state.jobs.compaction, syscall.EIO)
		synctest.Wait()
		if len(first.lines) != 1 || len(second.lines) != 0 {
			t.Errorf("got %q by the first logger and %q by the second, want one line and none", first.lines, second.lines)
		}
		dbs[1] = nil
		runtime.GC()
		time.Sleep(logEvery)
		dbs[0].state.jobEnded(&dbs[0].state.jobs.compaction, syscall.EIO)
		synctest.Wait()
		if len(second.lines) != 1 {
			t.Errorf("got %q by the second logger when the first is gone, want one line", second.lines)
		}
	})
}

// There is no free file descriptor for a new log. Writes wait for one, reads go on,
// and nothing is lost.
func TestNoFileDescriptorForLog(t *testing.T) {
	testdb.Slow(t)
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE} {
		for name, rotations := range map[string]int{"created": 0, "reused": 3} {
			t.Run(fmt.Sprint(errno, "/", name), func(t *testing.T) {
				bubble(t, func(t *testing.T) { testNoFileDescriptorForLog(t, errno, rotations) })
			})
		}
	}
}

func testNoFileDescriptorForLog(t *testing.T, errno error, rotations int) {
	db := newFaultDB(t)
	n := 0
	put := func() error { n++; return db.put(n) }
	for range rotations {
		for range 100 {
			if err := put(); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.pebble().Flush(); err != nil { // then its log can be used again
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	fault := &testdb.Fault{Op: "create", File: ".log", Err: errno, Times: math.MaxInt}
	db.disk.Break(fault)
	done := make(chan error)
	go func() {
		for fault.Failed() == 0 {
			if err := put(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for fault.Failed() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(5 * time.Second)
	select {
	case err := <-done:
		t.Fatalf("the write returned %v without a file descriptor, want it to wait", err)
	default:
	}
	if got := db.found(t, "Write"); len(got) != n-1 {
		t.Errorf("got %d rows while a write waits, want %d", len(got), n-1)
	}
	if got := fault.Failed(); got > 1000 {
		t.Errorf("got %d attempts in 5 seconds, want at most 1000", got)
	}
	db.disk.Mend()
	if err := <-done; err != nil {
		t.Errorf("Write = %v once there is a file descriptor, want nil", err)
	}
	for range 200 {
		if err := put(); err != nil {
			t.Fatal(err)
		}
	}
	db.wantRows(t, n)
	left := db.disk.Cut(testdb.KeepNothing)
	if err := db.engine.Close(); err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
	db.reopen(t, left)
	db.wantRows(t, n)
	if err := db.engine.Close(); err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
}

// Pebble panics while it writes a batch to the log. Nobody knows what it has left
// locked, so each call returns the panic as an error, at once.
func TestPanicWhileLogIsWritten(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for _, cause := range []any{"a string", syscall.EIO} {
		db := newFaultDB(t)
		if err := db.put(1); err != nil {
			t.Fatal(err)
		}
		w := reach.Opts(db.pebble()).Logger.(*watcher)
		w.write = func(*pebble.Batch, *sync.WaitGroup, *error) (reach.MemTable, error) { panic(cause) }
		for i := range 3 {
			err := returns(t, "Write", func() error { return db.put(2 + i) })
			if err == nil || !strings.Contains(err.Error(), fmt.Sprint(cause)) {
				t.Errorf("Write = %v, want an error with %v", err, cause)
			}
		}
		_, err := value(db.DB, "a")
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint(cause)) {
			t.Errorf("Read = %v, want an error with %v", err, cause)
		}
		_ = db.engine.Close()
	}
}

// What a commit that failed has changed stays invisible, although it is in memory, and may
// be on the disk.
func TestFailedCommitStaysInvisible(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := newFaultDB(t)
	db.size = 100
	if err := db.put(1); err != nil {
		t.Fatal(err)
	}
	db.disk.Break(&testdb.Fault{Op: "sync", File: ".log", Err: syscall.EIO, Times: 1})
	db.size = 200
	for i := range 3 {
		wantError(t, db.put(i), syscall.EIO)
		if row := cacheFind(t, db.DB, largeKey(1)); len(row) != 100 {
			t.Errorf("Find of a row that could not be replaced = %d bytes, want its 100", len(row))
		}
		if row := cacheFind(t, db.DB, largeKey(0)); row != nil {
			t.Errorf("Find of a row that could not be added = %d bytes, want none", len(row))
		}
	}
	_ = db.engine.Close()
}

// The application goes on writing after a failure, more often than Pebble has places
// for batches. Each write fails at once.
func TestManyWritesAfterAFailure(t *testing.T) {
	testdb.Slow(t)
	for _, op := range []string{"sync", "create"} {
		for _, writer := range []string{"Exec of Chai", "Update of Chai"} {
			t.Run(op+"/"+writer, func(t *testing.T) {
				testdb.Watchdog(t, time.Minute)
				const size = 40_000
				db := newFaultDB(t)
				db.size = size
				if err := db.put(0); err != nil {
					t.Fatal(err)
				}
				db.disk.Break(&testdb.Fault{Op: op, File: ".log", Err: syscall.EIO, Times: 1})
				for i := 1; db.WriteError() == nil; i++ {
					_ = db.put(i)
				}
				db.size = 100
				for i := range record.SyncConcurrency + 10 {
					if err := returns(t, writer, func() error { return writers[writer](db, i) }); err == nil {
						t.Fatalf("%s succeeded after the failure", writer)
					}
				}
				if got := cacheFind(t, db.DB, largeKey(0)); len(got) != size {
					t.Errorf("Find = %d bytes, want the row from before the failure", len(got))
				}
				_ = returns(t, "Close", db.engine.Close)
			})
		}
	}
}

// A batch larger than half of a memory table fails in other places.
func TestDiskFailsInLargeBatch(t *testing.T) {
	testdb.Slow(t)
	for i, fault := range []*testdb.Fault{
		{Op: "sync", File: ".log", Err: syscall.EIO, Times: 1},
		{Op: "write", File: ".log", Err: syscall.ENOSPC, Times: 1},
		{Op: "create", File: ".log", Err: syscall.EIO, Times: 1},
		{Op: "sync", File: "directory", Err: syscall.EIO, Times: 1},
	} {
		if !testdb.Sampled(2, i) {
			continue
		}
		t.Run(fault.Op+fault.File, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			db := newFaultDB(t)
			if err := db.put(1); err != nil {
				t.Fatal(err)
			}
			db.disk.Break(fault)
			db.size = 5 << 20
			wantError(t, returns(t, "Write", func() error { return db.put(2) }), fault.Err)
			db.size = 4000
			wantError(t, returns(t, "Write", func() error { return db.put(3) }), fault.Err)
			if got := cacheFind(t, db.DB, largeKey(1)); len(got) != db.size {
				t.Errorf("Find = %d bytes, want %d", len(got), db.size)
			}
			if err := returns(t, "Exec", func() error { return writers["Exec of Chai"](db, 1) }); err == nil {
				t.Error("Exec succeeded after the failure")
			}
			_ = returns(t, "Close", db.engine.Close)
			db.disk.Mend()
			for _, fs := range []vfs.FS{db.disk.Cut(testdb.KeepNothing), db.disk} {
				db.reopen(t, fs)
				if got := cacheFind(t, db.DB, largeKey(1)); len(got) != db.size {
					t.Errorf("Find = %d bytes, want %d", len(got), db.size)
				}
				if err := db.put(3); err != nil {
					t.Error(err)
				}
				if err := returns(t, "Close", db.engine.Close); err != nil {
					t.Errorf("Close = %v, want nil", err)
				}
			}
		})
	}
}

// While nothing can be flushed, writes go on. If that lasts until there is too much to
// flush, writing ends, and nothing hangs.
func TestWritesGoOnWhileFlushesFail(t *testing.T) {
	testdb.Slow(t)
	former := maxUnflushed
	defer func() { maxUnflushed = former }()
	maxUnflushed = 16 << 20
	for _, mended := range []bool{false, true} {
		t.Run(fmt.Sprint("mended=", mended), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				db := newFaultDB(t)
				db.size = 400_000
				db.disk.Break(&testdb.Fault{Op: "create", File: ".sst", Err: syscall.ENOSPC, Times: math.MaxInt})
				n := 0
				var err error
				for ; err == nil && n < 60; n++ {
					if mended && n == 30 { // 12 MB, more than Pebble waits for
						wantError(t, db.BackgroundError(), syscall.ENOSPC)
						db.disk.Mend()
					}
					err = db.put(n)
					time.Sleep(20 * time.Millisecond)
				}
				left := db.disk.Cut(testdb.KeepNothing)
				if mended {
					if err != nil || db.BackgroundError() != nil {
						t.Errorf("put = %v, BackgroundError = %v after the disk was mended; want nil", err, db.BackgroundError())
					}
					if o := reach.Opts(db.pebble()); o.MemTableStopWritesThreshold != 2 || o.L0StopWritesThreshold != 12 {
						t.Errorf("got limits of %d tables and %d files, want Pebble's", o.MemTableStopWritesThreshold, o.L0StopWritesThreshold)
					}
				} else {
					wantError(t, err, syscall.ENOSPC)
					wantError(t, db.put(0), syscall.ENOSPC)
					n--
				}
				_ = returns(t, "Close", db.engine.Close)
				db.reopen(t, left)
				if got := db.found(t, "Write"); len(got) < n {
					t.Errorf("got %d rows, want all %d acknowledged ones", len(got), n)
				}
				if err := db.engine.Close(); err != nil {
					t.Errorf("Close = %v, want nil", err)
				}
			})
		})
	}
}

// A signal interrupts syncs. Nobody notices.
func TestInterruptedSync(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := newFaultDB(t)
	n := 0
	for _, file := range []string{".log", ".sst", "MANIFEST", "directory"} {
		fault := &testdb.Fault{Op: "sync", File: file, Err: syscall.EINTR, Times: 3}
		db.disk.Break(fault)
		for range 20 {
			n++
			if err := db.put(n); err != nil {
				t.Fatalf("%s: Write = %v", file, err)
			}
		}
		if err := db.pebble().Flush(); err != nil {
			t.Fatalf("%s: Flush = %v", file, err)
		}
		if got := fault.Failed(); got != 3 {
			t.Errorf("%s: %d syncs were interrupted, want 3", file, got)
		}
		if err := errors.Join(db.WriteError(), db.BackgroundError()); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	left := db.disk.Cut(testdb.KeepNothing)
	if err := db.engine.Close(); err != nil {
		t.Error(err)
	}
	db.reopen(t, left)
	db.wantRows(t, n)
	if err := db.engine.Close(); err != nil {
		t.Error(err)
	}
}

// The first start of a program makes directories. What was acknowledged then survives a loss
// of power. Neither Chai nor Pebble syncs their names.
func TestNewDirectoriesAreSynced(t *testing.T) {
	root := t.TempDir()
	db := &faultDB{disk: testdb.NewFaultDisk(root), dir: root + "/a/b", size: 100}
	db.reopen(t, db.disk)
	for i := range 5 {
		if err := db.put(i); err != nil {
			t.Fatal(err)
		}
	}
	left := db.disk.Cut(testdb.KeepNothing)
	if err := db.engine.Close(); err != nil {
		t.Error(err)
	}
	db.reopen(t, left)
	if got := db.found(t, "Write"); len(got) != 5 {
		t.Errorf("got rows %v, want 5", got)
	}
	if err := db.engine.Close(); err != nil {
		t.Error(err)
	}
}

// Other directories of Pebble pass through the file system unchanged.
func TestOtherDirectories(t *testing.T) {
	dir := t.TempDir()
	disk := testdb.NewFaultDisk(dir)
	db, err := pebble.Open(dir, &pebble.Options{FS: OnDisk(disk)})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Set([]byte("a"), []byte("1"), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if got := opened.in(dir); got != nil {
		t.Errorf("there is a state of a directory that is none of Chai's")
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// A database whose files pass through another file system is refused.
func TestOtherFiles(t *testing.T) {
	dir := t.TempDir()
	opening.Lock()
	former := vfs.Default
	vfs.Default = testdb.NewFaultDisk(dir + "/pebble")
	engine, err := chai.Open(dir)
	vfs.Default = former
	opening.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	db := Open(engine, discard)
	wantError(t, db.Write(t.Context(), 10, set("a", 1)), errOtherFiles)
	_, err = value(db, "a")
	wantError(t, err, errOtherFiles)
}

// Chai undoes what a transaction has written out, although earlier ones have changed
// the same rows, also after a crash.
func TestRollbacksOfTheSameRows(t *testing.T) {
	db := newFaultDB(t)
	put := func(tx cacheTx, row string) {
		t.Helper()
		for i := range 3 {
			tx.put(t, largeKey(i), row)
			tx.writeOut(t, largeKey(i))
		}
	}
	want := func(want string) {
		t.Helper()
		for i := range 3 {
			if got := cacheFind(t, db.DB, largeKey(i)); string(got) != want {
				t.Errorf("Find = %q, want %q", got, want)
			}
		}
	}
	for round := range 5 {
		tx := begin(t, db.DB)
		put(tx, "undone")
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			want(fmt.Sprint(round - 1))
		}
		tx = begin(t, db.DB)
		put(tx, fmt.Sprint(round))
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		want(fmt.Sprint(round))
	}
	put(begin(t, db.DB), "lost")
	left := db.disk.Cut(testdb.KeepAll)
	db.reopen(t, left)
	want("4")
	if err := db.engine.Close(); err != nil {
		t.Fatal(err)
	}
}
