package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/storetest"
)

// childEnv is the variable of the environment that is set in the processes in
// which the suite runs on broken stores.
const childEnv = "STORETEST_CHILD"

// A subject is a store and what the suite must say of it.
type subject struct {
	name     string
	newStore func(t *testing.T) scs.Store
	opts     []storetest.Option

	fails   []string // cases that it must fail
	mayFail []string // patterns of others that it fails sooner or later
	skips   []string // patterns of cases that are skipped
}

var (
	noCtx     = []string{"Ctx/*"}
	noCleanup = []string{"Ctx/*", "Cleanup/*"}
)

var subjects = []subject{
	// Correct stores.
	{name: "plain", newStore: func(t *testing.T) scs.Store { return newMemory(t) }, skips: noCtx},
	{name: "with contexts", newStore: func(t *testing.T) scs.Store { return withCtx{newMemory(t)} }},
	{
		name:     "some contexts",
		newStore: func(t *testing.T) scs.Store { return someCtx{newMemory(t)} },
	},
	{
		name:     "only contexts",
		newStore: func(t *testing.T) scs.Store { return ctxOnly{withCtx{newMemory(t)}} },
		opts:     []storetest.Option{storetest.CtxOnly()},
		skips:    []string{"Ctx/Twins"},
	},
	{
		name:     "minimal",
		newStore: func(t *testing.T) scs.Store { return struct{ scs.Store }{newMemory(t)} },
		skips:    []string{"Store/All*", "Manager/Iterate*", "Ctx/*", "Cleanup/*"},
	},
	{
		name: "coarse expiry",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(e time.Time) time.Time { return e.Truncate(100 * time.Millisecond) }})
		},
		opts:  []storetest.Option{storetest.ExpiryResolution(100 * time.Millisecond)},
		skips: noCleanup,
	},
	{
		name: "refuses odd tokens",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{commit: func(token string) error {
				if len(token) != 43 {
					return errors.New("token is not one of SCS")
				}
				return nil
			}})
		},
		skips: noCleanup,
	},

	// Broken stores: tokens.
	{
		name: "missing is an error",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{found: func(token string, s session, ok bool) (session, bool, error) {
				if !ok {
					return s, false, errors.New("no rows in result set")
				}
				return s, ok, nil
			}})
		},
		fails: []string{"Store/FindMissing"}, mayFail: []string{"*/*"}, skips: noCleanup,
	},
	{
		name: "empty token is an error",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{
				found: func(token string, s session, ok bool) (session, bool, error) { return s, ok, refuseEmpty(token) },
			})
		},
		fails: []string{"Store/FindEmptyToken"}, mayFail: []string{"Store/CommitOddTokens"}, skips: noCleanup,
	},
	{
		name: "text tokens only",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{
				commit: refuseBinary,
				delete: refuseBinary,
				found:  func(token string, s session, ok bool) (session, bool, error) { return s, ok, refuseBinary(token) },
			})
		},
		fails: []string{"Store/FindMalformed", "Store/DeleteMalformed"}, skips: noCleanup,
	},
	{
		name: "any token is found",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{found: func(token string, s session, ok bool) (session, bool, error) { return s, true, nil }})
		},
		fails:   []string{"Store/FindMissing", "Manager/TokenFixation"},
		mayFail: []string{"*/*"}, skips: noCleanup,
	},
	{
		name:     "ignores case",
		newStore: func(t *testing.T) scs.Store { return ignoresCase{newMemory(t)} },
		fails:    []string{"Store/FindTampered"}, skips: noCtx,
	},
	{
		name: "cuts tokens",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{token: func(token string) string { return token[:min(len(token), 255)] }})
		},
		fails: []string{"Store/CommitOddTokens"}, skips: noCleanup,
	},

	// Data.
	{
		name:     "gives its own slice",
		newStore: func(t *testing.T) scs.Store { return givesSlice{newMemory(t)} },
		fails:    []string{"Store/FoundDataIsCopy"}, skips: noCtx,
	},
	{
		name:     "uses its buffers again",
		newStore: func(t *testing.T) scs.Store { return &reusesBuffers{memory: newMemory(t)} },
		fails:    []string{"Store/FoundDataIsCopy", "Store/AllIsCopy"}, skips: noCtx,
	},
	{
		name:     "gives its own slices in All",
		newStore: func(t *testing.T) scs.Store { return givesSlices{newMemory(t)} },
		fails:    []string{"Store/AllIsCopy"}, skips: noCtx,
	},
	{
		name:     "keeps the caller's slice",
		newStore: func(t *testing.T) scs.Store { return keepsSlice{newMemory(t)} },
		fails:    []string{"Store/CommitCopiesData"}, skips: noCtx,
	},
	{
		name:     "forgets when full",
		newStore: func(t *testing.T) scs.Store { return forgets{newMemory(t)} },
		fails:    []string{"Store/Commit", "Store/All"}, mayFail: []string{"Store/Concurrent"}, skips: noCtx,
	},
	{
		name: "empty data is missing",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{found: func(_ string, s session, ok bool) (session, bool, error) { return s, ok && len(s.data) > 0, nil }})
		},
		fails: []string{"Store/CommitEmptyData", "Store/CommitNilData"}, skips: noCleanup,
	},
	{
		name: "text data only",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{data: func(b []byte) []byte { return bytes.ToValidUTF8(b, []byte("?")) }})
		},
		fails:   []string{"Store/CommitBinaryData"},
		mayFail: []string{"Store/CommitLargeData", "Manager/*"}, skips: noCleanup,
	},
	{
		name: "cuts data",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{data: func(b []byte) []byte { return b[:min(len(b), 1<<16-1)] }})
		},
		fails: []string{"Store/CommitLargeData"}, skips: noCleanup,
	},
	{
		name:     "keeps the first data",
		newStore: func(t *testing.T) scs.Store { return keepsFirst{newMemory(t), true, false} },
		fails:    []string{"Store/CommitOverwritesData", "Manager/LoadAndSave"},
		mayFail:  []string{"*/*"}, skips: noCtx,
	},

	// Expiry.
	{
		name:     "keeps the first expiry",
		newStore: func(t *testing.T) scs.Store { return keepsFirst{newMemory(t), false, true} },
		fails:    []string{"Store/CommitLengthensExpiry", "Store/CommitShortensExpiry", "Manager/IdleTimeout"}, skips: noCtx,
	},
	{
		name:     "sweeps away what was renewed",
		newStore: func(t *testing.T) scs.Store { return staleIndex{newMemory(t), make(map[string]time.Time)} },
		fails:    []string{"Store/CommitLengthensExpiry"}, mayFail: []string{"Manager/IdleTimeout"}, skips: noCtx,
	},
	{
		name: "finds expired ones",
		newStore: func(t *testing.T) scs.Store {
			m := newMemory(t)
			return edited(t, edits{memory: m, found: func(token string, _ session, _ bool) (session, bool, error) {
				m.mu.Lock()
				defer m.mu.Unlock()
				s, ok := m.sessions[token]
				return s, ok, nil
			}})
		},
		fails: []string{
			"Store/FindExpired", "Store/CommitShortensExpiry", "Store/ExpiryWithinSecond", "Store/ExpiryInAnyZone",
			"Manager/TokenFixation", "Manager/IdleTimeout", "Manager/Lifetime",
		},
		skips: noCleanup,
	},
	{
		name: "same expiry for all",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(time.Time) time.Time { return time.Now().Add(time.Minute) }})
		},
		fails: []string{
			"Store/FindExpired", "Store/CommitShortensExpiry", "Store/ExpiryWithinSecond", "Store/ExpiryInAnyZone",
			"Store/AllWithoutExpired", "Manager/IdleTimeout", "Manager/Lifetime", "Manager/Iterate",
		},
		mayFail: []string{"Store/AllEmpty", "Manager/TokenFixation"}, skips: noCleanup,
	},
	{
		name: "drops the zone",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(e time.Time) time.Time {
				if e.Location() == time.Local {
					return e
				}
				_, offset := e.Zone()
				return e.Add(time.Duration(offset) * time.Second)
			}})
		},
		fails: []string{"Store/ExpiryInAnyZone"}, skips: noCleanup,
	},
	{
		name: "whole seconds",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(e time.Time) time.Time { return e.Truncate(time.Second) }})
		},
		fails: []string{"Store/ExpiryWithinSecond"}, mayFail: []string{"Manager/IdleTimeout", "Manager/Lifetime"}, skips: noCleanup,
	},
	{
		name: "whole seconds, rounded up",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(e time.Time) time.Time { return e.Add(time.Second - 1).Truncate(time.Second) }})
		},
		fails: []string{"Store/ExpiryWithinSecond"},
		mayFail: []string{
			"Store/FindExpired", "Store/CommitShortensExpiry", "Store/AllWithoutExpired", "Manager/IdleTimeout", "Manager/Lifetime",
		},
		skips: noCleanup,
	},

	// Delete.
	{
		name:     "deletes nothing",
		newStore: func(t *testing.T) scs.Store { return deletesNothing{newMemory(t)} },
		fails: []string{
			"Store/Delete", "Manager/RenewToken", "Manager/Destroy", "Manager/HashTokenInStore", "Manager/IterateAndDestroy",
			"Manager/Iterate", "Cleanup/StopInUse",
		},
		mayFail: []string{"Store/*", "Manager/TokenFixation"}, skips: noCtx,
	},
	{
		name: "deletes all",
		newStore: func(t *testing.T) scs.Store {
			m := newMemory(t)
			return edited(t, edits{memory: m, delete: func(string) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				clear(m.sessions)
				return nil
			}})
		},
		fails:   []string{"Store/Delete", "Store/DeleteMissing", "Store/DeleteEmptyToken", "Store/DeleteMalformed", "Manager/Destroy"},
		mayFail: []string{"*/*"}, skips: noCleanup,
	},
	{
		name:     "deleting the missing is an error",
		newStore: func(t *testing.T) scs.Store { return deletesExisting{newMemory(t)} },
		fails:    []string{"Store/DeleteMissing", "Store/DeleteEmptyToken", "Store/DeleteMalformed", "Manager/DestroyNewSession"},
		mayFail:  []string{"Store/Concurrent"}, skips: noCtx,
	},
	{
		name:     "deleting the empty token is an error",
		newStore: func(t *testing.T) scs.Store { return edited(t, edits{delete: refuseEmpty}) },
		fails:    []string{"Store/DeleteEmptyToken", "Manager/DestroyNewSession"}, skips: noCleanup,
	},

	// All.
	{
		name:     "only the first page",
		newStore: func(t *testing.T) scs.Store { return firstPage{newMemory(t)} },
		fails:    []string{"Store/All"}, skips: noCtx,
	},
	{
		name:     "All has expired ones",
		newStore: func(t *testing.T) scs.Store { return allExpired{newMemory(t)} },
		fails:    []string{"Store/AllWithoutExpired", "Store/AllEmpty", "Manager/Iterate"},
		mayFail:  []string{"Store/CommitShortensExpiry", "Store/Expiry*"}, skips: noCtx,
	},
	{
		name:     "All returns nil",
		newStore: func(t *testing.T) scs.Store { return nilAll{newMemory(t)} },
		fails:    []string{"Store/AllEmpty"},
		mayFail:  []string{"Store/*"}, skips: noCtx,
	},

	// Concurrency and contexts.
	{
		name:     "loses updates",
		newStore: func(t *testing.T) scs.Store { return &losesUpdates{memory: newMemory(t)} },
		fails:    []string{"Store/Concurrent"}, mayFail: []string{"Cleanup/StopInUse"}, skips: noCtx,
	},
	{
		name:     "deadlocks",
		newStore: func(t *testing.T) scs.Store { return &deadlocks{memory: newMemory(t)} },
		opts:     []storetest.Option{storetest.Timeout(20 * time.Second)},
		fails:    []string{"Store/Concurrent"}, skips: noCtx,
	},
	{
		name:     "plain methods panic",
		newStore: func(t *testing.T) scs.Store { return ctxOnly{withCtx{newMemory(t)}} },
		fails:    []string{"Store/FindMissing", "Ctx/Twins"}, mayFail: []string{"Store/*"},
	},
	{
		name:     "twins do not share",
		newStore: func(t *testing.T) scs.Store { return twoStores{newMemory(t), withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/Twins"},
	},
	{
		name:     "only a twin is broken",
		newStore: func(t *testing.T) scs.Store { return brokenTwin{withCtx{newMemory(t)}} },
		fails:    []string{"Store/CommitNilData"},
	},
	{
		name:     "canceled is missing",
		newStore: func(t *testing.T) scs.Store { return canceledIsMissing{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/Canceled"},
	},
	{
		name:     "canceled is not done",
		newStore: func(t *testing.T) scs.Store { return canceledIsNotDone{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/Canceled"},
	},

	// Cleanup.
	{
		name:     "does not stop",
		newStore: func(t *testing.T) scs.Store { return doesNotStop{newMemory(t)} },
		fails:    []string{"Cleanup/StopEarly"}, skips: noCtx,
	},
	{
		name:     "stops only once",
		newStore: func(t *testing.T) scs.Store { return newStopsOnce(t) },
		opts:     []storetest.Option{storetest.Timeout(20 * time.Second)},
		fails:    []string{"Cleanup/StopTwice", "Cleanup/StopAtOnce"}, skips: noCtx,
	},
	{
		name:     "panics when stopped twice",
		newStore: func(t *testing.T) scs.Store { return &closesTwice{memory: newMemory(t), stop: make(chan struct{})} },
		fails:    []string{"Cleanup/StopTwice", "Cleanup/StopAtOnce"}, skips: noCtx,
	},
	{
		name:     "ends when stopped",
		newStore: func(t *testing.T) scs.Store { return &endsWhenStopped{memory: newMemory(t)} },
		fails:    []string{"Cleanup/StopInUse"}, skips: noCtx,
	},
}

// TestVerdicts runs the suite on all subjects in another process, where it may
// fail, and compares what it says of them with what it should.
func TestVerdicts(t *testing.T) {
	out := runChild(t, "TestChild")
	results, text := parse(out)

	mustFail := make(map[string]bool)
	for _, s := range subjects {
		t.Run(s.name, func(t *testing.T) {
			for _, name := range storetest.Cases() {
				full := "TestChild/" + strings.ReplaceAll(s.name, " ", "_") + "/" + name
				got := results[full]
				switch {
				case slices.Contains(s.fails, name):
					mustFail[name] = true
					if got != "FAIL" {
						t.Errorf("%s: %s, want FAIL", name, got)
					} else if !strings.Contains(text[full].String(), "The documentation of ") {
						t.Errorf("%s does not quote a rule:\n%s", name, text[full])
					}
				case matches(s.skips, name):
					if got != "SKIP" {
						t.Errorf("%s: %s, want SKIP", name, got)
					}
				case got == "FAIL" && matches(s.mayFail, name):
				case got != "PASS":
					t.Errorf("%s: %s, want PASS:\n%s", name, got, text[full])
				}
			}
		})
	}
	for _, name := range storetest.Cases() {
		if !mustFail[name] {
			t.Errorf("%s: there is no broken store that must fail it", name)
		}
	}
	if t.Failed() {
		t.Logf("the whole output:\n%s", out)
	}
}

// runChild runs a test in another process, in which it must fail, and returns its
// output.
func runChild(t *testing.T, name string) string {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable, "-test.run=^"+name+"$", "-test.v", "-test.parallel=32", "-test.timeout=90s")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	var exit *exec.ExitError
	out, err := cmd.CombinedOutput()
	if !errors.As(err, &exit) {
		t.Fatalf("%s in another process: %v, want an exit status; output:\n%s", name, err, out)
	}
	return string(out)
}

// A store that hangs for ever, even when it is closed, ends the process.
func TestHangingStoreEndsProcess(t *testing.T) {
	begin := time.Now()
	out := runChild(t, "TestHangingChild")
	if !strings.Contains(out, "panic: TestHangingChild/") || !strings.Contains(out, "the cleanup functions of the store") {
		t.Errorf("after %v the process has ended with:\n%s", time.Since(begin), out)
	}
}

// TestHangingChild is not for itself, but for [TestHangingStoreEndsProcess].
func TestHangingChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("only a part of TestHangingStoreEndsProcess")
	}
	storetest.Run(t, func(t *testing.T) scs.Store {
		m := newMemory(t)
		m.mu.Lock()
		t.Cleanup(func() { m.Delete("") })
		return m
	}, storetest.Timeout(100*time.Millisecond))
}

// TestChild is not for itself, but for [TestVerdicts].
func TestChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("only a part of TestVerdicts")
	}
	for _, s := range subjects {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, s.newStore, s.opts...)
		})
	}
}

