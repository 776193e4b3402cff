// Conformance runs the storetest suite on chaistore and on the stores that come with
// SCS, and writes tables of the cases that each store passes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"go.elara.ws/chaistore/bench/internal/conformance"
	"go.elara.ws/chaistore/bench/internal/report"
	"go.elara.ws/chaistore/bench/internal/rivals"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("output", "results", "`directory` of the results")
	readme := flags.String("readme", "../storetest/README.md", "`file` that shows the table")
	times := flags.Int("count", 3, "how often to run the suite; a case passes if it passes each time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var stores []string
	for _, rival := range rivals.All() {
		if rival.Kind != rivals.Yardstick {
			stores = append(stores, rival.Name)
		}
	}
	fmt.Fprintf(stderr, "the suite runs %d times, a minute or two each\n", *times)
	results, err := conformance.Run(ctx, stores, *times)
	if err != nil {
		return err
	}
	for _, store := range stores {
		if results[store][""] == conformance.Skipped {
			fmt.Fprintf(stderr, "%s: %v\n", store, rivals.ErrNotInstalled)
		}
	}
	raw, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"conformance.json":       string(raw) + "\n",
		"conformance.md":         results.Table(stores),
		"conformance-summary.md": results.Summary(stores),
	} {
		if err := os.WriteFile(filepath.Join(*dir, name), []byte(text), 0o666); err != nil {
			return err
		}
	}
	return report.Include(*readme)
}
