package storetest_test

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/storetest"
)

var full = flag.Bool("full", false, "run the suite on all stores, not on every second one")

// A subject is a correct store.
type subject struct {
	name     string
	newStore func(t *testing.T) scs.Store
	opts     []storetest.Option
	skips    []string // patterns of the cases that it skips
}

var (
	noCount   = []string{"Cleanup/Sweep"}
	noCtx     = []string{"Cleanup/Sweep", "Ctx/*"}
	noCleanup = []string{"Cleanup/*", "Ctx/*", "Advice/Stop*"}
)

var subjects = []subject{
	{name: "plain", newStore: func(t *testing.T) scs.Store { return newMemory(t) }, skips: noCtx},
	{name: "with contexts", newStore: func(t *testing.T) scs.Store { return withCtx{newMemory(t)} }, skips: noCount},
	{
		name:     "some contexts",
		newStore: func(t *testing.T) scs.Store { return someCtx{newMemory(t)} },
		skips:    noCount,
	},
	{
		name:     "only contexts",
		newStore: func(t *testing.T) scs.Store { return ctxOnly{withCtx{newMemory(t)}} },
		opts:     []storetest.Option{storetest.CtxOnly()},
		skips:    append(noCount, "Ctx/SameAsPlain"),
	},
	{
		name:     "counted",
		newStore: func(t *testing.T) scs.Store { return newMemory(t) },
		opts:     []storetest.Option{storetest.Count(countRows)},
		skips:    []string{"Ctx/*"},
	},
	{
		name:     "minimal",
		newStore: func(t *testing.T) scs.Store { return struct{ scs.Store }{newMemory(t)} },
		skips:    append(noCleanup, "Store/All*", "Advice/All*", "Manager/Iterate*"),
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
		name:     "refuses ended sessions",
		newStore: func(t *testing.T) scs.Store { return newRefusesEnded(t) },
		opts:     []storetest.Option{storetest.RefusesEnded()},
		skips:    noCleanup,
	},
	{
		name: "refuses odd tokens",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{commit: func(token string) error {
				if len(token) != 43 {
					return errors.New("token was not made by SCS")
				}
				return nil
			}})
		},
		skips: noCleanup,
	},
}

// childEnv is an environment variable. It is set in the processes that run the suite,
// where the suite may fail.
const childEnv = "STORETEST_CHILD"

// TestMain lets more tests run in parallel than there are CPUs, because they wait for
// other processes, which in turn wait for time to pass.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(childEnv) == "" {
		if err := flag.Set("test.parallel", "20"); err != nil {
			log.Fatal(err)
		}
		skip := "^TestStore$" // which is as in the README: TestExamples runs it
		if testing.Short() {
			skip = "^Test(Store|CorrectStores|Faults|Examples)$"
		}
		if more := flag.Lookup("test.skip").Value.String(); more != "" {
			skip += "|" + more
		}
		if err := flag.Set("test.skip", skip); err != nil {
			log.Fatal(err)
		}
	}
	m.Run()
}

// TestChild runs the suite in the processes that other tests start.
func TestChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("runs only in processes that other tests start")
	}
	for _, s := range subjects {
		t.Run(s.name, func(t *testing.T) { storetest.Run(t, s.newStore, append(s.opts, storetest.Strict())...) })
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { storetest.Run(t, f.newStore, append(f.opts, storetest.Strict())...) })
	}
	for _, e := range examples {
		t.Run(e.name, e.run)
	}
}

// A child is a process in which the suite runs.
type child struct {
	out     string
	results map[string]string           // PASS, FAIL or SKIP, by case
	text    map[string]*strings.Builder // the messages, by case
}

