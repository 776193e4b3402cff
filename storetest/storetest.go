// Package storetest tests session stores for [github.com/alexedwards/scs/v2].
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
// Each case is a subtest, and its failure quotes the sentence of SCS's
// documentation that the store breaks. [Cases] lists them. To leave out a case
// that a store is known to fail, use the flag -skip of go test.
//
// # What is tested
//
// The group Store tests Find, Commit, Delete and All. If the store has methods
// that take a context, these cases run twice: as "plain" with the methods that
// take none, and as "ctx" with those that SCS calls. SCS prefers the method with a
// context for each operation. The group Ctx tests that both kinds agree and what
// happens when a context ends. The group Manager uses the store through
// [scs.SessionManager]. The group Cleanup tests the deletion of expired sessions
// and StopCleanup. End/Canary looks for a session that was committed before
// all other cases.
//
// The group Advice has demands that SCS does not make, such as that StopCleanup
// can be called twice. A store that doesn't meet one skips the case, with a
// message that begins with "advice:", unless the option [Strict] is given.
//
// Cases for what a store does not have are skipped. So are cases that depend on
// time, when the machine is too slow to tell right from wrong, even with longer
// times. SCS does not say which tokens a store accepts beyond those that SCS
// makes: a store may refuse others with an error, but it must not confuse them.
//
// # What to expect
//
// A run makes 60 stores, or 101 if methods take a context. With two CPUs and a store
// in memory, it takes about 5 seconds, and more where a commit waits for a disk. Most
// cases wait most of the time: -parallel 16 helps.
//
// Three settings find more faults. A short cleanup interval, as above, lets sweeps
// meet other calls. The flag -race finds data races, even those in which the
// result happens to be right. A time zone other than UTC, such as that of TZ=Asia/Tokyo
// in the environment, finds stores that mix up zones.
package storetest

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
)

// An Option tells [Run] about a store.
type Option func(*config)

type config struct {
	strict     bool
	ctxOnly    bool
	resolution time.Duration
	timeout    time.Duration
	empty      func(t *testing.T)
	rows       func(store scs.Store) (int, error)
}

// Strict turns advice into demands: the cases of the group Advice fail where they
// would be skipped. The default is to skip them.
func Strict() Option {
	return func(cfg *config) { cfg.strict = true }
}

// CtxOnly leaves out the store's plain methods where there are ones that take a
// context. It is for stores whose plain methods panic; SCS never calls those. The
// default is to test both.
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
// longer fails and shows where its goroutines are, because it is probably in a
// deadlock. The default is a minute.
func Timeout(d time.Duration) Option {
	return func(cfg *config) { cfg.timeout = d }
}

// Shared is for stores that share one database, such as that of a server. The
// cases run one after another, so the test takes longer. Before each of them,
// [Run] calls the function that makes stores, which may return the same store each
// time, and then empty, which deletes all sessions from the database. End/Canary
// is skipped. If the store is always the same, only one of the cases that stop its
// cleanup runs. The default is to run cases in parallel, with a database each.
func Shared(empty func(t *testing.T)) Option {
	return func(cfg *config) { cfg.empty = empty }
}

// Rows tests whether the store deletes expired sessions, which its methods don't
// show: count returns the number of sessions that its database holds, active or
// not. The store has to have a cleanup interval of less than a second. The default
// is to skip Cleanup/Sweep.
//
// If count needs more than the store has, the test can return a struct that embeds
// the store and has the database in another field:
//
//	storetest.Rows(func(store scs.Store) (int, error) {
//		return store.(testStore).db.Count()
//	})
func Rows(count func(store scs.Store) (int, error)) Option {
	return func(cfg *config) { cfg.rows = count }
}

