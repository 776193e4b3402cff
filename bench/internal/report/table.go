package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"golang.org/x/perf/benchproc"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// A Store is a row of the tables. All stores are compared with the first one.
type Store struct {
	Name     string // in the results
	Remark   string // appended to the name in brackets, if not empty
	Settings string // how it was set up
	Plotted  bool   // whether it is in the plots
	Dashed   bool   // whether its lines are dashed
}

func (s Store) label() string {
	if s.Remark == "" {
		return s.Name
	}
	return fmt.Sprintf("%s (%s)", s.Name, s.Remark)
}

// A column shows one measurement.
type column struct {
	title    string
	workload string
	unit     string
	format   func(float64) string
}

// A table shows one workload, or a few related ones.
type table struct {
	title   string
	text    string
	columns []column
}

const workloadSweep = "sweep"

var tables = []table{
	{
		"Commits per second", "Renewals of random sessions, by the number of goroutines. More is better.",
		[]column{
			{"1 goroutine", "commit 1", unitCommits, count},
			{"8", "commit 8", unitCommits, count},
			{"64", "commit 64", unitCommits, count},
			{"256", "commit 256", unitCommits, count},
		},
	}, {
		"Latency of a commit", "Half of the commits took p50 or less, and 99 % took p99 or less. In µs; less is better.",
		[]column{
			{"1 goroutine, p50", "commit 1", unitP50, micros},
			{"p99", "commit 1", unitP99, micros},
			{"64 goroutines, p50", "commit 64", unitP50, micros},
			{"p99", "commit 64", unitP99, micros},
		},
	}, {
		"Finds per second", "Finds of random sessions, of sessions in a working set of 1,000, and of sessions that don't exist, right after loading and later, " +
			"by the number of goroutines. More is better.",
		[]column{
			{"hits, 1 goroutine", "find 1", unitFinds, count},
			{"8", "find 8", unitFinds, count},
			{"working set, 1 goroutine", "warm 1", unitFinds, count},
			{"8", "warm 8", unitFinds, count},
			{"misses, 1 goroutine", "miss 1", unitFinds, count},
			{"8", "miss 8", unitFinds, count},
			{"misses after commits and a sweep, 1 goroutine", "miss-later 1", unitFinds, count},
			{"8", "miss-later 8", unitFinds, count},
		},
	}, {
		"Latency of a find", "Finds by one goroutine: half took p50 or less, and 99 % took p99 or less. In µs; less is better.",
		[]column{
			{"alone, p50", "find 1", unitP50, micros},
			{"p99", "find 1", unitP99, micros},
			{"working set, p50", "warm 1", unitP50, micros},
			{"p99", "warm 1", unitP99, micros},
			{"while 8 goroutines commit, p50", "mixed 1", unitP50, micros},
			{"p99", "mixed 1", unitP99, micros},
		},
	}, {
		"Requests", "64 clients request a page that changes their session, over HTTP on the loopback interface.",
		[]column{
			{"requests/s (more is better)", "request 64", unitRequests, count},
			{"p50, ms (less is better)", "request 64", unitP50, millis},
			{"p99, ms", "request 64", unitP99, millis},
		},
	}, {
		"Space", "The space that the sessions take on disk and on Go's heap after loading, in MiB. Less is better. " +
			"Go's heap does not include the memory of SQLite and PostgreSQL, Pebble's caches, and mapped files.",
		[]column{
			{"disk", "space", unitDisk, mebibytes},
			{"heap", "space", unitHeap, mebibytes},
		},
	}, {
		"Sweep", "Half of the sessions have expired and are deleted, while four goroutines renew the others: the slowest renewal, " +
			"in ms. Less is better.",
		[]column{
			{"worst commit", workloadSweep, unitWorstCommit, millis},
		},
	},
}

var summary = []column{
	{"commits/s, 1 goroutine", "commit 1", unitCommits, count},
	{"commits/s, 64 goroutines", "commit 64", unitCommits, count},
	{"find, µs", "find 1", unitP50, micros},
	{"find in a working set, µs", "warm 1", unitP50, micros},
	{"find p99 while 8 commit, µs", "mixed 1", unitP99, micros},
	{"requests/s", "request 64", unitRequests, count},
	{"worst commit in a sweep, ms", workloadSweep, unitWorstCommit, millis},
	{"disk, MiB", "space", unitDisk, mebibytes},
}

// Summary returns a table of the most important columns, at one size.
func (r *Results) Summary(stores []Store) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Medians with %s", sizeLabel(r.mainSize()))
	if !r.sweep.IsZero() {
		fmt.Fprintf(&b, " (the sweep: half of %s)", sizeLabel(r.sweep))
	}
	fmt.Fprintf(&b, "; in brackets, the ratio to the value of %s.\n\n", stores[0].Name)
	r.writeTable(&b, stores, summary, r.mainSize())
	return b.String()
}

