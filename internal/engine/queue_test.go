package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

func TestContextEndsInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		ctx, cancel := context.WithCancel(t.Context())
		var canceled atomic.Int64
		queued(db, 6, func() {
			// Cancel the first, a middle and the last write.
			for i := range 9 {
				go func() {
					if i%4 != 0 {
						write(t, db, set(fmt.Sprint(i), 1))
						return
					}
					wantError(t, db.Write(ctx, 100, set(fmt.Sprint(i), 1)), context.Canceled)
					canceled.Add(1)
				}()
				synctest.Wait()
			}
			cancel()
			synctest.Wait()
			if n := canceled.Load(); n != 3 {
				t.Errorf("got %d canceled writes, want 3", n)
			}
		})
		for i := range 9 {
			wantValue(t, db, fmt.Sprint(i), min(1, i%4))
		}
	})
}

func TestContextIsDoneBefore(t *testing.T) {
	_, db := newDB(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		wantError(t, db.Write(ctx, 100, set("a", 1)), context.Canceled)
	}
	wantValue(t, db, "a", 0)
}

// If all waiting callers have left, the turn ends, and nothing is committed.
func TestContextEndsWhenTheTurnComes(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	_, db := newDB(t)
	lock := Open(db.handle, discard).Lock()
	for i := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		lock.Lock()
		var wg sync.WaitGroup
		wg.Go(func() {
			err := db.Write(ctx, 100, set(fmt.Sprint(i), 1))
			if err != nil {
				wantError(t, err, context.Canceled)
			}
			if got, _ := value(db, fmt.Sprint(i)); (got == 1) != (err == nil) {
				t.Errorf("Write = %v, and got value %d", err, got)
			}
		})
		until(func() bool { return waiting(db) == 1 })
		wg.Go(cancel)
		lock.Unlock()
		wg.Wait()
	}
	write(t, db, set("a", 1))
	wantValue(t, db, "a", 1)
}

func TestContextEndsAfterTheOperationHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		ctx, cancel := context.WithCancel(t.Context())
		queued(db, 3, func() {
			for i := range 3 {
				go func() {
					err := db.Write(ctx, 100, func(b *Batch) error {
						cancel()
						time.Sleep(time.Second)
						return set(fmt.Sprint(i), 1)(b)
					})
					if err != nil {
						t.Errorf("Write: %v", err)
					}
					wantValue(t, db, fmt.Sprint(i), 1)
				}()
			}
		})
		time.Sleep(time.Hour)
	})
}

// The application has a transaction open, without the lock.
func TestContextEndsWhileATransactionIsOpen(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	for range 20 {
		tx, err := engine.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { wantError(t, db.Write(ctx, 100, set("a", 1)), context.Canceled) })
		}
		until(func() bool { return waiting(db) == 5 })
		cancel()
		wg.Wait()
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		wantValue(t, db, "a", 0)
		write(t, db, set("b", 1))
	}
}

// At full load, no writer starves: no store, no caller of Lock or Update, and not the
// one goroutine of an application that uses neither.
func TestNobodyStarves(t *testing.T) {
	for name, writeOne := range map[string]func(engine *chai.DB) error{
		"lock": func(engine *chai.DB) error {
			lockIsFree(engine)
			return nil
		},
		"update": func(engine *chai.DB) error {
			return Open(engine, discard).Update(context.Background(), func(*chai.Tx) error { return nil })
		},
		"without lock": func(engine *chai.DB) error {
			return engine.Exec("INSERT INTO t (k) VALUES (1) ON CONFLICT DO NOTHING")
		},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			engine, db := newDB(t)
			ctx, cancel := context.WithCancel(t.Context())
			var writes, others atomic.Int64
			var wg sync.WaitGroup
			for g := range 32 {
				wg.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						write(t, db, set(fmt.Sprint(g), i))
						writes.Add(1)
					}
				})
			}
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := writeOne(engine); err != nil {
						t.Error(err)
					}
					others.Add(1)
				}
			})
			until(func() bool { return writes.Load() >= 2000 && others.Load() >= 50 })
			cancel()
			wg.Wait()
		})
	}
}

