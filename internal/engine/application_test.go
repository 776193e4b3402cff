package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// insert returns a function that inserts a row with the key k into t.
func insert(k int) func(tx *chai.Tx) error {
	return func(tx *chai.Tx) error { return tx.Exec("INSERT INTO t (k, v) VALUES (?, 0)", k) }
}

func TestUnlockOfUnlockedPanics(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newBreakableDB(t)
	lock := Open(engine, discard).Lock()
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
	// Nor can it be unlocked during another's write. In Write, the panic becomes an error.
	if err := Open(engine, discard).Update(t.Context(), func(*chai.Tx) error { wantPanic(); return nil }); err != nil {
		t.Errorf("Update: %v", err)
	}
	err := db.Write(t.Context(), 100, func(*Batch) error { lock.Unlock(); return nil })
	if err == nil || !strings.Contains(err.Error(), "unlock of unlocked") {
		t.Errorf("Write = %v, want the panic", err)
	}
}

func TestWriteLockMatchesTransaction(t *testing.T) {
	engine, _ := newDB(t)
	tx, err := engine.DB.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if got := reach.Writetxmu(engine); got != tx.WriteTxMu {
		t.Errorf("the write lock is at %p, want %p", got, tx.WriteTxMu)
	}
	if got := reach.Writetxmu(engine.WithContext(t.Context())); got != tx.WriteTxMu {
		t.Errorf("the write lock of a copy of the handle is at %p, want %p", got, tx.WriteTxMu)
	}
}

// For and Lock neither wait for an open transaction nor keep it from being committed.
func TestForAndLockWhileATransactionIsOpen(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine := testdb.Memory(t)
	createTable(t, engine)
	tx, err := engine.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	db := Open(engine, discard)
	lockIsFree(engine)
	wantValue(t, db, "a", 0)
	if db.quiet() {
		t.Error("quiet = true while a transaction is open")
	}
	if err := errors.Join(insert(1)(tx), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	if !db.quiet() {
		t.Error("quiet = false after the transaction")
	}
	write(t, db, set("a", 1))
}

// One goroutine of the application writes beside the stores without the lock.
func TestApplicationWritesWithoutLock(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	ctx, cancel := context.WithCancel(t.Context())
	var inserted, written atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for k := 0; ctx.Err() == nil; k++ {
			if err := engine.Exec("INSERT INTO t (k, v) VALUES (?, 0)", k); err != nil {
				t.Error(err)
			}
			inserted.Add(1)
		}
	})
	for g := range 8 {
		wg.Go(func() {
			for i := 1; ctx.Err() == nil; i++ {
				write(t, db, set(fmt.Sprint(g), i))
				wantValue(t, db, fmt.Sprint(g), i)
				written.Add(1)
			}
		})
	}
	until(func() bool { return inserted.Load() > 200 && written.Load() > 2000 })
	cancel()
	wg.Wait()
	if got := rows(t, engine); got != int(inserted.Load()) {
		t.Errorf("the table has %d rows, want %d", got, inserted.Load())
	}
}

// deadlock makes two goroutines of the application deadlock: one waits for a
// transaction to end, with a lock held that the other one needs to end it.
func deadlock(t *testing.T, engine *chai.DB) {
	t.Helper()
	tx, err := engine.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	go engine.Exec("INSERT INTO t (k) VALUES (1)")
	transactionBegins(engine)
	go tx.Commit()
}

