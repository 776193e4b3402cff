package measure

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/perf/benchfmt"
)

// space returns how much the sessions take: the blocks of all files of the store,
// and what Go's heap has grown by. Memory that C allocates, and that of a server,
// is not in it.
func space(l *loaded, _ time.Duration) (Result, error) {
	disk, err := diskUsage(l.dir)
	if err != nil {
		return Result{}, fmt.Errorf("measure space on disk: %w", err)
	}
	heap := int64(heapInUse()) - int64(l.heap)
	runtime.KeepAlive(l)
	return Result{Ops: 1, Values: []benchfmt.Value{
		{Value: float64(disk), Unit: "disk-bytes"},
		{Value: float64(max(heap, 0)), Unit: "heap-bytes"},
	}}, nil
}

// diskUsage returns the size of the blocks of all files below dir. Files that
// vanish meanwhile don't count.
func diskUsage(dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		// A block is of 512 bytes here, whatever the file system's are. Files may be
		// longer than what they take: Badger's log of values is.
		total += info.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
	return total, err
}
