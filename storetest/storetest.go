// Package storetest tests session stores for [github.com/alexedwards/scs/v2].
//
// The test of a store calls [Run] with a function that makes one:
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
// Each case is a subtest. A failed case quotes the sentence of SCS's documentation
// that the store breaks. [Cases] lists all cases. To leave out a case that a store
// is known to fail, use the -skip flag of go test:
//
//	go test -run TestStore -skip 'TestStore/.*/^AllLargeData$'
//
// # Compatibility
//
// The package has the versions of its module. A minor version may add cases and
// advice, and may make cases stricter, so a store that has passed can fail. It keeps
// the names of cases. A patch version only mends cases that fail correct stores.
//
// # What is tested
//
// The group Store tests Find, Commit, Delete and All. If the store has methods
// that take a context, these cases run twice: as "plain" with the methods that
// take none, and as "ctx" with the methods that SCS calls. For each operation, SCS
// prefers the method that takes a context. The group Ctx tests that both methods
// agree, and that a store copes with contexts that end. The group Manager uses the
// store through [scs.SessionManager]. The group Cleanup tests that expired sessions
// are deleted until StopCleanup is called. After all other cases,
// End/FirstSessionStays looks for a session that was committed before them.
//
// The group Advice tests what SCS does not require, such as calling StopCleanup
// twice. If a store does not follow the advice, the case is skipped with a message
// that begins with "advice:". With the option [Strict], it fails.
//
// Cases for features that a store lacks are skipped. Cases that depend on time are
// tried again with longer waits, and skipped if the machine is still too slow. SCS
// does not say whether a store accepts tokens that SCS does not make: a store may
// refuse to commit them, but it must not confuse them.
//
// # What to expect
//
// A run makes 60 stores, or 101 if methods take a context. With an in-memory store
// on two CPUs, it takes about 5 seconds, and more if commits wait for a disk. Most
// cases wait most of the time, so -parallel 16 helps.
//
// Three settings find more faults. With a short cleanup interval, as above, sweeps
// run during other calls. The -race flag finds data races, even if the results
// happen to be right. A time zone other than UTC, such as TZ=Asia/Tokyo in the
// environment, finds stores that mix up time zones.
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

// An Option configures [Run] for a store.
type Option func(*config)

type config struct {
	strict  bool
	ctxOnly bool

	refusesEnded bool

	resolution time.Duration
	timeout    time.Duration
	empty      func(t *testing.T)
	count      func(store scs.Store) (int, error)
}

// Strict makes the cases of the group Advice fail if the store does not follow the
// advice. By default, they are skipped.
func Strict() Option {
	return func(cfg *config) { cfg.strict = true }
}

// CtxOnly tests only the methods that SCS calls: if an operation has a method that
// takes a context, its plain method is left out. Use it for stores whose plain
// methods panic. By default, both are tested.
func CtxOnly() Option {
	return func(cfg *config) { cfg.ctxOnly = true }
}

// RefusesEnded is for stores that refuse to commit a session again after it was
// deleted, as chaistore does with its RememberEnded. Then a commit that succeeds is a
// fault. By default, such a commit must succeed.
func RefusesEnded() Option {
	return func(cfg *config) { cfg.refusesEnded = true }
}

// ExpiryResolution sets the precision of the store's expiries: a session may expire
// up to d too early or too late. A store that keeps expiries in whole seconds needs
// time.Second, and its test takes longer. The default is 10 milliseconds.
func ExpiryResolution(d time.Duration) Option {
	return func(cfg *config) { cfg.resolution = d }
}

// Timeout limits the time that the store may take in each case. A case that takes
// longer is probably deadlocked: it fails, and shows the stacks of its goroutines.
// The default is one minute.
func Timeout(d time.Duration) Option {
	return func(cfg *config) { cfg.timeout = d }
}

// Shared is for stores that share one database, for example on a server. The cases
// run one after another, so the test takes longer. Before each case, [Run] calls
// newStore, and then empty, which must delete all sessions from the database.
// End/FirstSessionStays is skipped. By default, cases run in parallel on separate
// databases.
//
// newStore may return the same store each time. Then only the first case that stops
// its cleanup runs.
func Shared(empty func(t *testing.T)) Option {
	return func(cfg *config) { cfg.empty = empty }
}

