package modeltest

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

func TestMixedCallsOnTwoStores(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, 2*time.Minute)
	forEachTable(t, func(t *testing.T, db *chai.DB, _ bool) {
		var log testdb.Log
		logger := log.Logger(slog.LevelError)
		var stores [2]*chaistore.ChaiStore
		for i := range stores {
			var err error
			stores[i], err = chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: time.Millisecond, Logger: logger})
			if err != nil {
				t.Fatal(err)
			}
			defer stores[i].StopCleanup()
		}
		var wg sync.WaitGroup
		for g := range 64 {
			wg.Go(func() {
				s := stores[g%2]
				// Each goroutine has a model of its own sessions.
				model := make(map[string]string)
				rng := rand.New(rand.NewPCG(1, uint64(g)))
				for i := range 40 {
					token := fmt.Sprintf("%d-%d", g, rng.IntN(4))
					switch rng.IntN(8) {
					case 0, 1, 2:
						data := fmt.Sprint(i)
						commit(t, s, token, data, inAnHour())
						model[token] = data
					case 3:
						commit(t, s, token, "expired", anHourAgo())
						delete(model, token)
					case 4:
						if err := s.Delete(token); err != nil {
							t.Errorf("Delete: %v", err)
						}
						delete(model, token)
					case 5:
						if _, err := s.DeleteExpired(t.Context()); err != nil {
							t.Errorf("DeleteExpired: %v", err)
						}
					case 6:
						all, err := s.All()
						if err != nil {
							t.Errorf("All: %v", err)
						}
						for token, want := range model {
							if got := string(all[token]); got != want {
								t.Errorf("All: %s = %q, want %q", token, got, want)
							}
						}
					}
					data, found, err := s.Find(token)
					want, wantFound := model[token]
					if err != nil || found != wantFound || string(data) != want {
						t.Errorf("Find(%s) = %q, %v, %v; want %q, %v, nil", token, data, found, err, want, wantFound)
					}
				}
			})
		}
		wg.Wait()
		for _, s := range stores {
			s.StopCleanup()
		}
		if log.String() != "" {
			t.Errorf("errors were logged:\n%s", &log)
		}
	})
}
