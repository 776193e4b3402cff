package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

// The tests write rows that the engine never decodes, under keys of a table that
// does not exist.
func key(k string) []byte {
	return append([]byte{80, 200, 98, byte(len(k))}, k...)
}

// set returns the operation that sets k to v.
func set(k string, v int) Op {
	return func(b *Batch) error { return b.Put(key(k), []byte(strconv.Itoa(v))) }
}

// failing returns an operation that changes k and fails.
func failing(k string) Op {
	return func(b *Batch) error {
		return errors.Join(set(k, -1)(b), errNo)
	}
}

var errNo = errors.New("no")

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newDB(t testing.TB) (*chai.DB, *DB) {
	t.Helper()
	db := testdb.Memory(t)
	return db, For(db, discard)
}

// newBreakableDB returns a database that is not closed when the test ends: after
// a panic Chai would wait for a lock of its own.
func newBreakableDB(t testing.TB) (*chai.DB, *DB) {
	t.Helper()
	db, err := chai.Open(":memory:")
	if err != nil {
		t.Fatal(err)
	}
	testdb.Exec(t, db, "CREATE TABLE t (k TEXT PRIMARY KEY)")
	return db, For(db, discard)
}

func write(t testing.TB, db *DB, op Op) {
	t.Helper()
	if err := db.Write(context.Background(), op); err != nil {
		t.Errorf("Write: %v", err)
	}
}

// get returns the value of k, 0 if it has none.
func get(db *DB, k string) (int, error) {
	row, err := db.Get(key(k))
	if row == nil || err != nil {
		return 0, err
	}
	return strconv.Atoi(string(row))
}

func wantValue(t testing.TB, db *DB, k string, want int) {
	t.Helper()
	if got, err := get(db, k); got != want || err != nil {
		t.Fatalf("the value of %s is %d, %v; want %d, nil", k, got, err, want)
	}
}

// waiting returns how many requests are in the queue.
func waiting(db *DB) int {
	db.queue.mu.Lock()
	defer db.queue.mu.Unlock()
	n := 0
	for r := db.queue.first; r != nil; r = r.next {
		n++
	}
	return n
}

// transactions returns how many transactions the engine has begun.
func transactions(db *DB) uint64 {
	return atomic.LoadUint64(&db.engine.DB.TransactionIDs)
}

func TestPutGetDelete(t *testing.T) {
	_, db := newDB(t)
	wantValue(t, db, "a", 0)
	write(t, db, set("a", 1))
	write(t, db, set("aa", 2))
	wantValue(t, db, "a", 1)
	write(t, db, set("a", 3))
	wantValue(t, db, "a", 3)
	for range 2 {
		write(t, db, func(b *Batch) error { return b.Delete(key("a")) })
		wantValue(t, db, "a", 0)
	}
	wantValue(t, db, "aa", 2)
}

// queued calls f while the turn to write is taken, and passes it on once n
// requests wait. It must be called in a bubble of synctest.
func queued(db *DB, n int, f func()) {
	lock := Lock(db.engine)
	lock.Lock()
	f()
	synctest.Wait()
	if got := waiting(db); got != n {
		panic(fmt.Sprintf("%d requests wait, want %d", got, n))
	}
	lock.Unlock()
	synctest.Wait()
}

func TestWaitingWritesShareTransactions(t *testing.T) {
	for _, test := range []struct{ writes, groups int }{
		{1, 1}, {2, 1}, {maxGroup, 1}, {maxGroup + 1, 2}, {3 * maxGroup, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, db := newDB(t)
			before := transactions(db)
			queued(db, test.writes, func() {
				for i := range test.writes {
					go func() { write(t, db, set(fmt.Sprint(i), i)) }()
				}
			})
			if got := transactions(db) - before; got != uint64(test.groups) {
				t.Errorf("%d waiting writes took %d transactions, want %d", test.writes, got, test.groups)
			}
			for i := range test.writes {
				wantValue(t, db, fmt.Sprint(i), i)
			}
		})
	}
}

func TestFailingOperationFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		write(t, db, set("bad", 7))
		queued(db, 20, func() {
			for i := range 20 {
				go func() {
					if i%7 == 3 {
						if err := db.Write(t.Context(), failing("bad")); !errors.Is(err, errNo) {
							t.Errorf("Write of a failing operation: %v", err)
						}
						return
					}
					write(t, db, set(fmt.Sprint(i), i+1))
				}()
			}
		})
		for i := range 20 {
			if i%7 != 3 {
				wantValue(t, db, fmt.Sprint(i), i+1)
			}
		}
		wantValue(t, db, "bad", 7)
	})
}

func TestStatementsHaveTheirOwnTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine, db := newDB(t)
		testdb.Exec(t, engine, "CREATE TABLE t (k TEXT PRIMARY KEY)")
		before := transactions(db)
		order := make(chan string, 5)
		queued(db, 5, func() {
			for _, name := range []string{"batch", "statements", "statements", "batch", "batch"} {
				go func() {
					if name == "batch" {
						write(t, db, func(b *Batch) error { order <- name; return set("a", 1)(b) })
						return
					}
					err := db.WriteAlone(t.Context(), func(tx *chai.Tx) error {
						order <- name
						return tx.Exec("INSERT INTO t (k) VALUES (?) ON CONFLICT DO NOTHING", "x")
					})
					if err != nil {
						t.Error(err)
					}
				}()
				synctest.Wait()
			}
		})
		close(order)
		var got []string
		for name := range order {
			got = append(got, name)
		}
		if want := "batch statements statements batch batch"; strings.Join(got, " ") != want {
			t.Errorf("they ran in the order %v, want %s", got, want)
		}
		// One for each group, and one for those who read while statements are committed.
		if got := transactions(db) - before; got != 4+2 {
			t.Errorf("they took %d transactions, want 6", got)
		}
		if err := db.WriteAlone(t.Context(), func(tx *chai.Tx) error {
			return errors.Join(tx.Exec("INSERT INTO t (k) VALUES (?)", "y"), errNo)
		}); !errors.Is(err, errNo) {
			t.Errorf("WriteAlone of failing statements: %v", err)
		}
		rows := 0
		if err := db.Query("SELECT k FROM t", func(*chai.Row) error { rows++; return nil }); err != nil || rows != 1 {
			t.Errorf("the table has %d rows (%v), want 1", rows, err)
		}
	})
}

func TestQueryEndsWithTheErrorOfItsCallback(t *testing.T) {
	engine, db := newDB(t)
	testdb.Exec(t, engine, "CREATE TABLE t (k TEXT PRIMARY KEY)", "INSERT INTO t (k) VALUES ('x')")
	for range 3 {
		if err := db.Query("SELECT k FROM t", func(*chai.Row) error { return errNo }); !errors.Is(err, errNo) {
			t.Fatalf("Query = %v, want %v", err, errNo)
		}
	}
}

func TestContextEndsInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		ctx, cancel := context.WithCancel(t.Context())
		var canceled atomic.Int64
		queued(db, 6, func() {
			// First, in the middle and last.
			for i := range 9 {
				go func() {
					if i%4 != 0 {
						write(t, db, set(fmt.Sprint(i), 1))
						return
					}
					err := db.Write(ctx, set(fmt.Sprint(i), 1))
					if !errors.Is(err, context.Canceled) {
						t.Errorf("Write whose context has ended: %v", err)
					}
					canceled.Add(1)
				}()
				synctest.Wait()
			}
			cancel()
			synctest.Wait()
			if n := canceled.Load(); n != 3 {
				t.Errorf("%d of 3 writes returned when their context ended", n)
			}
		})
		for i := range 9 {
			wantValue(t, db, fmt.Sprint(i), min(1, i%4))
		}
		if err := db.Write(ctx, set("x", 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("Write with a done context: %v", err)
		}
		wantValue(t, db, "x", 0)
	})
}

// Whoever's context ends when the turn is handed to it passes the turn on.
func TestContextEndsWhenTheTurnComes(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	_, db := newDB(t)
	lock := Lock(db.engine)
	for i := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		lock.Lock() // hangs if the turn was lost
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := db.Write(ctx, set("a", i+1)); !errors.Is(err, context.Canceled) {
				t.Errorf("Write whose context has ended: %v", err)
			}
		})
		for waiting(db) == 0 {
			runtime.Gosched()
		}
		cancel()
		lock.Unlock()
		wg.Wait()
	}
	wantValue(t, db, "a", 0)
}

func TestContextEndsAfterTheTransactionHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		ctx, cancel := context.WithCancel(t.Context())
		queued(db, 3, func() {
			for i := range 3 {
				go func() {
					err := db.Write(ctx, func(b *Batch) error {
						cancel()
						return set(fmt.Sprint(i), i+1)(b)
					})
					// The first one may see the end before its transaction begins.
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Errorf("Write: %v", err)
					}
					if got, _ := get(db, fmt.Sprint(i)); (err == nil) != (got == i+1) {
						t.Errorf("Write returned %v, and the value is %d", err, got)
					}
				}()
			}
		})
	})
}

// closeEngine closes the engine below Chai, whose next call of it panics.
func closeEngine(db *chai.DB) { db.DB.Store.Close() }

// Wherever the engine panics in a write, everyone who waits and every later write
// get the panic as an error, and nothing hangs. What can be read is still read.
func TestPanicInWrite(t *testing.T) {
	panicking := func(db *chai.DB, f func(b *Batch) error) func(w *DB) error {
		return func(w *DB) error { return w.Write(context.Background(), f) }
	}
	for name, test := range map[string]struct {
		write    func(db *chai.DB) func(w *DB) error
		readable bool
	}{
		"begin": {func(db *chai.DB) func(w *DB) error {
			return func(w *DB) error {
				closeEngine(db)
				return w.Write(context.Background(), set("a", 2))
			}
		}, false},
		"commit of a batch": {func(db *chai.DB) func(w *DB) error {
			return panicking(db, func(b *Batch) error {
				err := set("a", 2)(b)
				closeEngine(db)
				return err
			})
		}, false},
		"operation": {func(db *chai.DB) func(w *DB) error {
			return panicking(db, func(b *Batch) error { panic("pebble: closed") })
		}, true},
		"operation after a change": {func(db *chai.DB) func(w *DB) error {
			return panicking(db, func(b *Batch) error {
				if err := set("a", 2)(b); err != nil {
					return err
				}
				panic(errors.New("pebble: closed"))
			})
		}, true},
		"statement": {func(db *chai.DB) func(w *DB) error {
			return func(w *DB) error {
				return w.WriteAlone(context.Background(), func(tx *chai.Tx) error {
					closeEngine(db)
					return tx.Exec("INSERT INTO t (k) VALUES ('x')")
				})
			}
		}, false},
		"commit of statements": {func(db *chai.DB) func(w *DB) error {
			return func(w *DB) error {
				return w.WriteAlone(context.Background(), func(tx *chai.Tx) error {
					err := tx.Exec("INSERT INTO t (k) VALUES ('x')")
					closeEngine(db)
					return err
				})
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, 20*time.Second)
			engine, db := newBreakableDB(t)
			write(t, db, set("a", 1))
			wantPanic := func(err error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), "chai panicked: pebble: closed") {
					t.Errorf("Write = %v, want the panic", err)
				}
			}

			// One comes first, and twenty wait, of which ten can share with it.
			lock := Lock(engine)
			lock.Lock()
			var wg sync.WaitGroup
			wg.Go(func() { wantPanic(test.write(engine)(db)) })
			for waiting(db) < 1 && !strings.HasPrefix(name, "begin") {
				runtime.Gosched()
			}
			for i := range 20 {
				wg.Go(func() {
					if i%2 == 0 {
						wantPanic(db.Write(context.Background(), set("b", i)))
						return
					}
					wantPanic(db.WriteAlone(context.Background(), func(tx *chai.Tx) error {
						return tx.Exec("INSERT INTO t (k) VALUES (?)", i)
					}))
				})
			}
			for waiting(db) < 20 {
				runtime.Gosched()
			}
			lock.Unlock()
			wg.Wait()

			wantPanic(db.Write(context.Background(), set("a", 3)))
			wantPanic(For(engine, discard).Write(context.Background(), set("a", 3)))
			for range 3 {
				v, err := get(db, "a")
				if test.readable && (v != 1 || err != nil) {
					t.Errorf("read %d, %v; want 1, nil", v, err)
				}
				if !test.readable && err == nil {
					t.Errorf("read %d from a closed engine", v)
				}
			}
			lock.Lock() // is free
			defer lock.Unlock()
		})
	}
}

