package robustness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

var (
	faultRuns  = flag.Int("fault-runs", 2, "how often TestFaults lets the disk fail in each way")
	faultFirst = flag.Int("fault-first", rand.IntN(1e6), "the number of the first run of TestFaults, which determines its load and its fault")
)

// The ways in which the disk fails. The first of a random number of operations, up to
// within, is the first that fails.
var faults = []struct {
	name, op, file string
	errs           []error
	within         int
}{
	{"log write", "write", ".log", []error{syscall.EIO, syscall.ENOSPC}, 300},
	{"log sync", "sync", ".log", []error{syscall.EIO}, 300},
	{"log creation", "create", ".log", []error{syscall.EIO, syscall.ENOSPC}, 3},
	{"full disk", "write", "", []error{syscall.ENOSPC}, 300},
	{"directory sync", "sync", "directory", []error{syscall.EIO}, 5},
	{"MANIFEST write", "write", "MANIFEST", []error{syscall.EIO, syscall.ENOSPC}, 3},
	{"MANIFEST sync", "sync", "MANIFEST", []error{syscall.EIO}, 3},
	{"rows creation", "create", ".sst", []error{syscall.EIO, syscall.ENOSPC}, 3},
	{"rows write", "write", ".sst", []error{syscall.EIO, syscall.ENOSPC}, 20},
	{"rows sync", "sync", ".sst", []error{syscall.EIO}, 3},
}

// faultRunsEnv tells a child process which runs to make: the index of the fault, the
// number of the first run, and how many.
const faultRunsEnv = "CHAISTORE_TEST_FAULT_RUNS"

const (
	faultTable = "CREATE TABLE app (k INTEGER PRIMARY KEY, v BLOB NOT NULL)"
	closeLimit = 5 * time.Second
	// callLimit is longer than a write of the store can hang.
	callLimit = 15 * time.Second
)

// A faultResult is what happened in one run.
type faultResult struct {
	Struck               bool
	Commits, Deletes     int    // acknowledged
	Lost, Undone         int    // of these, commits that are not found with their data, and deletes that are undone
	Updates, LostUpdates int    // acknowledged, and of these not found
	Execs, LostExecs     int    // the same without Update
	Unopenable           string // the error of opening or reading the database afterwards
	Hung, HungExecs      int    // calls that did not return: of the store or Update, and of db.Exec
}

func (r *faultResult) failed() bool {
	return r.Lost+r.Undone+r.LostUpdates+r.Hung > 0 || r.Unopenable != ""
}

func (r *faultResult) add(b faultResult) {
	r.Commits += b.Commits
	r.Deletes += b.Deletes
	r.Lost += b.Lost
	r.Undone += b.Undone
	r.Updates += b.Updates
	r.LostUpdates += b.LostUpdates
	r.Execs += b.Execs
	r.LostExecs += b.LostExecs
	r.Hung += b.Hung
	r.HungExecs += b.HungExecs
}

// faultChild makes the runs that the environment asks for. It prints a line before
// and after each, and what Close did, as soon as that is known.
func faultChild(dir string) {
	var kind, first, runs int
	if _, err := fmt.Sscan(os.Getenv(faultRunsEnv), &kind, &first, &runs); err != nil {
		panic(err)
	}
	var closing sync.WaitGroup
	for n := first; n < first+runs; n++ {
		fmt.Println("begin", n)
		watchdog := time.AfterFunc(2*time.Minute, func() {
			debug.SetTraceback("all")
			panic(fmt.Sprintf("run %d still runs", n))
		})
		r := newFaultRun(filepath.Join(dir, fmt.Sprint(n)), kind, n)
		r.load()
		r.loseAndCheck()
		watchdog.Stop()
		line, err := json.Marshal(r.result)
		must(err)
		fmt.Printf("end %d %s\n", n, line)
		closing.Go(func() {
			closed := "hung"
			select {
			case closed = <-r.closed:
			case <-time.After(time.Until(r.closing.Add(closeLimit))):
			}
			r.disk.Stop()
			fmt.Println("close", n, closed)
		})
	}
	closing.Wait()
	os.Exit(0)
}

// A faultRun is a database on a disk that fails, and the load on it.
type faultRun struct {
	*rand.Rand
	dir        string
	disk       *testdb.FaultDisk
	fault      *testdb.Fault
	db         *chai.DB
	store      *chaistore.ChaiStore
	goroutines int
	size       int // of the sessions' data
	start      time.Time
	closing    time.Time   // when Close was called
	closed     chan string // what it did

	mu         sync.Mutex
	possible   map[string][]int // the possible states of each session: the latest acknowledged change, and those begun after it
	keys       map[int]bool     // the application's acknowledged keys
	updates    bool             // whether they were written in Update
	operations int
	afterFault int
	result     faultResult
}

