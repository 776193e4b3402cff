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
	"path/filepath"
	"runtime"
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
	faultRuns  = flag.Int("fault-runs", 1, "how often TestFaults lets the disk fail in each way")
	faultFirst = flag.Int("fault-first", rand.IntN(1e6), "the number of the first run of TestFaults, which determines its load and its fault")
)

// The ways in which the disk fails. The first of a random number of operations, up to
// within, is the first that fails. Some need large sessions beside the others, because
// Pebble writes rows, and begins a new log, only every few hundred kilobytes.
var faults = []struct {
	name, op, file string
	errs           []error
	within         int
	large          bool
}{
	{"log write", "write", ".log", []error{syscall.EIO, syscall.ENOSPC}, 300, false},
	{"log sync", "sync", ".log", []error{syscall.EIO}, 300, false},
	{"log creation", "create", ".log", []error{syscall.EIO, syscall.ENOSPC}, 3, true},
	{"full disk", "write", "", []error{syscall.ENOSPC}, 300, false},
	{"directory sync", "sync", "directory", []error{syscall.EIO}, 5, true},
	{"MANIFEST write", "write", "MANIFEST", []error{syscall.EIO, syscall.ENOSPC}, 3, true},
	{"MANIFEST sync", "sync", "MANIFEST", []error{syscall.EIO}, 3, true},
	{"rows creation", "create", ".sst", []error{syscall.EIO, syscall.ENOSPC}, 3, true},
	{"rows write", "write", ".sst", []error{syscall.EIO, syscall.ENOSPC}, 20, true},
	{"rows sync", "sync", ".sst", []error{syscall.EIO}, 3, true},
}

const (
	faultLarge = 16_000
	closeLimit = 10 * time.Second
	loadLimit  = 3 * time.Second
	callLimit  = 15 * time.Second // a write of the store can hang for 10
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
	HungIn               string // their goroutines, and all if Close hangs
	Close                string // "nil", "error", "hung", or a panic
}

