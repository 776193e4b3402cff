package report

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// A Store is a row of the tables, and a colour of the plots. The first one is
// what the others are compared with.
type Store struct {
	Name     string // in the results
	Remark   string // what to say of it in brackets, if anything
	Settings string // how it was set up
	Dashed   bool   // whether it is one among the others, or there for comparison
}

func (s Store) label() string {
	if s.Remark == "" {
		return s.Name
	}
	return fmt.Sprintf("%s (%s)", s.Name, s.Remark)
}

// A column is something that was measured.
type column struct {
	title    string
	workload string
	unit     string
	format   func(float64) string
}

// A table is about one workload, or a few that belong together.
type table struct {
	title   string
	text    string
	columns []column
}

var tables = []table{
	{
		"Commits per second", "Renewals of random sessions by so many goroutines. More is better.",
		[]column{
			{"1 goroutine", "Commit/goroutines=1", unitCommits, count},
			{"8", "Commit/goroutines=8", unitCommits, count},
			{"64", "Commit/goroutines=64", unitCommits, count},
			{"256", "Commit/goroutines=256", unitCommits, count},
		},
	}, {
		"Latency of a commit", "Half of the commits, or 99 % of them, took no longer, in µs. Less is better.",
		[]column{
			{"1 goroutine, p50", "Commit/goroutines=1", unitP50, micros},
			{"p99", "Commit/goroutines=1", unitP99, micros},
			{"64 goroutines, p50", "Commit/goroutines=64", unitP50, micros},
			{"p99", "Commit/goroutines=64", unitP99, micros},
		},
	}, {
		"Finds per second", "Finds of random sessions, and of sessions that don't exist, by so many goroutines. More is better.",
		[]column{
			{"hits, 1 goroutine", "FindHit/goroutines=1", unitFinds, count},
			{"8", "FindHit/goroutines=8", unitFinds, count},
			{"misses, 1 goroutine", "FindMiss/goroutines=1", unitFinds, count},
			{"8", "FindMiss/goroutines=8", unitFinds, count},
		},
	}, {
		"Latency of a find", "Half of the finds by one goroutine, or 99 % of them, took no longer, in µs. Less is better.",
		[]column{
			{"alone, p50", "FindHit/goroutines=1", unitP50, micros},
			{"p99", "FindHit/goroutines=1", unitP99, micros},
			{"while 8 goroutines commit, p50", workloadMixed, unitP50, micros},
			{"p99", workloadMixed, unitP99, micros},
		},
	}, {
		"Requests", "64 clients request a page that changes their session, over HTTP on the loopback interface.",
		[]column{
			{"requests/s (more is better)", workloadRequest, unitRequests, count},
			{"p50, ms (less is better)", workloadRequest, unitP50, millis},
			{"p99, ms", workloadRequest, unitP99, millis},
		},
	}, {
		"Space", "What the sessions take on the disk and on Go's heap once they are loaded, in MiB. Less is better. " +
			"Not on Go's heap are the memory of SQLite and of PostgreSQL, Pebble's caches, and mapped files.",
		[]column{
			{"disk", "Space", unitDisk, mebibytes},
			{"heap", "Space", unitHeap, mebibytes},
		},
	},
}

var sweepTable = table{
	"Sweep", "The deletion of the expired half of the sessions while four goroutines renew the others: the longest that one of them " +
		"had to wait, in ms. Less is better.",
	[]column{
		{"worst commit", workloadSweep, unitWorstCommit, millis},
	},
}

var summary = []column{
	{"commits/s, 1 goroutine", "Commit/goroutines=1", unitCommits, count},
	{"commits/s, 64 goroutines", "Commit/goroutines=64", unitCommits, count},
	{"find, µs", "FindHit/goroutines=1", unitP50, micros},
	{"find p99 while 8 commit, µs", workloadMixed, unitP99, micros},
	{"requests/s", workloadRequest, unitRequests, count},
	{"worst commit in a sweep, ms", workloadSweep, unitWorstCommit, millis},
	{"disk, MiB", "Space", unitDisk, mebibytes},
}

// WriteSummary writes a table of what matters most, at one size.
func (r *Results) WriteSummary(w io.Writer, stores []Store) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Medians with %v", r.mainSize())
	if r.sweepSize != (size{}) {
		fmt.Fprintf(&b, " (the sweep: half of %v)", r.sweepSize)
	}
	fmt.Fprintf(&b, "; in brackets, the ratio to the value of %s.\n\n", stores[0].Name)
	r.writeTable(&b, stores, summary, r.mainSize())
	_, err := b.WriteTo(w)
	return err
}

