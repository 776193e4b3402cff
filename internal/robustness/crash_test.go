package robustness

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

var crashRounds = flag.Int("crash-rounds", 2, "how often TestCrash kills a process for each kind of table")

// Some tests run this test binary again, as a child process that is killed, or whose
// disk fails. These variables tell the child its role, its directory, and what else
// it must know.
const (
	childEnv     = "CHAISTORE_TEST_CHILD"
	childDirEnv  = "CHAISTORE_TEST_DIR"
	childTaskEnv = "CHAISTORE_TEST_TASK"
)

// startChild starts a child process, and returns its output.
func startChild(t *testing.T, role, dir, task string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+role, childDirEnv+"="+dir, childTaskEnv+"="+task)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// runChild runs as the child that the environment asks for, and does not return.
// Without such a request, it does nothing.
func runChild() {
	switch dir, task := os.Getenv(childDirEnv), os.Getenv(childTaskEnv); os.Getenv(childEnv) {
	case "crash":
		crashChild(dir)
	case "crash with owners":
		ownersCrashChild(dir)
	case "full disk":
		fullDiskChild(dir, task)
	case "history":
		historyChild(dir, task)
	case "few files":
		fewFilesChild(dir, task)
	}
}

// A change is a change of one session by a child process. The child prints it before
// making it, and again when it is acknowledged.
type change struct {
	token  string
	number int // increases with the changes of a session; 0 is a deletion
}

// crashData returns the data of a change: its number, and enough text to notice if a
// part is missing.
func crashData(number int) []byte {
	return fmt.Appendf(nil, "%d%s", number, strings.Repeat(fmt.Sprint("-", number), number%50))
}

// crashChild commits, renews, deletes and sweeps until it is killed.
func crashChild(dir string) {
	db, err := chai.Open(dir)
	if err != nil {
		panic(err)
	}
	s, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	base := int(time.Now().UnixMicro())
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
			for i := 0; ; i++ {
				c := change{fmt.Sprint(g, "-", rng.IntN(20)), base + i}
				expiry := inAnHour()
				switch rng.IntN(6) {
				case 0:
					c.number = 0
				case 1: // expires the session, which a sweep then deletes
					c.number, expiry = 0, anHourAgo()
				}
				say := func(what string) { fmt.Printf("%s %s %d\n", what, c.token, c.number) }
				say("begin")
				var err error
				if c.number == 0 && expiry.After(time.Now()) {
					err = s.Delete(c.token)
				} else {
					err = s.Commit(c.token, crashData(c.number), expiry)
				}
				if err != nil {
					panic(err)
				}
				say("done")
			}
		})
	}
	wg.Wait()
}

// A process is killed at a random moment, over and over again. Every acknowledged
// commit is found afterwards, no session with an acknowledged deletion is, and the
// indexes agree.
func TestCrash(t *testing.T) {
	testdb.WithoutRace(t)
	t.Parallel() // it mostly waits for child processes
	for name, setup := range map[string][]string{
		"plain":   {testdb.CreateTable},
		"indexed": {testdb.CreateTable, testdb.CreateIndex},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Duration(1+*crashRounds/4)*time.Minute)
			dir := t.TempDir()
			db, err := chai.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			testdb.Exec(t, db, setup...)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			// The possible states of each session: the latest acknowledged change, and
			// those begun after it.
			possible := make(map[string][]int)
			acknowledged := 0
			for round := range *crashRounds {
				cmd, out := startChild(t, "crash", dir, "")
				lines := bufio.NewScanner(out)
				killed := false
				for lines.Scan() {
					what, c := parseChange(t, lines.Text())
					if !killed && (what != "begin" || round%2 == 1) { // it has made a change, or begun to
						killed = true
						time.AfterFunc(time.Duration(rand.IntN(300))*time.Millisecond, func() { cmd.Process.Kill() })
					}
					if what == "begin" {
						if possible[c.token] == nil {
							possible[c.token] = []int{0}
						}
						possible[c.token] = append(possible[c.token], c.number)
					} else {
						possible[c.token] = []int{c.number}
						acknowledged++
					}
				}
				if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
					t.Fatalf("the process ended with %v, want a kill", err)
				}
				checkAfterCrash(t, dir, possible)
				if t.Failed() {
					return
				}
			}
			t.Logf("%d processes were killed, after %d acknowledged changes", *crashRounds, acknowledged)
			if want := (*crashRounds + 1) / 2; acknowledged < want {
				t.Errorf("got %d acknowledged changes, want at least %d", acknowledged, want)
			}
		})
	}
}

func parseChange(t *testing.T, line string) (what string, c change) {
	t.Helper()
	if _, err := fmt.Sscanf(line, "%s %s %d", &what, &c.token, &c.number); err != nil {
		t.Fatalf("the process printed %q: %v", line, err)
	}
	return what, c
}

// checkAfterCrash checks that each session is in a possible state, and makes that its
// only possible one.
func checkAfterCrash(t *testing.T, dir string, possible map[string][]int) {
	t.Helper()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatalf("open the database after a crash: %v", err)
	}
	defer db.Close()
	testdb.CheckIndexes(t, db)
	s := newStore(t, db, nil)
	all, err := s.All()
	if err != nil {
		t.Fatal(err)
	}
	for token, numbers := range possible {
		data, found, err := s.Find(token)
		if err != nil {
			t.Fatal(err)
		}
		number := 0
		if found {
			digits, _, _ := strings.Cut(string(data), "-")
			number, _ = strconv.Atoi(digits)
			if !bytes.Equal(data, crashData(number)) {
				t.Errorf("got the data %.40q… of session %s, want the data of change %d", data, token, number)
			}
		}
		if !slices.Contains(numbers, number) {
			t.Errorf("session %s is at change %d, want one of %v (0 is a deletion)", token, number, numbers)
		}
		if inAll, ok := all[token]; ok != found || !bytes.Equal(inAll, data) {
			t.Errorf("session %s is %.40q in All, want %.40q as in Find", token, inAll, data)
		}
		possible[token] = []int{number}
	}
	// The sessions can still be swept.
	if _, err := s.DeleteExpired(context.Background()); err != nil {
		t.Errorf("DeleteExpired after a crash: %v", err)
	}
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != len(all) {
		t.Errorf("got %d sessions after a sweep, want %d", n, len(all))
	}
	testdb.CheckIndexes(t, db)
}
