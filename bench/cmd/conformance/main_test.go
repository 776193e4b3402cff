package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.elara.ws/chaistore/bench/internal/conformance"
	"go.elara.ws/chaistore/storetest"
)

// TestCommittedResults runs the command and checks that the stores still pass the cases
// that they pass in the committed results. A case that failed there may pass here by
// chance. Other stores than chaistore may fail a case by chance, too, but not twice.
func TestCommittedResults(t *testing.T) {
	dir := t.TempDir()
	readme := filepath.Join(dir, "README.md")
	if err := os.WriteFile(readme, []byte("<!-- include conformance-summary.md -->\n<!-- end -->\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	committed := read(t, "../../results")
	worse := func() (differences []string) {
		if err := run(t.Context(), []string{"-count", "1", "-output", dir, "-readme", readme}, t.Output()); err != nil {
			t.Fatal(err)
		}
		results := read(t, dir)
		if got, want := slices.Sorted(maps.Keys(results)), slices.Sorted(maps.Keys(committed)); !slices.Equal(got, want) {
			t.Errorf("there are results of %q, and committed ones of %q", got, want)
		}
		for store, cases := range committed {
			if results[store][""] == conformance.Skipped {
				continue // not installed
			}
			for _, name := range storetest.Cases() {
				got, want := results[store][name], cases[name]
				if got == want || want == conformance.Failed {
					continue
				}
				difference := fmt.Sprintf("%s in %s: %s, but %s in the committed results", store, name, got, want)
				if store == "chaistore" {
					t.Error(difference)
				}
				differences = append(differences, difference)
			}
		}
		return differences
	}
	if first := worse(); len(first) > 0 {
		t.Logf("trying again, because some cases depend on time: %q", first)
		for _, difference := range worse() {
			if slices.Contains(first, difference) {
				t.Error(difference)
			}
		}
	}
	if len(committed["chaistore"]) == 0 || slices.Contains(slices.Collect(maps.Values(committed["chaistore"])), conformance.Failed) {
		t.Error("chaistore does not pass everything in the committed results")
	}
	shown, err := os.ReadFile(readme)
	if err != nil || !strings.Contains(string(shown), "| case | chaistore |") {
		t.Errorf("the README shows (%v)\n%s", err, shown)
	}
}

// read returns the results in a directory.
func read(t *testing.T, dir string) (results conformance.Results) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "conformance.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &results); err != nil {
		t.Fatal(err)
	}
	return results
}

// TestRunEndsWithItsContext checks that an interrupted run leaves the results alone.
func TestRunEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := run(ctx, []string{"-output", dir}, io.Discard)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want context.Canceled", err)
	}
	if files, err := os.ReadDir(dir); len(files) > 0 || err != nil {
		t.Errorf("the results are %v (%v), want none", files, err)
	}
}
