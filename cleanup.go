// Deleting expired sessions, at each tick of a store's goroutine and on demand. The
// sweep itself is in sessiontable.

package chaistore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"time"
	"weak"

	"go.elara.ws/chaistore/internal/sessiontable"
)

// DeleteExpired deletes expired sessions and returns the number deleted, even on
// error. The cleanup goroutine calls it at each tick.
//
// It doesn't block other writers: it scans without a lock and deletes a few sessions
// at a time. It stops between two of these steps when ctx ends. A session that is
// renewed meanwhile stays. When much was deleted, DeleteExpired also has the database
// merge its files, so that they get smaller.
func (s *ChaiStore) DeleteExpired(ctx context.Context) (int, error) {
	deleted, err := sweep(ctx, s.table)
	if err != nil {
		return deleted, fmt.Errorf("chaistore: delete expired sessions: %w", err)
	}
	return deleted, nil
}

// sweep deletes expired sessions and returns the number deleted, even on error.
func sweep(ctx context.Context, table *sessiontable.Table) (deleted int, err error) {
	start := time.Now()
	done, err := table.DeleteExpired(ctx, start)
	table.Logger().LogAttrs(ctx, slog.LevelDebug, "chaistore: swept expired sessions",
		slog.Int("scanned", done.Scanned), slog.Int("deleted", done.Deleted), slog.Int("active", done.Active()), slog.Duration("duration", time.Since(start)))
	return done.Deleted, err
}

// StopCleanup stops the cleanup goroutine, interrupts its sweep, and returns once the
// goroutine has ended, so that the database can be closed. The store can still be
// used.
//
// StopCleanup may be called more than once, from many goroutines, and on a store
// without a cleanup goroutine. An unreachable store's goroutine eventually stops by
// itself.
func (s *ChaiStore) StopCleanup() {
	if s.cleanup != nil {
		s.cleanup.stop()
		<-s.cleanup.done
	}
}

// A cleanup is the goroutine that deletes expired sessions. Between two sweeps, it
// refers to nothing of the store, which could otherwise never be collected: the
// table's functions, such as Config.Owner, may refer to the session manager, and so to
// the store.
type cleanup struct {
	table weak.Pointer[sessiontable.Table]
	stop  context.CancelFunc // tells the goroutine to end
	done  chan struct{}      // closed when it has ended
}

// startCleanup starts the cleanup goroutine, unless interval is 0 or less.
func (s *ChaiStore) startCleanup(interval time.Duration) {
	if interval <= 0 {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	s.cleanup = &cleanup{weak.Make(s.table), stop, make(chan struct{})}
	go s.cleanup.run(ctx, interval)
	runtime.AddCleanup(s, func(stop context.CancelFunc) { stop() }, stop)
}

func (c *cleanup) run(ctx context.Context, interval time.Duration) {
	defer close(c.done)
	// A process that lives shorter than the interval sweeps, too. Many that start at
	// the same time don't sweep at the same time.
	ticker := time.NewTicker(max(1, interval/100+rand.N(interval/100+1)))
	defer ticker.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if first {
				ticker.Reset(interval)
			}
			done := make(chan struct{})
			go func() { // Config.Owner may end it
				defer close(done)
				c.tick(ctx)
			}()
			<-done
		}
	}
}

func (c *cleanup) tick(ctx context.Context) {
	table := c.table.Value()
	if table == nil {
		return // the store is gone, and the goroutine about to end
	}
	finished := false
	defer func() {
		switch { // Config.Owner has done it; what it panics with may have data of a session
		case recover() != nil:
			table.Logger().Error("chaistore: sweep for expired sessions panicked; trying again at the next tick", "stack", string(debug.Stack()))
		case !finished:
			table.Logger().Error("chaistore: Config.Owner has ended the goroutine of a sweep for expired sessions; trying again at the next tick", "stack", string(debug.Stack()))
		}
	}()
	_, err := sweep(ctx, table)
	finished = true
	if err != nil && !errors.Is(err, context.Canceled) {
		table.Logger().Error("chaistore: sweep for expired sessions failed; trying again at the next tick", "error", err.Error()) // %+v has a stack
	}
}
