package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/perf/benchfmt"

	"go.elara.ws/chaistore/bench/internal/rivals"
)

// A Plan says what is measured.
type Plan struct {
	Rivals      []rivals.Rival
	Families    []string      // of the workloads
	Sizes       []Size        // of all workloads but the sweep
	SweepSize   Size          // of the sweep; half of the sessions have expired
	Repetitions int           // of everything
	Duration    time.Duration // of a workload, but those whose work is fixed
}

// An Observer is told what happens while a plan runs.
type Observer struct {
	// Progress is called when something begins, with how much of the work is done.
	Progress func(what string, done float64)

	// Result is called with each result.
	Result func(*benchfmt.Result) error

	// Problem is called with what went wrong. The plan goes on.
	Problem func(error)
}

// Missing removes the rivals that this machine can't run from the plan, and
// returns why it can't, by name.
func (p *Plan) Missing() (map[string]error, error) {
	missing := make(map[string]error)
	for _, rival := range p.Rivals {
		err := p.inDirectory(func(dir string) error {
			store, err := rival.Open(dir)
			if err != nil {
				return err
			}
			return store.Close()
		})
		switch {
		case errors.Is(err, rivals.ErrNotInstalled):
			missing[rival.Name] = err
		case err != nil:
			return nil, fmt.Errorf("%s: open and close: %w", rival.Name, err)
		}
	}
	p.Rivals = slices.DeleteFunc(p.Rivals, func(r rivals.Rival) bool { return missing[r.Name] != nil })
	return missing, nil
}

// Run runs the plan: in each repetition it goes through all sizes, and at each of
// them through all rivals, each of which runs all workloads on a new database.
// Repetitions begin with another rival each, so that none always comes after
// the same one.
//
// Run ends early when ctx ends, or an Observer returns an error.
func (p *Plan) Run(ctx context.Context, observer Observer) error {
	rounds, err := p.rounds()
	if err != nil {
		return err
	}
	run := &run{Plan: p, Observer: observer}
	for _, round := range rounds {
		run.total += float64(len(p.Rivals)*p.Repetitions) * round.cost(p.Duration)
	}
	for repetition := range p.Repetitions {
		for _, round := range rounds {
			for i := range p.Rivals {
				rival := p.Rivals[(i+repetition)%len(p.Rivals)]
				run.where = fmt.Sprintf("%d of %d: %s with %v", repetition+1, p.Repetitions, rival.Name, round.sessions.size)
				before := run.done
				if err := run.round(ctx, rival, round); err != nil {
					return err
				}
				run.done = before + round.cost(p.Duration)
			}
		}
	}
	observer.Progress("done", 1)
	return nil
}

// A round is the workloads that run on one database.
type round struct {
	sessions    *Sessions
	halfExpired bool
	workloads   []Workload
}

// cost estimates how many seconds a round takes on a rival.
func (r round) cost(d time.Duration) float64 {
	const open = 200 * time.Millisecond
	cost := open + 3*settleTime(r.sessions.size)
	for _, workload := range r.workloads {
		cost += workload.duration(d)
	}
	return cost.Seconds()
}

func (p *Plan) rounds() ([]round, error) {
	var workloads, sweeps []Workload
	for _, workload := range Workloads() {
		switch {
		case !slices.Contains(p.Families, workload.Family):
		case workload.Family == "sweep":
			sweeps = append(sweeps, workload)
		default:
			workloads = append(workloads, workload)
		}
	}
	var rounds []round
	add := func(size Size, halfExpired bool, workloads []Workload) error {
		if len(workloads) == 0 {
			return nil
		}
		sessions, err := NewSessions(size)
		if err != nil {
			return err
		}
		rounds = append(rounds, round{sessions, halfExpired, workloads})
		return nil
	}
	for _, size := range p.Sizes {
		if err := add(size, false, workloads); err != nil {
			return nil, err
		}
	}
	return rounds, add(p.SweepSize, true, sweeps)
}

type run struct {
	*Plan
	Observer
	where       string
	done, total float64 // in estimated seconds
}

func (r *run) round(ctx context.Context, rival rivals.Rival, round round) error {
	if round.halfExpired && !rival.Sweeps {
		return nil
	}
	problem := func(what string, err error) {
		r.Problem(fmt.Errorf("%s: %s: %w", r.where, what, err))
	}
	err := r.inDirectory(func(dir string) error {
		r.Progress(r.where+": load", r.done/r.total)
		l, err := load(rival, dir, round.sessions, round.halfExpired)
		if err != nil {
			problem("load", err)
			return nil
		}
		defer func() {
			if err := l.store.Close(); err != nil {
				problem("close", err)
			}
		}()
		for _, workload := range round.workloads {
			if err := ctx.Err(); err != nil {
				return err
			}
			r.Progress(r.where+": "+workload.Name, r.done/r.total)
			result, err := workload.run(l, r.Duration)
			r.done += workload.duration(r.Duration).Seconds()
			if err != nil {
				problem(workload.Name, err)
				continue
			}
			if result.Failure != nil {
				problem(workload.Name, result.Failure)
			}
			name := fmt.Sprintf("%s/sessions=%d/bytes=%d/store=%s-%d", workload.Name,
				round.sessions.size.Sessions, round.sessions.size.Bytes, rival.Name, runtime.GOMAXPROCS(0))
			err = r.Result(&benchfmt.Result{Name: benchfmt.Name(name), Iters: result.Ops, Values: result.Values})
			if err != nil {
				return err
			}
		}
		return nil
	})
	// The next store begins with the memory that this one began with.
	debug.FreeOSMemory()
	return err
}

// inDirectory calls f with a new directory that is deleted afterwards.
func (p *Plan) inDirectory(f func(dir string) error) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return f(dir)
}
