// Package modeltest compares stores with models, while an application does all that it
// may do to the same database, or fuzz tests choose the calls. CONTRIBUTING.md describes
// its flags.
package modeltest

import (
	"bytes"
	"flag"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

var (
	modelTime = flag.Duration("model", time.Second, "how long TestFindsAreNeverStale runs, and TestOwners and TestContexts a quarter of it each")
	inputs    = flag.Int("inputs", 10, "how many random inputs FuzzOperations gets, and FuzzSession 20 times as many")
)

// A history has what calls may see of one thing, such as a session, in the order in
// which it was changed. The changes of one thing follow each other.
type history struct {
	mu     sync.Mutex
	states []int64
	acked  int // the index of the latest acknowledged state
}

// States of a session. All others are numbers of data.
const (
	noTable   = -1 // its table does not exist
	ended     = 0
	withdrawn = -2 // it was never committed
)

// begin adds a state that may be seen from now on.
func (h *history) begin(state int64) (version int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.states = append(h.states, state)
	return len(h.states) - 1
}

// end records that a version was committed, or, after an error, that it never will be.
func (h *history) end(version int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.states[version] = withdrawn
	} else {
		h.acked = version
	}
}

// now returns the latest acknowledged version, and its state.
func (h *history) now() (version int, state int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked, h.states[h.acked]
}

// see returns the first version from oldest on that has the state, or -1.
func (h *history) see(oldest int, state int64) (version int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.states[oldest:], state); i >= 0 {
		return oldest + i
	}
	return -1
}

// since returns the states from a version on, for messages.
func (h *history) since(version int) []int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.states[version:])
}

// forEachTable runs test as a subtest for each kind of session table.
func forEachTable(t *testing.T, test func(t *testing.T, db *chai.DB, indexed bool)) {
	t.Run("plain", func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		test(t, db, false)
	})
	t.Run("indexed", func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
		test(t, db, true)
	})
}

// newStore returns a store configured by cfg that logs nothing and sweeps only on
// demand.
func newStore(t testing.TB, db *chai.DB, cfg chaistore.Config) *chaistore.ChaiStore {
	t.Helper()
	cfg.CleanupInterval, cfg.CreateTable, cfg.Logger = -1, true, slog.New(slog.DiscardHandler)
	s, err := chaistore.NewWithConfig(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func commit(t *testing.T, s *chaistore.ChaiStore, token, data string, expiry time.Time) {
	t.Helper()
	if err := s.Commit(token, []byte(data), expiry); err != nil {
		t.Errorf("Commit(%q): %v", token, err)
	}
}

func wantFound(t *testing.T, s *chaistore.ChaiStore, token, want string) {
	t.Helper()
	got, found, err := s.Find(token)
	if err != nil || !found || string(got) != want {
		t.Fatalf("Find(%q) = %q, %v, %v; want %q, true, nil", token, got, found, err, want)
	}
}

func wantMissing(t *testing.T, s *chaistore.ChaiStore, token string) {
	t.Helper()
	got, found, err := s.Find(token)
	if err != nil || found || got != nil {
		t.Fatalf("Find(%q) = %q, %v, %v; want nil, false, nil", token, got, found, err)
	}
}

func wantAll(t *testing.T, s *chaistore.ChaiStore, want map[string]string) {
	t.Helper()
	all, err := s.All()
	if err != nil {
		t.Fatalf("All: %v", err)
	}
	got := make(map[string]string)
	for token, data := range all {
		got[token] = string(data)
	}
	if !maps.Equal(got, want) {
		t.Fatalf("All = %q, want %q", got, want)
	}
}

// ownerInData is an Owner for data that consists of the owner, a bar, and text
// without a bar.
func ownerInData(data []byte) (string, error) {
	return string(data[:max(0, bytes.LastIndexByte(data, '|'))]), nil
}

func inAnHour() time.Time  { return time.Now().Add(time.Hour) }
func anHourAgo() time.Time { return time.Now().Add(-time.Hour) }

// createLike returns the statement that creates a table of sessions with another name.
func createLike(name string) string {
	return "CREATE TABLE " + name + " (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)"
}

// tokensOf returns the tokens of an owner's sessions, and fails the test if they are
// not in order.
func tokensOf(t testing.TB, s *chaistore.ChaiStore, owner string) []string {
	t.Helper()
	var tokens []string
	for session, err := range s.SessionsOf(t.Context(), owner) {
		if err != nil {
			t.Error(err)
			break
		}
		tokens = append(tokens, session.Token)
	}
	if !slices.IsSorted(tokens) || len(slices.Compact(slices.Clone(tokens))) < len(tokens) {
		t.Errorf("SessionsOf(%q) = %q, which is not in order", owner, tokens)
	}
	return tokens
}

func wantTokensOf(t testing.TB, s *chaistore.ChaiStore, owner string, want ...string) {
	t.Helper()
	if got := tokensOf(t, s, owner); !slices.Equal(got, want) {
		t.Errorf("SessionsOf(%q) = %q, want %q", owner, got, want)
	}
}