// parse returns the result of each test in the output of go test -v, and what the
// test and its subtests have said.
func parse(out string) (results map[string]string, text map[string]*strings.Builder) {
	results, text = make(map[string]string), make(map[string]*strings.Builder)
	begin := regexp.MustCompile(`^=== [A-Z]+ +(\S+)`)
	end := regexp.MustCompile(`^ *--- ([A-Z]+): (\S+)`)
	current := ""
	for line := range strings.Lines(out) {
		if m := begin.FindStringSubmatch(line); m != nil {
			current = m[1]
		} else if m := end.FindStringSubmatch(line); m != nil {
			results[m[2]] = m[1]
		} else {
			for name := current; name != "." && name != "/"; name = path.Dir(name) {
				if text[name] == nil {
					text[name] = new(strings.Builder)
				}
				text[name].WriteString(line)
			}
		}
	}
	return results, text
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	})
}

// memory is a correct store. The broken ones are made of it.
type memory struct {
	mu       sync.Mutex
	sessions map[string]session

	stop     chan struct{}
	stopOnce sync.Once
	done     chan struct{}
}

type session struct {
	data   []byte
	expiry time.Time
}

func newMemory(t *testing.T) *memory {
	m := &memory{sessions: make(map[string]session), stop: make(chan struct{}), done: make(chan struct{})}
	go m.cleanup()
	t.Cleanup(m.StopCleanup)
	return m
}

