package robustness

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

// The history test: an application and a store use a database, the disk fails in some
// way, and what is read is compared with a model: before the failure, after it, and
// after the database was closed and opened again.
//
// A history is a list of operations made from a seed. One of them breaks the disk.
//
//   - history_ops_test.go: the operations
//   - history_tables_test.go: the application's tables and statements
//   - history_model_test.go: what is acknowledged, refused, or not known
//   - history_compare_test.go: what is compared with that
//   - history_reduce_test.go: child processes, and the shortest list that fails
//
// Histories run in child processes, because a database that has failed can't always be
// closed, and Pebble may panic in its own goroutines.

var (
	historyRuns  = flag.Int("history-runs", 0, "how many histories of each kind TestHistory makes; 0 means one of each second kind")
	historyFirst = flag.Uint64("history-first", rand.Uint64N(1e6), "the seed of the first history of each kind")
	historyKind  = flag.String("history-kind", "", "the kinds of histories that TestHistory makes: those with this part in their name")
	historyTime  = flag.Duration("history-reduce", 30*time.Second, "how long TestHistory tries to reduce a history that fails")
)

// historyLong makes some of the application's texts longer than 128 bytes, which Chai's
// own Compare confuses.
const historyLong = true

// A historyFault is a way in which the disk fails.
type historyFault struct {
	op, file string
	errs     []error
	within   int   // the first of a random number of operations, up to this, fails
	times    []int // how many fail
}

var (
	broken  = []error{syscall.EIO}
	full    = []error{syscall.EIO, syscall.ENOSPC}
	tooMany = []error{syscall.EMFILE}
	flipped = []error{nil} // a read that succeeds with a wrong bit

	moments = []int{1, 3}
	always  = []int{1, 3, math.MaxInt}
)

// historyKinds are the kinds of histories. One without a fault is compared all the same.
// Of several faults, one is drawn.
var historyKinds = []struct {
	name   string
	faults []historyFault
	end    string // how the history ends, if not in any way
	crowd  bool   // whether other goroutines use the store
	files  bool   // whether memory tables are often flushed and merged
}{
	{name: "no fault", end: endClose, files: true},
	{name: "power", end: endPower, files: true},
	{name: "log write", faults: []historyFault{{"write", ".log", full, 30, always}}},
	{name: "log sync", faults: []historyFault{{"sync", ".log", broken, 20, always}}},
	{name: "log sync interrupted", faults: []historyFault{{"sync", ".log", []error{syscall.EINTR}, 20, moments}}},
	{name: "log creation", faults: []historyFault{{"create", ".log", full, 3, always}, {"create", ".log", tooMany, 3, moments}}, files: true},
	{name: "log reuse", faults: []historyFault{{"reuse", ".log", full, 2, always}, {"rename", ".log", full, 2, always}}, files: true},
	{name: "rows creation", faults: []historyFault{{"create", ".sst", append(full, tooMany...), 3, always}}, files: true},
	{name: "rows write", faults: []historyFault{{"write", ".sst", full, 10, always}}, files: true},
	{name: "rows sync", faults: []historyFault{{"sync", ".sst", broken, 3, always}}, files: true},
	{name: "rows open", faults: []historyFault{{"open", ".sst", broken, 3, always}, {"open", ".sst", tooMany, 3, moments}}, files: true},
	{name: "rows read", faults: []historyFault{{"read", ".sst", broken, 30, always}}, files: true},
	{name: "bit flip", faults: []historyFault{{"read", ".sst", flipped, 30, always}}, files: true},
	{name: "MANIFEST write", faults: []historyFault{{"write", "MANIFEST", full, 3, always}}, files: true},
	{name: "MANIFEST sync", faults: []historyFault{{"sync", "MANIFEST", broken, 3, always}}, files: true},
	{name: "directory sync", faults: []historyFault{{"sync", "directory", broken, 3, always}}, files: true},
	{name: "removal", faults: []historyFault{{"remove", "", broken, 3, always}}, files: true},
	{name: "full disk", faults: []historyFault{{"write", "", []error{syscall.ENOSPC}, 30, always}}, files: true},
	{name: "few files", faults: []historyFault{{"create", "", tooMany, 3, moments}, {"open", "", tooMany, 3, moments}}, files: true},
	{name: "opening", faults: openingFaults},
	{name: "any", faults: anyFault, files: true},
	{name: "crowd", faults: anyFault, files: true, crowd: true},
	{name: "crowd, log", faults: logFaults, crowd: true},
}

var logFaults = []historyFault{{"write", ".log", full, 300, always}, {"sync", ".log", broken, 100, always}, {"create", ".log", full, 5, always}}

