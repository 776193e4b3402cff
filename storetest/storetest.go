// Package storetest tests implementations of session stores for
// [github.com/alexedwards/scs/v2].
//
// A test of a store gives [Run] a function that makes one:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) scs.Store {
//			db, err := mydb.Open(t.TempDir())
//			if err != nil {
//				t.Fatal(err)
//			}
//			t.Cleanup(func() { db.Close() })
//			store := mystore.NewWithCleanupInterval(db, 50*time.Millisecond)
//			t.Cleanup(store.StopCleanup)
//			return store
//		})
//	}
//
// Each case is a subtest of its own, which names the sentence of SCS's
// documentation that it checks. [Cases] lists them. A case that a store is known
// to fail can be left out with the flag -skip of go test.
//
// # What is tested
//
// The cases of the group Store check Find, Commit, Delete and All. If the store
// has methods that take a context, they run twice: as "plain", with the methods
// that don't, and as "ctx", with those that SCS calls, which for each operation
// is the method that takes a context if there is one. The cases of the group Ctx
// check that both agree. The cases of the group Manager use the store through
// [scs.SessionManager]. Those of the group Cleanup are for stores with a method
// StopCleanup.
//
// Cases for what a store does not have are skipped. SCS does not say which
// tokens a store can keep beyond those that SCS makes: a store may refuse others
// with an error, but not confuse them. Whether expired sessions are deleted can't
// be seen through the methods of a store; with a short cleanup interval, as above,
// the cases find out whether active ones stay.
package storetest

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
)

// An Option tells [Run] about a store.
type Option func(*config)

type config struct {
	ctxOnly    bool
	resolution time.Duration
	timeout    time.Duration
}

// CtxOnly leaves out the store's plain methods where there are ones that take a
// context. It is for stores whose plain methods panic; SCS never calls those.
func CtxOnly() Option {
	return func(cfg *config) { cfg.ctxOnly = true }
}

// ExpiryResolution says how exact the store's expiries are: a session may
// disappear by d too early or too late. A store that keeps them in whole seconds
// needs time.Second, and its test takes longer. The default is 10 milliseconds.
func ExpiryResolution(d time.Duration) Option {
	return func(cfg *config) { cfg.resolution = d }
}

// Timeout limits the time that the store may take in each case. A case that takes
// longer fails and shows the stacks of all goroutines, because it is probably
// in a deadlock. The default is 30 seconds.
func Timeout(d time.Duration) Option {
	return func(cfg *config) { cfg.timeout = d }
}

// Run tests the stores that newStore returns, with a subtest for each case. It
// returns when all of them have ended.
//
// Each call of newStore returns another store without active sessions. Several
// of them are in use at the same time, so they must not share their sessions. It
// is not called by several goroutines at once. It releases what a store needs
// with t.Cleanup, and ends the test with t.Fatal if it can't make one.
//
// A panic in a method of the store fails the case, and so does a deadlock, whose
// goroutines are left behind. If the functions that newStore gave to t.Cleanup
// hang, Run ends the process with a panic: after a deadlock, or because one of
// them is the StopCleanup of a store that can't be stopped twice.
func Run(t *testing.T, newStore func(t *testing.T) scs.Store, opts ...Option) {
	t.Helper()
	cfg := config{resolution: 10 * time.Millisecond, timeout: 30 * time.Second}
	for _, opt := range opts {
		opt(&cfg)
	}
	// The cases wait for expiries, not for the timeout.
	cfg.timeout += 10 * cfg.resolution

	var mu sync.Mutex
	newLocked := func(t *testing.T) scs.Store {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		store := newStore(t)
		if store == nil {
			t.Fatal("the function that makes stores has returned nil")
		}
		return store
	}
	probe := newLocked(t)
	views := viewsOf(probe, cfg)

	for _, g := range groups {
		// The group's subtest ends when its parallel subtests have.
		t.Run(g.name, func(t *testing.T) {
			for _, tc := range g.cases {
				t.Run(tc.name, func(t *testing.T) {
					t.Parallel()
					if tc.needs != nil {
						if missing := tc.needs(probe, views); missing != "" {
							t.Skip(missing)
						}
					}
					if g.once || len(views) == 1 {
						run(t, tc, newLocked, len(views)-1, cfg)
						return
					}
					for i, v := range views {
						t.Run(v.name, func(t *testing.T) {
							t.Parallel()
							run(t, tc, newLocked, i, cfg)
						})
					}
				})
			}
		})
	}
}

// Cases returns the names of all cases, in their order. A case is the subtest of
// that name of the test that calls [Run], such as "Store/FindMissing".
func Cases() []string {
	var names []string
	for _, g := range groups {
		for _, tc := range g.cases {
			names = append(names, g.name+"/"+tc.name)
		}
	}
	return names
}

var groups = []group{
	{name: "Store", cases: storeCases},
	{name: "Ctx", cases: ctxCases, once: true},
	{name: "Manager", cases: managerCases, once: true},
	{name: "Cleanup", cases: cleanupCases, once: true},
}

type group struct {
	name  string
	cases []testCase
	once  bool // whether the cases don't run for each view
}

type testCase struct {
	name string
	doc  string // what has the rule in its doc comment
	rule string // one or two sentences of it, as they are there
	test func(c *check)

	// needs says what the store would have to have, or "" if it has it. If needs is
	// nil, the case is for all stores.
	needs func(store scs.Store, views []view) string
}

func needsAll(_ scs.Store, views []view) string {
	if views[0].all == nil {
		return "the store has neither All nor AllCtx"
	}
	return ""
}

