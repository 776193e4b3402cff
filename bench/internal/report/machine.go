package report

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"
	"golang.org/x/perf/benchfmt"
)

// Line returns a line of configuration of a file of results.
func Line(key, value string) benchfmt.Config {
	return benchfmt.Config{Key: key, Value: []byte(value), File: true}
}

// Machine describes this machine, with the file system that dir is on, the
// version of Go and those of the modules, as lines of configuration.
func Machine(dir string, modules []string) ([]benchfmt.Config, error) {
	processors, err := cpu.Info()
	if err != nil || len(processors) == 0 {
		return nil, fmt.Errorf("find out the CPU: %w", err)
	}
	memory, err := mem.VirtualMemory()
	if err != nil {
		return nil, fmt.Errorf("find out the memory: %w", err)
	}
	kernel, err := host.KernelVersion()
	if err != nil {
		return nil, fmt.Errorf("find out the operating system: %w", err)
	}
	fileSystem, err := fileSystem(dir)
	if err != nil {
		return nil, fmt.Errorf("find out the file system: %w", err)
	}
	return []benchfmt.Config{
		Line("goos", runtime.GOOS),
		Line("goarch", runtime.GOARCH),
		Line("pkg", "go.elara.ws/chaistore/bench"),
		Line("cpu", processors[0].ModelName),
		Line("cores", fmt.Sprint(runtime.NumCPU())),
		Line("memory", fmt.Sprintf("%d GiB", (memory.Total+1<<29)>>30)),
		Line("kernel", kernel),
		Line("disk", fileSystem),
		Line("go", strings.TrimPrefix(runtime.Version(), "go")),
		Line("modules", strings.Join(versions(modules), ", ")),
		Line("date", time.Now().UTC().Format(time.DateOnly)),
	}, nil
}

// fileSystem returns the type and the device of the file system that dir is on.
func fileSystem(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", err
	}
	mounts, err := disk.PartitionsWithContext(context.Background(), true)
	if err != nil {
		return "", err
	}
	var found disk.PartitionStat
	for _, mount := range mounts {
		below, err := filepath.Rel(mount.Mountpoint, dir)
		if err != nil || below == ".." || strings.HasPrefix(below, "../") {
			continue
		}
		// Of two on the same directory, the later one hides the other.
		if len(mount.Mountpoint) >= len(found.Mountpoint) {
			found = mount
		}
	}
	if found.Fstype == "" {
		return "unknown", nil
	}
	return fmt.Sprintf("%s on %s", found.Fstype, found.Device), nil
}

// versions returns the modules with the versions that the program was built with.
func versions(modules []string) []string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	var all []string
	for _, module := range info.Deps {
		if !slices.Contains(modules, module.Path) {
			continue
		}
		version := module.Version
		if module.Replace != nil {
			version = "of this repository"
		}
		all = append(all, module.Path+" "+version)
	}
	return all
}
