package modeltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// TestContexts ends, renews and puts sessions with two stores and with SQL, in transactions
// that are written out, rolled back, or replace the table, while goroutines make contexts of
// the sessions. No context ends before its session, or goes on after it. None is kept.
func TestContexts(t *testing.T) {
	testdb.Slow(t)
	t.Parallel()
	testdb.Watchdog(t, *modelTime+2*time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB, indexed bool) {
		m := &contextsModel{t: t, db: db, indexed: indexed, did: make(map[string]int)}
		m.stores = [2]*chaistore.ChaiStore{newStore(t, db, chaistore.Config{}), newStore(t, db, chaistore.Config{Owner: ownerInData})}
		for i := range m.sessions {
			m.sessions[i] = &contextsSession{token: fmt.Sprint("session", i)}
		}
		ctx, cancel := context.WithTimeout(t.Context(), *modelTime/8)
		defer cancel()
		var wg sync.WaitGroup
		for g := range 12 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(rand.Uint64(), uint64(g)))
				for ctx.Err() == nil && !t.Failed() {
					switch {
					case g < 6:
						m.change(rng)
					case g < 11:
						m.observe(rng)
					default:
						m.changeTable(rng)
					}
				}
			})
		}
		wg.Wait()
		for i, s := range m.sessions {
			if i%2 == 0 {
				m.check(s, "at the end")
				continue
			}
			for _, c := range s.contexts { // the others end with the database
				c.cancel()
			}
			s.contexts = nil
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		for _, s := range m.sessions {
			for _, c := range s.contexts {
				if m.wait(c, s, "Close"); s.active && !strings.Contains(context.Cause(c).Error(), "the database is closed") {
					t.Errorf("after Close, the cause is %v", context.Cause(c))
				}
			}
		}
		stacks := make([]byte, 4<<20)
		left := func() bool {
			return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "sessiontable.(*contexts).run")
		}
		for i := 0; left() && i < 500; i++ {
			time.Sleep(10 * time.Millisecond)
		}
		if left() {
			t.Error("a goroutine is left, though all contexts have ended")
		}
		did := slices.Sorted(maps.Keys(m.did))
		for i, what := range did {
			did[i] = fmt.Sprintf("%s: %d", what, m.did[what])
		}
		t.Logf("%d contexts; %s", m.made.Load(), strings.Join(did, ", "))
	})
}

// A contextsModel knows which contexts must be done.
type contextsModel struct {
	t        *testing.T
	db       *chai.DB
	indexed  bool
	stores   [2]*chaistore.ChaiStore
	sessions [16]*contextsSession
	made     atomic.Int64 // contexts

	mu  sync.Mutex
	did map[string]int
}

// A contextsSession is locked while it is changed.
type contextsSession struct {
	token string
	begun atomic.Int64 // changes that end it
	acked atomic.Int64 // the same, when they have returned

	sync.Mutex
	active   bool
	contexts []contextsContext // of the session as it is, not ended before
}

type contextsContext struct {
	context.Context
	cancel context.CancelFunc
}

func (m *contextsModel) note(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did[what]++
}

func (m *contextsModel) make(s *contextsSession, rng *rand.Rand) contextsContext {
	m.made.Add(1)
	ctx, cancel := m.stores[rng.IntN(2)].SessionContext(context.Background(), s.token)
	return contextsContext{ctx, cancel}
}

// wait waits until a context is done.
func (m *contextsModel) wait(c contextsContext, s *contextsSession, what string) {
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		m.t.Errorf("after %s, a context of %s goes on", what, s.token)
	}
}

// check compares the contexts of a locked session with the model.
func (m *contextsModel) check(s *contextsSession, what string) {
	for _, c := range s.contexts {
		if s.active && c.Err() != nil {
			m.t.Errorf("%s has ended a context of %s, which is active: %v", what, s.token, context.Cause(c))
		} else if !s.active {
			m.wait(c, s, what)
			if c.Err() != nil && context.Cause(c) != chaistore.ErrEnded {
				m.t.Errorf("after %s, the cause is %v", what, context.Cause(c))
			}
		}
	}
	if !s.active {
		s.contexts = nil
	}
}

// end runs a change that ends a locked session, unless it fails. If it is one of a store, the
// contexts are done when it returns.
func (m *contextsModel) end(what string, byStore bool, change func() error, sessions ...*contextsSession) {
	m.note(what)
	for _, s := range sessions {
		s.begun.Add(1)
	}
	if err := change(); err != nil {
		m.t.Errorf("%s: %v", what, err)
		return
	}
	for _, s := range sessions {
		for _, c := range s.contexts {
			if byStore && c.Err() == nil {
				m.t.Errorf("%s has returned, and a context of %s is not done", what, s.token)
			}
		}
		s.acked.Add(1)
		s.active = false
	}
}