func newFaultRun(dir string, kind, number int) *faultRun {
	f, rng := faults[kind], rand.New(rand.NewPCG(uint64(number), uint64(kind)))
	r := &faultRun{
		Rand:       rng,
		dir:        dir,
		disk:       testdb.NewFaultDisk(filepath.Join(dir, "pebble")),
		goroutines: []int{1, 8, 64}[rng.IntN(3)],
		size:       []int{0, 300, 4000}[rng.IntN(3)],
		start:      time.Now().Truncate(time.Millisecond),
		closed:     make(chan string, 1),
		possible:   make(map[string][]int),
		keys:       make(map[int]bool),
	}
	vfs.Default = r.disk
	r.db, r.store = openStore(dir)
	must(r.db.Exec("CREATE TABLE app (k INTEGER PRIMARY KEY, v BLOB NOT NULL)"))
	r.fault = &testdb.Fault{
		Op: f.op, File: f.file, Err: f.errs[rng.IntN(len(f.errs))],
		After: rng.IntN(f.within), Times: []int{1, 3, math.MaxInt}[rng.IntN(3)],
	}
	r.disk.Break(r.fault)
	return r
}

func openStore(dir string) (*chai.DB, *chaistore.ChaiStore) {
	db, err := chai.Open(dir)
	must(err)
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable: true, CleanupInterval: -1, Logger: slog.New(slog.DiscardHandler),
	})
	must(err)
	return db, s
}

// load commits and deletes until the disk has failed and writes fail, or some time
// after that. In half of the runs, the application writes, too.
func (r *faultRun) load() {
	var wg sync.WaitGroup
	for g := range r.goroutines {
		rng := rand.New(rand.NewPCG(r.Uint64(), 0))
		wg.Go(func() {
			r.repeat(func(i int) error {
				token, number := fmt.Sprintf("%02d-%03d", g, rng.IntN(1+640/r.goroutines)), i
				if rng.IntN(4) == 0 {
					number = 0
				}
				r.begin(token, number)
				if number == 0 {
					err := r.store.Delete(token)
					r.end(err, token, number, &r.result.Deletes)
					return err
				}
				err := r.store.Commit(token, r.data(number), r.expiry(number))
				r.end(err, token, number, &r.result.Commits)
				return err
			})
		})
	}
	insert := func(db interface {
		Exec(q string, args ...any) error
	}, i int) error {
		return db.Exec("INSERT INTO app (k, v) VALUES (?, ?)", i, r.data(i))
	}
	var app sync.WaitGroup
	how := []string{"", "", "Update", "Exec"}[r.IntN(4)]
	write := func(i int) (err error) {
		defer func() {
			if v := recover(); v != nil { // as a web server does
				err = fmt.Errorf("panic: %v", v)
			}
		}()
		if how == "Update" {
			return chaistore.Update(context.Background(), r.db, func(tx *chai.Tx) error { return insert(tx, i) })
		}
		lock := chaistore.WriteLock(r.db)
		lock.Lock()
		defer lock.Unlock()
		return insert(r.db, i)
	}
	if how != "" {
		app.Go(func() {
			r.repeat(func(i int) error {
				err := write(i)
				if err == nil {
					r.mu.Lock()
					defer r.mu.Unlock()
					r.keys[i] = true
				}
				return err
			})
		})
	}
	if !ends(&wg) {
		r.result.Hung++
	}
	appEnds := ends(&app)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case how == "Update":
		r.result.Updates = len(r.keys)
		r.updates = true
		if !appEnds {
			r.result.Hung++
		}
	default:
		r.result.Execs = len(r.keys)
		if !appEnds {
			r.result.HungExecs++
		}
	}
}

// ends waits until wg is done, and gives up after callLimit.
func ends(wg *sync.WaitGroup) bool {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(callLimit):
		return false
	}
}

// repeat calls f with the numbers from 1 until it has failed three times, or enough
// has been done.
func (r *faultRun) repeat(f func(i int) error) {
	failed := 0
	for i := 1; failed < 3 && !r.enough(); i++ {
		if f(i) != nil {
			failed++
		}
	}
}

// enough counts an operation, and reports whether it is one too many.
func (r *faultRun) enough() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.operations++
	if r.fault.HasStruck() {
		r.afterFault++
	}
	return r.afterFault > 1000 || r.operations > 40_000 || r.operations*r.size > 32<<20 || time.Since(r.start) > 10*time.Second
}

func (r *faultRun) begin(token string, number int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.possible[token] == nil {
		r.possible[token] = []int{0}
	}
	r.possible[token] = append(r.possible[token], number)
}

func (r *faultRun) end(err error, token string, number int, acknowledged *int) {
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.possible[token] = []int{number}
	*acknowledged++
}

func (r *faultRun) data(number int) []byte {
	data := make([]byte, r.size)
	rand.NewChaCha8([32]byte{byte(number), byte(number >> 8)}).Read(data)
	return data
}

func (r *faultRun) expiry(number int) time.Time {
	return r.start.Add(time.Hour + time.Duration(number)*time.Millisecond)
}

