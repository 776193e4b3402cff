package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/perf/benchfmt"

	"go.elara.ws/chaistore/bench/internal/report"
	"go.elara.ws/chaistore/bench/internal/rivals"
)

var binary string // the path of the compiled benchmarks

// TestMain runs the tests in the directory of the module, where users run the command.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "compare")
	if err == nil {
		binary = filepath.Join(dir, "bench.test")
		err = errors.Join(os.Chdir("../.."), build(context.Background(), binary))
	}
	if err != nil {
		panic(err)
	}
	m.Run()
	os.RemoveAll(dir)
}

// TestMeasure runs the command with all benchmarks of all stores, each for a moment,
// and looks at the tables and plots.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	p := plan{
		stores: rivals.All(), repetitions: 1, timeout: 2 * time.Minute,
		benchmarks: "^sessions=(1000|10000)$", benchtime: "1x",
	}
	set(t, &full, p)
	set(t, &resultsDir, dir)
	var stderr strings.Builder
	if err := run(t.Context(), nil, &stderr); err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{rawFile, summaryFile, tablesFile}, report.Plots[:3]...) { // one size shows no growth
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s is missing or empty (%v)", name, err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, rawFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"\nmemory: ", "\nrepetitions: 1, of 1x for each benchmark\n", "\ngoos: ", "\nengines: "} {
		if got := strings.Count(string(raw), line); got != 1 {
			t.Errorf("the raw results have %q %d times, want once", line, got)
		}
	}
	progress := stderr.String()
	for i, store := range p.stores {
		if strings.Contains(progress, store.Name+" is left out") {
			if strings.Contains(progress, rivals.ErrNotInstalled.Error()) {
				continue
			}
			t.Fatal(progress)
		}
		if want := fmt.Sprintf("%2d of %d: %s", i+1, len(p.stores), store.Name); !strings.Contains(progress, want) {
			t.Errorf("the progress does not have %q:\n%s", want, progress)
		}
		workloads := []string{"space", "mixed/goroutines=1", "request/goroutines=64"}
		for _, goroutines := range []int{1, 8} {
			for _, workload := range []string{"find", "warm", "miss", "miss-later"} {
				workloads = append(workloads, fmt.Sprintf("%s/goroutines=%d", workload, goroutines))
			}
		}
		for _, goroutines := range []int{1, 8, 64, 256} {
			workloads = append(workloads, fmt.Sprintf("commit/goroutines=%d", goroutines))
		}
		if store.Sweeps {
			workloads = append(workloads, "sweep")
		}
		for _, workload := range workloads {
			size := 1000
			if workload == "sweep" {
				size = 10_000
			}
			name := fmt.Sprintf("\nBenchmarkStore/store=%s/sessions=%d/bytes=300/workload=%s-", store.Name, size, workload)
			if got := strings.Count(string(raw), name); got != 1 {
				t.Errorf("the raw results have %q %d times, want once", name, got)
			}
		}
	}
}

// TestQuick checks that a quick run leaves the published results alone.
func TestQuick(t *testing.T) {
	set(t, &quick, plan{
		stores: []rivals.Rival{rivals.Chaistore}, repetitions: 1, timeout: time.Minute,
		benchmarks: "^sessions=1000$", benchtime: "1x",
	})
	set(t, &resultsDir, t.TempDir())
	var stderr strings.Builder
	if err := run(t.Context(), []string{"-quick"}, &stderr); err != nil {
		t.Fatal(err)
	}
	_, dir, _ := strings.Cut(strings.TrimSpace(stderr.String()), "the results are in ")
	if _, err := os.Stat(filepath.Join(dir, tablesFile)); dir == "" || err != nil {
		t.Fatalf("there are no tables where the command says (%v):\n%s", err, &stderr)
	}
	os.RemoveAll(dir)
	if files, err := os.ReadDir(resultsDir); len(files) > 0 || err != nil {
		t.Errorf("there are %v (%v) beside the published results", files, err)
	}
}

