package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

// Wherever the engine panics in a write, all waiting and later writes return the
// panic as an error, and nothing hangs. Reads go on where the engine still can read. On a
// closed database, they return ErrClosed.
func TestPanicInWrite(t *testing.T) {
	for name, test := range map[string]struct {
		before   func(engine *chai.DB)
		op       func(engine *chai.DB) Op
		want     error
		readable bool
	}{
		"before": {
			before: closeEngine,
			op: func(*chai.DB) Op {
				return func(*Batch) error { t.Error("an operation ran on a closed engine"); return nil }
			},
		},
		"operation": {
			op:       func(*chai.DB) Op { return func(*Batch) error { panic(errNo) } },
			want:     errNo,
			readable: true,
		},
		"operation after a change": {
			op: func(*chai.DB) Op {
				return func(b *Batch) error {
					return errors.Join(set("a", 2)(b), func() error { panic(errNo) }())
				}
			},
			want:     errNo,
			readable: true,
		},
		"read of a batch": {
			op: func(engine *chai.DB) Op {
				return func(b *Batch) error {
					closeEngine(engine)
					_, err := b.Get(key("a"))
					return err
				}
			},
		},
		"commit": {
			op: func(engine *chai.DB) Op {
				return func(b *Batch) error {
					closeEngine(engine)
					return set("a", 2)(b)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			want := cmp.Or(test.want, ErrClosed)
			log := new(recorder)
			engine, db := newBreakableDB(t)
			db.logger = log.logger
			write(t, db, set("a", 1))

			lock := Open(engine, discard).Lock()
			lock.Lock()
			var wg sync.WaitGroup
			for i := range 20 {
				op := set("b", i)
				if i == 0 {
					op = test.op(engine)
				}
				wg.Go(func() { wantError(t, db.Write(context.Background(), 100, op), want) })
				until(func() bool { return waiting(db) == i+1 })
			}
			if test.before != nil {
				test.before(engine)
			}
			lock.Unlock()
			wg.Wait()

			for range 3 {
				wantError(t, db.Write(context.Background(), 100, set("a", 3)), want)
				wantError(t, Open(engine, log.logger).Write(context.Background(), 100, set("a", 3)), want)
				wantError(t, Open(engine, discard).Update(context.Background(), func(*chai.Tx) error { return nil }), want)
				v, err := value(db, "a")
				if test.readable && (v != 1 || err != nil) {
					t.Errorf("got value %d, %v; want 1, nil", v, err)
				}
				if !test.readable {
					wantError(t, err, want)
				}
			}
			lockIsFree(engine)
			log.wantHangs(t, 0)
		})
	}
}

func TestPanicInRead(t *testing.T) {
	for name, test := range map[string]struct {
		read func(db *DB, engine *chai.DB) error
		want error
	}{
		"closed": {func(db *DB, engine *chai.DB) error {
			closeEngine(engine)
			return db.Read(t.Context(), func(s *Snapshot) error { return nil })
		}, ErrClosed},
		"callback": {func(db *DB, engine *chai.DB) error {
			return db.Read(t.Context(), func(s *Snapshot) error {
				return s.Scan(firstKey, lastKey, func(_, _ []byte) (bool, error) { panic(errNo) })
			})
		}, errNo},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			engine, db := newBreakableDB(t)
			write(t, db, set("a", 1))
			wantError(t, test.read(db, engine), test.want)
			for range 3 {
				_, err := value(db, "a")
				wantError(t, err, test.want)
				_, err = value(Open(engine, discard), "a")
				wantError(t, err, test.want)
				wantError(t, db.Write(context.Background(), 100, set("a", 1)), test.want)
				wantError(t, Open(engine, discard).Update(context.Background(), func(*chai.Tx) error { return nil }), test.want)
			}
		})
	}
}