// Run tests the stores that newStore returns, with a subtest for each case. It
// returns when all of them have ended.
//
// Each call of newStore returns another store without sessions. Several of them
// are in use at the same time, so they must not share their sessions, unless the
// option [Shared] is given. newStore is not called by several goroutines at once.
// It gets the T of a subtest of the case: it releases what the store needs with
// t.Cleanup, ends the case with t.Fatal if it can't make a store, or skips it with
// t.Skip.
//
// Whatever a store does, the run goes on: a case fails if a method of the store
// panics or hangs, and if a function that newStore gave to t.Cleanup does. Such a
// case leaves its goroutines and files behind. Only a panic in a goroutine that the
// store itself has started ends the run.
//
// If a new store does not find a session that was committed to it, the test fails
// and no case runs.
func Run(t *testing.T, newStore func(t *testing.T) scs.Store, opts ...Option) {
	t.Helper()
	s := &suite{
		newStore: newStore,
		config:   config{resolution: 10 * time.Millisecond, timeout: time.Minute},
		outcomes: make(map[outcome][]string),
	}
	for _, opt := range opts {
		opt(&s.config)
	}
	// The cases wait for expiries, not for the timeout.
	s.timeout += 10 * s.resolution

	probe := s.open(t, probeNames()...)
	views := viewsOf(probe.store, s.config)
	problem := s.plantCanary(probe, views)
	if problem != "" || s.empty != nil {
		if hangs := s.close(probe, problem != ""); problem == "" {
			problem = hangs
		}
	} else {
		defer func() {
			if problem := s.close(probe, false); problem != "" {
				t.Error(problem)
			}
		}()
	}
	if problem != "" {
		t.Fatalf("the store can't be tested, and no case has run: %s", problem)
	}

	for _, g := range groups {
		// The group's subtest ends when its parallel subtests have.
		t.Run(g.name, func(t *testing.T) {
			for _, tc := range g.cases {
				t.Run(tc.name, func(t *testing.T) {
					if s.empty == nil {
						t.Parallel()
					}
					s.runCase(t, g, tc, probe, views)
				})
			}
		})
	}
	s.summarize(t)
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

// probeNames returns names for the subtest of the store that is made first. One of
// them is not left out by the flags -run and -skip, if they don't leave out all.
func probeNames() []string {
	var names []string
	for _, name := range Cases() {
		names = append(names, name+"/first", name+"/plain/first", name+"/ctx/first")
	}
	return names
}

var groups = []group{
	{name: "Store", cases: storeCases},
	{name: "Ctx", cases: ctxCases, once: true},
	{name: "Manager", cases: managerCases, once: true},
	{name: "Cleanup", cases: cleanupCases, once: true},
	{name: "Advice", cases: adviceCases, once: true, advice: true},
	{name: "End", cases: endCases, once: true, probe: true},
}

type group struct {
	name   string
	cases  []testCase
	once   bool // whether the cases run with SCS's methods alone
	advice bool // whether SCS does not demand what the cases test
	probe  bool // whether the cases use the store that Run has made first
}

type testCase struct {
	name string
	doc  string // what has the rule in its doc comment; "" for advice
	rule string // one or two sentences of it, as they are there; for advice, a reason
	test func(c *check)

	// needs says what the suite or the store lacks for the case, or "" if nothing
	// is missing. If needs is nil, the case is for all stores.
	needs func(s *suite, store scs.Store, views []view) string

	stops bool // whether the case calls StopCleanup
}

// A suite is a run of the cases.
type suite struct {
	config
	newStore func(t *testing.T) scs.Store

	making  sync.Mutex  // held while newStore runs
	stopped []scs.Store // stores whose cleanup has been stopped, if they are shared
	hangs   atomic.Bool // whether a cleanup function hangs

	mu       sync.Mutex
	outcomes map[outcome][]string // names of cases
}

// An outcome is how a case has ended. The largest one counts if a case runs more
// than once.
type outcome int

const (
	passed outcome = iota
	skipped
	advised // skipped, because the store does not follow advice
	failed
)

// A verdict is the outcome of a case and what to say about it.
type verdict struct {
	outcome outcome
	text    string
}

// runCase runs a case with each view that it is for.
func (s *suite) runCase(t *testing.T, g group, tc testCase, probe *lifetime, views []view) {
	var worst verdict
	judge := func(t *testing.T, v verdict) {
		if v.outcome > worst.outcome {
			worst = v
		}
		switch v.outcome {
		case failed:
			t.Error(v.text)
		case skipped, advised:
			t.Skip(v.text)
		}
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.Failed() { // also if newStore has failed the test
			worst.outcome = failed
		}
		s.outcomes[worst.outcome] = append(s.outcomes[worst.outcome], g.name+"/"+tc.name)
	}()

	if tc.needs != nil {
		if missing := tc.needs(s, probe.store, views); missing != "" {
			judge(t, verdict{skipped, missing})
		}
	}
	switch {
	case g.probe:
		judge(t, s.judge(g, tc, probe, len(views)-1))
	case g.once || len(views) == 1:
		judge(t, s.run(t, g, tc, len(views)-1))
	default:
		for i, v := range views {
			t.Run(v.name, func(t *testing.T) { judge(t, s.run(t, g, tc, i)) })
		}
		if worst.outcome == skipped {
			t.Skip(worst.text)
		}
	}
}

// run runs a case with a new store, whose view with the given index it uses.
func (s *suite) run(t *testing.T, g group, tc testCase, view int) verdict {
	l := s.open(t, "store")
	if tc.stops && s.empty != nil {
		if slices.ContainsFunc(s.stopped, func(other scs.Store) bool { return same(other, l.store) }) {
			s.close(l, false)
			return verdict{skipped, "another case has stopped the cleanup of the shared store"}
		}
		s.stopped = append(s.stopped, l.store)
	}
	v := s.judge(g, tc, l, view)
	problem := s.close(l, v.outcome == failed)
	switch {
	case problem == "" || v.outcome == failed:
	case tc.stops:
		// It may have been the second call of StopCleanup.
		t.Log("after the case has called StopCleanup: " + problem)
	default:
		v = verdict{failed, problem}
	}
	return v
}

// judge runs a case with the given store.
func (s *suite) judge(g group, tc testCase, l *lifetime, view int) verdict {
	problem, skip := s.check(l, view).run(tc.test)
	switch {
	case problem != "" && g.advice && !s.strict:
		return verdict{advised, fmt.Sprintf("advice: %s\nSCS does not demand it. %s", problem, tc.rule)}
	case problem != "" && g.advice:
		return verdict{failed, fmt.Sprintf("%s\nSCS does not demand it, but the option Strict does. %s", problem, tc.rule)}
	case problem != "":
		return verdict{failed, fmt.Sprintf("%s\nThe documentation of %s says: %q", problem, tc.doc, tc.rule)}
	case skip != "":
		return verdict{skipped, skip}
	}
	return verdict{}
}

// check returns a check with a view of the given store.
func (s *suite) check(l *lifetime, view int) *check {
	views := viewsOf(l.store, s.config)
	return &check{
		view: views[view], views: views, store: l.store, ctx: l.t.Context(), resolution: s.resolution,
		suite: s, lifetime: l,
	}
}

// summarize logs how many cases have passed, and names those that have not.
func (s *suite) summarize(t *testing.T) {
	t.Helper()
	names := func(o outcome) string {
		if len(s.outcomes[o]) == 0 {
			return ""
		}
		slices.Sort(s.outcomes[o])
		return ": " + strings.Join(s.outcomes[o], ", ")
	}
	t.Logf("%d cases passed, %d skipped\n%d failed%s\n%d pieces of advice not followed%s",
		len(s.outcomes[passed]), len(s.outcomes[skipped]),
		len(s.outcomes[failed]), names(failed), len(s.outcomes[advised]), names(advised))
}

// same reports whether two stores are the same one, if that can be told.
func same(a, b scs.Store) bool {
	return reflect.TypeOf(a).Comparable() && reflect.TypeOf(b).Comparable() && a == b
}
