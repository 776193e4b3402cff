package measure

import (
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/perf/benchfmt"
)

// sweep deletes the expired half of the sessions while others are renewed, and
// returns how long the slowest of the renewals took.
func sweep(l *loaded, _ time.Duration) (Result, error) {
	renew := func(random *rand.Rand) error { return l.sessions.renewActive(l.store, random) }
	driveFor(4, 50*time.Millisecond, renew)

	stop := beside(4, renew)
	err := l.store.Sweep()
	commits := stop()
	if err != nil {
		return Result{}, fmt.Errorf("sweep: %w", err)
	}
	if commits.failure != nil {
		return Result{}, fmt.Errorf("%d of %d commits failed: %w", commits.failures, commits.ops(), commits.failure)
	}
	return Result{Ops: 1, Values: []benchfmt.Value{
		{Value: float64(commits.latency.Max()), Unit: "worst-commit-ns"},
		{Value: float64(commits.ops()), Unit: "commits"},
	}}, nil
}
