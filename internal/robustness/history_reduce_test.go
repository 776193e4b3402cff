// Running histories in child processes, and reducing those that fail.

package robustness

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// makeHistories runs a task, in as many processes as it needs.
func makeHistories(t *testing.T, task historyTask) (results []historyResult) {
	t.Helper()
	end := task.First + uint64(task.Runs)
	for task.First < end {
		task.Runs = int(end - task.First)
		some := runHistories(t, task)
		results = append(results, some...)
		task.First += uint64(len(some))
	}
	return results
}

// runHistories runs a task in a process, until one history fails. A process that ends
// without having said why has crashed in the next one.
func runHistories(t *testing.T, task historyTask) (results []historyResult) {
	t.Helper()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "history")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=history", childDirEnv+"="+dir, childTaskEnv+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	const silence = time.Minute // longer than a history takes
	watchdog := time.AfterFunc(silence, func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Buffer(nil, 16<<20); lines.Scan(); watchdog.Reset(silence) {
		var r historyResult
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("the process printed %q: %v", lines.Text(), err)
		}
		results = append(results, r)
	}
	err = cmd.Wait()
	if hung := !watchdog.Stop(); err != nil && t.Context().Err() == nil {
		r := historyResult{Seed: task.First + uint64(len(results)), Struck: true, Class: "crash", Text: fmt.Sprintf("%v\n%.3000s", err, stderr.Bytes())}
		if hung {
			r.Class = "hang"
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		t.Fatalf("a process made no history: %v", err)
	}
	return results
}

// reduced returns what failed in a history: as few operations as are found in some time,
// that still fail in the same way.
func reduced(t *testing.T, kind int, failed historyResult) string {
	t.Helper()
	h := newHistory(kind, failed.Seed)
	keep := make([]int, cmp.Or(failed.Ops, len(h.ops))) // the rest was not done
	for i := range keep {
		keep[i] = i
	}
	deadline := time.Now().Add(*historyTime)
	tries, again := 0, failed
	fails := func(keep []int) bool {
		for range 2 { // what Pebble does beside differs from time to time
			if time.Now().After(deadline) {
				return false
			}
			tries++
			r := runHistories(t, historyTask{Kind: kind, First: failed.Seed, Runs: 1, Keep: keep, Limit: 2 * time.Second})[0]
			if r.Class == failed.Class {
				again = r
				return true
			}
		}
		return false
	}
	for chunk := len(keep) / 2; chunk > 0; chunk /= 2 {
		for i := 0; i < len(keep); {
			fewer := slices.Delete(slices.Clone(keep), i, min(i+chunk, len(keep)))
			if len(fewer) > 0 && fails(fewer) {
				keep = fewer
			} else {
				i += chunk
			}
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "seed %d, %d of %d operations after %d tries; owners: %v, cache: %d, then %s (keeps %d):\n",
		failed.Seed, len(keep), len(h.ops), tries, h.owners, h.cache, h.end, h.keep)
	for _, i := range keep {
		fmt.Fprintf(&text, "%4d  %s\n", i, h.ops[i].text)
	}
	fmt.Fprintf(&text, "%s: %s", again.Class, again.Text)
	return text.String()
}
