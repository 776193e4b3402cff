package report

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"
)

// Machine returns configuration lines for a file of results. They describe what package
// testing does not: the machine, the file system of dir, and the versions of Go and of
// the modules.
func Machine(dir string) (string, error) {
	memory, err := mem.VirtualMemory()
	if err != nil {
		return "", fmt.Errorf("find out the memory: %w", err)
	}
	kernel, err := host.KernelVersion()
	if err != nil {
		return "", fmt.Errorf("find out the operating system: %w", err)
	}
	disk, err := exec.Command("df", "--output=fstype,source", dir).Output()
	if err != nil {
		return "", fmt.Errorf("find out the file system: %w", err)
	}
	words := strings.Fields(string(disk)) // two words of heading, then the values
	modules, err := exec.Command("go", "list", "-m", "-f",
		"{{if not (or .Main .Indirect)}}{{.Path}} {{if .Replace}}of this repository{{else}}{{.Version}}{{end}}{{end}}", "all").Output()
	if err != nil {
		return "", fmt.Errorf("find out the versions of the modules: %w", err)
	}
	return fmt.Sprintf("cores: %d\nmemory: %d GiB\nkernel: %s\ndisk: %s on %s\ngo: %s\nmodules: %s\ndate: %s\n",
		runtime.NumCPU(), (memory.Total+1<<29)>>30, kernel, words[2], words[3],
		strings.TrimPrefix(runtime.Version(), "go"),
		strings.ReplaceAll(strings.TrimSpace(string(modules)), "\n", ", "),
		time.Now().UTC().Format(time.DateOnly)), nil
}
