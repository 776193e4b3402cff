package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
)

// TestRunEndsWithItsContext checks that a run which is interrupted leaves the
// results as they were. That the suite runs is tested in package conformance.
func TestRunEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := run(ctx, []string{"-output", dir}, io.Discard)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want that of the context", err)
	}
	if files, err := os.ReadDir(dir); len(files) > 0 || err != nil {
		t.Errorf("there are %v (%v), want no results", files, err)
	}
}