func (m *memory) cleanup() {
	defer close(m.done)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			m.mu.Lock()
			maps.DeleteFunc(m.sessions, func(_ string, s session) bool { return !s.expiry.After(time.Now()) })
			m.mu.Unlock()
		case <-m.stop:
			return
		}
	}
}

func (m *memory) StopCleanup() {
	m.stopOnce.Do(func() { close(m.stop) })
	<-m.done
}

// get returns the session as it is in the store.
func (m *memory) get(token string) (session, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sessions[token]
	if !ok || !s.expiry.After(time.Now()) {
		return session{}, false
	}
	return s, true
}

func (m *memory) Find(token string) ([]byte, bool, error) {
	s, ok := m.get(token)
	return bytes.Clone(s.data), ok, nil
}

func (m *memory) Commit(token string, b []byte, expiry time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[token] = session{bytes.Clone(b), expiry}
	return nil
}

func (m *memory) Delete(token string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, token)
	return nil
}

func (m *memory) All() (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string][]byte)
	for token, s := range m.sessions {
		if s.expiry.After(time.Now()) {
			all[token] = bytes.Clone(s.data)
		}
	}
	return all, nil
}

// withCtx is a correct store with contexts.
type withCtx struct{ *memory }

func (s withCtx) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	return s.Find(token)
}

