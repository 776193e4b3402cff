package measure

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/perf/benchfmt"
)

// A tally is what came of calling an operation many times.
type tally struct {
	failures int
	failure  error // the first one
	inTime   int   // calls that ended before the time was over
	elapsed  time.Duration
	latency  *hdrhistogram.Histogram // of nanoseconds, of all calls
}

func newTally() *tally {
	return &tally{latency: hdrhistogram.New(1, int64(5*time.Minute), 2)}
}

func (t *tally) add(latency time.Duration, err error) {
	// The error of RecordValue is that the value exceeds the histogram's range.
	t.latency.RecordValue(min(max(int64(latency), 1), t.latency.HighestTrackableValue()))
	if err != nil {
		t.failures++
		if t.failure == nil {
			t.failure = err
		}
	}
}

func (t *tally) merge(other *tally) {
	t.latency.Merge(other.latency)
	t.failures += other.failures
	t.inTime += other.inTime
	if t.failure == nil {
		t.failure = other.failure
	}
	t.elapsed = max(t.elapsed, other.elapsed)
}

func (t *tally) ops() int {
	return int(t.latency.TotalCount())
}

// result returns the benchmark's values, with the rate in a unit like commits/s.
// It is an error if nothing succeeded.
func (t *tally) result(d time.Duration, rateUnit string) (Result, error) {
	if t.failures == t.ops() {
		return Result{}, fmt.Errorf("all of %d calls failed: %w", t.ops(), t.failure)
	}
	// The last calls may end long after the others, with nothing beside them: a
	// rate over all the time would be too low.
	ops, seconds := t.inTime, d.Seconds()
	if ops == 0 {
		ops, seconds = t.ops(), t.elapsed.Seconds()
	}
	result := Result{Ops: ops, Failure: t.failure, Values: []benchfmt.Value{
		{Value: seconds * 1e9 / float64(ops), Unit: "ns/op"},
		{Value: float64(ops) / seconds, Unit: rateUnit},
		{Value: float64(t.latency.ValueAtQuantile(50)), Unit: "p50-ns"},
		{Value: float64(t.latency.ValueAtQuantile(99)), Unit: "p99-ns"},
	}}
	if t.failures > 0 {
		result.Values = append(result.Values, benchfmt.Value{Value: float64(t.failures), Unit: "failures"})
	}
	return result, nil
}

// An operation is one call of a store. Its source of random numbers belongs to
// the goroutine that calls it.
type operation func(random *rand.Rand) error

// drive has goroutines call op one time after the other for as long as d, after a
// tenth of that to warm up.
func drive(goroutines int, d time.Duration, op operation) *tally {
	driveFor(goroutines, d/10, op)
	// What earlier work has left behind is collected at its own expense.
	runtime.GC()
	return driveFor(goroutines, d, op)
}

func driveFor(goroutines int, d time.Duration, op operation) *tally {
	tallies := make([]*tally, goroutines)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	var began time.Time
	for i := range tallies {
		ready.Add(1)
		done.Go(func() {
			tally, random := newTally(), newRandom(i)
			tallies[i] = tally
			ready.Done()
			<-start
			for before := began; tally.elapsed < d; {
				err := op(random)
				now := time.Now()
				tally.add(now.Sub(before), err)
				tally.elapsed = now.Sub(began)
				if tally.elapsed <= d {
					tally.inTime++
				}
				before = now
			}
		})
	}
	ready.Wait()
	began = time.Now()
	close(start)
	done.Wait()
	for _, other := range tallies[1:] {
		tallies[0].merge(other)
	}
	return tallies[0]
}

// beside has goroutines call op until stop is called, which returns what came of
// it.
func beside(goroutines int, op operation) (stop func() *tally) {
	var stopped atomic.Bool
	var done sync.WaitGroup
	tallies := make([]*tally, goroutines)
	for i := range tallies {
		done.Go(func() {
			tally, random := newTally(), newRandom(1000+i)
			tallies[i] = tally
			for before := time.Now(); !stopped.Load(); {
				err := op(random)
				now := time.Now()
				tally.add(now.Sub(before), err)
				before = now
			}
		})
	}
	return func() *tally {
		stopped.Store(true)
		done.Wait()
		for _, other := range tallies[1:] {
			tallies[0].merge(other)
		}
		return tallies[0]
	}
}

// newRandom returns a source of random numbers, another one for each goroutine.
func newRandom(goroutine int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(goroutine), uint64(time.Now().UnixNano())))
}