// WriteTables writes tables of everything, with the conditions in which it was
// measured.
func (r *Results) WriteTables(w io.Writer, stores []Store) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Results\n\nMedians of the repetitions; in brackets, the ratio to the value of %s.\n", stores[0].Name)
	fmt.Fprintf(&b, "\n## Conditions\n\n")
	for _, config := range r.config {
		fmt.Fprintf(&b, "- %s: %s\n", config.Key, config.Value)
	}
	fmt.Fprintf(&b, "\n## Stores\n\n")
	for _, store := range stores {
		if r.measured[store.Name] {
			fmt.Fprintf(&b, "- %s: %s.\n", store.label(), store.Settings)
		}
	}
	for _, table := range tables {
		started := false
		for _, size := range r.sizes {
			if !r.has(table.columns, size) {
				continue
			}
			if !started {
				fmt.Fprintf(&b, "\n## %s\n\n%s\n", table.title, table.text)
				started = true
			}
			fmt.Fprintf(&b, "\n### %v\n\n", size)
			r.writeTable(&b, stores, table.columns, size)
		}
	}
	if r.has(sweepTable.columns, r.sweepSize) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n### %v\n\n", sweepTable.title, sweepTable.text, r.sweepSize)
		r.writeTable(&b, stores, sweepTable.columns, r.sweepSize)
	}
	r.writeFailures(&b)
	_, err := b.WriteTo(w)
	return err
}

// writeFailures writes how many calls failed, where some did.
func (r *Results) writeFailures(b *bytes.Buffer) {
	var failed []key
	for k := range r.samples {
		if k.unit == unitFailures {
			failed = append(failed, k)
		}
	}
	slices.SortFunc(failed, func(a, b key) int {
		return cmp.Or(strings.Compare(a.store, b.store), strings.Compare(a.workload, b.workload),
			cmp.Compare(a.size.bytes, b.size.bytes), cmp.Compare(a.size.sessions, b.size.sessions))
	})
	if len(failed) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Failures\n\nCalls that returned an error, or a wrong result, in all repetitions together.\n\n")
	for _, k := range failed {
		total := 0.0
		for _, n := range r.samples[k] {
			total += n
		}
		fmt.Fprintf(b, "- %s: %s calls of %s, with %v\n", k.store, count(total), k.workload, k.size)
	}
}

func (s size) String() string {
	return fmt.Sprintf("%s sessions of %s bytes", count(float64(s.sessions)), count(float64(s.bytes)))
}

// value returns the median of what a column shows of a store, and whether it was
// measured. A sweep has a size of its own.
func (r *Results) value(store string, c column, size size) (float64, bool) {
	if c.workload == workloadSweep {
		size = r.sweepSize
	}
	return r.median(key{c.workload, size, store, c.unit})
}

// has reports whether anything of the columns was measured.
func (r *Results) has(columns []column, size size) bool {
	for store := range r.measured {
		for _, column := range columns {
			if _, ok := r.value(store, column, size); ok {
				return true
			}
		}
	}
	return false
}

// writeTable writes a table with the columns of which something was measured.
func (r *Results) writeTable(b *bytes.Buffer, stores []Store, columns []column, size size) {
	columns = slices.DeleteFunc(slices.Clone(columns), func(c column) bool { return !r.has([]column{c}, size) })
	b.WriteString("| store |")
	for _, column := range columns {
		fmt.Fprintf(b, " %s |", column.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(columns)) + "\n")

	notInstalled := strings.Split(r.get(NotInstalled), ", ")
	for i, store := range stores {
		label := store.label()
		none := "n/a"
		if i == 0 {
			label = "**" + label + "**"
		}
		switch {
		case slices.Contains(notInstalled, store.Name):
			none = "not installed"
		case !r.measured[store.Name]:
			continue
		}
		fmt.Fprintf(b, "| %s |", label)
		for _, column := range columns {
			value, ok := r.value(store.Name, column, size)
			switch {
			case !ok:
				fmt.Fprintf(b, " %s |", none)
				continue
			case value == 0:
				b.WriteString(" none |")
				continue
			}
			fmt.Fprintf(b, " %s", column.format(value))
			base, ok := r.value(stores[0].Name, column, size)
			if i > 0 && ok && base > 0 {
				fmt.Fprintf(b, " (%s)", ratio(value/base))
			}
			b.WriteString(" |")
		}
		b.WriteString("\n")
	}
}

var english = message.NewPrinter(language.English)

func count(n float64) string         { return english.Sprintf("%.0f", n) }
func micros(seconds float64) string  { return threeDigits(seconds * 1e6) }
func millis(seconds float64) string  { return threeDigits(seconds * 1e3) }
func mebibytes(bytes float64) string { return english.Sprintf("%.1f", bytes/(1<<20)) }

// threeDigits formats a number with three digits, or more if it is large.
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
