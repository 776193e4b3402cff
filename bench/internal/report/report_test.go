package report

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var stores = []Store{
	{Name: "ours", Settings: "as it comes", Plotted: true},
	{Name: "ours+load"},
	{Name: "theirs", Plotted: true},
	{Name: "third", Remark: "yardstick", Plotted: true, Dashed: true},
	{Name: "absent", Plotted: true},
}

// rawResults returns results in which ours is twice as fast as theirs, and in which
// only the commits of third were measured.
func rawResults() string {
	var raw strings.Builder
	raw.WriteString("cpu: abacus\ncores: 7\ndisk: drum\ngo: 1.0\n")
	write := func(workload, size, store string, values ...any) {
		fmt.Fprintf(&raw, "BenchmarkStore/store=%s/%s/workload=%s-2 10", store, size, workload)
		for _, value := range values {
			fmt.Fprint(&raw, " ", value)
		}
		raw.WriteByte('\n')
	}
	for _, repetition := range []float64{1, 100, 3} { // the median is the last
		for _, size := range []string{"sessions=20000/bytes=4096", "sessions=1000/bytes=300", "sessions=20000/bytes=300"} {
			for store, factor := range map[string]float64{"ours": 2, "ours+load": 1.5, "theirs": 1, "third": 4} {
				rate := 1000 * repetition * factor
				timed := []any{1e9 / rate, "ns/op", 0.7e9 / rate, "p50-ns", 2e9 / rate, "p99-ns", rate}
				for _, goroutines := range []int{1, 8, 64, 256} {
					write(fmt.Sprintf("commit/goroutines=%d", goroutines), size, store, append(timed, "commits/s")...)
				}
				if store == "third" {
					continue
				}
				for _, workload := range []string{"find", "warm", "mixed"} {
					write(workload+"/goroutines=1", size, store, append(timed, "finds/s")...)
				}
				write("request/goroutines=64", size, store, append(timed, "requests/s", 1, "failures")...)
				write("space", size, store, 3<<20, "disk-bytes", 0, "heap-bytes")
			}
		}
		write("sweep", "sessions=50/bytes=300", "theirs", 5e6*repetition, "worst-commit-ns")
	}
	return raw.String()
}

func read(t *testing.T, raw string) *Results {
	t.Helper()
	results, err := Read(strings.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func TestSummary(t *testing.T) {
	got := read(t, rawResults()).Summary(stores)
	want := `Medians with 20,000 sessions of 300 bytes (the sweep: half of 50 sessions of 300 bytes); in brackets, the ratio to the value of ours.

| store | commits/s, 1 goroutine | commits/s, 64 goroutines | find, µs | find in a working set, µs | find p99 while 8 commit, µs | requests/s | worst commit in a sweep, ms | disk, MiB |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| **ours** | 6,000 | 6,000 | 117 | 117 | 333 | 6,000 | n/a | 3.0 |
| ours+load | 4,500 (0.75×) | 4,500 (0.75×) | 156 (1.3×) | 156 (1.3×) | 444 (1.3×) | 4,500 (0.75×) | n/a | 3.0 (1.0×) |
| theirs | 3,000 (0.50×) | 3,000 (0.50×) | 233 (2.0×) | 233 (2.0×) | 667 (2.0×) | 3,000 (0.50×) | 15.0 | 3.0 (1.0×) |
| third (yardstick) | 12,000 (2.0×) | 12,000 (2.0×) | n/a | n/a | n/a | n/a | n/a | n/a |
`
	if got != want {
		t.Errorf("the summary is\n%s\nwant\n%s", got, want)
	}
}

func TestTables(t *testing.T) {
	got := read(t, rawResults()).Tables(stores)
	rest := got
	for _, want := range []string{
		"- cpu: abacus\n",
		"- ours: as it comes.\n",
		"- absent: not measured.\n",
		"## Commits per second\n",
		"### 1,000 sessions of 300 bytes\n",
		"### 20,000 sessions of 300 bytes\n",
		"### 20,000 sessions of 4,096 bytes\n",
		"| **ours** | 6,000 | 6,000 | 6,000 | 6,000 |\n",
		"| theirs | 3.0 (1.0×) | none |\n",
		"## Sweep\n",
		"### 50 sessions of 300 bytes\n",
		"| theirs | 15.0 |\n",
		"- theirs: 3 calls of request 64, with 20,000 sessions of 300 bytes\n",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("the tables do not have %q here:\n%s", want, rest)
		}
		rest = after
	}
	if strings.Contains(got, "misses") {
		t.Error("the tables have a column that was not measured")
	}
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	if err := read(t, rawResults()).WritePlots(dir, stores); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"commits.svg":  {"ours", "theirs", "third (yardstick)", "goroutines that commit", "256", "1 M"},
		"find.svg":     {"ours", "theirs", "time (less is better)", "alone, p50", "10 µs"},
		"requests.svg": {"ours", "theirs", "requests/s (more is better)", "100,000"},
		"growth.svg":   {"ours", "theirs", "sessions of 300 bytes", "1,000", "20,000", "100 µs"},
	} {
		texts := svgTexts(t, filepath.Join(dir, name))
		caption := "abacus, 7 cores; drum; Go 1.0. Medians; the whiskers go from the least to the greatest repetition."
		for _, text := range append(want, caption) {
			if !slices.Contains(texts, text) {
				t.Errorf("%s does not have %q: %q", name, text, texts)
			}
		}
		for _, store := range []string{"absent", "ours+load"} {
			if slices.Contains(texts, store) {
				t.Errorf("%s shows %s", name, store)
			}
		}
	}
}

