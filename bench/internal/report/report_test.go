package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/perf/benchfmt"
)

var stores = []Store{
	{Name: "ours", Settings: "as it comes"},
	{Name: "theirs"},
	{Name: "third", Remark: "yardstick", Dashed: true},
	{Name: "absent"},
	{Name: "not-chosen"},
}

// rawResults returns results of two stores, in which ours is twice as fast as
// theirs, and a third one of which only commits were measured.
func rawResults(t *testing.T) *bytes.Buffer {
	t.Helper()
	var raw bytes.Buffer
	w, err := NewWriter(&raw, []benchfmt.Config{Line("cpu", "abacus"), Line(NotInstalled, "absent")})
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, values ...benchfmt.Value) {
		t.Helper()
		if err := w.Write(&benchfmt.Result{Name: benchfmt.Name(name), Iters: 10, Values: values}); err != nil {
			t.Fatal(err)
		}
	}
	for _, repetition := range []float64{1, 100, 3} { // the median is the last
		for _, size := range []string{"sessions=1000/bytes=300", "sessions=20000/bytes=300", "sessions=20000/bytes=4096"} {
			for name, factor := range map[string]float64{"ours": 2, "theirs": 1, "third": 4} {
				rest := "/" + size + "/store=" + name + "-2"
				rate := 1000 * repetition * factor
				timed := []benchfmt.Value{
					{Value: 1e9 / rate, Unit: "ns/op"}, {Value: 0.7e9 / rate, Unit: "p50-ns"}, {Value: 2e9 / rate, Unit: "p99-ns"},
				}
				for _, goroutines := range []int{1, 8, 64, 256} {
					write(fmt.Sprintf("Commit/goroutines=%d%s", goroutines, rest), append(timed, benchfmt.Value{Value: rate, Unit: "commits/s"})...)
				}
				if name == "third" {
					continue
				}
				for _, workload := range []string{"FindHit/goroutines=1", "FindWhileCommitting/goroutines=1/committers=8"} {
					write(workload+rest, append(timed, benchfmt.Value{Value: rate, Unit: "finds/s"})...)
				}
				write("Request/clients=64"+rest, append(timed, benchfmt.Value{Value: rate, Unit: "requests/s"}, benchfmt.Value{Value: 1, Unit: "failures"})...)
				write("Space"+rest, benchfmt.Value{Value: 3 << 20, Unit: "disk-bytes"}, benchfmt.Value{Value: 0, Unit: "heap-bytes"})
			}
		}
		write("Sweep/committers=4/sessions=50/bytes=300/store=theirs-2", benchfmt.Value{Value: 5e6 * repetition, Unit: "worst-commit-ns"})
	}
	return &raw
}

func read(t *testing.T) *Results {
	t.Helper()
	results, err := Read(rawResults(t))
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func TestSummary(t *testing.T) {
	var got bytes.Buffer
	if err := read(t).WriteSummary(&got, stores); err != nil {
		t.Fatal(err)
	}
	want := `Medians with 20,000 sessions of 300 bytes (the sweep: half of 50 sessions of 300 bytes); in brackets, the ratio to the value of ours.

| store | commits/s, 1 goroutine | commits/s, 64 goroutines | find, µs | find p99 while 8 commit, µs | requests/s | worst commit in a sweep, ms | disk, MiB |
|---|---:|---:|---:|---:|---:|---:|---:|
| **ours** | 6,000 | 6,000 | 117 | 333 | 6,000 | n/a | 3.0 |
| theirs | 3,000 (0.50×) | 3,000 (0.50×) | 233 (2.0×) | 667 (2.0×) | 3,000 (0.50×) | 15.0 | 3.0 (1.0×) |
| third (yardstick) | 12,000 (2.0×) | 12,000 (2.0×) | n/a | n/a | n/a | n/a | n/a |
| absent | not installed | not installed | not installed | not installed | not installed | not installed | not installed |
`
	if got.String() != want {
		t.Errorf("the summary is\n%s\nwant\n%s", &got, want)
	}
}

func TestTables(t *testing.T) {
	var got bytes.Buffer
	if err := read(t).WriteTables(&got, stores); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"- cpu: abacus\n",
		"- ours: as it comes.\n",
		"## Commits per second\n",
		"### 1,000 sessions of 300 bytes\n",
		"### 20,000 sessions of 4,096 bytes\n",
		"| **ours** | 6,000 | 6,000 | 6,000 | 6,000 |\n",
		"### 50 sessions of 300 bytes\n",
		"| theirs | 15.0 |\n",
		"| theirs | 3.0 (1.0×) | none |\n",
		"- theirs: 3 calls of Request/clients=64, with 20,000 sessions of 300 bytes\n",
	} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("the tables do not have %q:\n%s", want, &got)
		}
	}
	if strings.Contains(got.String(), "misses") {
		t.Error("the tables have a column of what was not measured")
	}
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	if err := read(t).WritePlots(dir, stores); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"commits.svg":  {"ours", "theirs", "third (yardstick)", "goroutines that commit", "256", "10,000"},
		"find.svg":     {"ours", "theirs", "µs (less is better)", "alone, p50"},
		"requests.svg": {"ours", "theirs", "requests/s (more is better)", "6,000/s; p99 0.33 ms"},
		"growth.svg":   {"ours", "theirs", "sessions of 300 bytes", "1,000", "20,000"},
	} {
		texts := svgTexts(t, filepath.Join(dir, name))
		for _, text := range want {
			if !slices.Contains(texts, text) {
				t.Errorf("%s does not have %q: %q", name, text, texts)
			}
		}
		if slices.Contains(texts, "absent") {
			t.Errorf("%s shows a store that was not measured", name)
		}
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

// TestOneResult has the least that can be shown.
func TestOneResult(t *testing.T) {
	raw := "BenchmarkCommit/goroutines=1/sessions=5/bytes=300/store=theirs-2 10 100 ns/op 1000 commits/s\n"
	results, err := Read(strings.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := results.WritePlots(dir, stores); err != nil {
		t.Fatal(err)
	}
	var summary bytes.Buffer
	if err := results.WriteSummary(&summary, stores); err != nil {
		t.Fatal(err)
	}
	if want := "\n| theirs | 1,000 |\n"; !strings.Contains(summary.String(), want) {
		t.Errorf("the summary does not have %q:\n%s", want, &summary)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 || files[0].Name() != "commits.svg" {
		t.Errorf("the plots are %v, want that of the commits alone", files)
	}
}

func TestReadRefusesOtherResults(t *testing.T) {
	for _, raw := range []string{"", "BenchmarkCommit-2 1 1 ns/op\n", "BenchmarkCommit/sessions=many/store=ours-2 1 1 ns/op\n"} {
		if _, err := Read(strings.NewReader(raw)); err == nil {
			t.Errorf("no error of reading %q", raw)
		}
	}
}

func TestMachine(t *testing.T) {
	config, err := Machine(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range config {
		if len(line.Value) == 0 && line.Key != "modules" {
			t.Errorf("%s is not known", line.Key)
		}
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