func (s withCtx) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.Commit(token, b, expiry)
}

func (s withCtx) DeleteCtx(ctx context.Context, token string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.Delete(token)
}

func (s withCtx) AllCtx(ctx context.Context) (map[string][]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.All()
}

// someCtx is a correct store of which one method takes a context, and ignores it.
type someCtx struct{ *memory }

func (s someCtx) CommitCtx(_ context.Context, token string, b []byte, expiry time.Time) error {
	return s.Commit(token, b, expiry)
}

// ctxOnly panics without a context.
type ctxOnly struct{ withCtx }

func (ctxOnly) Find(string) ([]byte, bool, error)      { panic("missing context") }
func (ctxOnly) Commit(string, []byte, time.Time) error { panic("missing context") }
func (ctxOnly) Delete(string) error                    { panic("missing context") }
func (ctxOnly) All() (map[string][]byte, error)        { panic("missing context") }

// edits is what an editedStore does differently.
type edits struct {
	memory *memory // newMemory if nil

	token  func(token string) string
	data   func(b []byte) []byte
	expiry func(expiry time.Time) time.Time

	found  func(token string, s session, ok bool) (session, bool, error)
	commit func(token string) error
	delete func(token string) error
}

// editedStore is a memory without StopCleanup with some edits.
type editedStore struct {
	memory *memory
	edits  edits
}

