package writer

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

const (
	createTable = "CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER)"
	upsert      = "INSERT INTO t (k, v) VALUES (?, ?) ON CONFLICT REPLACE"
	selectOne   = "SELECT v FROM t WHERE k = ?"
)

func newDB(t *testing.T) (*chai.DB, *DB) {
	t.Helper()
	db := testdb.Memory(t)
	testdb.Exec(t, db, createTable)
	return db, For(db)
}

// newBreakableDB returns a database that is not closed when the test ends: after
// a panic Chai would wait for a lock of its own.
func newBreakableDB(t *testing.T) (*chai.DB, *DB) {
	t.Helper()
	engine, err := chai.Open(":memory:")
	if err != nil {
		t.Fatal(err)
	}
	testdb.Exec(t, engine, createTable)
	return engine, For(engine)
}

// set returns the operation that sets k to v.
func set(k string, v int) Op {
	return func(tx *Tx) error { return tx.Exec(upsert, k, v) }
}

func write(t *testing.T, db *DB, op Op) {
	t.Helper()
	if err := db.Write(t.Context(), op); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

// get returns the value of k, 0 if it has none.
func get(db *DB, k string) (v int, err error) {
	err = db.Query(selectOne, func(row *chai.Row) error { return row.Scan(&v) }, k)
	return v, err
}

func wantValue(t *testing.T, db *DB, k string, want int) {
	t.Helper()
	if got, err := get(db, k); got != want || err != nil {
		t.Fatalf("the value of %s is %d, %v; want %d, nil", k, got, err, want)
	}
}

func TestWritersTakeTurns(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Disk(t)
	testdb.Exec(t, db, createTable)
	var wg sync.WaitGroup
	for g := range 16 {
		own := For(db.WithContext(t.Context())) // another handle to the same engine
		wg.Go(func() {
			for i := range 20 {
				if err := own.Write(t.Context(), set(fmt.Sprint(g), i)); err != nil {
					t.Errorf("Write: %v", err)
				}
				if got, err := get(own, fmt.Sprint(g)); got != i || err != nil {
					t.Errorf("read %d, %v after writing %d", got, err, i)
				}
			}
		})
	}
	wg.Wait()
}

func TestFailedOpIsRolledBack(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	_, db := newDB(t)
	write(t, db, set("a", 1))
	failure := errors.New("no")
	err := db.Write(t.Context(), func(tx *Tx) error {
		if err := tx.Exec(upsert, "a", 2); err != nil {
			return err
		}
		if err := tx.Exec(upsert, "b", 2); err != nil {
			return err
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Fatalf("Write = %v, want %v", err, failure)
	}
	wantValue(t, db, "a", 1)
	wantValue(t, db, "b", 0)
	write(t, db, set("b", 3))
	wantValue(t, db, "b", 3)
}

func TestQueryEndsWithTheErrorOfItsCallback(t *testing.T) {
	_, db := newDB(t)
	write(t, db, set("a", 1))
	stop := errors.New("stop")
	if err := db.Query(selectOne, func(*chai.Row) error { return stop }, "a"); !errors.Is(err, stop) {
		t.Fatalf("Query = %v, want %v", err, stop)
	}
	wantValue(t, db, "a", 1)
}

// closeEngine closes the engine below Chai, whose next call of it panics.
func closeEngine(db *chai.DB) { db.DB.Store.Close() }

// Wherever the engine panics in a write, that write and each later one return the
// panic as an error, and nothing hangs. What can be read is still read.
func TestPanicInWrite(t *testing.T) {
	for name, test := range map[string]struct {
		op       func(db *chai.DB) Op
		readable bool
	}{
		"begin": {func(db *chai.DB) Op {
			closeEngine(db)
			return set("a", 2)
		}, false},
		"statement": {func(db *chai.DB) Op {
			return func(tx *Tx) error {
				closeEngine(db)
				return tx.Exec(upsert, "a", 2)
			}
		}, false},
		"commit": {func(db *chai.DB) Op {
			return func(tx *Tx) error {
				err := tx.Exec(upsert, "a", 2)
				closeEngine(db)
				return err
			}
		}, false},
		"operation": {func(*chai.DB) Op {
			return func(*Tx) error { panic("pebble: closed") }
		}, true},
		"operation, after a statement": {func(*chai.DB) Op {
			return func(tx *Tx) error {
				if err := tx.Exec(upsert, "a", 2); err != nil {
					return err
				}
				panic(errors.New("pebble: closed"))
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, 20*time.Second)
			engine, db := newBreakableDB(t)
			write(t, db, set("a", 1))

			op := test.op(engine)
			for range 3 {
				err := db.Write(t.Context(), op)
				if err == nil || !strings.Contains(err.Error(), "chai panicked: pebble: closed") {
					t.Errorf("Write = %v, want the panic", err)
				}
			}
			for range 3 {
				v, err := get(db, "a")
				if test.readable && (v != 1 || err != nil) {
					t.Errorf("read %d, %v; want 1, nil", v, err)
				}
				if !test.readable && err == nil {
					t.Errorf("read %d from a closed engine", v)
				}
			}
			if err := For(engine).Write(t.Context(), set("a", 3)); err == nil {
				t.Error("another handle still writes")
			}
			lock := Lock(engine) // is free
			lock.Lock()
			defer lock.Unlock()
		})
	}
}

func TestPanicInQuery(t *testing.T) {
	testdb.Watchdog(t, 20*time.Second)
	engine, db := newBreakableDB(t)
	wantValue(t, db, "a", 0)
	closeEngine(engine)
	for range 3 {
		if _, err := get(db, "a"); err == nil || !strings.Contains(err.Error(), "chai panicked: pebble: closed") {
			t.Errorf("Query = %v, want the panic", err)
		}
		if err := db.Write(t.Context(), set("a", 1)); err == nil || !strings.Contains(err.Error(), "chai panicked") {
			t.Errorf("Write = %v, want the panic", err)
		}
	}
}

// A database that nobody refers to any more is collected, and forgotten.
func TestDatabaseIsForgotten(t *testing.T) {
	func() {
		engine, err := chai.Open(":memory:")
		if err != nil {
			t.Fatal(err)
		}
		testdb.Exec(t, engine, createTable)
		write(t, For(engine), set("a", 1))
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	for range 100 {
		runtime.GC()
		n := 0
		registry.Range(func(any, any) bool { n++; return true })
		if n == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the database is still in the registry")
}
