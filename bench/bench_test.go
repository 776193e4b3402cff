// Package bench_test measures session stores. The name of a benchmark says what it
// measures:
//
//	BenchmarkStore/store=boltstore/sessions=20000/bytes=300/workload=commit/goroutines=8
package bench_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.elara.ws/chaistore/bench/internal/rivals"
)

// A size is the number of sessions, and the number of bytes in each.
type size struct{ sessions, bytes int }

func (s size) String() string { return fmt.Sprintf("sessions=%d/bytes=%d", s.sessions, s.bytes) }

var (
	usual      = size{20_000, 300}
	sizes      = []size{{1_000, 300}, usual, {500_000, 300}, {20_000, 4096}}
	sweepSizes = []size{{10_000, 300}, {200_000, 300}}
)

func BenchmarkStore(b *testing.B) {
	benchmarkRivals(b, rivals.All(), sizes)
	benchmarkRivals(b, rivals.Variants(), []size{usual})
}

func benchmarkRivals(b *testing.B, rivals []rivals.Rival, sizes []size) {
	for _, rival := range rivals {
		b.Run("store="+rival.Name, func(b *testing.B) {
			for _, size := range sizes {
				b.Run(size.String(), func(b *testing.B) { benchmarkWorkloads(b, rival, size) })
			}
			if rival.Sweeps {
				for _, size := range sweepSizes {
					b.Run(size.String()+"/workload=sweep", func(b *testing.B) { benchmarkSweep(b, rival, size) })
				}
			}
		})
	}
}

// benchmarkWorkloads runs all workloads except the sweep on one database.
func benchmarkWorkloads(b *testing.B, rival rivals.Rival, size size) {
	s := load(b, rival, size, false)
	heap := max(heapInUse()-s.heapBefore, 0)
	disk, err := diskUsage(s.dir)
	if err != nil {
		b.Fatal(err)
	}
	// Space was measured before any other workload ran.
	b.Run("workload=space", func(b *testing.B) {
		b.ReportMetric(disk, "disk-bytes")
		b.ReportMetric(heap, "heap-bytes")
		b.ReportMetric(0, "ns/op")
	})
	run := func(workload string, goroutines int, unit string, op operation) {
		b.Run(fmt.Sprintf("workload=%s/goroutines=%d", workload, goroutines), func(b *testing.B) {
			drive(b, goroutines, unit, op)
		})
	}
	for _, goroutines := range []int{1, 8} {
		run("find", goroutines, "finds/s", s.find)
		run("warm", goroutines, "finds/s", s.findWarm)
		run("miss", goroutines, "finds/s", s.miss)
	}
	b.Run("workload=mixed/goroutines=1", func(b *testing.B) {
		stop := beside(8, s.renew)
		drive(b, 1, "finds/s", s.find)
		if _, err := stop(); err != nil {
			b.Errorf("a commit during the finds failed: %v", err)
		}
	})
	for _, goroutines := range []int{1, 8, 64, 256} {
		run("commit", goroutines, "commits/s", s.renew)
	}
	run("request", 64, "requests/s", s.requests(b, 64))

	// What an engine knows of its keys right after loading, it may not know later: after
	// two seconds of commits, and a sweep.
	stop := beside(8, s.renew)
	time.Sleep(2 * time.Second)
	if _, err := stop(); err != nil {
		b.Fatal(err)
	}
	if rival.Sweeps {
		if err := s.store.Sweep(); err != nil {
			b.Fatal(err)
		}
	}
	for _, goroutines := range []int{1, 8} {
		run("miss-later", goroutines, "finds/s", s.miss)
	}
}

// benchmarkSweep deletes the expired half of the sessions while 4 goroutines renew
// others, and reports how long the slowest renewal took. Its timer includes the
// preparation, so that b.N is 1 even if a sweep takes less than -benchtime.
func benchmarkSweep(b *testing.B, rival rivals.Rival, size size) {
	var worst, sweeps time.Duration
	for range b.N {
		s := load(b, rival, size, true)
		stop := beside(4, s.renewActive)
		time.Sleep(50 * time.Millisecond)
		stop()
		stop = beside(4, s.renewActive)
		before := time.Now()
		if err := s.store.Sweep(); err != nil {
			b.Fatal(err)
		}
		sweeps += time.Since(before)
		slowest, err := stop()
		if err != nil {
			b.Fatalf("a commit during the sweep failed: %v", err)
		}
		worst = max(worst, slowest)
	}
	b.ReportMetric(float64(sweeps)/float64(b.N), "ns/op")
	b.ReportMetric(float64(worst), "worst-commit-ns")
}

// load opens a rival in an empty directory and loads it with sessions. If halfExpired
// is set, every second session has expired.
func load(b *testing.B, rival rivals.Rival, size size, halfExpired bool) *sessions {
	b.Helper()
	s, err := newSessions(size)
	if err != nil {
		b.Fatal(err)
	}
	s.dir, s.heapBefore = b.TempDir(), heapInUse()
	s.store, err = rival.Open(s.dir)
	if errors.Is(err, rivals.ErrNotInstalled) {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.store.Close(); err != nil {
			b.Errorf("close: %v", err)
		}
	})
	if err := s.store.Load(s.all(halfExpired)); err != nil {
		b.Fatalf("load: %v", err)
	}
	// Engines tidy up in the background after such a load. Allow 2 seconds for 500,000
	// small sessions.
	time.Sleep(time.Duration(size.sessions*(size.bytes+100)) * 10 * time.Nanosecond)
	return s
}

// heapInUse returns the size of the live heap.
func heapInUse() float64 {
	// A finalizer or a cleanup may free memory that only a later collection finds.
	for before := math.Inf(1); ; {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		now := float64(stats.HeapAlloc)
		if now >= 0.99*before {
			return now
		}
		before = now
	}
}

// diskUsage returns the disk space of all files below dir. It ignores files that vanish
// meanwhile.
func diskUsage(dir string) (total float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				// A block is 512 bytes on every file system. A file may be longer than its
				// blocks, like Badger's value log.
				total += float64(info.Sys().(*syscall.Stat_t).Blocks * 512)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return total, err
}