func edited(t *testing.T, e edits) editedStore {
	if e.memory == nil {
		e.memory = newMemory(t)
	}
	e.memory.StopCleanup() // so that the edits see the expired ones
	return editedStore{e.memory, e}
}

func (s editedStore) key(token string) string {
	if s.edits.token != nil {
		return s.edits.token(token)
	}
	return token
}

func (s editedStore) Find(token string) ([]byte, bool, error) {
	got, ok := s.memory.get(s.key(token))
	var err error
	if s.edits.found != nil {
		got, ok, err = s.edits.found(token, got, ok)
	}
	return bytes.Clone(got.data), ok, err
}

func (s editedStore) Commit(token string, b []byte, expiry time.Time) error {
	if s.edits.commit != nil {
		if err := s.edits.commit(token); err != nil {
			return err
		}
	}
	if s.edits.data != nil {
		b = s.edits.data(b)
	}
	if s.edits.expiry != nil {
		expiry = s.edits.expiry(expiry)
	}
	return s.memory.Commit(s.key(token), b, expiry)
}

func (s editedStore) Delete(token string) error {
	if s.edits.delete != nil {
		if err := s.edits.delete(token); err != nil {
			return err
		}
	}
	return s.memory.Delete(s.key(token))
}

func (s editedStore) All() (map[string][]byte, error) { return s.memory.All() }

