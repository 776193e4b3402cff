// Package report makes tables and plots from results in the Go benchmark format. The
// name of a benchmark says what it measured:
//
//	BenchmarkStore/store=chaistore/sessions=20000/bytes=300/workload=commit/goroutines=8
package report

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
	"golang.org/x/perf/benchproc"
)

// The units of the results, as [benchfmt.Reader] returns them. It converts the
// nanoseconds of the raw results to seconds.
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

// A key identifies a sample.
type key struct {
	workload string // with the number of goroutines, like "commit 8"
	size     benchproc.Key
	store    string
	unit     string
}

// Results has all the results of a run.
type Results struct {
	config   []benchfmt.Config
	samples  map[key][]float64
	measured map[string]bool // stores
	sizes    []benchproc.Key
	sweep    benchproc.Key // the size of the sweep
}

// Read reads raw results.
func Read(r io.Reader) (*Results, error) {
	var parser benchproc.ProjectionParser
	var projections []*benchproc.Projection
	for _, expression := range []string{"/store", "/bytes@num,/sessions@num", "/workload,/goroutines"} {
		projection, err := parser.Parse(expression, nil)
		if err != nil {
			return nil, err
		}
		projections = append(projections, projection)
	}
	results := &Results{samples: make(map[key][]float64), measured: make(map[string]bool)}
	sizes := make(map[benchproc.Key]bool)
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
		k := key{
			store:    projections[0].Project(result).StringValues(),
			size:     projections[1].Project(result),
			workload: projections[2].Project(result).StringValues(),
		}
		if _, _, err := parseSize(k.size); err != nil || k.store == "" || k.workload == "" {
			return nil, fmt.Errorf("result %q is not about a store", result.Name)
		}
		if results.config == nil {
			results.config = result.Clone().Config
		}
		results.measured[k.store] = true
		sizes[k.size] = true
		if k.workload == workloadSweep {
			results.sweep = k.size
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
	results.sizes = slices.Collect(maps.Keys(sizes))
	benchproc.SortKeys(results.sizes)
	return results, nil
}

// parseSize returns the number of sessions, and the number of bytes in each.
func parseSize(size benchproc.Key) (sessions, bytes int, err error) {
	fields := size.Projection().Fields()
	bytes, err1 := strconv.Atoi(size.Get(fields[0]))
	sessions, err2 := strconv.Atoi(size.Get(fields[1]))
	return sessions, bytes, errors.Join(err1, err2)
}

func sizeLabel(size benchproc.Key) string {
	sessions, bytes, _ := parseSize(size) // Read has checked for errors
	return english.Sprintf("%d sessions of %d bytes", sessions, bytes)
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

// get returns the value of a configuration line in the results, or "".
func (r *Results) get(key string) string {
	for _, config := range r.config {
		if config.Key == key {
			return strings.TrimSpace(string(config.Value))
		}
	}
	return ""
}

// mainSize returns the size to show where there is room for only one.
func (r *Results) mainSize() benchproc.Key {
	for _, size := range r.sizes {
		if sessions, bytes, _ := parseSize(size); sessions == 20_000 && bytes == 300 {
			return size
		}
	}
	return r.sizes[0]
}
