package modeltest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

// Goroutines commit, delete and sweep with two stores, while an application rebuilds
// the tables of sessions and owners, and their indexes. Each goroutine has tokens and
// owners of its own, and a model of them. Whenever it looks, its owners have exactly
// the sessions that its acknowledged calls have left.
func TestOwners(t *testing.T) {
	testdb.Slow(t)
	t.Parallel()
	testdb.Watchdog(t, *modelTime+2*time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB, indexed bool) {
		engine.Open(db, nil).UseMemory(256 << 10) // too small for all sessions
		cfg := chaistore.Config{Owner: ownerInData, Memory: -1}
		stores := []*chaistore.ChaiStore{newStore(t, db, cfg), newStore(t, db, cfg)}
		ctx, cancel := context.WithTimeout(t.Context(), *modelTime/8)
		defer cancel()
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				m := ownersModel{t, g, make(map[string]string), rand.New(rand.NewPCG(rand.Uint64(), uint64(g)))}
				for i := 0; ctx.Err() == nil && !t.Failed(); i++ {
					m.step(i, stores[m.rng.IntN(2)])
				}
			})
		}
		r := newRebuilder(db, indexed)
		for i := 0; ctx.Err() == nil && !t.Failed(); i++ {
			if err := r.rebuild(i); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		t.Logf("%d rebuilds", r.rebuilds)
		if _, err := stores[0].DeleteExpired(t.Context()); err != nil {
			t.Error(err)
		}
		testdb.CheckOwners(t, db, ownerInData, true)
		testdb.CheckIndexes(t, db)
	})
}

// An ownersModel is one goroutine's knowledge of its sessions.
type ownersModel struct {
	t     *testing.T
	g     int
	owner map[string]string // of each active session
	rng   *rand.Rand
}

func (m *ownersModel) step(i int, s *chaistore.ChaiStore) {
	token := fmt.Sprint(m.g, "-", m.rng.IntN(30))
	owner := fmt.Sprint(m.g, "-", m.rng.IntN(3))
	var err error
	switch n := m.rng.IntN(100); {
	case n < 45:
		err = s.Commit(token, fmt.Appendf(nil, "%s|%d", owner, i), inAnHour())
		m.owner[token] = owner
	case n < 50: // nobody's
		err = s.Commit(token, fmt.Append(nil, i), inAnHour())
		delete(m.owner, token)
	case n < 60: // expired
		err = s.Commit(token, fmt.Appendf(nil, "%s|%d", owner, i), anHourAgo())
		delete(m.owner, token)
	case n < 70:
		err = s.Delete(token)
		delete(m.owner, token)
	case n < 75:
		var deleted int
		deleted, err = s.DeleteOf(m.t.Context(), owner)
		if want := len(m.tokensOf(owner)); deleted != want {
			m.t.Errorf("DeleteOf(%s) = %d, want %d", owner, deleted, want)
		}
		maps.DeleteFunc(m.owner, func(_, of string) bool { return of == owner })
	case n < 77:
		_, err = s.DeleteExpired(m.t.Context())
	default:
		if got, want := tokensOf(m.t, s, owner), m.tokensOf(owner); !slices.Equal(got, want) {
			m.t.Errorf("SessionsOf(%s) = %q, want %q", owner, got, want)
		}
	}
	if err != nil {
		m.t.Error(err)
	}
}

func (m *ownersModel) tokensOf(owner string) []string {
	var tokens []string
	for token, of := range m.owner {
		if of == owner {
			tokens = append(tokens, token)
		}
	}
	slices.Sort(tokens)
	return tokens
}

// A rebuilder rebuilds tables and indexes, each in one transaction, so that nobody
// must see it.
type rebuilder struct {
	db       *chai.DB
	indexed  bool
	rebuilds int
}

func newRebuilder(db *chai.DB, indexed bool) *rebuilder {
	return &rebuilder{db: db, indexed: indexed}
}

// rebuild rebuilds the sessions, the owners, or both.
func (r *rebuilder) rebuild(i int) error {
	r.rebuilds++
	var steps []string
	if i%4 == 0 || i%4 == 3 {
		steps = append(steps, copied("sessions", createLike("rebuilt"), i)...)
		if r.indexed {
			steps = append(steps, fmt.Sprintf("CREATE INDEX idx_%d ON sessions(expiry)", r.rebuilds))
		}
	}
	if i%4 != 0 {
		const create = "CREATE TABLE rebuilt (owner TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (owner, token))"
		steps = append(steps, copied("sessions_owners", create, i)...)
	}
	return r.run(steps...)
}

// copied returns the statements that replace a table by a copy.
func copied(name, create string, i int) []string {
	steps := []string{create, "INSERT INTO rebuilt SELECT * FROM " + name}
	if i%8 < 4 {
		return append(steps, "DROP TABLE "+name, rename("rebuilt", name))
	}
	return append(steps, rename(name, "former"), rename("rebuilt", name), "DROP TABLE former")
}

// run runs statements in one transaction.
func (r *rebuilder) run(steps ...string) error {
	return chaistore.Update(context.Background(), r.db, func(tx *chai.Tx) error {
		for _, sql := range steps {
			if err := tx.Exec(sql); err != nil {
				return fmt.Errorf("%s: %w", strings.TrimSpace(sql), err)
			}
		}
		return nil
	})
}