// Close waits for reads under way, whose memory it frees, and no read begins after it.
func TestCloseWaitsForReads(t *testing.T) {
	for name, read := range map[string]func(db *DB, during func()) error{
		"Read": func(db *DB, during func()) error {
			return db.Read(t.Context(), func(s *Snapshot) error {
				return s.Scan(firstKey, lastKey, func(k, _ []byte) (bool, error) {
					during()
					_, err := s.Get(k)
					wantError(t, err, ErrClosed)
					wantError(t, s.Scan(firstKey, lastKey, func(_, _ []byte) (bool, error) { return true, nil }), ErrClosed)
					return true, nil // what was begun before ends well
				})
			})
		},
		"panic": func(db *DB, during func()) error {
			err := db.whileOpen(func() error { during(); panic(errNo) })
			wantError(t, err, errNo)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			engine, db := newBreakableDB(t)
			write(t, db, set("a", 1))
			var closed atomic.Bool
			var wg sync.WaitGroup
			for range 2 { // Close waits for the last one
				begun := make(chan struct{})
				wg.Go(func() {
					err := read(db, func() {
						close(begun)
						until(func() bool { return db.Usable() != nil })
						time.Sleep(time.Millisecond) // lets Close end, if it does not wait
						if closed.Load() {
							t.Error("Close returned during a read")
						}
					})
					if err != nil {
						t.Errorf("a read under way returned %v", err)
					}
				})
				<-begun
			}
			err := engine.Close()
			closed.Store(true)
			wg.Wait()
			if err != nil {
				t.Errorf("Close: %v", err)
			}
			if err := db.Read(t.Context(), func(*Snapshot) error { return nil }); err == nil {
				t.Error("Read = nil after Close, want an error")
			}
		})
	}
}

// A commit that has failed may or may not have reached the disk, so nothing more is
// written.
func TestCommitFails(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	engine, db := newDB(t)
	write(t, db, set("a", 1))
	fsyncs := db.Fsyncs()
	err := db.Write(t.Context(), 100, func(b *Batch) error {
		setReadOnly(engine, true)
		return set("a", 2)(b)
	})
	setReadOnly(engine, false)
	if err == nil || !strings.Contains(err.Error(), "commit: pebble: read-only") {
		t.Fatalf("Write = %v, want an error that says read-only", err)
	}
	for range 3 {
		wantError(t, db.Write(t.Context(), 100, set("a", 3)), db.WriteError())
		wantError(t, Open(engine, discard).Write(t.Context(), 100, set("a", 3)), db.WriteError())
		wantValue(t, db, "a", 1)
	}
	if got := db.Fsyncs(); got != fsyncs {
		t.Errorf("got %d committed batches, want none", got-fsyncs)
	}
	for range 3 { // nothing is locked
		if err := returns(t, "Exec", func() error { return engine.Exec("INSERT INTO t (k) VALUES (1)") }); err == nil {
			t.Error("Exec succeeded after the failure")
		}
	}
}

// The engine fails in a transaction of the application.
func TestFailureInUpdate(t *testing.T) {
	writeOut := func(tx *chai.Tx) error { // writes rows that a rollback has to undo
		return errors.Join(insert(1)(tx), insert(2)(tx), tx.Exec("UPDATE t SET v = 1"))
	}
	for name, test := range map[string]struct {
		f              func(engine *chai.DB, tx *chai.Tx) error
		update, remain string // errors of Update, and of later writes
	}{
		"panic in commit": {func(engine *chai.DB, tx *chai.Tx) error {
			defer closeEngine(engine)
			return insert(1)(tx)
		}, ErrClosed.Error(), ErrClosed.Error()},
		"panic in rollback": {func(engine *chai.DB, tx *chai.Tx) error {
			defer closeEngine(engine)
			return errors.Join(writeOut(tx), errNo)
		}, errNo.Error(), ErrClosed.Error()},
		"error in rollback": {func(engine *chai.DB, tx *chai.Tx) error {
			defer setReadOnly(engine, true)
			return errors.Join(writeOut(tx), errNo)
		}, errNo.Error(), "roll back transaction: pebble: read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			log := new(recorder)
			engine, db := newBreakableDB(t)
			db.logger = log.logger
			want := func(err error, text string) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got error %v, want one that says %q", err, text)
				}
			}
			want(Open(engine, discard).Update(context.Background(), func(tx *chai.Tx) error { return test.f(engine, tx) }), test.update)
			for range 3 {
				want(db.Write(context.Background(), 100, set("a", 1)), test.remain)
				want(Open(engine, discard).Update(context.Background(), insert(1)), test.remain)
			}
			log.wantHangs(t, 0)
		})
	}
}