// loseAndCheck closes the database, before or after a loss of power. Then it opens
// what is left on the disk, and compares.
func (r *faultRun) loseAndCheck() {
	r.result.Struck = r.fault.HasStruck()
	closesFirst := r.IntN(2) == 0
	pause := time.Duration(r.Int64N(int64(5 * time.Millisecond)))
	if closesFirst {
		r.close()
	}
	time.Sleep(pause)
	vfs.Default = r.disk.Cut([]int{testdb.KeepNothing, testdb.KeepNothing, testdb.KeepParts, testdb.KeepAll}[r.IntN(4)])
	if !closesFirst {
		r.close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.check(); err != nil {
		r.result.Unopenable = err.Error()
	}
}

func (r *faultRun) close() {
	r.closing = time.Now()
	db := r.db
	go func() {
		defer func() {
			if recover() != nil {
				r.closed <- "panicked"
			}
		}()
		if db.Close() != nil {
			r.closed <- "error"
		} else {
			r.closed <- "nil"
		}
	}()
}

// check compares the database on vfs.Default with what was acknowledged. It returns
// an error if the database does not work.
func (r *faultRun) check() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	db, s := openStore(r.dir)
	found := make(map[string]int)
	for session, err := range s.Sessions(context.Background()) {
		must(err)
		number := int(session.Expiry.Sub(r.expiry(0)) / time.Millisecond)
		if !bytes.Equal(session.Data, r.data(number)) {
			number = -1
		}
		found[session.Token] = number
	}
	for token, numbers := range r.possible {
		number := found[token]
		delete(found, token)
		switch {
		case slices.Contains(numbers, number):
		case numbers[0] == 0:
			r.result.Undone++
		default:
			r.result.Lost++
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("%d sessions that nobody has committed", len(found))
	}
	rows, err := db.Query("SELECT k FROM app")
	must(err)
	must(rows.Iterate(func(row *chai.Row) error {
		var k int
		err := row.Scan(&k)
		delete(r.keys, k)
		return err
	}))
	must(rows.Close())
	if r.updates {
		r.result.LostUpdates = len(r.keys)
	} else {
		r.result.LostExecs = len(r.keys)
	}
	must(s.Commit("more", nil, inAnHour()))
	return db.Close()
}

// A disk fails in some way, while sessions are committed and deleted. Then it loses
// what was not synced. What was acknowledged is there afterwards, unless it was
// changed again, and the database works.
func TestFaults(t *testing.T) {
	const runsPerChild = 10
	for kind, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel() // it waits for databases that can't be closed
			var sum faultResult
			closed := make(map[string]int)
			struck, crashed, unopenable := 0, 0, 0
			next := *faultFirst
			for tries := 0; struck < *faultRuns && tries < 3**faultRuns+10; {
				runs := min(*faultRuns-struck, runsPerChild)
				child := startFaultChild(t, kind, next, runs)
				next += runs
				tries += runs
				for _, r := range child.results {
					if !r.Struck {
						continue
					}
					struck++
					sum.add(r)
					if r.Unopenable != "" {
						unopenable++
					}
				}
				for what, n := range child.closed {
					closed[what] += n
				}
				if child.crashed {
					struck++ // the others are made by the next child
					crashed++
				}
			}
			t.Logf("%d runs, %d acknowledged commits, %d deletes, %d updates, %d statements; "+
				"lost %d commits, %d deletes, %d updates, %d statements; "+
				"%d databases can't be opened, %d crashes, %d calls and %d statements hung; Close: %v",
				struck, sum.Commits, sum.Deletes, sum.Updates, sum.Execs,
				sum.Lost, sum.Undone, sum.LostUpdates, sum.LostExecs,
				unopenable, crashed, sum.Hung, sum.HungExecs, closed)
			if struck < *faultRuns {
				t.Errorf("the disk failed in %d runs, want %d", struck, *faultRuns)
			}
		})
	}
}

type faultChildResult struct {
	results []faultResult
	closed  map[string]int
	crashed bool
}

// startFaultChild makes runs in a child process, because a database that has failed
// can't be closed, and Pebble may panic in its own goroutines.
func startFaultChild(t *testing.T, kind, first, runs int) (r faultChildResult) {
	t.Helper()
	r.closed = make(map[string]int)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=fault", childDirEnv+"="+t.TempDir(), fmt.Sprintf("%s=%d %d %d", faultRunsEnv, kind, first, runs))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		what, rest, _ := strings.Cut(lines.Text(), " ")
		number, rest, _ := strings.Cut(rest, " ")
		switch what {
		case "end":
			var result faultResult
			if err := json.Unmarshal([]byte(rest), &result); err != nil {
				t.Fatalf("the process printed %q: %v", lines.Text(), err)
			}
			r.results = append(r.results, result)
			if result.failed() {
				t.Errorf("run %s (-fault-first %[1]s): %s", number, rest)
			}
		case "close":
			r.closed[rest]++
		}
	}
	if err := cmd.Wait(); err != nil {
		r.crashed = true
		t.Errorf("a process making the runs from %d on ended with %v after %d of them:\n%.5000s", first, err, len(r.results), &stderr)
	}
	return r
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
