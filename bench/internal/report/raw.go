// Package report writes and reads results in the Go benchmark format, and makes
// tables and plots of them.
//
// The name of a benchmark says what was measured, with how many sessions, on
// which store: Commit/goroutines=8/sessions=20000/bytes=300/store=chaistore-2.
package report

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
)

// The units of the results, as benchstat and [Read] have them: both turn the ns
// of the raw results into seconds.
const (
	unitCommits     = "commits/s"
	unitFinds       = "finds/s"
	unitRequests    = "requests/s"
	unitTime        = "sec/op"
	unitP50         = "p50-sec"
	unitP99         = "p99-sec"
	unitWorstCommit = "worst-commit-sec"
	unitDisk        = "disk-bytes"
	unitHeap        = "heap-bytes"
	unitFailures    = "failures"
)

// NotInstalled is the key of the line of configuration that names the stores that
// could not be measured, because the machine lacks what they need.
const NotInstalled = "not-installed"

// The names of workloads that have no parameter worth a plot. That of the sweep
// has a size of its own.
const (
	workloadMixed   = "FindWhileCommitting/goroutines=1/committers=8"
	workloadRequest = "Request/clients=64"
	workloadSweep   = "Sweep/committers=4"
)

// higherIsBetter are the units for which benchstat would assume the contrary.
var higherIsBetter = []string{"commits", unitCommits, unitFinds, unitRequests}

// A Writer writes raw results.
type Writer struct {
	w      *benchfmt.Writer
	config []benchfmt.Config
}

// NewWriter returns a Writer of results that were all measured in the conditions
// that config describes.
func NewWriter(w io.Writer, config []benchfmt.Config) (*Writer, error) {
	for i, unit := range higherIsBetter {
		end := ""
		if i == len(higherIsBetter)-1 {
			end = "\n"
		}
		if _, err := fmt.Fprintf(w, "Unit %s better=higher\n%s", unit, end); err != nil {
			return nil, err
		}
	}
	return &Writer{benchfmt.NewWriter(w), config}, nil
}

// Write writes a result.
func (w *Writer) Write(result *benchfmt.Result) error {
	result.Config = w.config
	return w.w.Write(result)
}

// A size is how many sessions there were, of how many bytes.
type size struct {
	sessions, bytes int
}

// A key is what a sample is of.
type key struct {
	workload string // the name of the benchmark without what follows
	size     size
	store    string
	unit     string
}

// Results are all the results of a run.
type Results struct {
	config    []benchfmt.Config
	samples   map[key][]float64
	measured  map[string]bool // stores
	sizes     []size          // but sweepSize
	sweepSize size
}

// Read reads raw results.
func Read(r io.Reader) (*Results, error) {
	results := &Results{samples: make(map[key][]float64), measured: make(map[string]bool)}
	sizes := make(map[size]bool)
	reader := benchfmt.NewReader(r, "results")
	for reader.Scan() {
		var result *benchfmt.Result
		switch record := reader.Result().(type) {
		case *benchfmt.Result:
			result = record
		case *benchfmt.SyntaxError:
			return nil, record
		default:
			continue
		}
		k, err := parseName(result.Name)
		if err != nil {
			return nil, err
		}
		if results.config == nil {
			results.config = result.Clone().Config
		}
		results.measured[k.store] = true
		if k.workload == workloadSweep {
			results.sweepSize = k.size
		} else {
			sizes[k.size] = true
		}
		for _, value := range result.Values {
			k.unit = value.Unit
			results.samples[k] = append(results.samples[k], value.Value)
		}
	}
	if err := reader.Err(); err != nil {
		return nil, err
	}
	if len(results.measured) == 0 {
		return nil, errors.New("there are no results")
	}
	results.sizes = slices.SortedFunc(maps.Keys(sizes), func(a, b size) int {
		return cmp.Or(cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.sessions, b.sessions))
	})
	return results, nil
}

func parseName(name benchfmt.Name) (k key, err error) {
	base, parts := name.Parts()
	k.workload = string(base)
	for _, part := range parts {
		name, value, _ := strings.Cut(string(part), "=")
		switch name {
		case "/sessions":
			k.size.sessions, err = strconv.Atoi(value)
		case "/bytes":
			k.size.bytes, err = strconv.Atoi(value)
		case "/store":
			k.store = value
		default:
			if strings.HasPrefix(name, "/") {
				k.workload += string(part)
			}
		}
		if err != nil {
			break
		}
	}
	if err != nil || k.store == "" {
		return key{}, fmt.Errorf("result %q is not one of a store", name)
	}
	return k, nil
}

// median returns the median of a sample, and whether there is one.
func (r *Results) median(k key) (float64, bool) {
	values, ok := r.samples[k]
	if !ok {
		return 0, false
	}
	sample := benchmath.NewSample(slices.Clone(values), &benchmath.DefaultThresholds)
	return benchmath.AssumeNothing.Summary(sample, 0.95).Center, true
}

// get returns what the results' file says in a line of configuration.
func (r *Results) get(key string) string {
	for _, config := range r.config {
		if config.Key == key {
			return string(config.Value)
		}
	}
	return ""
}

// mainSize is the size that is shown where there is room for one.
func (r *Results) mainSize() size {
	usual := size{20_000, 300}
	if len(r.sizes) == 0 || slices.Contains(r.sizes, usual) {
		return usual
	}
	return r.sizes[0]
}
