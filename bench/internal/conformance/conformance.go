// Package conformance runs the storetest suite on stores, and makes tables of the cases
// that they pass.
package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"go.elara.ws/chaistore/storetest"
)

// Env is the environment variable that enables TestConformance in package rivals.
const Env = "CHAISTORE_CONFORMANCE"

// A Verdict is the result of a case.
type Verdict string

const (
	Passed  Verdict = "pass"
	Failed  Verdict = "fail"
	Skipped Verdict = "skip" // the case is for something that the store does not have
)

// Results has verdicts by the names of the store and of the case. A store that was not
// tested has the verdict Skipped for the case "".
type Results map[string]map[string]Verdict

// Run runs the suite several times on the stores with these names. A case passes if it
// passes each time, because some faults depend on chance. If this machine lacks a
// store's server, no case of that store is in the results.
func Run(ctx context.Context, stores []string, times int) (Results, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-run", "^TestConformance$",
		"-count", fmt.Sprint(times), "-timeout", fmt.Sprint(time.Duration(times)*5*time.Minute),
		"-parallel", "16", // most cases wait most of the time
		"go.elara.ws/chaistore/bench/internal/rivals")
	cmd.Env = append(os.Environ(), Env+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// The exit status is of no use: some tests always fail.
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("run the suite: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	results, err := read(bytes.NewReader(out), stores)
	if err != nil {
		return nil, fmt.Errorf("read the results of the suite: %w\n%s", err, stderr.String())
	}
	return results, nil
}

// read reads the output of go test -json.
func read(r io.Reader, stores []string) (Results, error) {
	results := make(Results)
	cases := storetest.Cases()
	decoder := json.NewDecoder(r)
	for {
		var event struct{ Action, Test string }
		if err := decoder.Decode(&event); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		verdict := Verdict(event.Action)
		test, ok := strings.CutPrefix(event.Test, "TestConformance/")
		if !ok || verdict != Passed && verdict != Failed && verdict != Skipped {
			continue
		}
		store, name, _ := strings.Cut(test, "/")
		if !slices.Contains(cases, name) && (name != "" || verdict != Skipped) {
			continue // a group, or a part of a case
		}
		if results[store] == nil {
			results[store] = make(map[string]Verdict)
		}
		if results[store][name] != Failed {
			results[store][name] = verdict
		}
	}
	for _, store := range stores {
		verdicts := results[store]
		if verdicts[""] == Skipped {
			continue
		}
		for _, name := range cases {
			if verdicts[name] == "" {
				return nil, fmt.Errorf("%s has no result in %s", store, name)
			}
		}
	}
	return results, nil
}

// The marks in the tables.
var (
	marks       = map[Verdict]string{Passed: "✓", Failed: "**✗**", Skipped: "–", "": "n/a"}
	adviceMarks = map[Verdict]string{Passed: "✓", Failed: "no", Skipped: "–", "": "n/a"}
)

// isAdvice reports whether a case tests what SCS does not require.
func isAdvice(name string) bool {
	return strings.HasPrefix(name, "Advice/")
}

// Summary returns two tables in Markdown. The first has the cases that some store
// fails, and counts the other cases in its last row. The second has the advice.
func (r Results) Summary(stores []string) string {
	var failed, rest, advice []string
	for _, name := range storetest.Cases() {
		switch {
		case isAdvice(name):
			advice = append(advice, name)
		case slices.ContainsFunc(stores, func(store string) bool { return r[store][name] == Failed }):
			failed = append(failed, name)
		default:
			rest = append(rest, name)
		}
	}
	var b strings.Builder
	b.WriteString(r.table("case", stores, failed))
	fmt.Fprintf(&b, "| the other %d |", len(rest))
	for _, store := range stores {
		count := make(map[Verdict]int)
		for _, name := range rest {
			count[r[store][name]]++
		}
		for _, verdict := range []Verdict{Passed, Skipped, ""} {
			if n := count[verdict]; n > 0 {
				fmt.Fprintf(&b, " %d %s", n, marks[verdict])
			}
		}
		b.WriteString(" |")
	}
	b.WriteString("\n\n" + r.table("advice", stores, advice))
	return b.String()
}

// Table returns two tables in Markdown: all cases except the advice, and the advice.
func (r Results) Table(stores []string) string {
	cases := storetest.Cases()
	advice := slices.DeleteFunc(slices.Clone(cases), func(name string) bool { return !isAdvice(name) })
	cases = slices.DeleteFunc(cases, isAdvice)
	return r.table("case", stores, cases) + "\n" + r.table("advice", stores, advice)
}

func (r Results) table(title string, stores, cases []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | %s |\n|---|%s\n", title, strings.Join(stores, " | "), strings.Repeat(":-:|", len(stores)))
	for _, name := range cases {
		fmt.Fprintf(&b, "| %s |", strings.TrimPrefix(name, "Advice/"))
		for _, store := range stores {
			mark := marks[r[store][name]]
			if isAdvice(name) {
				mark = adviceMarks[r[store][name]]
			}
			fmt.Fprintf(&b, " %s |", mark)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
