package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
)

// TestRunEndsWithItsContext checks that an interrupted run leaves the results alone.
// Package conformance tests that the suite runs.
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
