// Package measure has the workloads, and runs them on the rivals.
package measure

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"time"

	"golang.org/x/perf/benchfmt"

	"go.elara.ws/chaistore/bench/internal/rivals"
)

// A Result is what one run of a workload on one store gave.
type Result struct {
	Ops     int
	Values  []benchfmt.Value
	Failure error // the first of the calls that failed, if few did
}

// A Workload is a way to use a store that is loaded with sessions.
type Workload struct {
	Family string // the workloads that belong together: see Families
	Name   string // the name of the benchmark

	// duration returns how long it runs if it is to take d.
	duration func(d time.Duration) time.Duration

	run func(l *loaded, d time.Duration) (Result, error)
}

// Families are the names of the families of workloads.
func Families() []string {
	return []string{"commit", "find", "mixed", "request", "sweep", "space"}
}

// Workloads returns the workloads in the order in which they run.
func Workloads() []Workload {
	// Space comes first, when the store has done nothing but load.
	workloads := []Workload{{Family: "space", Name: "Space", duration: noTime, run: space}}
	for _, goroutines := range []int{1, 8} {
		workloads = append(workloads,
			Workload{
				Family: "find", Name: fmt.Sprintf("FindHit/goroutines=%d", goroutines), duration: allTime,
				run: each(goroutines, "finds/s", (*Sessions).find),
			},
			Workload{
				Family: "find", Name: fmt.Sprintf("FindMiss/goroutines=%d", goroutines), duration: allTime,
				run: each(goroutines, "finds/s", (*Sessions).miss),
			})
	}
	workloads = append(workloads,
		Workload{Family: "mixed", Name: "FindWhileCommitting/goroutines=1/committers=8", duration: allTime, run: findWhileCommitting})
	for _, goroutines := range []int{1, 8, 64, 256} {
		workloads = append(workloads, Workload{
			Family: "commit", Name: fmt.Sprintf("Commit/goroutines=%d", goroutines), duration: allTime,
			run: each(goroutines, "commits/s", (*Sessions).renew),
		})
	}
	return append(workloads,
		Workload{Family: "request", Name: "Request/clients=64", duration: allTime, run: request},
		// A sweep takes as long as it takes.
		Workload{Family: "sweep", Name: "Sweep/committers=4", duration: noTime, run: sweep})
}

func noTime(time.Duration) time.Duration    { return 0 }
func allTime(d time.Duration) time.Duration { return d + d/10 }

// each returns a workload of goroutines that do the same.
func each(goroutines int, rateUnit string, op func(*Sessions, rivals.Store, *rand.Rand) error) func(*loaded, time.Duration) (Result, error) {
	return func(l *loaded, d time.Duration) (Result, error) {
		return drive(goroutines, d, func(random *rand.Rand) error {
			return op(l.sessions, l.store, random)
		}).result(d, rateUnit)
	}
}

func findWhileCommitting(l *loaded, d time.Duration) (Result, error) {
	stop := beside(8, func(random *rand.Rand) error { return l.sessions.renew(l.store, random) })
	finds := drive(1, d, func(random *rand.Rand) error { return l.sessions.find(l.store, random) })
	commits := stop()
	if commits.failure != nil {
		return Result{}, fmt.Errorf("%d of %d commits failed: %w", commits.failures, commits.ops(), commits.failure)
	}
	return finds.result(d, "finds/s")
}

// loaded is a store with sessions.
type loaded struct {
	store    rivals.Store
	sessions *Sessions
	dir      string
	heap     uint64 // in use before the store was opened
}

// load opens a rival in dir and loads it.
func load(rival rivals.Rival, dir string, sessions *Sessions, halfExpired bool) (*loaded, error) {
	l := &loaded{sessions: sessions, dir: dir, heap: heapInUse()}
	var err error
	if l.store, err = rival.Open(dir); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	if err := l.store.Load(sessions.all(halfExpired)); err != nil {
		l.store.Close()
		return nil, fmt.Errorf("load: %w", err)
	}
	// Engines tidy up in the background what so fast a load has left.
	time.Sleep(settleTime(sessions.size))
	return l, nil
}

// settleTime is 2 seconds for 500,000 small sessions.
func settleTime(size Size) time.Duration {
	return time.Duration(size.Sessions) * time.Duration(size.Bytes+100) * 10 * time.Nanosecond
}

// heapInUse returns the size of what is alive on the heap.
func heapInUse() uint64 {
	// What is found dead in one collection may have kept something else alive that is
	// freed in a later one, once a finalizer or a cleanup has run.
	for before := uint64(math.MaxUint64); ; {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		if stats.HeapAlloc >= before-before/100 {
			return stats.HeapAlloc
		}
		before = stats.HeapAlloc
	}
}