func TestSpread(t *testing.T) {
	results := read(t, rawResults())
	got, ok := results.spreadOf(key{"commit 1", results.mainSize(), "theirs", unitCommits}, func(x float64) float64 { return 2 * x })
	if want := (spread{6000, 4000, 194000}); !ok || got != want {
		t.Errorf("the spread is %v (%v), want %v", got, ok, want)
	}
}

// svgTexts returns the texts of an image.
func svgTexts(t *testing.T, path string) (texts []string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	decoder := xml.NewDecoder(file)
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if text, ok := token.(xml.CharData); ok {
			texts = append(texts, strings.TrimSpace(string(text)))
		}
	}
}

// TestOneResult shows as little as possible.
func TestOneResult(t *testing.T) {
	results := read(t, "BenchmarkStore/store=theirs/sessions=5/bytes=300/workload=commit/goroutines=1-2 10 100 ns/op 1000 commits/s\n")
	dir := t.TempDir()
	if err := results.WritePlots(dir, stores); err != nil {
		t.Fatal(err)
	}
	if got, want := results.Summary(stores), "\n| theirs | 1,000 |\n"; !strings.Contains(got, want) {
		t.Errorf("the summary does not have %q:\n%s", want, got)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 || files[0].Name() != "commits.svg" {
		t.Errorf("the plots are %v, want only commits.svg", files)
	}
}

func TestReadRefusesOtherResults(t *testing.T) {
	for _, name := range []string{
		"", "Commit-2", "Store/store=ours/workload=space-2", "Store/store=ours/sessions=many/bytes=300/workload=space-2",
		"Store/sessions=5/bytes=300/workload=space-2", "Store/store=ours/sessions=5/bytes=300-2",
	} {
		if _, err := Read(strings.NewReader("Benchmark" + name + " 1 1 ns/op\n")); err == nil {
			t.Errorf("no error for reading %q", name)
		}
	}
	if _, err := Read(strings.NewReader("")); err == nil {
		t.Error("no error for reading nothing")
	}
}

func TestMachine(t *testing.T) {
	got, err := Machine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(got) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), ": "); value == "" {
			t.Errorf("%s is unknown", key)
		}
	}
	if !strings.Contains(got, "github.com/chaisql/chai v0.16.1, ") || !strings.Contains(got, "\ndisk: ") {
		t.Errorf("something is missing in\n%s", got)
	}
}

func TestNumbers(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{count(1234567.8), "1,234,568"},
		{micros(0.00000123), "1.23"},
		{micros(0.0000123), "12.3"},
		{micros(0.0123), "12,300"},
		{millis(0.0123), "12.3"},
		{mebibytes(1536 << 10), "1.5"},
		{ratio(0.0001), "<0.01×"},
		{ratio(0.5), "0.50×"},
		{ratio(1.04), "1.0×"},
		{ratio(1234), "1,234×"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}