// After Close every call fails at once, even if the application's own calls have
// panicked since, and left locks of Chai held.
func TestCallsAfterClose(t *testing.T) {
	recovered := func(f func()) {
		defer func() { _ = recover() }()
		f()
	}
	for name, between := range map[string]func(engine *chai.DB){
		"nothing": func(*chai.DB) {},
		"Exec":    func(engine *chai.DB) { engine.Exec("INSERT INTO t (k) VALUES (1)") },
		"Query":   func(engine *chai.DB) { engine.Query("SELECT k FROM t") },
		"Begin":   func(engine *chai.DB) { engine.Begin(true) },
		"BEGIN":   func(engine *chai.DB) { engine.Exec("BEGIN") },
	} {
		for _, first := range []string{"Write", "Read", "Update"} {
			t.Run(name+"/"+first, func(t *testing.T) {
				testdb.Watchdog(t, time.Minute)
				log := new(recorder)
				engine, db := newBreakableDB(t)
				db.logger = log.logger
				write(t, db, set("a", 1))
				if err := engine.Close(); err != nil {
					t.Fatal(err)
				}
				recovered(func() { between(engine) })
				calls := map[string]func() error{
					"Write":  func() error { return db.Write(context.Background(), 100, set("a", 2)) },
					"Read":   func() error { _, err := value(db, "a"); return err },
					"Update": func() error { return Open(engine, discard).Update(context.Background(), insert(1)) },
				}
				wantError(t, calls[first](), ErrClosed)
				for range 3 {
					for _, call := range calls {
						wantError(t, call(), ErrClosed)
					}
				}
				done, cancel := context.WithCancel(t.Context())
				cancel()
				wantError(t, db.Write(done, 100, set("a", 2)), context.Canceled)
				wantError(t, Open(engine, discard).Update(done, insert(1)), context.Canceled)
				log.wantHangs(t, 0)
			})
		}
	}
}

// Close runs beside reads, writes, and reading SQL of the application.
func TestCloseWhileInUse(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for round := range 20 {
		log := new(recorder)
		engine, db := newBreakableDB(t)
		db.logger = log.logger
		var calls atomic.Int64
		var wg sync.WaitGroup
		// untilError calls f until it returns an error.
		untilError := func(f func(i int) error) {
			wg.Go(func() {
				for i := 0; ; i++ {
					if err := f(i); err != nil {
						wantError(t, err, ErrClosed)
						return
					}
					calls.Add(1)
					runtime.Gosched()
				}
			})
		}
		for g := range 3 {
			k := fmt.Sprint(g)
			untilError(func(i int) error { return db.Write(context.Background(), 100, set(k, i)) })
			untilError(func(int) error { _, err := value(db, k); return err })
			untilError(func(int) error {
				return db.Read(t.Context(), func(s *Snapshot) error {
					return s.Scan(firstKey, lastKey, func(_, _ []byte) (bool, error) { return true, nil })
				})
			})
		}
		wg.Go(func() { // the application's own calls panic
			defer func() { _ = recover() }()
			for engine.Exec("SELECT k FROM t") == nil {
				calls.Add(1)
				runtime.Gosched()
			}
		})
		// Writes of the application have to end before Close. One that runs beside
		// Close leaves a lock of Chai held, which reads wait for.
		for k := range 3 {
			if round%2 == 0 {
				testdb.Exec(t, engine, fmt.Sprint("INSERT INTO t (k) VALUES (", k, ")"))
			} else if err := Open(engine, discard).Update(t.Context(), insert(k)); err != nil {
				t.Errorf("Update: %v", err)
			}
		}
		until(func() bool { return calls.Load() > 100 })
		engine.Close() // may return an error for open snapshots
		wg.Wait()
		wantError(t, db.Write(context.Background(), 100, set("a", 1)), ErrClosed)
		wantError(t, Open(engine, discard).Update(context.Background(), insert(1)), ErrClosed)
		_, err := value(db, "a")
		wantError(t, err, ErrClosed)
		log.wantHangs(t, 0)
	}
}

// Whatever has failed before, a database that is closed says so.
func TestClosedAfterFailure(t *testing.T) {
	for name, fail := range map[string]func(s *state, err error) error{"read-only": (*state).fail, "broken": (*state).fault} {
		t.Run(name, func(t *testing.T) {
			engine, db := newDB(t)
			write(t, db, set("a", 1))
			wantError(t, fail(db.state, errNo), errNo)
			err := db.Write(t.Context(), 100, set("a", 2))
			wantError(t, err, errNo)
			if errors.Is(err, ErrReadOnly) != (name == "read-only") {
				t.Errorf("Write = %v; is it %v?", err, ErrReadOnly)
			}
			if err := engine.Close(); err != nil {
				t.Fatal(err)
			}
			wantError(t, db.Write(t.Context(), 100, set("a", 2)), ErrClosed)
			_, err = value(db, "a")
			wantError(t, err, ErrClosed)
			wantError(t, db.WriteError(), ErrClosed)
		})
	}
}
