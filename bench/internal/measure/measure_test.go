package measure

import (
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"golang.org/x/perf/benchfmt"

	"go.elara.ws/chaistore/bench/internal/rivals"
)

// TestEachWorkloadOnEachRival runs everything once, and briefly.
func TestEachWorkloadOnEachRival(t *testing.T) {
	for _, rival := range rivals.All() {
		t.Run(rival.Name, func(t *testing.T) {
			plan := Plan{
				Rivals:      []rivals.Rival{rival},
				Families:    Families(),
				Sizes:       []Size{{200, 300}},
				SweepSize:   Size{200, 300},
				Repetitions: 1,
				Duration:    5 * time.Millisecond,
			}
			missing, err := plan.Missing()
			if err != nil {
				t.Fatal(err)
			}
			if err := missing[rival.Name]; err != nil {
				t.Skip(err)
			}
			results := make(map[string]bool)
			progress := 0.0
			err = plan.Run(t.Context(), Observer{
				Progress: func(what string, done float64) {
					if done < progress || done > 1 {
						t.Errorf("%s: the progress is %v after %v", what, done, progress)
					}
					progress = done
				},
				Result: func(result *benchfmt.Result) error {
					results[string(result.Name.Full())] = true
					for _, value := range result.Values {
						if value.Value <= 0 && value.Unit != "disk-bytes" && value.Unit != "heap-bytes" {
							t.Errorf("%s: %v %s", result.Name, value.Value, value.Unit)
						}
					}
					return nil
				},
				Problem: func(err error) { t.Error(err) },
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, workload := range Workloads() {
				if workload.Family == "sweep" && !rival.Sweeps {
					continue
				}
				prefix := workload.Name + "/sessions=200/bytes=300/store=" + rival.Name + "-"
				found := false
				for name := range results {
					found = found || strings.HasPrefix(name, prefix)
				}
				if !found {
					t.Errorf("no result of %s", workload.Name)
				}
			}
		})
	}
}

func TestSessions(t *testing.T) {
	for _, size := range []Size{{10, 300}, {10, 4096}} {
		sessions, err := NewSessions(size)
		if err != nil {
			t.Fatal(err)
		}
		tokens, contents := make(map[string]bool), make(map[string]bool)
		for session := range sessions.all(false) {
			tokens[session.Token], contents[string(session.Data)] = true, true
			if len(session.Data) != size.Bytes {
				t.Errorf("%v: a session has %d bytes", size, len(session.Data))
			}
			if len(session.Token) != 43 {
				t.Errorf("a token has %d bytes, want 43", len(session.Token))
			}
			if _, _, err := (scs.GobCodec{}).Decode(session.Data); err != nil {
				t.Error(err)
			}
		}
		if len(tokens) != size.Sessions || len(contents) != size.Sessions {
			t.Errorf("%d tokens and %d contents, want %d", len(tokens), len(contents), size.Sessions)
		}
	}
	if _, err := NewSessions(Size{10, 20}); err == nil {
		t.Error("no error for sessions that are smaller than an empty one")
	}
}

// A flaky store fails in every tenth call.
type flaky struct {
	rivals.Store
}

func (f flaky) Commit(token string, b []byte, expiry time.Time) error {
	if rand.IntN(10) == 0 {
		return errors.New("it is one of those days")
	}
	return f.Store.Commit(token, b, expiry)
}

func TestFailuresAreCounted(t *testing.T) {
	log.SetOutput(io.Discard)
	rival := rivals.Memstore
	rival.Open = func(dir string) (rivals.Store, error) {
		store, err := rivals.Memstore.Open(dir)
		return flaky{store}, err
	}
	for _, family := range []string{"commit", "mixed", "request"} {
		plan := Plan{
			Rivals: []rivals.Rival{rival}, Families: []string{family}, Sizes: []Size{{2000, 300}},
			Repetitions: 1, Duration: 20 * time.Millisecond,
		}
		var problems, failures int
		err := plan.Run(t.Context(), Observer{
			Progress: func(string, float64) {},
			Result: func(result *benchfmt.Result) error {
				if n, ok := result.Value("failures"); ok && n > 0 {
					failures++
				}
				return nil
			},
			Problem: func(err error) {
				problems++
				if !strings.Contains(fmt.Sprint(err), "one of those days") {
					t.Error(err)
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if problems == 0 || (failures == 0 && family != "mixed") {
			t.Errorf("%s: %d problems, %d results with failures", family, problems, failures)
		}
	}
}
