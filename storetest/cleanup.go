// The group Cleanup: cases for stores that delete expired sessions in the background
// until StopCleanup is called. SCS's interfaces don't mention a cleanup, so the rules
// come from memstore.

package storetest

import (
	"context"
	"fmt"
	"reflect"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
)

// A cleaner is a store whose cleanup can be stopped.
type cleaner interface{ StopCleanup() }

const (
	stopDoc  = "memstore.MemStore.StopCleanup"
	stopRule = "StopCleanup terminates the background cleanup goroutine for the MemStore instance."
)

var cleanupCases = []testCase{
	{
		name: "Sweep", doc: "memstore.NewWithCleanupInterval",
		rule: "The cleanupInterval parameter controls how frequently expired session data is removed by the background cleanup goroutine.",
		test: testSweep, needs: needsCount,
	},
	{name: "StopEarly", doc: stopDoc, rule: stopRule, test: testStopEarly, needs: needsCleanup, stops: true},
	{name: "StopDuringSweep", doc: stopDoc, rule: stopRule, test: testStopDuringSweep, needs: needsCleanup, stops: true},
	{name: "StopInUse", doc: stopDoc, rule: stopRule, test: testStopInUse, needs: needsCleanup, stops: true},
}

// endCases use the first store, after all other cases have ended.
var endCases = []testCase{
	{name: "FirstSessionStays", doc: "scs.Store.Commit", rule: commitRule, test: testFirstSessionStays, needs: needsOwnStores},
}