func (r *faultResult) failed() bool {
	return r.Lost+r.Undone+r.LostUpdates+r.Hung > 0 || r.Unopenable != "" || strings.HasPrefix(r.Close, "panic")
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

// faultChild makes the runs that task asks for: the index of the fault, the number of
// the first run, and how many. It prints the result of each.
func faultChild(dir, task string) {
	var kind, first, runs int
	_, err := fmt.Sscan(task, &kind, &first, &runs)
	must(err)
	// One run works at a time. Others may wait for calls that hang.
	turn := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for n := first; n < first+runs; n++ {
		turn <- struct{}{}
		r := newFaultRun(filepath.Join(dir, fmt.Sprint(n)), kind, n, turn)
		wg.Go(func() {
			watchdog := time.AfterFunc(2*time.Minute, func() {
				debug.SetTraceback("all")
				panic(fmt.Sprintf("run %d still runs", n))
			})
			r.load()
			r.loseAndCheck()
			<-turn
			r.result.Close = "hung"
			select {
			case r.result.Close = <-r.closed:
			case <-time.After(time.Until(r.closing.Add(closeLimit))):
				r.result.HungIn += stacks("")
			}
			watchdog.Stop()
			r.disk.Stop()
			line, err := json.Marshal(r.result)
			must(err)
			fmt.Printf("%d %s\n", n, line)
		})
	}
	wg.Wait()
	os.Exit(0)
}

// A faultRun is a database on a disk that fails, and the load on it.
type faultRun struct {
	*rand.Rand
	turn       chan struct{}
	dir        string
	disk       *testdb.FaultDisk
	fault      *testdb.Fault
	db         *chai.DB
	store      *chaistore.ChaiStore
	goroutines int
	size       int  // of the data of most sessions
	large      bool // whether there are also large ones
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

func newFaultRun(dir string, kind, number int, turn chan struct{}) *faultRun {
	f, rng := faults[kind], rand.New(rand.NewPCG(uint64(number), uint64(kind)))
	r := &faultRun{
		Rand:       rng,
		turn:       turn,
		dir:        dir,
		disk:       testdb.NewFaultDisk(filepath.Join(dir, "pebble")),
		goroutines: []int{1, 8, 64}[rng.IntN(3)],
		size:       []int{0, 300, 4000}[rng.IntN(3)],
		large:      f.large,
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
	use := func(name string, sessions, size int) {
		rng := rand.New(rand.NewPCG(r.Uint64(), 0))
		wg.Go(func() {
			r.repeat(func(i int) error {
				token, number := fmt.Sprint(name, "-", rng.IntN(sessions)), i
				if rng.IntN(4) == 0 {
					number = 0
				}
				r.begin(token, number)
				if number == 0 {
					err := r.store.Delete(token)
					r.end(err, token, number, &r.result.Deletes)
					return err
				}
				err := r.store.Commit(token, faultData(number, size), r.expiry(number))
				r.end(err, token, number, &r.result.Commits)
				return err
			})
		})
	}
	for g := range r.goroutines {
		use(fmt.Sprint(g), 1+640/r.goroutines, r.size)
	}
	if r.large {
		use("large", 10, faultLarge)
	}
	insert := func(db interface {
		Exec(q string, args ...any) error
	}, i int) error {
		return db.Exec("INSERT INTO app (k, v) VALUES (?, ?)", i, faultData(i, r.size))
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
	hung := !r.ends(&wg, callLimit)
	appLimit := closeLimit // nothing can be done about a plain statement that hangs
	if how == "Update" {
		appLimit = callLimit
	}
	appHung := !r.ends(&app, appLimit)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.updates = how == "Update"; r.updates {
		r.result.Updates = len(r.keys)
		hung = hung || appHung
	} else {
		r.result.Execs = len(r.keys)
		r.result.HungExecs += count(appHung)
	}
	r.result.Hung += count(hung)
	if hung {
		r.result.HungIn = stacks(fmt.Sprintf(".(*faultRun).repeat(%p", r))
	}
}

// stacks returns the stacks of the goroutines that have a call.
func stacks(call string) (found string) {
	all := make([]byte, 4<<20)
	for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
		if strings.Contains(stack, call) {
			found += stack + "\n\n"
		}
	}
	return found
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ends waits until wg is done, and gives up after limit. If that takes long, it leaves
// the turn to other runs meanwhile.
func (r *faultRun) ends(wg *sync.WaitGroup, limit time.Duration) bool {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(time.Second):
	}
	<-r.turn
	defer func() { r.turn <- struct{}{} }()
	select {
	case <-done:
		return true
	case <-time.After(limit):
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
	return r.afterFault > 1000 || r.operations > 40_000 || time.Since(r.start) > loadLimit
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

func faultData(number, size int) []byte {
	data := make([]byte, size)
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
			if v := recover(); v != nil {
				r.closed <- fmt.Sprintf("panic: %v\n%s", v, debug.Stack())
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
		size := r.size
		if strings.HasPrefix(session.Token, "large") {
			size = faultLarge
		}
		if !bytes.Equal(session.Data, faultData(number, size)) {
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
	const runsPerChild = 25
	for kind, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel() // it waits for databases that can't be closed
			var sum faultResult
			closed := make(map[string]int)
			struck, crashed, unopenable := 0, 0, 0
			next := *faultFirst
			for tries := 0; struck+crashed < *faultRuns && tries < *faultRuns+10; tries++ {
				runs := min(*faultRuns-struck-crashed, runsPerChild)
				results, ok := makeFaultRuns(t, kind, next, runs)
				if !ok {
					crashed++ // the rest of its runs are made by the next process
				}
				next += runs
				for _, r := range results {
					if r.Struck {
						struck++
						closed[r.Close]++
						unopenable += count(r.Unopenable != "")
						sum.add(r)
					}
				}
			}
			t.Logf("%s: %d runs, %d acknowledged commits, %d deletes, %d updates, %d statements; "+
				"lost %d commits, %d deletes, %d updates, %d statements; "+
				"%d databases can't be opened, %d crashes, %d calls and %d statements hung; Close: %v",
				f.name, struck+crashed, sum.Commits, sum.Deletes, sum.Updates, sum.Execs,
				sum.Lost, sum.Undone, sum.LostUpdates, sum.LostExecs,
				unopenable, crashed, sum.Hung, sum.HungExecs, closed)
			if struck+crashed < *faultRuns {
				t.Errorf("the disk failed in %d runs, want %d", struck, *faultRuns)
			}
		})
	}
}

// makeFaultRuns makes runs in a child process, because a database that has failed
// can't always be closed, and Pebble may panic in its own goroutines. It returns
// their results, and whether the process ended well.
func makeFaultRuns(t *testing.T, kind, first, runs int) (results []faultResult, ok bool) {
	t.Helper()
	cmd, out := startChild(t, "fault", t.TempDir(), fmt.Sprint(kind, first, runs))
	lines := bufio.NewScanner(out)
	for lines.Buffer(nil, 16<<20); lines.Scan(); {
		number, rest, _ := strings.Cut(lines.Text(), " ")
		var r faultResult
		if err := json.Unmarshal([]byte(rest), &r); err != nil {
			t.Fatalf("the process printed %q: %v", lines.Text(), err)
		}
		results = append(results, r)
		if r.Struck && r.failed() {
			t.Errorf("run %s (-fault-first %[1]s): %+v", number, r)
		} else if r.Close == "hung" {
			t.Logf("run %s (-fault-first %[1]s): Close has not returned for %v:\n%s", number, closeLimit, r.HungIn)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("a process making %d runs from %d on ended with %v", runs, first, err)
		return results, false
	}
	return results, true
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