// Count enables the case Cleanup/Sweep, which tests that the store deletes expired
// sessions. The store's methods don't show this. So count must return the number of
// sessions in the database, expired ones included. The store needs a cleanup interval
// of less than a second. By default, Cleanup/Sweep is skipped.
//
// If count needs the database, newStore can return a struct that embeds the store
// and has the database in another field:
//
//	storetest.Count(func(store scs.Store) (int, error) {
//		return store.(testStore).db.Count()
//	})
func Count(count func(store scs.Store) (int, error)) Option {
	return func(cfg *config) { cfg.count = count }
}

// Run tests the stores that newStore returns, with a subtest for each case. It
// returns when all subtests have ended.
//
// Each call of newStore must return a new store without sessions. Several stores are
// in use at the same time, so they must not share sessions, unless the option
// [Shared] is given. Calls of newStore don't overlap. Its t belongs to a subtest of
// the case: use t.Cleanup to release what the store needs, t.Fatal if the store
// can't be made, and t.Skip to skip the case.
//
// A faulty store does not end the run. If a method of the store or a function passed
// to t.Cleanup panics or hangs, the case fails, and may leave goroutines and files
// behind. Only a panic in a goroutine that the store itself started ends the run.
//
// If the first store does not find a session that was just committed to it, the test
// fails and no case runs.
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
	// Waiting for expiries must not use up the timeout.
	s.timeout += 10 * s.resolution

	probe := s.open(t, probeNames()...)
	views := viewsOf(probe.store, s.config)
	problem := s.commitFirst(probe, views)
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
		// The group's subtest ends after its parallel subtests.
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

// Cases returns the names of all cases, in order. In the test that calls [Run], each
// case is a subtest with its name, such as "Store/FindMissing".
func Cases() []string {
	var names []string
	for _, g := range groups {
		for _, tc := range g.cases {
			names = append(names, g.name+"/"+tc.name)
		}
	}
	return names
}

// probeNames returns candidate names for the subtest of the first store. Unless the
// flags -run and -skip leave out every case, they select one of these names.
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
	once   bool // whether the cases run only with the methods that SCS calls
	advice bool // whether the cases test what SCS does not require
	probe  bool // whether the cases use the first store
}

type testCase struct {
	name string
	doc  string // the symbol whose doc comment states the rule; "" for advice
	rule string // one or two sentences of that comment, verbatim; for advice, a reason
	test func(c *check)

	// needs returns what the suite or the store lacks for the case, or "". If needs is
	// nil, the case is for all stores.
	needs func(s *suite, store scs.Store, views []view) string

	stops bool // whether the case calls StopCleanup
}

// A suite is one run of the cases.
type suite struct {
	config
	newStore func(t *testing.T) scs.Store

	making  sync.Mutex  // held while newStore runs
	stopped []scs.Store // shared stores whose cleanup has been stopped
	hangs   atomic.Bool // whether a cleanup function hangs

	mu       sync.Mutex
	outcomes map[outcome][]string // names of cases
}

// An outcome is how a case ended. If a case runs more than once, its largest outcome
// counts.
type outcome int

const (
	passed outcome = iota
	skipped
	advised // skipped, because the store does not follow the advice
	failed
)

// A verdict is the outcome of a case, with an explanation.
type verdict struct {
	outcome outcome
	text    string
}

// runCase runs a case with each of its views.
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
		if t.Failed() { // newStore may have failed the test
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

// run runs a case with a new store, through the view with the given index.
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
		// The cleanup function may have called StopCleanup for the second time.
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
		return verdict{advised, fmt.Sprintf("advice: %s\nSCS does not require this. %s", problem, tc.rule)}
	case problem != "" && g.advice:
		return verdict{failed, fmt.Sprintf("%s\nSCS does not require this, but the option Strict does. %s", problem, tc.rule)}
	case problem != "":
		return verdict{failed, fmt.Sprintf("%s\nThe documentation of %s says: %q", problem, tc.doc, tc.rule)}
	case skip != "":
		return verdict{skipped, skip}
	}
	return verdict{}
}

// check returns a check of the given store, through the view with the given index.
func (s *suite) check(l *lifetime, view int) *check {
	views := viewsOf(l.store, s.config)
	return &check{
		view: views[view], views: views, store: l.store, ctx: l.t.Context(), resolution: s.resolution,
		suite: s, lifetime: l,
	}
}

// summarize logs how many cases had each outcome. It names the cases that failed and
// the advice that the store does not follow.
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

// same reports whether a and b are the same store. If they can't be compared, it
// returns false.
func same(a, b scs.Store) bool {
	return reflect.TypeOf(a).Comparable() && reflect.TypeOf(b).Comparable() && a == b
}