func TestPanicInRead(t *testing.T) {
	for name, read := range map[string]func(db *DB) error{
		"Get":   func(db *DB) error { _, err := db.Get(key("a")); return err },
		"Query": func(db *DB) error { return db.Query("SELECT k FROM t", func(*chai.Row) error { return nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, 20*time.Second)
			engine, db := newBreakableDB(t)
			if err := read(db); err != nil {
				t.Fatal(err)
			}
			closeEngine(engine)
			for range 3 {
				if err := read(db); err == nil || !strings.Contains(err.Error(), "chai panicked: pebble: closed") {
					t.Errorf("%s = %v, want the panic", name, err)
				}
				err := db.Write(t.Context(), set("a", 1))
				if err == nil || !strings.Contains(err.Error(), "chai panicked") {
					t.Errorf("Write = %v, want the panic", err)
				}
			}
		})
	}
}

// The application's lock and the writes have their turns in the order in which
// they came, whatever came between.
func TestTurnsAreTakenInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		lock := Lock(db.engine)
		const want = "write write lock write lock lock write"
		var got []string
		queued(db, 7, func() {
			for _, kind := range strings.Fields(want) {
				go func() {
					if kind == "write" {
						write(t, db, func(*Batch) error { got = append(got, kind); return nil })
						return
					}
					lock.Lock()
					defer lock.Unlock()
					got = append(got, kind)
				}()
				synctest.Wait()
			}
		})
		if strings.Join(got, " ") != want {
			t.Errorf("the turns were %v, want %s", got, want)
		}
	})
}

// At full load neither the application's lock nor the writes starve.
func TestNobodyStarves(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	ctx, cancel := context.WithCancel(t.Context())
	var writes, locks atomic.Int64
	var wg sync.WaitGroup
	for g := range 64 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				write(t, db, set(fmt.Sprint(g), i))
				writes.Add(1)
			}
		})
	}
	lock := Lock(engine)
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				lock.Lock()
				locks.Add(1)
				lock.Unlock()
			}
		})
	}
	for writes.Load() < 5000 || locks.Load() < 100 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
}

func TestUnlockOfUnlockedPanics(t *testing.T) {
	testdb.Watchdog(t, 20*time.Second)
	engine, db := newBreakableDB(t)
	lock := Lock(engine)
	wantPanic := func() {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		lock.Unlock()
	}
	wantPanic()
	lock.Lock()
	func() { lock.Unlock() }()
	wantPanic()
	// Nor can it be unlocked while another writes, which ends as any panic does.
	err := db.Write(t.Context(), func(*Batch) error { lock.Unlock(); return nil })
	if err == nil || !strings.Contains(err.Error(), "unlock of unlocked") {
		t.Errorf("Write = %v, want the panic", err)
	}
}

// When a transaction hangs in the engine, nobody waits for it for longer than the
// limit, whoever comes later not at all, and when it goes on, so do the writes.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testdb.Log
		db := For(testdb.Memory(t), func() *slog.Logger { return log.Logger(slog.LevelDebug) })
		hang := make(chan struct{})
		go func() {
			wantStall(t, db.Write(context.Background(), func(*Batch) error { <-hang; return nil }))
		}()
		time.Sleep(time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := db.Write(ctx, set("a", 1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Write whose context ended behind a hanging transaction: %v", err)
		}
		start := time.Now()
		wantStall(t, db.Write(t.Context(), set("a", 1)))
		if waited := time.Since(start); waited != stallLimit-2*time.Second {
			t.Errorf("it waited for %v", waited)
		}
		start = time.Now()
		wantStall(t, db.Write(t.Context(), set("a", 1)))
		wantStall(t, db.WriteAlone(t.Context(), func(*chai.Tx) error { return nil }))
		if waited := time.Since(start); waited > 0 {
			t.Errorf("Write waited for %v after the limit", waited)
		}
		locked := false
		go func() {
			lock := Lock(db.engine)
			lock.Lock()
			locked = true
			lock.Unlock()
		}()
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), "without holding the write lock") {
			t.Errorf("%d errors were logged, want 1:\n%s", n, &log)
		}
		if locked {
			t.Error("the lock was given away")
		}

		close(hang)
		synctest.Wait()
		if !locked {
			t.Error("the turn was not passed on")
		}
		wantValue(t, db, "a", 0)
		write(t, db, set("a", 2))
		wantValue(t, db, "a", 2)
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors were logged in the end, want 1:\n%s", n, &log)
		}
	})
}