// When the application has deadlocked, committed rows can still be read, writes fail
// within the limit, and contexts end.
func TestApplicationDeadlocks(t *testing.T) {
	read := func(t *testing.T, db *DB) {
		wantValue(t, db, "a", 1)
		if err := db.Read(t.Context(), func(s *Snapshot) error {
			return s.Scan(firstKey, lastKey, func(_, _ []byte) (bool, error) { return true, nil })
		}); err != nil {
			t.Errorf("Scan: %v", err)
		}
	}
	t.Run("limit", func(t *testing.T) {
		testdb.Watchdog(t, time.Minute)
		log := new(recorder)
		engine, db := newBreakableDB(t)
		write(t, db, set("a", 1))
		deadlock(t, engine)
		read(t, db)
		db.logger, db.hangLimit = log.logger, 20*time.Millisecond
		for range 3 {
			wantError(t, db.Write(t.Context(), 100, set("a", 2)), ErrBusy)
			read(t, db)
		}
		log.untilHangs(1)
		log.wantHangs(t, 1)
	})
	t.Run("context", func(t *testing.T) {
		testdb.Watchdog(t, time.Minute)
		engine, db := newBreakableDB(t)
		write(t, db, set("a", 1))
		deadlock(t, engine)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { wantError(t, db.Write(ctx, 100, set("a", 2)), context.Canceled) })
		wg.Go(func() { wantError(t, Open(engine, discard).Update(ctx, insert(2)), context.Canceled) })
		until(func() bool { return waiting(db) == 1 && len(db.app.taken) == 1 })
		read(t, db)
		cancel()
		wg.Wait()
		read(t, db)
	})
}

// While the application has a transaction open, reads return committed rows, and
// writes wait for its end.
func TestLongTransaction(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, engine *chai.DB) (put func(k, v []byte) error, commit func() error){
		"Begin": func(t *testing.T, engine *chai.DB) (put func(k, v []byte) error, commit func() error) {
			tx, err := engine.DB.Begin(true)
			if err != nil {
				t.Fatal(err)
			}
			return tx.Session.Put, tx.Commit
		},
		"SQL BEGIN": func(t *testing.T, engine *chai.DB) (put func(k, v []byte) error, commit func() error) {
			testdb.Exec(t, engine, "BEGIN")
			return engine.DB.GetAttachedTx().Session.Put, func() error { return engine.Exec("COMMIT") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			engine, db := newDB(t)
			write(t, db, set("a", 1))
			put, commit := begin(t, engine)
			if err := put(key("a"), []byte("2")); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() { write(t, db, set(fmt.Sprint("b", i), 1)) })
			}
			wg.Go(func() {
				if err := Open(engine, discard).Update(t.Context(), insert(1)); err != nil {
					t.Errorf("Update: %v", err)
				}
			})
			until(func() bool { return waiting(db) == 8 })
			for range 100 {
				wantValue(t, db, "a", 1)
				wantValue(t, db, "b0", 0)
			}
			if err := db.Read(t.Context(), func(s *Snapshot) error {
				return s.Scan(firstKey, lastKey, func(k, row []byte) (bool, error) {
					if string(k) != string(key("a")) || string(row) != "1" {
						t.Errorf("Scan found %q, %q", k, row)
					}
					return true, nil
				})
			}); err != nil {
				t.Errorf("Scan: %v", err)
			}
			if got := waiting(db); got != 8 {
				t.Errorf("got %d waiting writes, want 8", got)
			}
			if err := commit(); err != nil {
				t.Fatal(err)
			}
			wantValue(t, db, "a", 2)
			wg.Wait()
			for i := range 8 {
				wantValue(t, db, fmt.Sprint("b", i), 1)
			}
			if got := rows(t, engine); got != 1 {
				t.Errorf("the table has %d rows, want 1", got)
			}
		})
	}
}

func TestUpdate(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newBreakableDB(t)
	for name, test := range map[string]struct {
		f    func(tx *chai.Tx) error
		want string // the error or the panic value
		rows int
	}{
		"commit": {insert(1), "<nil>", 1},
		"error":  {func(tx *chai.Tx) error { return errors.Join(insert(2)(tx), errNo) }, "no", 0},
		"panic": {func(tx *chai.Tx) error {
			if err := insert(3)(tx); err != nil {
				t.Error(err)
			}
			panic("own")
		}, "own", 0},
		"large, error": {func(tx *chai.Tx) error {
			for k := 10; k < 20; k++ {
				if err := insert(k)(tx); err != nil {
					t.Error(err)
				}
				if err := tx.Exec("UPDATE t SET v = 1"); err != nil { // reads, so it first writes out the rows
					t.Error(err)
				}
			}
			return errNo
		}, "no", 0},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Exec(t, engine, "DELETE FROM t")
			var got any
			func() {
				defer func() {
					if r := recover(); r != nil {
						got = r
					}
				}()
				got = Open(engine, discard).Update(t.Context(), test.f)
			}()
			if fmt.Sprint(got) != test.want {
				t.Errorf("Update returned or panicked with %v, want %s", got, test.want)
			}
			// Neither our lock nor Chai's is still held.
			lockIsFree(engine)
			if !db.quiet() {
				t.Fatal("the transaction is still open")
			}
			if got := rows(t, engine); got != test.rows {
				t.Errorf("the table has %d rows, want %d", got, test.rows)
			}
			write(t, db, set("a", 1))
		})
	}
}