// When a turn hangs, no caller waits longer than the limit, later callers do not wait
// at all, and once the turn goes on, no trace of the hang is left.
func TestHang(t *testing.T) {
	for _, place := range []string{"lock", "operation"} {
		t.Run(place, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testHang(t, place == "lock") })
		})
	}
}

func testHang(t *testing.T, withLock bool) {
	log := new(recorder)
	engine := testdb.Memory(t)
	db := Open(engine, log.logger)
	lock := Open(engine, discard).Lock()
	write(t, db, set("kept", 1))
	for round := 1; round <= 3; round++ {
		hang := make(chan struct{})
		if withLock {
			lock.Lock()
		}
		go func() {
			start := time.Now()
			wantError(t, db.Write(context.Background(), 100, func(*Batch) error { <-hang; return nil }), ErrBusy)
			if waited := time.Since(start); waited != HangLimit {
				t.Errorf("the first write waited %v, want %v", waited, HangLimit)
			}
		}()
		time.Sleep(time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		start := time.Now()
		wantError(t, db.Write(ctx, 100, set("a", 1)), context.DeadlineExceeded)
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("a write with a context of 1s waited %v", waited)
		}
		cancel()
		wantValue(t, db, "kept", round)

		var locked atomic.Bool
		go func() {
			lock.Lock()
			defer lock.Unlock()
			locked.Store(true)
		}()
		updateCtx, cancel := context.WithTimeout(t.Context(), time.Minute)
		go func() {
			wantError(t, Open(engine, discard).Update(updateCtx, func(*chai.Tx) error { return errNo }), ErrBusy)
		}()

		var wg sync.WaitGroup
		start = time.Now()
		for range 10 {
			wg.Go(func() { wantError(t, db.Write(t.Context(), 100, set("a", 1)), ErrBusy) })
		}
		wg.Wait()
		if waited := time.Since(start); waited != HangLimit-2*time.Second {
			t.Errorf("the writes behind the first one waited %v, want %v", waited, HangLimit-2*time.Second)
		}
		start = time.Now()
		for range 10 {
			wantError(t, db.Write(t.Context(), 100, set("a", 1)), ErrBusy)
		}
		if waited := time.Since(start); waited > 0 {
			t.Errorf("writes after the limit waited %v, want 0", waited)
		}
		time.Sleep(time.Hour)
		cancel()
		log.wantHangs(t, round)
		wantValue(t, db, "kept", round)
		if locked.Load() {
			t.Error("Lock returned while another caller held the lock")
		}

		close(hang)
		if withLock {
			lock.Unlock()
		}
		synctest.Wait()
		if !locked.Load() {
			t.Error("Lock did not return after the hang")
		}
		wantValue(t, db, "a", 0)
		write(t, db, set("kept", round+1))
		wantValue(t, db, "kept", round+1)
		if err := Open(engine, discard).Update(t.Context(), func(*chai.Tx) error { return nil }); err != nil {
			t.Errorf("Update: %v", err)
		}
		time.Sleep(time.Hour)
		log.wantHangs(t, round)
	}
}

// The application has a transaction open, without the lock.
func TestHangBehindATransaction(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	log := new(recorder)
	engine := testdb.Memory(t)
	db, patient := Open(engine, log.logger), Open(engine, log.logger)
	db.hangLimit = 20 * time.Millisecond
	for round := 1; round <= 3; round++ {
		tx, err := engine.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { wantError(t, db.Write(t.Context(), 100, set("a", 1)), ErrBusy) })
		until(func() bool { return waiting(db) > 0 || !db.queue.busySince().IsZero() })
		for range 10 {
			wg.Go(func() { wantError(t, patient.Write(t.Context(), 100, set("a", 1)), ErrBusy) })
		}
		wg.Wait()
		wantValue(t, db, "a", 0)
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		untilIdle(db)
		wantValue(t, db, "a", 0)
		write(t, patient, set("b", round))
		wantValue(t, db, "b", round)
		log.untilHangs(round)
		log.wantHangs(t, round)
		untilIdle(db)
	}
}