// Someone writes without holding the lock, so that the engine does not even begin
// a transaction. When it does at last, nobody waits any more, and the operation is
// not run.
func TestStallAtTheBeginning(t *testing.T) {
	testdb.Watchdog(t, 20*time.Second)
	engine, db := newDB(t)
	db.stallLimit = 20 * time.Millisecond
	tx, err := engine.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	wantStall(t, db.Write(t.Context(), set("a", 1)))
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for db.queue.stalled() != nil {
		runtime.Gosched()
	}
	wantValue(t, db, "a", 0)
	write(t, db, set("a", 2))
	wantValue(t, db, "a", 2)
}

func wantStall(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrStalled) {
		t.Errorf("Write = %v, want %v", err, ErrStalled)
	}
}

// A reader that comes while a commit is under way reads the state before it, at
// once, where the engine alone would let it wait.
func TestReadersDoNotWaitForCommit(t *testing.T) {
	large := make([]byte, 9<<20) // takes long to commit, and is not written before
	batch := func(db *DB, began func()) error {
		return db.Write(context.Background(), func(b *Batch) error {
			defer began()
			return b.Put(key("large"), large)
		})
	}
	statements := func(db *DB, began func()) error {
		return db.WriteAlone(context.Background(), func(tx *chai.Tx) error {
			defer began()
			return tx.Exec("INSERT INTO t (k, v) VALUES ('large', ?)", large)
		})
	}
	byKey := func(t *testing.T, db *DB) {
		wantValue(t, db, "a", 1)
		wantValue(t, db, "missing", 0)
	}
	byStatement := func(t *testing.T, db *DB) { // as an application does
		if _, err := db.engine.QueryRow("SELECT k FROM t WHERE k = 'a'"); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		commit func(db *DB, began func()) error
		read   func(t *testing.T, db *DB)
	}{
		"batch":                    {batch, byKey},
		"batch, read by statement": {batch, byStatement},
		"statements":               {statements, byKey},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			// Without the lock of the engine, dozens come through at each commit.
			const enough = 10
			reads := 0
			for range 20 {
				if reads += readsWhile(t, test.commit, test.read); reads >= enough {
					return
				}
			}
			t.Errorf("during 20 commits %d reads came through", reads)
		})
	}
}

// readsWhile returns how many reads begin and end in the middle half of the time
// that a commit takes.
func readsWhile(t *testing.T, commit func(db *DB, began func()) error, readOne func(t *testing.T, db *DB)) int {
	engine := testdb.Disk(t)
	testdb.Exec(t, engine, "CREATE TABLE t (k TEXT PRIMARY KEY, v BLOB)", "INSERT INTO t (k) VALUES ('a')")
	db := For(engine, discard)
	write(t, db, set("a", 1))
	var began, ended time.Time
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := commit(db, func() { began = time.Now() }); err != nil {
			t.Error(err)
		}
		ended = time.Now()
	}()
	type read struct{ began, ended time.Time }
	var reads []read
	for committing := true; committing; {
		start := time.Now()
		readOne(t, db)
		reads = append(reads, read{start, time.Now()})
		select {
		case <-done:
			committing = false
		default:
		}
	}
	n, quarter := 0, ended.Sub(began)/4
	for _, r := range reads {
		if r.began.After(began.Add(quarter)) && r.ended.Before(ended.Add(-quarter)) {
			n++
		}
	}
	return n
}

// Whoever reads after a write was acknowledged reads it, or a later one, whatever
// commits meanwhile, and whether the store or the application wrote it.
func TestAcknowledgedWritesAreRead(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for _, path := range []string{"memory", "disk"} {
		t.Run(path, func(t *testing.T) {
			engine := testdb.Memory(t)
			if path == "disk" {
				engine = testdb.Disk(t)
			}
			const keys = 4
			var acknowledged [keys]atomic.Int64
			ctx, cancel := context.WithCancel(t.Context())
			var writers, readers sync.WaitGroup
			for k := range keys {
				db := For(engine, discard)
				lock := Lock(engine)
				writers.Go(func() {
					for i := 1; i <= 150; i++ {
						if k == 0 && i%3 == 0 { // as an application does
							lock.Lock()
							tx, err := engine.DB.Begin(true)
							if err != nil {
								t.Error(err)
							}
							if err := errors.Join(tx.Session.Put(key(fmt.Sprint(k)), []byte(strconv.Itoa(i))), tx.Commit()); err != nil {
								t.Error(err)
							}
							lock.Unlock()
						} else {
							write(t, db, set(fmt.Sprint(k), i))
						}
						acknowledged[k].Store(int64(i))
					}
				})
			}
			for range 8 {
				db := For(engine, discard)
				readers.Go(func() {
					for ctx.Err() == nil {
						for k := range keys {
							want := acknowledged[k].Load()
							if got, err := get(db, fmt.Sprint(k)); err != nil || int64(got) < want {
								t.Errorf("read %d, %v after %d was acknowledged", got, err, want)
								return
							}
						}
					}
				})
			}
			writers.Wait()
			cancel()
			readers.Wait()
		})
	}
}