var anyFault = []historyFault{
	{"write", "", full, 30, always}, {"sync", "", broken, 30, always}, {"create", "", full, 3, always}, {"read", "", broken, 30, always},
	{"open", "", broken, 3, always}, {"read", "", flipped, 30, always}, {"remove", "", broken, 3, always}, {"rename", "", broken, 2, always},
}

// Opening a database reads and writes files that are not touched later.
var openingFaults = []historyFault{
	{"write", "", full, 10, always}, {"sync", "", broken, 10, always}, {"create", "", full, 5, always}, {"read", "", broken, 20, always},
	{"open", "", broken, 5, always}, {"remove", "", broken, 3, always}, {"rename", "", broken, 2, always},
}

// How a history ends: what is compared is the disk after Close, when it works again,
// what a loss of power leaves, or what one after Close leaves.
const (
	endClose      = "Close"
	endPower      = "loss of power, Close"
	endClosePower = "Close, loss of power"
)

// A history is what is done, and how.
type history struct {
	kind   int
	seed   uint64
	ops    []op
	owners bool  // whether the store has an Owner
	cache  int64 // its Memory
	end    string
	keep   int // of what was not synced before a loss of power
}

func newHistory(kind int, seed uint64) *history {
	k, g := historyKinds[kind], newGenerator(kind, seed)
	h := &history{
		kind: kind, seed: seed,
		owners: g.IntN(3) == 0,
		cache:  pick(g, []int64{-1, -1, 1 << 20, 64 << 20}),
		end:    cmp.Or(k.end, pick(g, []string{endClose, endClose, endPower, endClosePower})),
		keep:   pick(g, []int{testdb.KeepNothing, testdb.KeepNothing, testdb.KeepParts, testdb.KeepAll}),
	}
	if g.IntN(20) == 0 && !h.owners {
		h.ops = append(h.ops, g.storeInTransaction())
	}
	n := 20 + g.IntN(40)
	at := g.IntN(n * 2 / 3)
	for i := range n {
		if i == at && k.faults != nil {
			h.ops = append(h.ops, g.breakDisk(pick(g, k.faults), k.name == "opening"))
		}
		h.ops = append(h.ops, g.op(k.files))
	}
	if g.IntN(10) == 0 {
		h.ops = append(h.ops, g.neverEnded()...)
	}
	return h
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// A historyResult is what a child process says about a history.
type historyResult struct {
	Seed   uint64
	Struck bool
	Acked  int    // acknowledged operations that change something
	Ops    int    // that were begun
	Class  string // of the failure; "" if there is none
	Text   string
}

// The classes of failures, which are columns of the table.
var historyClasses = []string{"lost", "refused seen", "stale", "index", "error", "hang", "crash", "unopenable", "goroutines"}

// A historyRun is a history while it runs.
type historyRun struct {
	*history
	limit  time.Duration // of each call
	dir    string
	disk   *testdb.FaultDisk
	fault  *atomic.Pointer[testdb.Fault] // nil until the disk is broken
	db     *chai.DB                      // nil if it could not be opened
	store  *chaistore.ChaiStore
	model  *model
	crowd  *crowd          // nil if there is none, or it can't be judged
	before map[string]bool // the goroutines there were
	result historyResult

	forced  *atomic.Int32 // calls of force that have not returned
	cursors []cursor
	open    *chai.Tx // one that is never ended; no write may follow
	late    bool     // end it when Close waits for it
}

// A failedHistory is the panic that ends a run.
type failedHistory struct{ class, text string }

func (r *historyRun) fail(class, format string, args ...any) {
	panic(failedHistory{class, fmt.Sprintf(format, args...)})
}

// run runs the history, and sets its result.
func (r *historyRun) run() {
	defer r.disk.Stop()
	defer func() {
		r.result.Struck = r.result.Struck || r.hasStruck()
		switch v := recover().(type) {
		case nil:
		case failedHistory:
			r.result.Class, r.result.Text = v.class, v.text
		default:
			panic(v)
		}
	}()
	r.openOn(r.disk)
	for _, table := range permanentTables {
		for _, sql := range table.create {
			must(r.db.Exec(sql))
		}
	}
	if historyKinds[r.kind].crowd {
		var books []book
		for range []int{1, 8, 32}[r.seed%3] {
			books = append(books, newBook())
		}
		r.crowd = startCrowd(r, books)
	}
	for _, o := range r.ops {
		r.result.Ops++
		o.do(r)
		if r.db == nil {
			break
		}
	}
	r.finish()
}

// openOn opens the database and makes the store.
func (r *historyRun) openOn(fs vfs.FS) {
	db, err := openChai(r.dir, fs)
	must(err)
	s, err := r.newStore(db)
	must(err)
	r.db, r.store = db, s
}

func openChai(dir string, fs vfs.FS) (*chai.DB, error) {
	former := vfs.Default
	vfs.Default = engine.OnDisk(fs)
	defer func() { vfs.Default = former }()
	return chai.Open(dir)
}

func (r *historyRun) newStore(db *chai.DB) (*chaistore.ChaiStore, error) {
	config := chaistore.Config{CreateTable: true, CleanupInterval: -1, Memory: r.cache, Logger: slog.New(slog.DiscardHandler)}
	if r.owners {
		config.Owner = ownerOfData
	}
	return chaistore.NewWithConfig(db, config)
}

// struck reports whether the disk has failed in a way that somebody may notice.
func (r *historyRun) struck() bool { return r.hasStruck() && r.fault.Load().Err != syscall.EINTR }

func (r *historyRun) hasStruck() bool {
	f := r.fault.Load()
	return f != nil && f.HasStruck()
}

// readOnly reports whether the store says that writing has ended for good.
func (r *historyRun) readOnly() bool {
	stats := r.store.Stats()
	return stats.WriteError != "" && stats.BusySince.IsZero()
}

// mayNotRead reports whether a find may return an error.
func (r *historyRun) mayNotRead() bool {
	return r.struck() && slices.Contains([]string{"read", "open"}, r.fault.Load().Op)
}

// A panicked is what a call has panicked with.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }
func (p panicked) Unwrap() error { err, _ := p.value.(error); return err }

// call calls f, and ends the history if it does not return.
func (r *historyRun) call(what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- recovered(f) }()
	timer := time.NewTimer(r.limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		r.fail("hang", "%s has not returned for %v\n%s", what, r.limit, stacksOf("robustness.recovered")+stacksOf("pebble.(*DB)"))
		return nil
	}
}

