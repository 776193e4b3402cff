// Topostgres copies the active sessions of a Chai directory to PostgreSQL, into a table
// for SCS's pgxstore, or back.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "topostgres:", err)
		os.Exit(1)
	}
}

type options struct {
	chaiDir, chaiTable         string
	postgresURL, postgresTable string

	reverse, dryRun, overwrite bool
	batch                      int
}

func parse(args []string, stderr io.Writer) (*options, error) {
	var o options
	flags := flag.NewFlagSet("topostgres", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.chaiDir, "chai", "", "`directory` of the Chai database")
	flags.StringVar(&o.chaiTable, "chai-table", "sessions", "`name` of the table in Chai")
	flags.StringVar(&o.postgresURL, "postgres", "", "`URL` of the PostgreSQL database; to hide a password, set DATABASE_URL in the environment instead")
	flags.StringVar(&o.postgresTable, "postgres-table", "sessions", "`name` of the table in PostgreSQL")
	flags.BoolVar(&o.reverse, "reverse", false, "copy from PostgreSQL to Chai")
	flags.BoolVar(&o.dryRun, "dry-run", false, "change nothing, and say what would be done")
	flags.BoolVar(&o.overwrite, "overwrite", false, "overwrite sessions that differ at the destination")
	flags.IntVar(&o.batch, "batch", 1000, "number of sessions to write at a time")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if o.postgresURL == "" {
		o.postgresURL = os.Getenv("DATABASE_URL")
	}
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.chaiDir == "":
		return nil, errors.New("the directory of the Chai database is missing: -chai")
	case o.postgresURL == "":
		return nil, errors.New("the URL of the PostgreSQL database is missing: -postgres, or DATABASE_URL in the environment")
	case o.batch < 1:
		return nil, errors.New("-batch must be 1 or more")
	}
	return &o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	postgres, err := openPostgres(ctx, o.postgresURL, o.postgresTable)
	if err != nil {
		return err
	}
	defer postgres.close()
	chai, err := openChai(o.chaiDir, o.chaiTable, o.reverse)
	if err != nil {
		return err
	}
	defer chai.close()

	c := copier{from: chai, to: postgres, batch: o.batch, overwrite: o.overwrite, progress: newProgress(stderr)}
	if o.reverse {
		c.from, c.to = postgres, chai
	}
	return c.run(ctx, o.dryRun, stdout)
}

// run compares both sides, copies the sessions that are missing or differ, and checks
// that both sides agree. It changes nothing unless all these sessions can be copied.
func (c *copier) run(ctx context.Context, dryRun bool, stdout io.Writer) error {
	before, err := c.compare(ctx)
	if err != nil {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	fmt.Fprintf(stdout, "from %v: %d active sessions\n", c.from, before.source())
	fmt.Fprintf(stdout, "to %v: %d are missing there, %d differ, %d are the same; %d others stay as they are\n",
		c.to, before.missing, before.different, before.same, before.others)
	if before.unfit > 0 {
		return fmt.Errorf("%v can't keep %d of the sessions, one of them because %w; nothing was changed",
			c.to, before.unfit, before.reason)
	}
	if before.different > 0 && !c.overwrite {
		return fmt.Errorf("%d sessions differ in %v, because of an earlier copy or because it has been in use; nothing was changed "+
			"(if the source is right, run the command with -overwrite)", before.different, c.to)
	}
	todo := before.missing + before.different
	if dryRun {
		if err := c.to.rehearse(context.WithoutCancel(ctx), before.first); err != nil {
			return fmt.Errorf("the copy would fail: %w; nothing was changed", err)
		}
		fmt.Fprintf(stdout, "dry run: %d sessions would be copied; nothing was changed\n", todo)
		return nil
	}

	began := time.Now()
	copied, err := c.copy(ctx, todo)
	if err != nil {
		return fmt.Errorf("%w; %d of %d sessions have been copied: run the command again to copy the others", err, copied, todo)
	}
	fmt.Fprintf(stdout, "copied %d sessions in %v\n", copied, time.Since(began).Round(time.Millisecond))

	after, err := c.compare(ctx)
	if err != nil {
		return fmt.Errorf("%w; all sessions have been copied, but not checked: run the command again", err)
	}
	if after.missing > 0 || after.different > 0 {
		return fmt.Errorf("the check failed: of %d active sessions, %d are missing in %v, and %d differ there; is it in use?",
			after.source(), after.missing, c.to, after.different)
	}
	fmt.Fprintf(stdout, "checked: all %d active sessions have the same data and expiry on both sides\n", after.source())
	return nil
}