// A database that nobody refers to any more is collected, and forgotten.
func TestDatabasesAreForgotten(t *testing.T) {
	count := func() (registered, goroutines int, heap uint64) {
		for range 50 {
			runtime.GC()
			registered = 0
			registry.Range(func(any, any) bool { registered++; return true })
			if registered == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return registered, runtime.NumGoroutine(), stats.HeapAlloc
	}
	use := func(n int) {
		for range n {
			engine, err := chai.Open(":memory:")
			if err != nil {
				t.Fatal(err)
			}
			db := For(engine, discard)
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() { write(t, db, set(fmt.Sprint(i), i)) })
			}
			wg.Wait()
			wantValue(t, db, "1", 1)
			if err := engine.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	use(100)
	_, goroutines, heap := count()
	use(1000)
	registered, goroutinesAfter, heapAfter := count()
	if registered > 0 {
		t.Errorf("%d databases are still registered", registered)
	}
	if goroutinesAfter > goroutines+5 {
		t.Errorf("there are %d goroutines, after %d before", goroutinesAfter, goroutines)
	}
	if grown := int64(heapAfter) - int64(heap); grown > 2<<20 {
		t.Errorf("the heap has grown by %d bytes in 1,000 databases", grown)
	}
}

// Everything at once, for a while: random calls from many goroutines, each of
// which knows what its own keys must be.
func TestStress(t *testing.T) {
	testdb.Watchdog(t, 2*time.Minute)
	engine := testdb.Disk(t)
	testdb.Exec(t, engine, "CREATE TABLE t (k INTEGER PRIMARY KEY)")
	end := time.Now().Add(3 * time.Second)
	var wg sync.WaitGroup
	for g := range 48 {
		wg.Go(func() {
			db, rng, model := For(engine, discard), rand.New(rand.NewPCG(uint64(g), 0)), make(map[string]int)
			for i := 1; time.Now().Before(end); i++ {
				k := fmt.Sprint(g, "-", rng.IntN(3))
				ctx, cancel := context.WithCancel(t.Context())
				switch rng.IntN(12) {
				case 0:
					if err := db.Write(ctx, failing(k)); !errors.Is(err, errNo) {
						t.Errorf("Write of a failing operation: %v", err)
					}
				case 1:
					time.AfterFunc(time.Duration(rng.IntN(500))*time.Microsecond, cancel)
					if err := db.Write(ctx, set(k, i)); err == nil {
						model[k] = i
					} else if !errors.Is(err, context.Canceled) {
						t.Errorf("Write: %v", err)
					}
				case 2:
					if err := db.WriteAlone(ctx, func(tx *chai.Tx) error {
						return tx.Exec("INSERT INTO t (k) VALUES (?) ON CONFLICT DO NOTHING", rng.IntN(100))
					}); err != nil {
						t.Errorf("WriteAlone: %v", err)
					}
				case 3:
					lock := Lock(engine)
					lock.Lock()
					err := engine.Exec("DELETE FROM t WHERE k = ?", rng.IntN(100))
					lock.Unlock()
					if err != nil {
						t.Errorf("DELETE: %v", err)
					}
				case 4:
					write(t, db, func(b *Batch) error { return b.Delete(key(k)) })
					delete(model, k)
				case 5:
					if err := db.Query("SELECT k FROM t", func(*chai.Row) error { return nil }); err != nil {
						t.Errorf("Query: %v", err)
					}
				default:
					write(t, db, set(k, i))
					model[k] = i
				}
				cancel()
				if got, err := get(db, k); got != model[k] || err != nil {
					t.Errorf("the value of %s is %d, %v; want %d, nil", k, got, err, model[k])
				}
			}
		})
	}
	wg.Wait()
}