func refuseEmpty(token string) error {
	if token == "" {
		return errors.New("key cannot be empty")
	}
	return nil
}

func refuseBinary(token string) error {
	if !utf8.ValidString(token) || strings.Contains(token, "\x00") {
		return errors.New("invalid byte sequence for encoding UTF8")
	}
	return nil
}

// The broken stores that edits can't make.
type (
	ignoresCase    struct{ *memory }
	givesSlice     struct{ *memory }
	givesSlices    struct{ *memory }
	keepsSlice     struct{ *memory }
	forgets        struct{ *memory }
	deletesNothing struct{ *memory }
	firstPage      struct{ *memory }
	allExpired     struct{ *memory }
	nilAll         struct{ *memory }
	doesNotStop    struct{ *memory }

	deletesExisting struct{ *memory }

	brokenTwin        struct{ withCtx }
	canceledIsMissing struct{ withCtx }
	canceledIsNotDone struct{ withCtx }
)

func (s ignoresCase) Find(token string) ([]byte, bool, error) {
	if all, _ := s.All(); all[token] == nil {
		for other, data := range all {
			if strings.EqualFold(other, token) {
				return data, true, nil
			}
		}
	}
	return s.memory.Find(token)
}

func (s givesSlice) Find(token string) ([]byte, bool, error) {
	got, ok := s.get(token)
	return got.data, ok, nil
}

func (s givesSlices) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	for token := range all {
		if got, ok := s.get(token); ok {
			all[token] = got.data
		}
	}
	return all, err
}

func (s keepsSlice) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[token] = session{b, expiry}
	return nil
}

func (s forgets) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	for other := range s.sessions {
		if len(s.sessions) >= 30 {
			delete(s.sessions, other)
		}
	}
	s.mu.Unlock()
	return s.memory.Commit(token, b, expiry)
}

func (deletesNothing) Delete(string) error { return nil }

func (s deletesExisting) Delete(token string) error {
	if _, ok := s.get(token); !ok {
		return errors.New("no rows affected")
	}
	return s.memory.Delete(token)
}

func (s firstPage) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	for token := range all {
		if len(all) > 64 {
			delete(all, token)
		}
	}
	return all, err
}

func (s allExpired) Commit(token string, b []byte, expiry time.Time) error {
	s.StopCleanup() // so that they stay
	return s.memory.Commit(token, b, expiry)
}

func (s allExpired) All() (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string][]byte)
	for token, session := range s.sessions {
		all[token] = bytes.Clone(session.data)
	}
	return all, nil
}

func (s nilAll) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	if len(all) == 0 {
		return nil, err
	}
	return all, err
}

func (doesNotStop) StopCleanup() {}

func (s brokenTwin) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if b == nil {
		return errors.New("data must not be NULL")
	}
	return s.withCtx.CommitCtx(ctx, token, b, expiry)
}

func (s canceledIsMissing) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, found, err := s.withCtx.FindCtx(ctx, token)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return b, found, err
}

func (s canceledIsNotDone) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if err := s.withCtx.CommitCtx(ctx, token, b, expiry); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// reusesBuffers writes over the data that it has given away. It does so for one
// token, which no two goroutines use, to be free of data races.
type reusesBuffers struct {
	*memory
	lent [][]byte
}

func (s *reusesBuffers) lend(token string, b []byte) {
	if strings.HasPrefix(token, "alice-") {
		s.lent = append(s.lent, b)
	}
}

func (s *reusesBuffers) Find(token string) ([]byte, bool, error) {
	b, found, err := s.memory.Find(token)
	s.lend(token, b)
	return b, found, err
}

