// Compare measures chaistore beside other session stores, and writes raw results
// in the Go benchmark format, tables, and plots.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/perf/benchfmt"

	"go.elara.ws/chaistore/bench/internal/measure"
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

// The names of the files in the directory of the results.
const (
	rawFile     = "raw.txt"
	summaryFile = "summary.md"
	tablesFile  = "tables.md"
)

type options struct {
	dir        string
	readme     string
	reportOnly bool
	plan       measure.Plan
}

func parse(args []string, stderr io.Writer) (*options, error) {
	var o options
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.dir, "output", "results", "`directory` of the results")
	flags.StringVar(&o.readme, "readme", "../README.md", "`file` that shows the summary")
	flags.BoolVar(&o.reportOnly, "report", false, "measure nothing: make the tables and plots of the raw results that there are")
	quick := flags.Bool("quick", false, "measure fewer sizes, and each for a shorter time")
	stores := flags.String("stores", "", "`names` of the stores, separated by commas: "+strings.Join(names(), ", ")+" (default all)")
	families := flags.String("workloads", "", "`names` of the workloads, separated by commas: "+strings.Join(measure.Families(), ", ")+" (default all)")
	sizes := flags.String("sizes", "", "numbers of sessions and their bytes, like 20000x300,20000x4096")
	sweepSize := flags.String("sweep-size", "", "number and bytes of the sessions of which a sweep deletes half, like 200000x300")
	duration := flags.Duration("duration", 0, "how long each workload runs, once for each repetition, store and size")
	flags.IntVar(&o.plan.Repetitions, "repetitions", 5, "how often everything is measured")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.plan.Repetitions < 1 {
		return nil, errors.New("-repetitions must be 1 or more")
	}

	o.plan.Duration = 700 * time.Millisecond
	o.plan.SweepSize = measure.Size{Sessions: 200_000, Bytes: 300}
	o.plan.Sizes = []measure.Size{
		{Sessions: 1_000, Bytes: 300},
		{Sessions: 20_000, Bytes: 300},
		{Sessions: 500_000, Bytes: 300},
		{Sessions: 20_000, Bytes: 4096},
	}
	if *quick {
		o.plan.Duration = 25 * time.Millisecond
		o.plan.SweepSize.Sessions = 10_000
		o.plan.Sizes = o.plan.Sizes[:2]
	}
	if *duration > 0 {
		o.plan.Duration = *duration
	}
	if *sizes != "" {
		o.plan.Sizes = nil
		for _, text := range strings.Split(*sizes, ",") {
			size, err := parseSize(text)
			if err != nil {
				return nil, err
			}
			o.plan.Sizes = append(o.plan.Sizes, size)
		}
	}
	if *sweepSize != "" {
		var err error
		if o.plan.SweepSize, err = parseSize(*sweepSize); err != nil {
			return nil, err
		}
	}
	var err error
	if o.plan.Families, err = choose("workload", *families, measure.Families()); err != nil {
		return nil, err
	}
	chosen, err := choose("store", *stores, names())
	if err != nil {
		return nil, err
	}
	o.plan.Rivals = slices.DeleteFunc(rivals.All(), func(r rivals.Rival) bool { return !slices.Contains(chosen, r.Name) })
	return &o, nil
}

func parseSize(text string) (size measure.Size, err error) {
	var rest string
	n, _ := fmt.Sscanf(text+" .", "%dx%d %s", &size.Sessions, &size.Bytes, &rest)
	if n != 3 || rest != "." || size.Sessions < 1 {
		return size, fmt.Errorf("%q is not a size like 20000x300", text)
	}
	return size, nil
}

// choose returns the names in a list, or all that there are if it is empty.
func choose(what, list string, all []string) ([]string, error) {
	if list == "" {
		return all, nil
	}
	chosen := strings.Split(list, ",")
	for _, name := range chosen {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("there is no %s %q; there are %s", what, name, strings.Join(all, ", "))
		}
	}
	return chosen, nil
}

func names() (names []string) {
	for _, rival := range rivals.All() {
		names = append(names, rival.Name)
	}
	return names
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if !o.reportOnly {
		if err := os.MkdirAll(o.dir, 0o777); err != nil {
			return err
		}
		if err := runPlan(ctx, o, args, stderr); err != nil {
			return err
		}
	}
	if err := writeReport(o.dir); err != nil {
		return err
	}
	return report.Include(o.readme)
}

// runPlan measures, and writes the raw results.
func runPlan(ctx context.Context, o *options, args []string, stderr io.Writer) error {
	missing, err := o.plan.Missing()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		fmt.Fprintf(stderr, "%s: %v\n", name, missing[name])
	}
	if len(o.plan.Rivals) == 0 {
		return errors.New("none of the stores can be measured here")
	}
	config, err := conditions(&o.plan, args, missing)
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(o.dir, rawFile))
	if err != nil {
		return err
	}
	defer file.Close()
	raw, err := report.NewWriter(file, config)
	if err != nil {
		return err
	}
	progress := newProgress(stderr)
	err = o.plan.Run(ctx, measure.Observer{
		Progress: progress.show,
		Result:   func(result *benchfmt.Result) error { return raw.Write(result) },
		Problem:  func(err error) { progress.print(err.Error()) },
	})
	progress.end()
	if err != nil {
		return err
	}
	return file.Close()
}

// conditions describes what the results depend on.
func conditions(plan *measure.Plan, args []string, missing map[string]error) ([]benchfmt.Config, error) {
	var modules, engines []string
	for _, rival := range plan.Rivals {
		modules = append(modules, rival.Modules...)
		if rival.Engine != nil {
			engine, err := rival.Engine()
			if err != nil {
				return nil, err
			}
			engines = append(engines, engine)
		}
	}
	config, err := report.Machine(os.TempDir(), modules)
	if err != nil {
		return nil, err
	}
	config = append(config,
		report.Line("command", strings.Join(append([]string{"go run ./cmd/compare"}, args...), " ")),
		report.Line("repetitions", fmt.Sprintf("%d, of %v for each workload", plan.Repetitions, plan.Duration)))
	if len(engines) > 0 {
		config = append(config, report.Line("engines", strings.Join(engines, ", ")))
	}
	if len(missing) > 0 {
		config = append(config, report.Line(report.NotInstalled, strings.Join(slices.Sorted(maps.Keys(missing)), ", ")))
	}
	return config, nil
}

// writeReport makes tables and plots of the raw results.
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
	var stores []report.Store
	for _, rival := range rivals.All() {
		store := report.Store{Name: rival.Name, Settings: rival.Settings}
		switch rival.Kind {
		case rivals.Volatile:
			store.Remark, store.Dashed = "not durable", true
		case rivals.Yardstick:
			store.Remark, store.Dashed = "yardstick", true
		}
		stores = append(stores, store)
	}
	for name, write := range map[string]func(io.Writer, []report.Store) error{
		summaryFile: results.WriteSummary,
		tablesFile:  results.WriteTables,
	} {
		var text strings.Builder
		if err := write(&text, stores); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text.String()), 0o666); err != nil {
			return err
		}
	}
	return results.WritePlots(dir, stores)
}