// change changes a session, and looks at its contexts.
func (m *contextsModel) change(rng *rand.Rand) {
	s := m.sessions[rng.IntN(len(m.sessions))]
	s.Lock()
	defer s.Unlock()
	store := m.stores[rng.IntN(2)]
	if len(s.contexts) < 20 {
		c := m.make(s, rng)
		if (c.Err() == nil) != s.active {
			m.t.Errorf("a new context of %s has the error %v; the session is active: %v", s.token, c.Err(), s.active)
		}
		s.contexts = append(s.contexts, c)
	}
	what := ""
	put := func(d time.Duration) error {
		return store.Commit(s.token, []byte("alice|"), time.Now().Add(d))
	}
	remove := "DELETE FROM sessions WHERE token = '" + s.token + "'"
	insert := "INSERT INTO sessions (token, data, expiry) VALUES ('" + s.token + "', '\\x61', '2099-01-01T00:00:00Z')"
	renew := "UPDATE sessions SET expiry = '2099-01-01T00:00:00Z' WHERE token = '" + s.token + "'"
	past := "UPDATE sessions SET expiry = '2001-01-01T00:00:00Z' WHERE token = '" + s.token + "'"
	var err error
	switch n := rng.IntN(100); {
	case n < 15 || !s.active:
		what, err = "Commit", put(time.Hour)
		m.check(s, what) // those from before it was put again have ended
		s.active = true
	case n < 25:
		what = "Delete"
		m.end(what, true, func() error { return store.Delete(s.token) }, s)
	case n < 30:
		what = "Commit of the past"
		m.end(what, true, func() error { return put(-time.Hour) }, s)
	case n < 35:
		what = "expiry"
		m.end(what, false, func() error { return put(time.Duration(rng.IntN(10)) * time.Millisecond) }, s)
	case n < 40:
		what = "renewal before the expiry"
		err = errors.Join(put(30*time.Second), put(time.Hour))
	case n < 50:
		what = "DELETE"
		m.end(what, false, func() error { return m.transact(remove) }, s)
	case n < 55:
		what = "DELETE, written out"
		m.end(what, false, func() error { return m.transact(remove, insert, renew, past, renew, remove, "SELECT * FROM sessions") }, s)
	case n < 60:
		what = "DELETE, and at once a Commit"
		m.end(what, false, func() error { return errors.Join(m.transact(remove), put(time.Hour)) }, s)
	case n < 65:
		what = "UPDATE to the past"
		m.end(what, false, func() error { return m.transact(past) }, s)
	case n < 75:
		what, err = "DELETE and INSERT", m.transact(remove, insert)
	case n < 80:
		what, err = "UPDATE", m.transact(renew)
	case n < 90 && !m.indexed:
		what = "ROLLBACK"
		if err := m.transact(remove, insert, past, remove, "SELECT * FROM sessions", "no statement"); err == nil || !strings.Contains(err.Error(), "no statement") {
			m.t.Errorf("rolled back with %v", err)
		}
	case n < 95:
		what = "cancel"
		for _, c := range s.contexts[:rng.IntN(len(s.contexts)+1)] {
			c.cancel()
			s.contexts = s.contexts[1:]
		}
	default:
		what = "sweep"
		_, err = store.DeleteExpired(context.Background())
	}
	if err != nil {
		m.t.Errorf("%s: %v", what, err)
	}
	m.note(what)
	m.check(s, what)
	if what == "DELETE, and at once a Commit" {
		s.active = true
	}
}

// transact runs statements in a transaction.
func (m *contextsModel) transact(statements ...string) error {
	return newRebuilder(m.db, m.indexed).run(statements...)
}

// changeTable replaces the table: by a copy, which ends no session, by an empty one, or not,
// when that is rolled back.
func (m *contextsModel) changeTable(rng *rand.Rand) {
	time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
	steps := copied("sessions", createLike("rebuilt"), rng.IntN(8))
	what := "rebuild"
	switch n := rng.IntN(10); {
	case n < 6:
	case n < 7:
		steps, what = []string{rename("sessions", "away"), rename("away", "sessions")}, "rename"
	case n < 8 && !m.indexed:
		steps, what = append(steps, "DELETE FROM sessions", "no statement"), "rebuild, rolled back"
	default:
		steps, what = []string{"DROP TABLE sessions", testdb.CreateTable}, "DROP"
		if n == 9 {
			steps, what = []string{"DELETE FROM sessions"}, "DELETE of all"
		}
		for _, s := range m.sessions {
			s.Lock()
			defer s.Unlock()
		}
		var active []*contextsSession
		for _, s := range m.sessions {
			if s.active {
				active = append(active, s)
			}
		}
		if m.indexed && n < 9 {
			steps = append(steps, testdb.CreateIndex)
		}
		m.end(what, false, func() error { return m.transact(steps...) }, active...)
		for _, s := range active {
			m.check(s, what)
		}
		return
	}
	if m.indexed && what == "rebuild" {
		steps = append(steps, testdb.CreateIndex)
	}
	m.note(what)
	if err := m.transact(steps...); err != nil && !strings.Contains(err.Error(), "no statement") {
		m.t.Errorf("%s: %v", what, err)
	}
}