func (s *reusesBuffers) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	for token, b := range all {
		s.lend(token, b)
	}
	return all, err
}

func (s *reusesBuffers) Commit(token string, b []byte, expiry time.Time) error {
	if strings.HasPrefix(token, "alice-") {
		for _, buffer := range s.lent {
			copy(buffer, b)
		}
	}
	return s.memory.Commit(token, b, expiry)
}

// keepsFirst does not overwrite the data, or the expiry, of an active session.
type keepsFirst struct {
	*memory
	data, expiry bool
}

func (s keepsFirst) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	before, ok := s.sessions[token]
	s.mu.Unlock()
	if ok && s.data {
		b = before.data
	}
	if ok && s.expiry && before.expiry.After(time.Now()) {
		expiry = before.expiry
	}
	return s.memory.Commit(token, b, expiry)
}

// staleIndex sweeps, before each Find, by an index that it does not maintain.
type staleIndex struct {
	*memory
	index map[string]time.Time
}

func (s staleIndex) Find(token string) ([]byte, bool, error) {
	s.mu.Lock()
	for token, expiry := range s.index {
		if !expiry.After(time.Now()) {
			delete(s.sessions, token)
			delete(s.index, token)
		}
	}
	s.mu.Unlock()
	return s.memory.Find(token)
}

func (s staleIndex) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	if _, ok := s.index[token]; !ok {
		s.index[token] = expiry
	}
	s.mu.Unlock()
	return s.memory.Commit(token, b, expiry)
}

// twoStores has other sessions with contexts than without.
type twoStores struct {
	*memory
	ctx withCtx
}

func (s twoStores) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	return s.ctx.FindCtx(ctx, token)
}

func (s twoStores) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	return s.ctx.CommitCtx(ctx, token, b, expiry)
}

func (s twoStores) DeleteCtx(ctx context.Context, token string) error {
	return s.ctx.DeleteCtx(ctx, token)
}

func (s twoStores) AllCtx(ctx context.Context) (map[string][]byte, error) {
	return s.ctx.AllCtx(ctx)
}

func (s twoStores) StopCleanup() {
	s.memory.StopCleanup()
	s.ctx.StopCleanup()
}

// losesUpdates writes all sessions for each, and others may do so at the same
// time.
type losesUpdates struct{ *memory }

func (s *losesUpdates) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	sessions := maps.Clone(s.sessions)
	s.mu.Unlock()
	sessions[token] = session{bytes.Clone(b), expiry}
	runtime.Gosched()
	s.mu.Lock()
	s.sessions = sessions
	s.mu.Unlock()
	return nil
}

// deadlocks has two locks, which its methods take in no certain order.
type deadlocks struct {
	*memory
	mu1, mu2 sync.Mutex
}

func (s *deadlocks) Commit(token string, b []byte, expiry time.Time) error {
	s.mu1.Lock()
	defer s.mu1.Unlock()
	runtime.Gosched()
	s.mu2.Lock()
	defer s.mu2.Unlock()
	return s.memory.Commit(token, b, expiry)
}

func (s *deadlocks) Delete(token string) error {
	s.mu2.Lock()
	defer s.mu2.Unlock()
	runtime.Gosched()
	s.mu1.Lock()
	defer s.mu1.Unlock()
	return s.memory.Delete(token)
}

// stopsOnce is stopped by a message, as SCS's own stores are.
type stopsOnce struct {
	*memory
	stop chan struct{}
}

func newStopsOnce(t *testing.T) stopsOnce {
	s := stopsOnce{newMemory(t), make(chan struct{})}
	go func() {
		select {
		case <-s.stop:
		case <-t.Context().Done():
		}
	}()
	return s
}

func (s stopsOnce) StopCleanup() {
	s.memory.StopCleanup()
	s.stop <- struct{}{}
}

// closesTwice closes its channel each time.
type closesTwice struct {
	*memory
	stop chan struct{}
}

func (s *closesTwice) StopCleanup() {
	close(s.stop)
	s.memory.StopCleanup()
}

// endsWhenStopped can't be used after StopCleanup.
type endsWhenStopped struct {
	*memory
	mu    sync.Mutex
	ended bool
}

func (s *endsWhenStopped) StopCleanup() {
	s.memory.StopCleanup()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
}

func (s *endsWhenStopped) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return fmt.Errorf("the store is closed")
	}
	return s.memory.Commit(token, b, expiry)
}