// set gives a variable another value, until the test ends.
func set[T any](t *testing.T, variable *T, value T) {
	before := *variable
	t.Cleanup(func() { *variable = before })
	*variable = value
}

// TestRepetitions checks that each repetition begins with a different store.
func TestRepetitions(t *testing.T) {
	p := plan{
		stores: []rivals.Rival{rivals.Memstore, rivals.Pebble}, repetitions: 2, timeout: time.Minute,
		benchmarks: "^sessions=1000$/^bytes=300$/^workload=find$/^goroutines=1$", benchtime: "1x",
	}
	path := filepath.Join(t.TempDir(), rawFile)
	if err := p.measure(t.Context(), binary, path, io.Discard); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(raw)) {
		if _, rest, found := strings.Cut(line, "/store="); found {
			store, _, _ := strings.Cut(rest, "/")
			got = append(got, store)
		}
	}
	want := []string{"memstore", "pebble", "pebble", "memstore"}
	if !slices.Equal(got, want) {
		t.Errorf("the results are for %v, want %v", got, want)
	}
}

// TestStoreThatHangs checks that a store that takes too long is left out from then on.
func TestStoreThatHangs(t *testing.T) {
	p := plan{
		stores: []rivals.Rival{rivals.Memstore}, repetitions: 2, timeout: time.Second,
		benchmarks: "^sessions=1000$/^bytes=300$/^workload=find$", benchtime: "1h",
	}
	path := filepath.Join(t.TempDir(), rawFile)
	var stderr strings.Builder
	if err := p.measure(t.Context(), binary, path, &stderr); err != nil {
		t.Fatal(err)
	}
	if want := "memstore is left out from now on (killed after 1s)"; strings.Count(stderr.String(), want) != 1 {
		t.Errorf("the progress does not have %q once:\n%s", want, &stderr)
	}
}

func TestMeasureEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := plan{stores: []rivals.Rival{rivals.Memstore}, repetitions: 1, timeout: time.Minute, benchmarks: "^sessions=1000$", benchtime: "1h"}
	// The progress is written just before the store's process begins.
	err := p.measure(ctx, binary, filepath.Join(t.TempDir(), rawFile), writerFunc(cancel))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want context.Canceled", err)
	}
}

type writerFunc func()

func (f writerFunc) Write(b []byte) (int, error) {
	f()
	return len(b), nil
}

func TestCopyResults(t *testing.T) {
	var raw strings.Builder
	w := benchfmt.NewWriter(&raw)
	for out, want := range map[string]bool{
		"goos: linux\nBenchmarkA\nBenchmarkA \t 1\t 5 ns/op\nPASS\n":  true,
		"BenchmarkB\n--- SKIP: BenchmarkB\n    not installed\nPASS\n": false,
	} {
		if found, err := copyResults(w, []byte(out)); found != want || err != nil {
			t.Errorf("%q: %v, %v, want %v", out, found, err, want)
		}
	}
	if want := "goos: linux\n\nBenchmarkA 1 5 ns/op\n"; raw.String() != want {
		t.Errorf("the results are %q, want %q", &raw, want)
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{{"now"}, {"-fast"}, {"-report", t.TempDir()}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("no error for the arguments %v", args)
		}
	}
}

// TestPublished checks that the published tables and plots match the raw results.
func TestPublished(t *testing.T) {
	dir := t.TempDir()
	raw, err := os.ReadFile(filepath.Join(resultsDir, rawFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, rawFile), raw, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{summaryFile, tablesFile}, report.Plots...) {
		want, err1 := os.ReadFile(filepath.Join(dir, name))
		got, err2 := os.ReadFile(filepath.Join(resultsDir, name))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s does not match %s: run go run ./cmd/compare -report %s", name, rawFile, resultsDir)
		}
	}
}