func recovered(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked{v}
		}
	}()
	return f()
}

// finish ends what is open, closes the database, opens what is on the disk, and compares.
func (r *historyRun) finish() {
	var cut vfs.FS
	if r.db != nil && r.end == endPower {
		cut = r.crowd.cut(r)
	}
	r.crowd.stop()
	for len(r.cursors) > 0 {
		r.endCursor()
	}
	switch {
	case r.db == nil: // it could not be opened
		r.compareOn(r.disk.Cut(testdb.KeepAll))
	case r.end == endPower:
		r.close()
		r.compareOn(cut)
	case r.end == endClose:
		r.close()
		r.disk.Mend()
		r.compareOn(r.disk)
	default:
		r.close()
		r.compareOn(r.disk.Cut(r.keep))
	}
}

// close closes the database. No goroutine is left then.
func (r *historyRun) close() {
	closed := func() error { return r.db.Close() }
	if tx := r.open; tx != nil {
		ended := make(chan error, 1)
		end := func() { ended <- recovered(tx.Rollback) }
		if r.late {
			time.AfterFunc(time.Millisecond, end)
		} else {
			end()
		}
		closed = func() error { return cmp.Or(r.db.Close(), <-ended) }
	}
	err := r.call("Close", closed)
	if err != nil && (!r.struck() || errors.As(err, new(panicked))) {
		r.fail("error", "Close: %v", err)
	}
	if r.forced.Load() == 0 { // Pebble begins a new log for one that waits, though it is closed
		r.noGoroutines()
	}
}

// noGoroutines fails unless all goroutines of the database end soon. Pebble keeps one for
// iterators that failed statements of the application have left open.
func (r *historyRun) noGoroutines() {
	var left []string
	for wait := 50 * time.Microsecond; wait < r.limit/2; wait *= 2 {
		left = slices.DeleteFunc(r.goroutines(), func(stack string) bool {
			return strings.Contains(stack, "(*tableCacheShard).releaseLoop")
		})
		if len(left) == 0 {
			return
		}
		time.Sleep(wait)
	}
	r.fail("goroutines", "%d goroutines are left after Close:\n%s", len(left), strings.Join(left, "\n\n"))
}

// goroutines returns the stacks of the goroutines of the database that were not there before
// the history. Those that forced flushes and merges wait without end after a failure.
func (r *historyRun) goroutines() (found []string) {
	for id, stack := range goroutineStacks() {
		if !r.before[id] && (strings.Contains(stack, "pebble") || strings.Contains(stack, "chai")) &&
			!strings.Contains(stack, "(*historyRun)") && !strings.Contains(stack, "testing.") {
			found = append(found, stack)
		}
	}
	return found
}