func TestUpdateIsATurn(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	var wg sync.WaitGroup
	err := Open(engine, discard).Update(t.Context(), func(*chai.Tx) error {
		wg.Go(func() { write(t, db, set("a", 1)) })
		until(func() bool { return waiting(db) == 1 })
		wantValue(t, db, "a", 0)
		return nil
	})
	if err != nil {
		t.Errorf("Update: %v", err)
	}
	wg.Wait()
	wantValue(t, db, "a", 1)
}

// Update returns when its context ends, whatever it waits for, and does not call f.
func TestContextEndsBeforeUpdate(t *testing.T) {
	for name, occupy := range occupations {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			engine, db := newDB(t)
			for range 3 {
				free := occupy(t, engine)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() { wantError(t, Open(engine, discard).Update(ctx, insert(1)), context.Canceled) })
				}
				until(func() bool { return len(db.app.taken) == 1 })
				cancel()
				wg.Wait()
				free()
				write(t, db, set("a", 1))
				if err := Open(engine, discard).Update(t.Context(), func(*chai.Tx) error { return nil }); err != nil {
					t.Errorf("Update: %v", err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for range 20 {
				wantError(t, Open(engine, discard).Update(ctx, insert(1)), context.Canceled)
			}
			if got := rows(t, engine); got != 0 {
				t.Errorf("the table has %d rows, want none", got)
			}
		})
	}
}

// Once a transaction has begun, it is committed, even if the context ends.
func TestContextEndsInUpdate(t *testing.T) {
	engine, _ := newDB(t)
	ctx, cancel := context.WithCancel(t.Context())
	if err := Open(engine, discard).Update(ctx, func(tx *chai.Tx) error { cancel(); return insert(1)(tx) }); err != nil {
		t.Errorf("Update: %v", err)
	}
	if got := rows(t, engine); got != 1 {
		t.Errorf("the table has %d rows, want 1", got)
	}
}

// A transaction that is open when Update begins to wait can still be committed.
func TestUpdateMeetsATransaction(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	for i := range 50 {
		tx, err := engine.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := Open(engine, discard).Update(t.Context(), insert(2*i)); err != nil {
				t.Errorf("Update: %v", err)
			}
		})
		until(func() bool { return len(db.app.taken) == 1 })
		time.Sleep(200 * time.Microsecond)
		if err := errors.Join(insert(2*i+1)(tx), tx.Commit()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
	if got := rows(t, engine); got != 100 {
		t.Errorf("the table has %d rows, want 100", got)
	}
}

func TestConcurrentUpdatesAndWrites(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	if err := Open(engine, discard).Update(t.Context(), insert(1)); err != nil {
		t.Fatal(err)
	}
	const goroutines, each = 4, 50
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for range each {
				err := Open(engine, discard).Update(t.Context(), func(tx *chai.Tx) error {
					return tx.Exec("UPDATE t SET v = v + 1 WHERE k = 1")
				})
				if err != nil {
					t.Errorf("Update: %v", err)
				}
			}
		})
		wg.Go(func() {
			for i := 1; i <= 2*each; i++ {
				write(t, db, set(fmt.Sprint(g), i))
				wantValue(t, db, fmt.Sprint(g), i)
			}
		})
	}
	wg.Wait()
	row, err := engine.QueryRow("SELECT v FROM t WHERE k = 1")
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if err := row.Scan(&got); err != nil || got != goroutines*each {
		t.Errorf("the counter is %d, %v; want %d", got, err, goroutines*each)
	}
}

