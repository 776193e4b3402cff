package chaistore_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// Goroutines commit, delete and sweep with two stores. Each goroutine has tokens and
// owners of its own, and a model of them. Whenever it looks, its owners have exactly
// the sessions that its acknowledged calls have left.
func TestOwnersModel(t *testing.T) {
	for name, setup := range map[string][]string{
		"plain":   {testdb.CreateTable},
		"indexed": {testdb.CreateTable, testdb.CreateIndex},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, 2*time.Minute)
			db := testdb.Memory(t)
			testdb.Exec(t, db, setup...)
			cfg := chaistore.Config{Owner: ownerInData, CacheSize: 64 << 10} // too small for all sessions
			stores := []*chaistore.ChaiStore{newStoreWith(t, db, cfg), newStoreWith(t, db, cfg)}
			steps := 600
			if testing.Short() {
				steps = 100
			}
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					m := ownersModel{t, g, make(map[string]string), rand.New(rand.NewPCG(rand.Uint64(), uint64(g)))}
					for i := range steps {
						if m.step(i, stores[m.rng.IntN(2)]); t.Failed() {
							return
						}
					}
				})
			}
			wg.Wait()
			if _, err := stores[0].DeleteExpired(t.Context()); err != nil {
				t.Error(err)
			}
			testdb.CheckOwners(t, db, ownerInData)
		})
	}
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