func needsCtx(_ scs.Store, views []view) string {
	if views[len(views)-1].name != "ctx" {
		return "the store has no methods that take a context"
	}
	return ""
}

func needsTwins(_ scs.Store, views []view) string {
	if len(views) == 1 {
		return "the store has only one method for each operation"
	}
	return ""
}

func needsCleanup(store scs.Store, _ []view) string {
	if _, ok := store.(cleaner); !ok {
		return "the store has no StopCleanup"
	}
	return ""
}

// A view is a choice of methods of a store, one for each operation. The plain
// ones ignore the context.
type view struct {
	name   string
	find   func(ctx context.Context, token string) ([]byte, bool, error)
	commit func(ctx context.Context, token string, b []byte, expiry time.Time) error
	delete func(ctx context.Context, token string) error
	all    func(ctx context.Context) (map[string][]byte, error) // nil if there is none
}

// viewsOf returns the plain view, if it may be used, and the one with context, if
// the store has any method that takes one. The last one is SCS's.
func viewsOf(store scs.Store, cfg config) []view {
	plain := view{
		name:   "plain",
		find:   func(_ context.Context, token string) ([]byte, bool, error) { return store.Find(token) },
		delete: func(_ context.Context, token string) error { return store.Delete(token) },
		commit: func(_ context.Context, token string, b []byte, expiry time.Time) error {
			return store.Commit(token, b, expiry)
		},
	}
	if s, ok := store.(scs.IterableStore); ok {
		plain.all = func(context.Context) (map[string][]byte, error) { return s.All() }
	}

	ctx := plain
	if s, ok := store.(interface {
		FindCtx(context.Context, string) ([]byte, bool, error)
	}); ok {
		ctx.name, ctx.find = "ctx", s.FindCtx
	}
	if s, ok := store.(interface {
		CommitCtx(context.Context, string, []byte, time.Time) error
	}); ok {
		ctx.name, ctx.commit = "ctx", s.CommitCtx
	}
	if s, ok := store.(interface {
		DeleteCtx(context.Context, string) error
	}); ok {
		ctx.name, ctx.delete = "ctx", s.DeleteCtx
	}
	if s, ok := store.(scs.IterableCtxStore); ok {
		ctx.name, ctx.all = "ctx", s.AllCtx
		if plain.all == nil {
			plain.all = s.AllCtx
		}
	}

	switch {
	case ctx.name == "plain":
		return []view{plain}
	case cfg.ctxOnly:
		return []view{ctx}
	default:
		return []view{plain, ctx}
	}
}

// A check is what a case works with: a store of its own, and the means to say
// what is wrong with it.
type check struct {
	view       // the methods to use
	views      []view
	store      scs.Store
	ctx        context.Context
	resolution time.Duration

	t    *testing.T
	rule string

	mu        sync.Mutex
	abandoned bool // whether the test ends without waiting for the case
}

// goroutineLabel is the label of the goroutines that a store has started. Its
// value is the name of the test.
const goroutineLabel = "storetest"

// run runs a case with a new store of which it uses the given view.
func run(t *testing.T, tc testCase, newStore func(t *testing.T) scs.Store, viewIndex int, cfg config) {
	var guard *time.Timer
	t.Cleanup(func() { // the last one, after those of newStore
		if guard != nil {
			guard.Stop()
		}
	})
	c := &check{
		ctx:        t.Context(),
		resolution: cfg.resolution,
		t:          t,
		rule:       fmt.Sprintf("The documentation of %s says: %q", tc.doc, tc.rule),
	}
	pprof.Do(t.Context(), pprof.Labels(goroutineLabel, t.Name()), func(context.Context) {
		c.store = newStore(t)
	})
	c.views = viewsOf(c.store, cfg)
	c.view = c.views[viewIndex]

	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				c.report(fmt.Sprintf("panic: %v", r), string(debug.Stack()))
			}
		}()
		debug.SetPanicOnFault(true) // for data in a file that is mapped into memory
		tc.test(c)
	}()
	select {
	case <-done:
	case <-time.After(cfg.timeout):
		c.report(fmt.Sprintf("the case has not ended after %v", cfg.timeout), allStacks())
		c.mu.Lock()
		c.abandoned = true
		c.mu.Unlock()
	}
	guard = time.AfterFunc(cfg.timeout, func() {
		panic(fmt.Sprintf("%s: the cleanup functions of the store have not ended after %v\n\n%s",
			t.Name(), cfg.timeout, allStacks()))
	})
}

// allStacks returns the stacks of all goroutines, or as many as can be read.
func allStacks() string {
	buf := make([]byte, 256<<10)
	return string(buf[:runtime.Stack(buf, true)])
}

// report fails the test with what is wrong, the rule that is broken, and stacks
// of goroutines, if there are any.
func (c *check) report(problem, stacks string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if stacks != "" {
		stacks = "\n\n" + stacks
	}
	if !c.abandoned {
		c.t.Errorf("%s\n%s%s", problem, c.rule, stacks)
	}
}

// fatalf is report, followed by the end of the case. It must be called by the
// goroutine of the case.
func (c *check) fatalf(format string, args ...any) {
	c.t.Helper()
	c.report(fmt.Sprintf(format, args...), "")
	runtime.Goexit()
}

// parallel calls f by n goroutines at once, waits for them, and fails the case
// with their first error or panic.
func (c *check) parallel(n int, f func(i int) error) {
	c.t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					errs[i] = fmt.Errorf("panic: %v\n\n%s", r, debug.Stack())
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
