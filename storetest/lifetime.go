// Lifetimes: how stores are made and closed, so that a hang or a panic does not end
// the run.

package storetest

import (
	"context"
	"fmt"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
)

// labelKey labels the goroutines that use a store or that the store has started. Each
// store has its own value, even if the -count flag runs a test again while goroutines
// of the first run are left.
const labelKey = "storetest"

// labels counts the values of the label so far.
var labels atomic.Int64

// A lifetime makes and closes a store in a subtest, which runs newStore and the
// functions that newStore passes to t.Cleanup. The case runs beside it. A subtest that
// does not end is left behind, and package testing does not notice.
type lifetime struct {
	store scs.Store
	t     *testing.T // the subtest
	label string     // of the store's goroutines

	opened  chan struct{} // closed when store is set
	release chan struct{} // closed when the store is no longer needed
	closed  chan struct{} // closed when the subtest has ended
	panics  chan string   // receives the stack if a cleanup function panics

	mu        sync.Mutex
	abandoned bool
	ending    bool // whether all cleanup functions have run
}

// open makes a store, which lives until close. If it can't, it ends the test t. The
// subtest gets the first of the names that the flags -run and -skip don't leave out.
func (s *suite) open(t *testing.T, names ...string) *lifetime {
	t.Helper()
	l := &lifetime{
		label:   fmt.Sprint(t.Name(), "#", labels.Add(1)),
		opened:  make(chan struct{}),
		release: make(chan struct{}),
		closed:  make(chan struct{}),
		panics:  make(chan string, 1),
	}
	var skipped bool
	go func() {
		defer close(l.closed)
		run := func(t *testing.T) {
			l.t = t
			pprof.SetGoroutineLabels(l.labels())
			t.Cleanup(l.end) // runs after the cleanup functions of newStore
			defer func() { skipped = t.Skipped() }()
			l.store = s.make(t)
			if s.empty != nil {
				s.empty(t)
			}
			close(l.opened)
			<-l.release
		}
		for _, name := range names {
			if t.Run(name, run); l.t != nil {
				break
			}
		}
	}()
	select {
	case <-l.opened:
	case <-l.closed:
		if t.Failed() {
			t.FailNow()
		}
		if skipped {
			t.Skip("newStore skipped the test")
		}
		t.Skip("the flags -run and -skip leave out the subtest that makes the store")
	case <-time.After(s.timeout):
		l.abandon()
		t.Fatalf("newStore has not returned after %v\n%s", s.timeout, stacksOf(l.label))
	}
	return l
}

// make calls newStore.
func (s *suite) make(t *testing.T) scs.Store {
	s.making.Lock()
	defer s.making.Unlock()
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("newStore panics: %v\n%s", r, panicStack())
		}
	}()
	store := s.newStore(t)
	if store == nil {
		t.Fatal("newStore returned nil")
	}
	return store
}

// labels returns a context with the label of the store's goroutines.
func (l *lifetime) labels() context.Context {
	return pprof.WithLabels(context.Background(), pprof.Labels(labelKey, l.label))
}

// close ends a lifetime, and returns a problem with it, or "". The cleanup functions
// get one second if one of them is in StopCleanup, if the case has failed, or if
// another store's have hung. Otherwise they may have a database to close, and get ten
// seconds more.
func (s *suite) close(l *lifetime, failed bool) string {
	close(l.release)
	for _, limit := range []time.Duration{time.Second, 10 * time.Second} {
		select {
		case <-l.closed:
			return ""
		case text := <-l.panics:
			return text
		case <-patience(limit):
		}
		stacks := stacksOf(l.label)
		if failed || limit > time.Second || strings.Contains(stacks, "StopCleanup") || s.hangs.Load() {
			if !l.abandon() {
				<-l.closed
				return ""
			}
			s.hangs.Store(true)
			return "a cleanup function of the store hangs\n" + stacks
		}
	}
	panic("unreachable")
}

// abandon leaves the lifetime behind. It returns false if the lifetime has just ended.
func (l *lifetime) abandon() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.abandoned = !l.ending
	return l.abandoned
}

// end is the last cleanup function. An abandoned subtest must not end, because its
// parent has ended. Nor may a subtest whose cleanup panics, because the panic would
// end the process. So end blocks them forever.
func (l *lifetime) end() {
	stack := panicStack()
	l.mu.Lock()
	l.ending = stack == "" && !l.abandoned
	ending := l.ending
	l.mu.Unlock()
	if !ending {
		l.panics <- "a cleanup function of the store panics\n" + stack
		select {}
	}
}

// patience returns a channel that is closed after d, or later on a busy machine: all
// goroutines that can run get their turns first, even if there are many of them.
func patience(d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		const turns = 20
		for range turns {
			time.Sleep(d / turns)
			for range turns {
				runtime.Gosched()
			}
		}
		close(done)
	}()
	return done
}