// goroutineStacks returns the stacks of all goroutines.
func goroutineStacks() map[string]string {
	all := make([]byte, 64<<10)
	n := runtime.Stack(all, true)
	for n == len(all) {
		all = make([]byte, 2*n)
		n = runtime.Stack(all, true)
	}
	stacks := make(map[string]string)
	for stack := range strings.SplitSeq(string(all[:n]), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		stacks[id] = stack
	}
	return stacks
}

// stacksOf returns the stacks that have a call.
func stacksOf(call string) (found string) {
	for _, stack := range goroutineStacks() {
		if strings.Contains(stack, call) {
			found += stack + "\n\n"
		}
	}
	return found
}

// A historyTask is what a child process has to do.
type historyTask struct {
	Kind  int
	First uint64
	Runs  int
	Keep  []int // if not nil, the operations that are not left out
	Limit time.Duration
}

// historyChild makes histories, and prints the result of each. It ends after one that
// may leave goroutines.
func historyChild(dir, text string) {
	var task historyTask
	must(json.Unmarshal([]byte(text), &task))
	debug.SetGCPercent(400) // each history makes much garbage
	debug.SetMemoryLimit(1 << 30)
	for seed := task.First; seed < task.First+uint64(task.Runs); seed++ {
		h := newHistory(task.Kind, seed)
		if task.Keep != nil {
			var kept []op
			for _, i := range task.Keep {
				kept = append(kept, h.ops[i])
			}
			h.ops = kept
		}
		r := &historyRun{
			forced:  new(atomic.Int32),
			history: h, limit: task.Limit, dir: filepath.Join(dir, fmt.Sprint(seed)),
			model: newModel(), fault: new(atomic.Pointer[testdb.Fault]),
		}
		r.disk = testdb.NewFaultDisk(filepath.Join(r.dir, "pebble"))
		r.result.Seed = seed
		r.before = make(map[string]bool)
		for id := range goroutineStacks() {
			r.before[id] = true
		}
		r.run()
		line, err := json.Marshal(r.result)
		must(err)
		fmt.Println(string(line))
		if r.result.Class != "" || r.db == nil {
			break
		}
	}
	os.Exit(0)
}

// Whatever an application and a store do, and however the disk fails: what was
// acknowledged is there, what was refused is not, and no call hangs.
func TestHistory(t *testing.T) {
	testdb.WithoutRace(t)
	table := make([]string, len(historyKinds))
	t.Cleanup(func() {
		t.Logf("%-21s %9s %6s %8s  %s\n%s", "kind", "histories", "struck", "acked", strings.Join(historyClasses, "  "),
			strings.Join(slices.DeleteFunc(table, func(line string) bool { return line == "" }), "\n"))
	})
	for kind, k := range historyKinds {
		if !strings.Contains(k.name, *historyKind) || *historyRuns == 0 && *historyKind == "" && (uint64(kind)+*historyFirst)%2 == 1 {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			results := makeHistories(t, historyTask{Kind: kind, First: *historyFirst, Runs: max(*historyRuns, 1), Limit: historyLimit})
			var failed map[string][]historyResult
			table[kind], failed = historyLine(k.name, results)
			for class, results := range failed {
				var seeds []uint64
				for _, r := range results {
					seeds = append(seeds, r.Seed)
				}
				slices.Sort(seeds)
				t.Errorf("%d histories failed: %s (-history-kind %q -history-first one of %v)\n%s",
					len(results), class, k.name, seeds[:min(len(seeds), 20)], reduced(t, kind, results[0]))
			}
		})
	}
}

// historyLine returns the line of the table for a kind, and the histories that failed by
// class.
func historyLine(kind string, results []historyResult) (line string, failed map[string][]historyResult) {
	failed = make(map[string][]historyResult)
	struck, acked := 0, 0
	for _, r := range results {
		if r.Struck {
			struck++
		}
		acked += r.Acked
		if r.Class != "" {
			failed[r.Class] = append(failed[r.Class], r)
		}
	}
	line = fmt.Sprintf("%-21s %9d %6d %8d", kind, len(results), struck, acked)
	for _, class := range historyClasses {
		line += fmt.Sprintf("  %*d", len(class), len(failed[class]))
	}
	return line, failed
}

// historyLimit is how long a call may take. All return at once, but the machine may be
// busy.
const historyLimit = 5 * time.Second

// In the data of a session, its owner comes first.
func ownerOfData(data []byte) (string, error) {
	owner, _, _ := strings.Cut(string(data[:min(len(data), 20)]), "|")
	return owner, nil
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

var background = context.Background()