// observe makes a context while others change its session, and looks at it when nobody does.
func (m *contextsModel) observe(rng *rand.Rand) {
	s := m.sessions[rng.IntN(len(m.sessions))]
	acked := s.acked.Load()
	c := m.make(s, rng)
	defer c.cancel()
	begun := s.begun.Load()
	for range rng.IntN(3) {
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Microsecond)
	}
	s.Lock()
	defer s.Unlock()
	switch now := s.begun.Load(); {
	case now > begun || !s.active:
		m.note("observed an end")
		m.wait(c, s, "a change beside it")
	case now == acked && c.Err() != nil:
		// It may have been made before the session was.
		c2 := m.make(s, rng)
		defer c2.cancel()
		if c2.Err() != nil {
			m.t.Errorf("%s is active, and a new context has the error %v", s.token, c2.Err())
		}
		m.note("observed a new session")
	default:
		m.note("observed")
	}
}

// What the disk refuses ends no context, and nor does the failure: contexts go on until their
// sessions expire, or the database is closed. New ones can be made.
func TestContextsAfterAFailure(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for name, end := range map[string]func(m *contextsModel) error{
		"Delete":      func(m *contextsModel) error { return m.stores[0].Delete("a") },
		"DELETE":      func(m *contextsModel) error { return m.db.Exec("DELETE FROM sessions") },
		"transaction": func(m *contextsModel) error { return m.transact("DELETE FROM sessions") },
		"written out": func(m *contextsModel) error { return m.transact("DELETE FROM sessions", "SELECT * FROM sessions") },
		"DROP":        func(m *contextsModel) error { return m.transact("DROP TABLE sessions") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testContextsAfterAFailure(t, name, end) })
		})
	}
}

func testContextsAfterAFailure(t *testing.T, name string, end func(m *contextsModel) error) {
	dir := t.TempDir()
	disk := testdb.NewFaultDisk(dir + "/pebble")
	m := &contextsModel{t: t, db: openFaultDisk(t, disk, dir)}
	s := newStore(t, m.db, chaistore.Config{})
	m.stores[0] = s
	expiry := inAnHour()
	commit(t, s, "a", "", expiry)
	commit(t, s, "b", "", expiry.Add(time.Hour))
	sessionContext := func(token string) context.Context {
		ctx, cancel := s.SessionContext(t.Context(), token)
		t.Cleanup(cancel)
		return ctx
	}
	a, b := []context.Context{sessionContext("a")}, []context.Context{sessionContext("b")}
	disk.Break(&testdb.Fault{Op: "sync", File: ".log", Err: syscall.EIO, Times: 1})
	if err := returns(t, name, func() error { return end(m) }); err == nil {
		t.Fatal("it was not refused")
	}
	wantFound(t, s, "a", "")
	a, b = append(a, sessionContext("a")), append(b, sessionContext("b"))
	time.Sleep(time.Until(expiry) - time.Nanosecond)
	for _, ctx := range slices.Concat(a, b) {
		if ctx.Err() != nil {
			t.Fatalf("before the expiry, a context has ended: %v", context.Cause(ctx))
		}
	}
	time.Sleep(time.Nanosecond)
	synctest.Wait()
	for _, ctx := range a {
		if context.Cause(ctx) != chaistore.ErrEnded {
			t.Errorf("after the expiry, the cause is %v", context.Cause(ctx))
		}
	}
	for _, ctx := range b {
		if ctx.Err() != nil {
			t.Errorf("the context of another session has ended: %v", context.Cause(ctx))
		}
	}
	_ = returns(t, "Close", m.db.Close)
	synctest.Wait()
	for _, ctx := range b {
		if ctx.Err() == nil || !strings.Contains(context.Cause(ctx).Error(), "the database is closed") {
			t.Errorf("after Close, the cause is %v", context.Cause(ctx))
		}
	}
	runtime.GC() // see testdb.Open
	runtime.GC()
}
