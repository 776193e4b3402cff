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

var crashRounds = flag.Int("crash-rounds", 5, "how often TestCrash kills a process for each kind of table")

// Some tests run this test binary again, as a process to which something bad
// happens. The environment tells such a process what to do, and in which
// directory.
const (
	childEnv    = "CHAISTORE_TEST_CHILD"
	childDirEnv = "CHAISTORE_TEST_DIR"
)

// startChild starts such a process, and returns what it prints.
func startChild(t *testing.T, role, dir string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+role, childDirEnv+"="+dir)
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

// runChild does what the environment asks for, if it does. It does not return
// then.
func runChild() {
	switch dir := os.Getenv(childDirEnv); os.Getenv(childEnv) {
	case "crash":
		crashChild(dir)
	case "crash with owners":
		ownersCrashChild(dir)
	case "full disk":
		fullDiskChild(dir)
	}
}

// A change is what a process that is about to be killed says of one session.
// Before it makes a change it says so, and again when it has been acknowledged.
type change struct {
	token  string
	number int // of the changes of this process and those before it; 0 is a deletion
}

// crashData returns the data of a change: its number, and enough to notice if a
// part of it is missing.
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
				case 1: // like a deletion, which the sweep completes
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

// A process is killed at a random moment, over and over again. What it was told
// is committed is there, and what it was told is deleted is not, and so it is in
// the indexes.
func TestCrash(t *testing.T) {
	t.Parallel() // it waits for others
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
			// What each session may be: what was acknowledged last, and what was begun
			// after that.
			possible := make(map[string][]int)
			acknowledged := 0
			for range *crashRounds {
				cmd, out := startChild(t, "crash", dir)
				lines := bufio.NewScanner(out)
				killed := false
				for lines.Scan() {
					if !killed { // as soon as it is at work
						killed = true
						time.AfterFunc(time.Duration(rand.IntN(300))*time.Millisecond, func() { cmd.Process.Kill() })
					}
					what, c := parseChange(t, lines.Text())
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
					t.Fatalf("the process ended with %v", err)
				}
				checkAfterCrash(t, dir, possible)
				if t.Failed() {
					return
				}
			}
			t.Logf("%d processes were killed, after %d acknowledged changes", *crashRounds, acknowledged)
			if acknowledged < *crashRounds {
				t.Errorf("there were only %d acknowledged changes", acknowledged)
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

// checkAfterCrash checks that each session is what it may be, and makes that all
// that it may be.
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
				t.Errorf("the session %s has the data %.40q…", token, data)
			}
		}
		if !slices.Contains(numbers, number) {
			t.Errorf("the session %s is that of change %d, and could be that of %v (0 is a deletion)", token, number, numbers)
		}
		if inAll, ok := all[token]; ok != found || !bytes.Equal(inAll, data) {
			t.Errorf("the session %s is %.40q in All, and %.40q in Find", token, inAll, data)
		}
		possible[token] = []int{number}
	}
	// All of them can still be written, found and swept.
	if _, err := s.DeleteExpired(context.Background()); err != nil {
		t.Errorf("DeleteExpired after a crash: %v", err)
	}
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != len(all) {
		t.Errorf("after a sweep there are %d sessions, want %d", n, len(all))
	}
	testdb.CheckIndexes(t, db)
}
