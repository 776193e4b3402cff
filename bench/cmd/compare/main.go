// Compare runs the benchmarks of chaistore and of other session stores, and makes
// tables and plots from the results.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/perf/benchfmt"

	"go.elara.ws/chaistore/bench/internal/report"
	"go.elara.ws/chaistore/bench/internal/rivals"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// The published results, and the file that shows them.
var resultsDir = "results"

const readme = "README.md"

// The default measurement, and the one with -quick.
var (
	full = plan{
		stores: stores(), repetitions: 5, timeout: 5 * time.Minute,
		benchmarks: "^sessions=(1000|20000|500000|200000)$", benchtime: "250ms",
	}
	quick = plan{
		stores: stores(), repetitions: 2, timeout: time.Minute,
		benchmarks: "^sessions=(1000|20000|10000)$/^bytes=300$", benchtime: "25ms",
	}
)

// The names of the files in a directory of results.
const (
	rawFile     = "raw.txt"
	summaryFile = "summary.md"
	tablesFile  = "tables.md"
)

// stores returns the stores in the order of the tables.
func stores() []rivals.Rival {
	return slices.Insert(rivals.All(), 1, rivals.Variants()...)
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.SetOutput(stderr)
	less := flags.Bool("quick", false, "measure less, and leave the published results alone")
	from := flags.String("report", "", "measure nothing: make tables and plots from raw.txt in this `directory`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *from != "" {
		return writeReport(*from)
	}
	dir, err := os.MkdirTemp("", "chaistore-bench-")
	if err != nil {
		return err
	}
	p := full
	if *less {
		p = quick
	}
	binary := filepath.Join(dir, "bench.test")
	if err := build(ctx, binary); err != nil {
		return err
	}
	defer os.Remove(binary)
	if err := p.measure(ctx, binary, filepath.Join(dir, rawFile), stderr); err != nil {
		return fmt.Errorf("%w (what was measured is in %s)", err, dir)
	}
	if !*less {
		raw, err := os.ReadFile(filepath.Join(dir, rawFile))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(resultsDir, rawFile), raw, 0o666); err != nil {
			return err
		}
		os.RemoveAll(dir)
		dir = resultsDir
	}
	if err := writeReport(dir); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "the results are in %s\n", dir)
	return nil
}

// A plan says what is measured.
type plan struct {
	stores      []rivals.Rival
	repetitions int
	benchmarks  string        // a pattern for the rest of the name, after the store
	benchtime   string        // of each benchmark
	timeout     time.Duration // of one run of a store's benchmarks
}

// build builds the benchmarks.
func build(ctx context.Context, binary string) error {
	out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "go.elara.ws/chaistore/bench").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the benchmarks: %w\n%s", err, out)
	}
	return nil
}

// measure writes raw results to a file. In each repetition, each store has a process
// of its own. Each repetition begins with another store, so that none has the same
// position every time.
func (p plan) measure(ctx context.Context, binary, path string, stderr io.Writer) error {
	// If a process is killed, its files are removed with this directory. PostgreSQL's
	// user must be able to reach its own files in it.
	tmp, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	header, err := p.header(tmp)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteString(header); err != nil {
		return err
	}
	raw := benchfmt.NewWriter(file)
	left := make(map[string]bool) // stores that are left out from now on
	began, total := time.Now(), p.repetitions*len(p.stores)
	for n := range total {
		repetition := n / len(p.stores)
		store := p.stores[(n+repetition)%len(p.stores)].Name
		if left[store] {
			continue
		}
		progress := fmt.Sprintf("%2d of %d: %s", n+1, total, store)
		if n > 0 {
			remaining := time.Since(began) * time.Duration(total-n) / time.Duration(n)
			progress += fmt.Sprintf(" (about %v left)", remaining.Round(time.Second))
		}
		fmt.Fprintln(stderr, progress)
		out, err := p.runStore(ctx, binary, tmp, store)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		found, copyErr := copyResults(raw, out)
		if copyErr != nil {
			return copyErr
		}
		if err == nil && !found {
			err = errors.New("without results")
		}
		if err != nil {
			left[store] = true
			fmt.Fprintf(stderr, "%s is left out from now on (%v):\n%s", store, err, expected.ReplaceAll(out, nil))
		}
	}
	return file.Close()
}

// header returns the head of the raw results: the units for which higher is better, and
// the conditions of the measurement.
func (p plan) header(dir string) (string, error) {
	machine, err := report.Machine(dir)
	if err != nil {
		return "", err
	}
	header := "Unit commits/s better=higher\nUnit finds/s better=higher\nUnit requests/s better=higher\n\n" + machine +
		fmt.Sprintf("repetitions: %d, of %s for each benchmark\n", p.repetitions, p.benchtime)
	var engines []string
	for _, store := range p.stores {
		if store.Engine == nil {
			continue
		}
		if engine, err := store.Engine(); err == nil { // otherwise it is not installed
			engines = append(engines, engine)
		}
	}
	return header + fmt.Sprintf("engines: %s\n", strings.Join(engines, ", ")), nil
}

// runStore runs a store's benchmarks once, and returns their output.
func (p plan) runStore(ctx context.Context, binary, tmp, store string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.run=^$", "-test.benchtime="+p.benchtime,
		"-test.bench=^BenchmarkStore$/^store="+regexp.QuoteMeta(store)+"$/"+p.benchmarks)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("killed after %v", p.timeout)
	}
	return out, err
}

// copyResults copies the results from the output of benchmarks, and reports whether
// there are any.
func copyResults(raw *benchfmt.Writer, out []byte) (found bool, err error) {
	reader := benchfmt.NewReader(bytes.NewReader(out), "results")
	for reader.Scan() {
		if result, ok := reader.Result().(*benchfmt.Result); ok {
			found = true
			if err := raw.Write(result); err != nil {
				return true, err
			}
		}
	}
	return found, reader.Err()
}

// expected matches the lines that benchmarks without a problem print.
var expected = regexp.MustCompile(`(?m)^(Benchmark|goos:|goarch:|pkg:|cpu:|PASS|FAIL).*\n`)

// writeReport makes tables and plots from the raw results in a directory. It also
// updates the README, which shows the published results.
func writeReport(dir string) error {
	file, err := os.Open(filepath.Join(dir, rawFile))
	if err != nil {
		return err
	}
	defer file.Close()
	results, err := report.Read(file)
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	variants := rivals.Variants()
	var rows []report.Store
	for _, rival := range stores() {
		row := report.Store{Name: rival.Name, Settings: rival.Settings, Dashed: rival.Kind != rivals.Durable}
		row.Plotted = !slices.ContainsFunc(variants, func(v rivals.Rival) bool { return v.Name == rival.Name })
		switch rival.Kind {
		case rivals.Volatile:
			row.Remark = "not durable"
		case rivals.Yardstick:
			row.Remark = "yardstick"
		}
		rows = append(rows, row)
	}
	for name, text := range map[string]string{summaryFile: results.Summary(rows), tablesFile: results.Tables(rows)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			return err
		}
	}
	if err := results.WritePlots(dir, rows); err != nil {
		return err
	}
	return report.Include(readme)
}