func testSweep(c *check) {
	for i := range 20 {
		c.mustCommit(token(fmt.Sprint("expired", i)), "old", time.Now().Add(-time.Hour))
		c.mustCommit(token(fmt.Sprint("soon", i)), "old", time.Now().Add(c.resolution+100*time.Millisecond))
	}
	for range 3 {
		c.mustCommit(token("alice"), "of alice", inAnHour())
	}
	begin := time.Now()
	for {
		n, err := c.suite.count(c.store)
		if err != nil {
			c.fatalf("count the rows: %v", err)
		}
		c.wantFound(token("alice"), "of alice")
		if n == 1 {
			return
		}
		if waited := time.Since(begin); n < 1 || waited > 3*time.Second+c.resolution {
			c.fatalf("the store holds %d sessions, want 1: the other 40 have had %v to expire and be deleted", n, waited.Round(time.Millisecond))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// testStopEarly stops stores as soon as they are made, when their goroutines may not
// even have begun.
func testStopEarly(c *check) {
	c.store.(cleaner).StopCleanup()
	if c.suite.empty == nil {
		for range 3 {
			c.another().(cleaner).StopCleanup()
		}
	}
	c.wantNoGoroutine()
}

// awaitGoroutine waits for the cleanup's goroutine to begin, if there is one.
func (c *check) awaitGoroutine() {
	for range 10 {
		time.Sleep(10 * time.Millisecond)
		if c.storeGoroutines() != nil {
			break
		}
	}
}

// wantNoGoroutine ends the case if a goroutine of the store still runs after a while.
func (c *check) wantNoGoroutine() {
	var left []stack
	for range 100 {
		time.Sleep(20 * time.Millisecond)
		if left = c.storeGoroutines(); left == nil {
			return
		}
	}
	c.fatalf("a goroutine of the store still runs after StopCleanup:\n%s", left[0])
}

// storeGoroutines returns the stacks of the store's goroutines that run in its
// package. A database's goroutines may go on.
func (c *check) storeGoroutines() []stack {
	packages := packagesOf(reflect.ValueOf(c.store))
	var stacks []stack
	for _, s := range goroutines(c.lifetime.label) {
		if s.runsIn(packages) {
			stacks = append(stacks, s)
		}
	}
	return stacks
}

// packagesOf returns the package of a value's type, and the packages of the types that
// it embeds.
func packagesOf(v reflect.Value) []string {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if !v.IsValid() {
		return nil
	}
	var packages []string
	if path := v.Type().PkgPath(); path != "" {
		packages = append(packages, path)
	}
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			if v.Type().Field(i).Anonymous {
				packages = append(packages, packagesOf(v.Field(i))...)
			}
		}
	}
	return packages
}

// testStopDuringSweep stops the cleanup while a goroutine of the store is at work.
// StopCleanup must wait for it, because the application may close the database next.
func testStopDuringSweep(c *check) {
	// Expired sessions give sweeps something to do. The goroutines that commit them
	// drop the label, so that they don't count as the store's.
	idle := c.idle()
	stop := make(chan struct{})
	var commits sync.WaitGroup
	defer commits.Wait()
	defer close(stop)
	for i := range 4 {
		commits.Go(func() {
			pprof.SetGoroutineLabels(context.Background())
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Microsecond): // so that a sweep gets its turn
				}
				_ = c.commit(c.ctx, token(fmt.Sprint("user", i, "-", n%1000)), []byte("old"), time.Now().Add(-time.Hour))
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	for begin := time.Now(); time.Since(begin) < time.Second && c.sweep(idle) == nil; {
		time.Sleep(time.Millisecond)
	}
	c.store.(cleaner).StopCleanup()
	if sweep := c.sweep(idle); sweep != nil {
		c.fatalf("a goroutine of the store is still at work after StopCleanup:\n%s", sweep)
	}
}

// sweep returns the stack of a goroutine of the store, or nil if none is at work. It
// looks twice, because a goroutine that was stopped may take a moment to end.
func (c *check) sweep(idle string) stack {
	var stacks []stack
	for range 2 {
		stacks = c.storeGoroutines()
		if now := describe(stacks); now == "" || now == idle {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return stacks[0]
}

// idle describes the goroutines of the store while they wait, which they do most of
// the time.
func (c *check) idle() string {
	seen := make(map[string]int)
	for range 11 {
		time.Sleep(5 * time.Millisecond)
		seen[describe(c.storeGoroutines())]++
	}
	var most string
	for stacks, n := range seen {
		if n > seen[most] {
			most = stacks
		}
	}
	return most
}

// describe lists the functions that goroutines are in.
func describe(stacks []stack) string {
	var b strings.Builder
	for _, s := range stacks {
		for _, frame := range s {
			b.WriteString(frame.Function + "\n")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func testStopInUse(c *check) {
	c.awaitGoroutine()
	c.parallel(4, func(i int) error {
		token := token(fmt.Sprint("user", i))
		for n := range 20 {
			if i == 0 && n == 10 {
				c.store.(cleaner).StopCleanup()
			}
			if err := c.commit(c.ctx, token, fmt.Append(nil, n), inAnHour()); err != nil {
				return fmt.Errorf("calling Commit: %v", err)
			}
		}
		return nil
	})
	for i := range 4 {
		c.wantFound(token(fmt.Sprint("user", i)), "19")
	}
	c.mustDelete(token("user0"))
	c.wantMissing(token("user0"))
	c.wantNoGoroutine()
}

func firstToken(v view) string { return token("first-" + v.name) }

// commitFirst commits the sessions that testFirstSessionStays looks for. It returns a problem, or
// "".
func (s *suite) commitFirst(l *lifetime, views []view) string {
	for i, v := range views {
		problem, _ := s.check(l, i).run(func(c *check) {
			c.mustCommit(firstToken(v), "alive", inAnHour())
			c.wantFound(firstToken(v), "alive")
		})
		if problem != "" && v.name == "plain" && len(views) > 1 {
			problem += "\nSCS calls the store's methods that take a context. " +
				"If its plain methods are not meant to be used, give the option CtxOnly."
		}
		if problem != "" {
			return problem
		}
	}
	return ""
}

func testFirstSessionStays(c *check) {
	for _, v := range c.views {
		c.view = v
		c.wantFound(firstToken(v), "alive")
	}
}

func needsOwnStores(s *suite, _ scs.Store, _ []view) string {
	if s.empty != nil {
		return "the sessions of a shared store are deleted before each case"
	}
	return ""
}