// A transaction that fails to begin or to commit leaves nothing locked.
func TestUpdateFails(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newBreakableDB(t)
	wantFree := func() {
		t.Helper()
		if !db.quiet() {
			t.Fatal("Chai's write lock is still locked")
		}
		write(t, db, set("a", 1))
		testdb.Exec(t, engine, "DELETE FROM t")
		if err := Open(engine, discard).Update(t.Context(), insert(1)); err != nil {
			t.Errorf("Update: %v", err)
		}
		if got := rows(t, engine); got != 1 {
			t.Errorf("the table has %d rows, want 1", got)
		}
	}
	for range 3 {
		testdb.Exec(t, engine, "BEGIN READ ONLY")
		err := Open(engine, discard).Update(t.Context(), insert(2))
		if err == nil || !strings.Contains(err.Error(), "begin transaction") {
			t.Errorf("Update beside BEGIN READ ONLY = %v, want an error", err)
		}
		write(t, db, set("b", 1))
		testdb.Exec(t, engine, "ROLLBACK")
		wantFree()

		for _, end := range []func(tx *chai.Tx) error{(*chai.Tx).Rollback, (*chai.Tx).Commit} {
			wantError(t, Open(engine, discard).Update(t.Context(), func(tx *chai.Tx) error { return errors.Join(end(tx), errNo) }), errNo)
			wantFree()
		}

		err = Open(engine, discard).Update(t.Context(), func(tx *chai.Tx) error {
			setReadOnly(engine, true)
			return insert(3)(tx)
		})
		setReadOnly(engine, false)
		if err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("Update whose commit fails = %v, want an error that says read-only", err)
		}
		wantFree()
	}
}

// An Update that gives up leaves no goroutine of its own behind.
func TestUpdatesThatGiveUpLeaveOneGoroutine(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	tx, err := engine.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		wantError(t, Open(engine, discard).Update(ctx, insert(1)), context.DeadlineExceeded)
		cancel()
	}
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("100 calls of Update have left %d goroutines, want 1", n)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := Open(engine, discard).Update(t.Context(), func(*chai.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	write(t, db, set("a", 1))
}

// An Update inside the function of another one gives up, as does a write.
func TestNestedUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine, db := newDB(t)
		var inner, written error
		err := Open(engine, discard).Update(context.Background(), func(tx *chai.Tx) error {
			inner = Open(engine, discard).Update(context.Background(), insert(2))
			written = db.Write(context.Background(), 100, set("a", 1))
			return insert(1)(tx)
		})
		wantError(t, err, nil)
		wantError(t, inner, ErrBusy)
		wantError(t, written, ErrBusy)
		if n := rows(t, engine); n != 1 {
			t.Errorf("got %d rows, want 1", n)
		}
	})
}

// A transaction that has ended can't write into the next batch of another database.
func TestSpentTransaction(t *testing.T) {
	for name, end := range map[string]error{"committed": nil, "rolled back": errNo} {
		t.Run(name, func(t *testing.T) {
			engine, _ := newDB(t)
			_, other := newDB(t)
			var spent *chai.Tx
			wantError(t, Open(engine, discard).Update(t.Context(), func(tx *chai.Tx) error {
				spent = tx
				return errors.Join(insert(1)(tx), tx.Exec("DELETE FROM t"), end)
			}), end)
			for i := range 20 {
				func() {
					defer func() {
						if recover() == nil {
							t.Error("a transaction that has ended did not panic")
						}
					}()
					_ = spent.Exec("INSERT INTO t (k) VALUES (?)", 100+i)
				}()
				write(t, other, set("a", 1))
			}
			if n := rows(t, other.handle); n != 0 {
				t.Errorf("the other database has %d rows of the transaction, want 0", n)
			}
			if n := rows(t, engine); n != 0 {
				t.Errorf("the database has %d rows, want 0", n)
			}
		})
	}
}