// Tables returns all tables, with the conditions of the measurement.
func (r *Results) Tables(stores []Store) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Results\n\nMedians of the repetitions; in brackets, the ratio to the value of %s.\n", stores[0].Name)
	fmt.Fprintf(&b, "\n## Conditions\n\n")
	for _, config := range r.config {
		fmt.Fprintf(&b, "- %s: %s\n", config.Key, config.Value)
	}
	fmt.Fprintf(&b, "\n## Stores\n\n")
	for _, store := range stores {
		settings := store.Settings
		if !r.measured[store.Name] {
			settings = "not measured"
		}
		fmt.Fprintf(&b, "- %s: %s.\n", store.label(), settings)
	}
	for _, table := range tables {
		heading := fmt.Sprintf("\n## %s\n\n%s\n", table.title, table.text)
		for _, size := range r.sizes {
			if r.has(table.columns, size) {
				fmt.Fprintf(&b, "%s\n### %s\n\n", heading, sizeLabel(size))
				r.writeTable(&b, stores, table.columns, size)
				heading = ""
			}
		}
	}
	r.writeFailures(&b)
	return b.String()
}

// writeFailures lists the workloads in which calls failed, and how many did.
func (r *Results) writeFailures(w io.Writer) {
	heading := "\n## Failures\n\nCalls that returned an error, or a wrong result, in all repetitions together.\n\n"
	for _, k := range slices.SortedFunc(maps.Keys(r.samples), func(a, b key) int {
		return cmp.Or(strings.Compare(a.store, b.store), strings.Compare(a.workload, b.workload),
			slices.Index(r.sizes, a.size)-slices.Index(r.sizes, b.size))
	}) {
		if k.unit != unitFailures {
			continue
		}
		total := 0.0
		for _, n := range r.samples[k] {
			total += n
		}
		fmt.Fprintf(w, "%s- %s: %s calls of %s, with %s\n", heading, k.store, count(total), k.workload, sizeLabel(k.size))
		heading = ""
	}
}

// value returns the median in a column of a store's row, and whether it was measured.
func (r *Results) value(store string, c column, size benchproc.Key) (float64, bool) {
	return r.median(key{c.workload, size, store, c.unit})
}

// has reports whether any of the columns was measured for any store.
func (r *Results) has(columns []column, size benchproc.Key) bool {
	for store := range r.measured {
		for _, column := range columns {
			if _, ok := r.value(store, column, size); ok {
				return true
			}
		}
	}
	return false
}

// writeTable writes a table. It leaves out columns and stores that were not measured.
// A sweep always has its own size, not the size of the table.
func (r *Results) writeTable(w *strings.Builder, stores []Store, columns []column, size benchproc.Key) {
	sizeOf := func(c column) benchproc.Key {
		if c.workload == workloadSweep {
			return r.sweep
		}
		return size
	}
	columns = slices.DeleteFunc(slices.Clone(columns), func(c column) bool { return !r.has([]column{c}, sizeOf(c)) })
	w.WriteString("| store |")
	for _, column := range columns {
		fmt.Fprintf(w, " %s |", column.title)
	}
	w.WriteString("\n|---|" + strings.Repeat("---:|", len(columns)) + "\n")
	for i, store := range stores {
		label, cells, found := store.label(), "", false
		if i == 0 {
			label = "**" + label + "**"
		}
		for _, column := range columns {
			value, ok := r.value(store.Name, column, sizeOf(column))
			base, hasBase := r.value(stores[0].Name, column, sizeOf(column))
			found = found || ok
			switch {
			case !ok:
				cells += " n/a |"
			case value == 0:
				cells += " none |"
			case i > 0 && hasBase && base > 0:
				cells += fmt.Sprintf(" %s (%s) |", column.format(value), ratio(value/base))
			default:
				cells += fmt.Sprintf(" %s |", column.format(value))
			}
		}
		if found {
			fmt.Fprintf(w, "| %s |%s\n", label, cells)
		}
	}
}

var english = message.NewPrinter(language.English)

func count(n float64) string         { return english.Sprintf("%.0f", n) }
func micros(seconds float64) string  { return threeDigits(seconds * 1e6) }
func millis(seconds float64) string  { return threeDigits(seconds * 1e3) }
func mebibytes(bytes float64) string { return english.Sprintf("%.1f", bytes/(1<<20)) }

// threeDigits formats a number with three significant digits, or more if it is large.
func threeDigits(n float64) string {
	switch {
	case n < 9.995:
		return english.Sprintf("%.2f", n)
	case n < 99.95:
		return english.Sprintf("%.1f", n)
	default:
		return english.Sprintf("%.0f", n)
	}
}

func ratio(n float64) string {
	switch {
	case n < 0.005:
		return "<0.01×"
	case n < 0.995:
		return english.Sprintf("%.2f×", n)
	case n < 9.95:
		return english.Sprintf("%.1f×", n)
	default:
		return english.Sprintf("%.0f×", n)
	}
}
