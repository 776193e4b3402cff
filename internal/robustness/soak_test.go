package robustness

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

var soak = flag.Duration("soak", 0, "how long TestSoak runs")

// A sample is the resource use of the process and its database at one moment.
type sample struct {
	operations int64
	heap       int64 // reachable bytes
	goroutines int
	files      int   // open files, where /proc/self/fd exists
	disk       int64 // bytes in the database's directory
}

func takeSample(dir string, operations int64) sample {
	s := sample{operations: operations, heap: testdb.HeapInUse(), goroutines: runtime.NumGoroutine()}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.files = len(open)
	}
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil {
				s.disk += info.Size()
			}
		}
		return nil // files come and go
	})
	return s
}

// TestSoak runs a mixed load at full speed on a store. It fails if the resource use
// grows from the second quarter of the time to the last.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("runs with -soak 10m, or another duration")
	}
	const samples, sessions = 40, 20_000
	dir := t.TempDir()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var log testdb.Log
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CleanupInterval: time.Second, CreateTable: true, Logger: log.Logger(slog.LevelError),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.StopCleanup()

	ctx, cancel := context.WithCancel(t.Context())
	var operations atomic.Int64
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for ctx.Err() == nil {
				token := fmt.Sprintf("%043d", rng.IntN(sessions))
				var err error
				switch n := rng.IntN(1000); {
				case n < 500:
					_, _, err = s.Find(token)
				case n < 900:
					err = s.Commit(token, make([]byte, 100+rng.IntN(400)), inAnHour())
				case n < 950:
					err = s.Commit(token, nil, time.Now().Add(time.Duration(rng.IntN(2000))*time.Millisecond))
				case n < 999:
					err = s.Delete(token)
				default:
					n := 0
					for _, err = range s.Sessions(ctx) {
						if n++; err != nil || n == 2000 {
							break
						}
					}
					if ctx.Err() != nil {
						err = nil
					}
				}
				if err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				operations.Add(1)
			}
		})
	}
	table := new(strings.Builder)
	fmt.Fprintf(table, "%12s %12s %12s %10s %6s %12s\n", "time", "operations", "heap", "goroutines", "files", "disk")
	var taken []sample
	for i := range samples {
		time.Sleep(*soak / samples)
		now := takeSample(dir, operations.Load())
		taken = append(taken, now)
		fmt.Fprintf(table, "%12v %12d %12d %10d %6d %12d\n", (*soak / samples * time.Duration(i+1)).Round(time.Millisecond),
			now.operations, now.heap, now.goroutines, now.files, now.disk)
	}
	cancel()
	wg.Wait()
	t.Logf("%d operations\n%s", operations.Load(), table)
	if log.String() != "" {
		t.Errorf("errors were logged:\n%s", &log)
	}

	second, last := taken[samples/4:samples/2], taken[samples*3/4:]
	for name, use := range map[string]struct {
		of    func(sample) int64
		slack int64
	}{
		"heap":       {func(s sample) int64 { return s.heap }, 3 << 20},
		"goroutines": {func(s sample) int64 { return int64(s.goroutines) }, 3},
		"files":      {func(s sample) int64 { return int64(s.files) }, 10},
		"disk":       {func(s sample) int64 { return s.disk }, 64 << 20},
	} {
		if before, after := median(second, use.of), median(last, use.of); after > before+use.slack {
			t.Errorf("%s: %d in the second quarter, %d in the last", name, before, after)
		}
	}
}

func median(samples []sample, of func(sample) int64) int64 {
	values := make([]int64, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
