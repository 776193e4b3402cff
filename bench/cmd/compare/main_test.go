package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.elara.ws/chaistore/bench/internal/measure"
	"go.elara.ws/chaistore/bench/internal/report"
)

// small are arguments with which a run takes a moment.
func small(dir string, more ...string) []string {
	return append([]string{
		"-output", dir, "-readme", readme(dir), "-stores", "chaistore,memstore", "-sizes", "100x300,200x300",
		"-sweep-size", "100x300", "-duration", "2ms", "-repetitions", "2",
	}, more...)
}

// readme returns the path of a file that shows the summary.
func readme(dir string) string {
	return filepath.Join(dir, "..", "README.md")
}

func TestRunWritesAllFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	const shows = "<!-- include results/summary.md -->\n<!-- end -->\n"
	if err := os.WriteFile(readme(dir), []byte(shows), 0o666); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	if err := run(t.Context(), small(dir), &stderr); err != nil {
		t.Fatal(err)
	}
	if stderr.Len() > 0 {
		t.Errorf("on standard error, which is no terminal: %s", &stderr)
	}
	for _, name := range append([]string{rawFile, summaryFile, tablesFile}, report.Plots...) {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		} else if info.Size() == 0 {
			t.Errorf("%s is empty", name)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, rawFile))
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]int{
		"\ncommand: go run ./cmd/compare -output ": 1,
		"\ngo: ":   1,
		"\ndisk: ": 1,
		"\nBenchmarkCommit/goroutines=8/sessions=100/bytes=300/store=chaistore-": 2,
	} {
		if got := strings.Count(string(raw), line); got != want {
			t.Errorf("the raw results have %q %d times, want %d", line, got, want)
		}
	}

	text, err := os.ReadFile(readme(dir))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\n| **chaistore** | ") {
		t.Errorf("the README does not show the summary:\n%s", text)
	}

	// The report can be made anew of the raw results.
	tables := filepath.Join(dir, tablesFile)
	before, err := os.ReadFile(tables)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(tables); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-report", "-output", dir, "-readme", readme(dir)}, io.Discard); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(tables)
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(before) {
		t.Errorf("the tables made anew are\n%s\nwant\n%s", after, before)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := run(ctx, small(t.TempDir()), io.Discard)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want that of the context", err)
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{
		{"-stores", "redis"},
		{"-workloads", "nap"},
		{"-sizes", "many"},
		{"-sizes", "100x300x2"},
		{"-sizes", "0x300"},
		{"-sweep-size", "1"},
		{"-repetitions", "0"},
		{"now"},
	} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("no error of %v", args)
		}
	}
	o, err := parse([]string{"-quick", "-sizes", "5x300,6x4096", "-workloads", "find,space"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := []measure.Size{{Sessions: 5, Bytes: 300}, {Sessions: 6, Bytes: 4096}}
	if len(o.plan.Sizes) != 2 || o.plan.Sizes[0] != want[0] || o.plan.Sizes[1] != want[1] {
		t.Errorf("the sizes are %v, want %v", o.plan.Sizes, want)
	}
	if got := strings.Join(o.plan.Families, " "); got != "find space" {
		t.Errorf("the workloads are %s", got)
	}
}

func TestTimeLeft(t *testing.T) {
	p := &progress{began: time.Now().Add(-time.Minute)}
	for done, want := range map[float64]string{0: "?", 0.25: "3m0s", 0.5: "1m0s", 1: "0s"} {
		if got := p.left(done); got != want {
			t.Errorf("%s left when %v is done, want %s", got, done, want)
		}
	}
}
