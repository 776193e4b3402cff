// Lifetimes: how stores are made and closed, so that one that hangs or panics
// meanwhile does not end the run.

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

// labelKey is the label of the goroutines that belong to a store: those that use
// it and those that it has started. Its value is the store's alone, even if the
// flag -count runs a test again while goroutines of the first run are left.
const labelKey = "storetest"

// labels counts the values of the label.
var labels atomic.Int64

// A lifetime is that of a store. It is a subtest, which runs newStore and the
// functions that newStore gives to t.Cleanup, while the test of the case goes on.
// If it does not end, it is left behind, which the package testing does not notice.
type lifetime struct {
	store scs.Store
	t     *testing.T // the subtest
	label string     // of the store's goroutines

	opened  chan struct{} // closed when store is there
	release chan struct{} // closed when the store is no longer needed
	closed  chan struct{} // closed when the subtest has ended
	panics  chan string   // has what a cleanup function panics with

	mu        sync.Mutex
	abandoned bool
	ending    bool // whether all cleanup functions have run
}

// open makes a store that is used until close. It ends the test t if it can't. The
// subtest has the first of the names that the flags -run and -skip don't leave out.
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
			t.Cleanup(l.end) // the last one, after those of newStore
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
			t.Skip("the function that makes stores has skipped the test")
		}
		t.Skip("the flags -run and -skip leave out the subtest in which the store is made")
	case <-time.After(s.timeout):
		l.abandon()
		t.Fatalf("the function that makes stores has not returned after %v\n%s", s.timeout, stacksOf(l.label))
	}
	return l
}

// make calls newStore.
func (s *suite) make(t *testing.T) scs.Store {
	s.making.Lock()
	defer s.making.Unlock()
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("the function that makes stores panics: %v\n%s", r, panicStack())
		}
	}()
	store := s.newStore(t)
	if store == nil {
		t.Fatal("the function that makes stores has returned nil")
	}
	return store
}

// labels returns a context with the label of the store's goroutines.
func (l *lifetime) labels() context.Context {
	return pprof.WithLabels(context.Background(), pprof.Labels(labelKey, l.label))
}

// close ends a lifetime, and returns what is wrong with it, or "". A cleanup function
// gets a second if it is in StopCleanup, if the store has failed, or if another one
// hangs. Otherwise it may have a database to close.
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

// abandon leaves the lifetime behind. It returns false if it has just ended.
func (l *lifetime) abandon() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.abandoned = !l.ending
	return l.abandoned
}

// end is the last cleanup function. It keeps a subtest that is left behind from
// ending, because its parent has ended. One that panics would end the process
// after this; it is left behind, too.
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

// patience returns a channel that is closed after a time in which other goroutines
// that can run have had their turns, too, even if there are many of them.
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
