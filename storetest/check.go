// Checks: how cases call a store and report problems.

package storetest

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
)

// A check gives a case a store, and methods to report problems with it.
type check struct {
	view       // the methods to use
	views      []view
	store      scs.Store
	ctx        context.Context
	resolution time.Duration

	suite    *suite
	lifetime *lifetime

	mu      sync.Mutex
	problem string // the first problem
	skip    string // why the case could not be judged
}

// run calls test in a new goroutine, which it leaves behind if it hangs. It returns
// the first problem, and the reason to skip the case, if there are any.
func (c *check) run(test func(c *check)) (problem, skip string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pprof.SetGoroutineLabels(c.lifetime.labels())
		defer func() {
			if r := recover(); r != nil {
				c.report(fmt.Sprintf("panic: %v\n%s", r, panicStack()))
			}
		}()
		debug.SetPanicOnFault(true) // a store may return data in a file that it then unmaps
		test(c)
	}()
	select {
	case <-done:
	case <-time.After(c.suite.timeout):
		c.report(fmt.Sprintf("the case has not ended after %v\n%s", c.suite.timeout, stacksOf(c.lifetime.label)))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem, c.skip
}

// report records a problem, unless there was one before.
func (c *check) report(problem string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem == "" {
		c.problem = problem
	}
}

// fatalf reports a problem and ends the case. Only the goroutine of the case may call
// it.
func (c *check) fatalf(format string, args ...any) {
	c.report(fmt.Sprintf(format, args...))
	runtime.Goexit()
}

// inTime calls f with longer and longer units of time, until f returns true because
// the machine was fast enough. If it never is, the case is skipped.
func (c *check) inTime(f func(unit time.Duration) bool) {
	const first, last = 100 * time.Millisecond, 1600 * time.Millisecond
	for unit := first; unit <= last; unit *= 2 {
		if f(unit) {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skip = "the machine or the store is too slow for a test that depends on time"
}

// parallel calls f in n goroutines and waits for them. If any of them returns an
// error or panics, it ends the case.
func (c *check) parallel(n int, f func(i int) error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					errs[i] = fmt.Errorf("panic: %v\n%s", r, panicStack())
				}
			}()
			debug.SetPanicOnFault(true)
			errs[i] = f(i)
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		c.fatalf("%v", errs[i])
	}
}

// another returns another store, which lives as long as the store of the case.
func (c *check) another() scs.Store {
	return c.suite.make(c.lifetime.t)
}

// token returns a token that begins with name. It has the length of SCS's tokens and
// only characters that SCS uses.
func token(name string) string {
	return name + strings.Repeat("-", 43-len(name))
}

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

// quote formats data for an error message.
func quote(data []byte) string {
	if len(data) > 50 {
		return fmt.Sprintf("%q… (%d bytes)", data[:20], len(data))
	}
	return fmt.Sprintf("%q", data)
}

// Methods whose names begin with must or want end the case if the store does not do
// what they say.

func (c *check) mustCommit(token, data string, expiry time.Time) {
	if err := c.commit(c.ctx, token, []byte(data), expiry); err != nil {
		c.fatalf("Commit(%s): %v", quote([]byte(token)), err)
	}
}

func (c *check) mustDelete(token string) {
	if err := c.delete(c.ctx, token); err != nil {
		c.fatalf("Delete(%s) = %v, want nil", quote([]byte(token)), err)
	}
}

func (c *check) wantFound(token, want string) {
	got, found, err := c.find(c.ctx, token)
	if err != nil || !found || string(got) != want {
		c.fatalf("Find(%s) = %s, %v, %v; want %s, true, nil",
			quote([]byte(token)), quote(got), found, err, quote([]byte(want)))
	}
}

func (c *check) wantMissing(token string) {
	if got, found, err := c.find(c.ctx, token); err != nil || found {
		c.fatalf("Find(%s) = %s, %v, %v; want found == false and err == nil",
			quote([]byte(token)), quote(got), found, err)
	}
}

// wantAll compares the map that All returns with want, a map of data by token. It
// does nothing if the store has no All.
func (c *check) wantAll(want map[string]string) {
	if c.all == nil {
		return
	}
	all, err := c.all(c.ctx)
	if err != nil || all == nil {
		c.fatalf("All = %q, %v; want a non-nil map and a nil error", all, err)
	}
	for token, data := range all {
		if wantData, ok := want[token]; !ok || string(data) != wantData {
			c.fatalf("All has %s for %s; want %s, %v",
				quote(data), quote([]byte(token)), quote([]byte(wantData)), ok)
		}
	}
	for token := range want {
		if _, ok := all[token]; !ok {
			c.fatalf("All has %d sessions, but not %s", len(all), quote([]byte(token)))
		}
	}
}

func needsAll(_ *suite, _ scs.Store, views []view) string {
	if views[0].all == nil {
		return "the store has neither All nor AllCtx"
	}
	return ""
}

func needsCtx(_ *suite, _ scs.Store, views []view) string {
	if views[len(views)-1].name != "ctx" {
		return "the store has no methods that take a context"
	}
	return ""
}

func needsBoth(_ *suite, _ scs.Store, views []view) string {
	if len(views) == 1 {
		return "the store has only one method for each operation"
	}
	return ""
}

func needsCleanup(_ *suite, store scs.Store, _ []view) string {
	if _, ok := store.(cleaner); !ok {
		return "the store has no StopCleanup"
	}
	return ""
}

func needsCount(s *suite, _ scs.Store, _ []view) string {
	if s.count == nil {
		return "the option Count is not given"
	}
	return ""
}
