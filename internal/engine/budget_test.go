package engine

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.elara.ws/chaistore/internal/testdb"
)

func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := Open(testdb.Memory(t), nil)
		reserve := func(ctx context.Context, size int) (done *atomic.Bool) {
			done = new(atomic.Bool)
			go func() {
				if err := db.Reserve(ctx, size); err == nil {
					done.Store(true)
				}
			}()
			synctest.Wait()
			return done
		}
		want := func(done *atomic.Bool, want bool) {
			t.Helper()
			synctest.Wait()
			if got := done.Load(); got != want {
				t.Errorf("a reservation returned: %v, want %v", got, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		want(reserve(t.Context(), maxWaiting-smallWrite), true)
		want(reserve(t.Context(), smallWrite), true)
		want(reserve(t.Context(), smallWrite-1), true) // is not counted
		large := reserve(ctx, maxWaiting+1)
		small := reserve(t.Context(), smallWrite)
		want(large, false)
		want(small, false)
		db.Release(smallWrite)
		db.Release(smallWrite - 1)
		want(small, false) // they go on in their order
		cancel()
		want(small, true)
		want(large, false)
		db.Release(smallWrite)

		alone := reserve(t.Context(), 2*maxWaiting)
		want(alone, false)
		db.Release(maxWaiting - smallWrite)
		want(alone, true)
		db.Release(2 * maxWaiting)
		want(reserve(ctx, maxWaiting), true) // needs not wait, so its context does not matter
		if db.budget.taken != maxWaiting {
			t.Errorf("%d bytes are taken, want %d", db.budget.taken, maxWaiting)
		}
	})
}

// Whatever happens, no more than the limit is taken, and everything is given back.
func TestReserveConcurrently(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := Open(testdb.Memory(t), nil)
	var taken atomic.Int64
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(6, uint64(g)))
			for range 500 {
				size := smallWrite + rng.IntN(maxWaiting/2)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(100))*time.Microsecond)
				if db.Reserve(ctx, size) == nil {
					if n := taken.Add(int64(size)); n > maxWaiting {
						t.Errorf("%d bytes are taken, want at most %d", n, maxWaiting)
					}
					taken.Add(-int64(size))
					db.Release(size)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if db.budget.taken != 0 || db.budget.waiting.Len() != 0 {
		t.Errorf("%d bytes are taken and %d claims wait, want none", db.budget.taken, db.budget.waiting.Len())
	}
}