// A turn that ends at the limit either hangs for all callers or for none.
func TestTurnEndsAtTheLimit(t *testing.T) {
	for _, early := range []time.Duration{time.Nanosecond, 0, -time.Nanosecond} {
		for range 10 {
			synctest.Test(t, func(t *testing.T) {
				log := new(recorder)
				db := Open(testdb.Memory(t), log.logger)
				first := make(chan error, 1)
				go func() {
					first <- db.Write(context.Background(), 100, func(b *Batch) error {
						time.Sleep(HangLimit - early)
						return set("a", 1)(b)
					})
				}()
				synctest.Wait()
				errs := [...]error{db.Write(context.Background(), 100, set("b", 1)), <-first}
				time.Sleep(time.Second)
				hung := 0
				if early < 0 || early == 0 && errs[0] != nil {
					hung = 1
				}
				for _, err := range errs {
					if hung == 0 && err != nil || hung == 1 && !errors.Is(err, ErrBusy) {
						t.Errorf("a turn that ended %v before the limit returned %v, hung = %d", early, errs, hung)
					}
				}
				log.wantHangs(t, hung)
				wantValue(t, db, "a", 1)
				wantValue(t, db, "b", 1-hung)
				write(t, db, set("c", 1))
				wantValue(t, db, "c", 1)
				time.Sleep(time.Hour)
				log.wantHangs(t, hung)
			})
		}
	}
}

// The same in real time, where the turn and its timer can meet at any point.
func TestTurnsEndAroundTheLimit(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	log := new(recorder)
	engine := testdb.Memory(t)
	db, patient := Open(engine, log.logger), Open(engine, log.logger)
	db.hangLimit = 200 * time.Microsecond
	var wg sync.WaitGroup
	var hung atomic.Int64
	for g := range 8 {
		wg.Go(func() {
			for i := 1; i <= 100; i++ {
				err := db.Write(t.Context(), 100, func(b *Batch) error {
					if g == 0 {
						time.Sleep(time.Duration(i) * 4 * time.Microsecond)
					}
					return set(fmt.Sprint(g), i)(b)
				})
				switch got, _ := value(db, fmt.Sprint(g)); {
				case err == nil && got != i:
					t.Errorf("after Write = nil, got value %d, want %d", got, i)
				case errors.Is(err, ErrBusy):
					hung.Add(1)
				case err != nil:
					t.Errorf("Write: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if hung.Load() == 0 {
		t.Error("no turn took longer than the limit")
	}
	untilIdle(db)
	write(t, patient, set("a", 1))
	wantValue(t, db, "a", 1)
}

// All callers are answered before a hang is logged, and a slow log handler delays
// nobody.
func TestSlowLogHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &recorder{onLine: func() { time.Sleep(time.Hour) }}
		engine := testdb.Memory(t)
		db := Open(engine, log.logger)
		for round := 1; round <= 3; round++ {
			lock := Open(engine, discard).Lock()
			lock.Lock()
			start := time.Now()
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { wantError(t, db.Write(context.Background(), 100, set("a", 1)), ErrBusy) })
			}
			wg.Wait()
			wantError(t, db.Write(context.Background(), 100, set("a", 1)), ErrBusy)
			lock.Unlock()
			synctest.Wait()
			write(t, db, set("b", round))
			if waited := time.Since(start); waited != HangLimit {
				t.Errorf("the writes took %v, want %v", waited, HangLimit)
			}
			log.wantHangs(t, round)
		}
		time.Sleep(2 * time.Hour)
		wantValue(t, db, "a", 0)
		wantValue(t, db, "b", 3)
	})
}

// A log handler ends the hang: it unlocks, or ends the open transaction, and then
// writes.
func TestLogHandlerEndsHang(t *testing.T) {
	for name, hang := range occupations {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			log := new(recorder)
			engine := testdb.Memory(t)
			db := Open(engine, log.logger)
			db.hangLimit = time.Millisecond
			patient := Open(engine, log.logger)
			for round := 1; round <= 10; round++ {
				end := hang(t, engine)
				ended := make(chan struct{})
				log.onLine = func() {
					defer close(ended)
					end()
					untilIdle(db)
					write(t, patient, set("a", round))
				}
				wantError(t, db.Write(t.Context(), 100, set("a", -1)), ErrBusy)
				<-ended
				wantValue(t, db, "a", round)
				log.wantHangs(t, round)
				untilIdle(db)
			}
		})
	}
}
