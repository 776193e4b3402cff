package bench_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// An operation is one call of a store. Its source of random numbers belongs to the
// calling goroutine.
type operation func(random *rand.Rand) error

// newRandom returns a source of random numbers for a goroutine.
func newRandom(goroutine int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(goroutine), uint64(time.Now().UnixNano())))
}

// drive has goroutines call op until b.N calls have ended. It reports their rate and
// latencies, and the number of failed calls, if any. If all calls fail, the benchmark
// fails.
//
// All goroutines stay busy until the end. If they divided b.N calls among them, a store
// that keeps some calls waiting would end with a few slow calls, and the rate would be
// too low.
func drive(b *testing.B, goroutines int, rateUnit string, op operation) {
	b.Helper()
	var stopped atomic.Bool
	var ended, failures atomic.Int64
	var failure error // of the first call that failed
	var group sync.WaitGroup
	latencies := make([][]time.Duration, goroutines)
	b.ResetTimer()
	for g := range goroutines {
		group.Go(func() {
			random, before := newRandom(g), time.Now()
			for !stopped.Load() {
				if err := op(random); err != nil && failures.Add(1) == 1 {
					failure = err
				}
				now := time.Now()
				latencies[g] = append(latencies[g], now.Sub(before))
				before = now
				if ended.Add(1) == int64(b.N) {
					b.StopTimer()
					stopped.Store(true)
				}
			}
		})
	}
	group.Wait()
	all := slices.Concat(latencies...)
	slices.Sort(all)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), rateUnit)
	b.ReportMetric(float64(all[len(all)/2]), "p50-ns")
	b.ReportMetric(float64(all[len(all)*99/100]), "p99-ns")
	if n := failures.Load(); n > 0 {
		b.ReportMetric(float64(n), "failures")
		b.Logf("%d of %d calls failed: %v", n, len(all), failure)
		if int(n) == len(all) {
			b.Fail()
		}
	}
}

// beside has goroutines call op until stop is called. The function stop returns how
// long the slowest call took, and the error of a failed call, if any.
func beside(goroutines int, op operation) (stop func() (slowest time.Duration, err error)) {
	var stopped atomic.Bool
	var group sync.WaitGroup
	var mu sync.Mutex
	var slowest time.Duration
	var failure error
	for g := range goroutines {
		group.Go(func() {
			random := newRandom(1000 + g)
			for !stopped.Load() {
				before := time.Now()
				err := op(random)
				took := time.Since(before)
				mu.Lock()
				slowest = max(slowest, took)
				if err != nil {
					failure = err
				}
				mu.Unlock()
			}
		})
	}
	return func() (time.Duration, error) {
		stopped.Store(true)
		group.Wait()
		return slowest, failure
	}
}

func TestDriveCountsFailures(t *testing.T) {
	var calls, failures atomic.Int64
	result := testing.Benchmark(func(b *testing.B) {
		calls.Store(0)
		failures.Store(0)
		drive(b, 4, "calls/s", func(*rand.Rand) error {
			time.Sleep(time.Microsecond)
			if calls.Add(1)%10 == 0 {
				failures.Add(1)
				return errors.New("no luck")
			}
			return nil
		})
	})
	if got, want := result.Extra["failures"], float64(failures.Load()); got != want || want == 0 {
		t.Errorf("the benchmark reports %v failures, want %v", got, want)
	}
	if got := calls.Load(); got < int64(result.N) {
		t.Errorf("there were %d calls, want %d or more", got, result.N)
	}
	if rate, want := result.Extra["calls/s"], float64(result.N)/result.T.Seconds(); rate != want {
		t.Errorf("the rate is %v, want %v", rate, want)
	}

	result = testing.Benchmark(func(b *testing.B) {
		drive(b, 1, "calls/s", func(*rand.Rand) error { return errors.New("no") })
	})
	if result.N > 0 {
		t.Errorf("a benchmark in which all calls fail has a result: %v", result)
	}
}
