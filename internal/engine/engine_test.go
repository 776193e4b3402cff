package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

// A context attached to the handle of the application does not end calls. Copies of
// the handle share the queue.
func TestHandleWithContext(t *testing.T) {
	engine, db := newDB(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	handle := engine.WithContext(ctx)
	copied := Open(handle, discard)
	write(t, copied, set("a", 1))
	wantValue(t, copied, "a", 1)
	if err := Open(handle, discard).Update(t.Context(), insert(1)); err != nil {
		t.Errorf("Update: %v", err)
	}
	if copied.shared != db.shared || Open(handle, discard).Lock() != Open(engine, discard).Lock() {
		t.Error("a copy of the handle has its own queue or lock")
	}
}

// An unreachable database is collected, and removed from the registry.
func TestDatabasesAreForgotten(t *testing.T) {
	use := func(n int) {
		for range n {
			engine, err := chai.Open(":memory:")
			if err != nil {
				t.Fatal(err)
			}
			db := Open(engine, discard)
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() { write(t, db, set(fmt.Sprint(i), i)) })
			}
			wg.Wait()
			wantValue(t, db, "1", 1)
			if err := Open(engine, discard).Update(t.Context(), func(*chai.Tx) error { return nil }); err != nil {
				t.Error(err)
			}
			if err := engine.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// left collects garbage until at most limit databases are registered, if possible,
	// and returns what is left. Databases that other tests left hanging stay.
	left := func(limit int) (registered, goroutines int, heap uint64) {
		for range 50 {
			for range 3 {
				runtime.GC()
			}
			registered = 0
			registry.Range(func(any, any) bool { registered++; return true })
			if registered <= limit {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return registered, runtime.NumGoroutine(), stats.HeapAlloc
	}
	use(20)
	before, goroutines, heap := left(30)
	use(200)
	after, goroutinesAfter, heapAfter := left(before)
	if after > before {
		t.Errorf("got %d registered databases, want at most %d", after, before)
	}
	if goroutinesAfter > goroutines+5 {
		t.Errorf("got %d goroutines, want about %d", goroutinesAfter, goroutines)
	}
	if grown := int64(heapAfter) - int64(heap); grown > 2<<20 {
		t.Errorf("200 databases have left %d bytes on the heap, want at most %d", grown, 2<<20)
	}
}

// Many goroutines make random calls for a while. Each has a model of its own keys.
func TestStress(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	engine := testdb.Disk(t)
	createTable(t, engine)
	end := time.Now().Add(time.Duration(testdb.Rounds(400, 1000)) * time.Millisecond)
	var wg sync.WaitGroup
	for g := range 48 {
		wg.Go(func() {
			db, rng, model := Open(engine, discard), rand.New(rand.NewPCG(uint64(g), 0)), make(map[string]int)
			for i := 1; time.Now().Before(end); i++ {
				k := fmt.Sprint(g, "-", rng.IntN(3))
				ctx, cancel := context.WithCancel(t.Context())
				switch rng.IntN(12) {
				case 0:
					wantError(t, db.Write(ctx, 100, failing(k)), errNo)
				case 1:
					time.AfterFunc(time.Duration(rng.IntN(500))*time.Microsecond, cancel)
					if err := db.Write(ctx, 100, set(k, i)); err == nil {
						model[k] = i
					} else {
						wantError(t, err, context.Canceled)
					}
				case 2:
					if err := Open(engine, discard).Update(ctx, func(tx *chai.Tx) error {
						return tx.Exec("INSERT INTO t (k) VALUES (?) ON CONFLICT DO NOTHING", rng.IntN(100))
					}); err != nil {
						t.Errorf("Update: %v", err)
					}
				case 3:
					lock := Open(engine, discard).Lock()
					lock.Lock()
					err := engine.Exec("DELETE FROM t WHERE k = ?", rng.IntN(100))
					lock.Unlock()
					if err != nil {
						t.Errorf("DELETE: %v", err)
					}
				case 4:
					write(t, db, func(b *Batch) error { b.Delete(key(k)); return nil })
					delete(model, k)
				case 5:
					if err := db.Read(t.Context(), func(s *Snapshot) error {
						return s.Scan(firstKey, lastKey, func(_, _ []byte) (bool, error) { return true, nil })
					}); err != nil {
						t.Errorf("Scan: %v", err)
					}
				case 6:
					write(t, db, func(b *Batch) error {
						if row, err := b.Get(key(k)); err != nil || (row != nil) != (model[k] != 0) {
							t.Errorf("Get in a batch = %q, %v; want %d", row, err, model[k])
						}
						return set(k, i)(b)
					})
					model[k] = i
				default:
					write(t, db, set(k, i))
					model[k] = i
				}
				cancel()
				wantValue(t, db, k, model[k])
			}
		})
	}
	wg.Wait()
}
