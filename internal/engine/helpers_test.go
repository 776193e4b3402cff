package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

// The tests write rows that Chai never decodes: their keys belong to a table that
// does not exist.
var firstKey, lastKey = []byte{80, 200}, []byte{80, 201}

func key(k string) []byte {
	return append([]byte{80, 200, 98, byte(len(k))}, k...)
}

// set returns an operation that sets k to v.
func set(k string, v int) Op {
	return func(b *Batch) error { b.Put(key(k), []byte(strconv.Itoa(v))); return nil }
}

// failing returns an operation that changes k and then fails.
func failing(k string) Op {
	return func(b *Batch) error { return errors.Join(set(k, -1)(b), errNo) }
}

var errNo = errors.New("no")

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newDB returns a database with an empty table t.
func newDB(t testing.TB) (*chai.DB, *DB) {
	t.Helper()
	engine := testdb.Memory(t)
	createTable(t, engine)
	return engine, Open(engine, discard)
}

// newBreakableDB returns a database with an empty table t. It is not closed when
// the test ends: after a panic or a deadlock Chai would wait for its own locks.
func newBreakableDB(t testing.TB) (*chai.DB, *DB) {
	t.Helper()
	engine, err := chai.Open(":memory:")
	if err != nil {
		t.Fatal(err)
	}
	createTable(t, engine)
	return engine, Open(engine, discard)
}

func createTable(t testing.TB, engine *chai.DB) {
	t.Helper()
	testdb.Exec(t, engine, "CREATE TABLE t (k INTEGER PRIMARY KEY, v INTEGER)")
}

// rows returns the number of rows of the table t.
func rows(t testing.TB, engine *chai.DB) (n int) {
	t.Helper()
	result, err := engine.Query("SELECT k FROM t")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	if err := result.Iterate(func(*chai.Row) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

func write(t testing.TB, db *DB, op Op) {
	t.Helper()
	if err := db.Write(context.Background(), 100, op); err != nil {
		t.Errorf("Write: %v", err)
	}
}

// value returns the value of k, or 0 if it has none.
func value(db *DB, k string) (v int, err error) {
	err = db.Read(context.Background(), func(s *Snapshot) error {
		row, err := s.Get(key(k))
		if row == nil || err != nil {
			return err
		}
		v, err = strconv.Atoi(string(row))
		return err
	})
	return v, err
}

func wantValue(t testing.TB, db *DB, k string, want int) {
	t.Helper()
	if got, err := value(db, k); got != want || err != nil {
		t.Errorf("got value %d of %s, %v; want %d, nil", got, k, err, want)
	}
}

func wantError(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got error %v, want %v", got, want)
	}
}

// waiting returns the number of requests in the queue.
func waiting(db *DB) int {
	db.queue.mu.Lock()
	defer db.queue.mu.Unlock()
	return db.queue.waiting.Len()
}

// untilIdle waits until nobody serves the queue. The next write serves it with the
// hang limit of its own DB.
func untilIdle(db *DB) {
	until(func() bool {
		db.queue.mu.Lock()
		defer db.queue.mu.Unlock()
		return !db.queue.served
	})
}

// until polls until state returns true. Use it where no other way to wait exists.
func until(state func() bool) {
	for !state() {
		runtime.Gosched()
		time.Sleep(10 * time.Microsecond)
	}
}

// queued calls f while the lock is held, and unlocks it once n requests are waiting.
// It must be called in a bubble of synctest.
func queued(db *DB, n int, f func()) {
	lock := Open(db.handle, discard).Lock()
	lock.Lock()
	f()
	synctest.Wait()
	if got := waiting(db); got != n {
		panic(fmt.Sprintf("got %d waiting requests, want %d", got, n))
	}
	lock.Unlock()
	synctest.Wait()
}

// lockIsFree waits until the lock is free.
func lockIsFree(engine *chai.DB) {
	lock := Open(engine, discard).Lock()
	lock.Lock()
	defer lock.Unlock()
}

// occupations are the ways in which an application can block writes.
var occupations = map[string]func(t *testing.T, engine *chai.DB) (free func()){
	"lock": func(t *testing.T, engine *chai.DB) (free func()) {
		Open(engine, discard).Lock().Lock()
		return Open(engine, discard).Lock().Unlock
	},
	"transaction": func(t *testing.T, engine *chai.DB) (free func()) {
		tx, err := engine.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
		}
	},
	"SQL BEGIN": func(t *testing.T, engine *chai.DB) (free func()) {
		testdb.Exec(t, engine, "BEGIN")
		return func() { testdb.Exec(t, engine, "COMMIT") }
	},
}

// closeEngine closes the engine below Chai, whose next call of the engine panics.
func closeEngine(engine *chai.DB) { engine.DB.Store.Close() }

// setReadOnly makes commits of the engine fail with an error, or succeed again.
func setReadOnly(engine *chai.DB, readOnly bool) {
	options := reflect.ValueOf(engine.DB.Store.DB()).Elem().FieldByName("opts")
	*(*bool)(unsafe.Pointer(options.Elem().FieldByName("ReadOnly").UnsafeAddr())) = readOnly
}

// transactionBegins waits until a goroutine holds the lock with which Chai begins a
// transaction: it holds the lock while it waits for another transaction to end.
func transactionBegins(engine *chai.DB) {
	field := reflect.ValueOf(engine.DB).Elem().FieldByName("txmu")
	lock := (*sync.RWMutex)(unsafe.Pointer(field.UnsafeAddr()))
	until(func() bool {
		if !lock.TryLock() {
			return true
		}
		lock.Unlock()
		return false
	})
}

// A recorder is a log handler that records lines, and calls a function for each.
type recorder struct {
	slog.Handler
	mu     sync.Mutex
	lines  []string
	onLine func()
}

func (r *recorder) logger() *slog.Logger { return slog.New(r) }

func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }

func (r *recorder) Handle(_ context.Context, record slog.Record) error {
	r.mu.Lock()
	r.lines = append(r.lines, fmt.Sprint(record.Level, " ", record.Message))
	r.mu.Unlock()
	if r.onLine != nil {
		r.onLine()
	}
	return nil
}

// untilHangs waits until n hangs have been logged, which is after all callers have
// been answered.
func (r *recorder) untilHangs(n int) {
	until(func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.lines) >= n
	})
}

// wantHangs fails the test unless n hangs and nothing else have been logged.
func (r *recorder) wantHangs(t testing.TB, n int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) != n {
		t.Errorf("got %d logged lines, want %d: %q", len(r.lines), n, r.lines)
	}
	for _, line := range r.lines {
		if line != "ERROR chaistore: writing to the database hangs" {
			t.Errorf("got the line %q, want an error about a hang", line)
		}
	}
}

// quiet reports whether no transaction that writes is open.
func (db *DB) quiet() bool {
	if !db.writeLock.TryLock() {
		return false
	}
	db.writeLock.Unlock()
	return true
}