// start runs the suite for the subject, fault or example with the given name. It runs
// the cases that match a pattern of the -run flag, or all if the pattern is empty.
func start(t *testing.T, name, cases string, flags ...string) *child {
	t.Helper()
	pattern := "^TestChild$/^" + regexp.QuoteMeta(strings.ReplaceAll(name, " ", "_")) + "$"
	if cases != "" {
		pattern += "/" + cases
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	flags = append(flags, "-test.run="+pattern, "-test.v", "-test.parallel=16", "-test.timeout=100s")
	cmd := exec.Command(executable, flags...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	c := &child{string(out), make(map[string]string), make(map[string]*strings.Builder)}
	c.parse("TestChild/" + strings.ReplaceAll(name, " ", "_"))
	return c
}

// parse reads the output of go test -v.
func (c *child) parse(prefix string) {
	begin := regexp.MustCompile(`^=== [A-Z]+ +(\S+)`)
	end := regexp.MustCompile(`^ *--- ([A-Z]+): (\S+)`)
	current := ""
	for line := range strings.Lines(c.out) {
		if m := begin.FindStringSubmatch(line); m != nil {
			current = m[1]
		} else if m := end.FindStringSubmatch(line); m != nil {
			c.results[strings.TrimPrefix(m[2], prefix+"/")] = m[1]
		} else {
			for name := current; name != "." && name != "/"; name = path.Dir(name) {
				key := strings.TrimPrefix(name, prefix+"/")
				if c.text[key] == nil {
					c.text[key] = new(strings.Builder)
				}
				c.text[key].WriteString(line)
			}
		}
	}
}

func TestCorrectStores(t *testing.T) {
	t.Parallel()
	for i, s := range subjects {
		t.Run(s.name, func(t *testing.T) {
			if !*full && i%2 == 1 {
				t.Skip("use -full")
			}
			t.Parallel()
			c := start(t, s.name, "")
			for _, name := range storetest.Cases() {
				want := "PASS"
				if slices.ContainsFunc(s.skips, func(pattern string) bool { return match(pattern, name) }) {
					want = "SKIP"
				}
				got := c.results[name]
				if got == "SKIP" && strings.Contains(c.text[name].String(), "too slow") {
					t.Logf("%s: the machine is too slow", name)
				} else if got != want {
					t.Errorf("%s: %s, want %s:\n%s", name, got, want, c.text[name])
				}
			}
			if t.Failed() {
				t.Logf("the whole output:\n%s", c.out)
			}
		})
	}
}

func match(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// TestFaults checks that faulty stores fail the cases that they must fail, with short
// messages.
func TestFaults(t *testing.T) {
	t.Parallel()
	mustFail := make(map[string]bool)
	for i, f := range faults {
		for _, name := range f.fails {
			mustFail[name] = true
		}
		t.Run(f.name, func(t *testing.T) {
			if !*full && i%2 == 1 {
				t.Skip("use -full")
			}
			t.Parallel()
			var groups, names []string
			for _, name := range f.fails {
				groups, names = append(groups, path.Dir(name)), append(names, path.Base(name))
			}
			cases := "^(" + strings.Join(groups, "|") + ")$/^(" + strings.Join(names, "|") + ")$"
			if f.whole {
				cases = ""
			}
			c := start(t, f.name, cases)
			for _, name := range f.fails {
				if got := c.results[name]; got != "FAIL" {
					t.Errorf("%s: %s, want FAIL:\n%s", name, got, c.out)
					continue
				}
				text := c.text[name].String()
				if !strings.Contains(text, "The documentation of ") && !strings.Contains(text, "SCS does not require this") {
					t.Errorf("%s does not say whose rule is broken:\n%s", name, text)
				}
				if lines := strings.Count(text, "\n"); lines > 45 {
					t.Errorf("%s needs %d lines to say what is wrong:\n%s", name, lines, text)
				}
			}
		})
	}
	for _, name := range storetest.Cases() {
		if !mustFail[name] {
			t.Errorf("%s: no faulty store must fail it", name)
		}
	}
}

// examples are uses of the suite whose output is tested.
var examples = []struct {
	name  string
	run   func(t *testing.T)
	twice bool              // leftovers of the first run must not disturb the second
	want  map[string]string // results of some cases
	text  []string          // parts of the output
}{
	{
		name:  "as documented",
		run:   TestStore,
		twice: true,
		want: map[string]string{
			"Store/Commit": "PASS", "Manager/Iterate": "PASS", "Cleanup/StopEarly": "PASS", "Cleanup/StopInUse": "PASS",
			"Cleanup/StopDuringSweep": "PASS", "Advice/FoundDataIsCopy": "PASS", "Advice/StopTwice": "SKIP", "Advice/StopAtOnce": "SKIP",
			"End/FirstSessionStays": "PASS",
		},
		text: []string{
			"0 failed", "2 pieces of advice not followed: Advice/StopAtOnce, Advice/StopTwice",
			"after the case has called StopCleanup: a cleanup function of the store hangs",
		},
	},
	{
		name: "a hanging cleanup",
		run: func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) scs.Store {
				m := newMemory(t)
				t.Cleanup(func() {
					if strings.HasSuffix(t.Name(), "/FindMissing/store") {
						hangs{}.StopCleanup()
					}
				})
				return m
			})
		},
		want: map[string]string{"Store/FindMissing": "FAIL", "Store/FindExpired": "PASS", "End/FirstSessionStays": "PASS"},
		text: []string{"a cleanup function of the store hangs", "hangs.StopCleanup"},
	},
	{
		name: "a cleanup that panics",
		run: func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) scs.Store {
				s := &closesTwice{memory: newMemory(t), stop: make(chan struct{})}
				t.Cleanup(s.StopCleanup)
				if strings.HasSuffix(t.Name(), "/FindMissing/store") {
					t.Cleanup(s.StopCleanup)
				}
				return s
			})
		},
		want: map[string]string{
			"Store/FindMissing": "FAIL", "Store/FindExpired": "PASS",
			"Cleanup/StopInUse": "PASS", "Advice/StopTwice": "SKIP", "Advice/StopAtOnce": "SKIP", "End/FirstSessionStays": "PASS",
		},
		text: []string{"a cleanup function of the store panics", "(*closesTwice).StopCleanup"},
	},
	{
		name: "a deadlock",
		run: func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) scs.Store {
				m := newMemory(t)
				if strings.HasSuffix(t.Name(), "/FindMissing/store") {
					m.mu.Lock()
				}
				return m
			}, storetest.Timeout(5*time.Second))
		},
		want: map[string]string{"Store/FindMissing": "FAIL", "Store/FindExpired": "PASS", "End/FirstSessionStays": "PASS"},
		text: []string{"the case has not ended after 5.1s", "storetest_test.(*memory).get"},
	},
	{
		name: "plain methods that panic",
		run: func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) scs.Store { return ctxOnly{withCtx{newMemory(t)}} })
		},
		want: map[string]string{"Store/FindMissing": ""},
		text: []string{"panic: missing context", "ctxOnly.Commit", "no case has run", "the option CtxOnly"},
	},
	{
		name: "a shared store",
		run: func(t *testing.T) {
			m := newMemory(t)
			storetest.Run(t, func(t *testing.T) scs.Store { return m }, storetest.Shared(func(t *testing.T) {
				m.mu.Lock()
				defer m.mu.Unlock()
				clear(m.sessions)
			}))
		},
		want: map[string]string{
			"Store/All": "PASS", "Store/AllEmpty": "PASS", "Manager/Iterate": "PASS", "Cleanup/StopEarly": "PASS",
			"Cleanup/StopInUse": "SKIP", "Advice/StopTwice": "SKIP", "Advice/AllIsCopy": "PASS", "End/FirstSessionStays": "SKIP",
		},
		text: []string{"another case has stopped the cleanup of the shared store", "0 failed"},
	},
	{
		name: "nothing to test",
		run: func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) scs.Store { t.Skip("no server"); return nil })
		},
		want: map[string]string{"TestChild/nothing_to_test": "SKIP"},
	},
	{
		name: "no store",
		run: func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) scs.Store { t.Fatal("no database"); return nil })
		},
		want: map[string]string{"TestChild/no_store": "FAIL", "Store/FindMissing": ""},
		text: []string{"no database"},
	},
}

// hangs has a StopCleanup that never returns.
type hangs struct{}

func (hangs) StopCleanup() { select {} }

func TestExamples(t *testing.T) {
	t.Parallel()
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			runs := 1
			if e.twice && *full {
				runs = 2
			}
			c := start(t, e.name, "", fmt.Sprint("-test.count=", runs))
			for name, want := range e.want {
				if got := c.results[name]; got != want {
					t.Errorf("%s: %q, want %q:\n%s", name, got, want, c.text[name])
				}
			}
			for _, want := range e.text {
				if !strings.Contains(c.out, want) {
					t.Errorf("the output does not have %q", want)
				}
			}
			if strings.Contains(c.out, "\npanic: ") {
				t.Error("the run ended with a panic")
			}
			if t.Failed() {
				t.Logf("the whole output:\n%s", c.out)
			}
		})
	}
}

// Cases that the -run flag leaves out must not pass.
func TestRunOfNoStore(t *testing.T) {
	c := start(t, "with contexts", "^Store$/^FindMissing$/^plain$/^none$")
	if got := c.results["TestChild/with_contexts"]; got != "SKIP" {
		t.Errorf("without the subtests in which stores are made: %s, want SKIP; output:\n%s", got, c.out)
	}
}
