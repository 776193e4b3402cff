// Deleting expired sessions, at each tick of a store's timer and on demand. The sweep
// itself is in sessiontable.

package chaistore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"
	"weak"

	"go.elara.ws/chaistore/internal/sessiontable"
)

// DeleteExpired deletes expired sessions and returns the number deleted, even on
// error. The cleanup calls it at each tick.
//
// It doesn't block other writers: it scans without a lock and deletes a few sessions at a
// time. When ctx ends, it stops between two of these steps. A session that is renewed
// meanwhile is kept. When a lot was deleted, DeleteExpired also merges the files of the
// database, which frees disk space.
//
// Each sweep rebuilds the filter of tokens: see [Config.Memory]. Without a cleanup, a large
// table has no filter before the first call.
func (s *ChaiStore) DeleteExpired(ctx context.Context) (int, error) {
	if s.table == nil {
		return 0, fmt.Errorf("chaistore: delete expired sessions: %w", errZeroStore)
	}
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
	if err == nil {
		table.Logger().LogAttrs(ctx, slog.LevelDebug, "chaistore: swept expired sessions",
			slog.Int("scanned", done.Scanned), slog.Int("deleted", done.Deleted), slog.Int("active", done.Active), slog.Duration("duration", time.Since(start)))
	}
	return done.Deleted, err
}

// StopCleanup stops the cleanup, interrupts its sweep, and returns once that has ended, so
// that the database can be closed. The store can still be used.
//
// StopCleanup may be called more than once, from many goroutines, and on a store without
// a cleanup. The cleanup of an unreachable store eventually stops by itself, and so does
// that of a closed database.
func (s *ChaiStore) StopCleanup() {
	if s.cleanup != nil {
		s.cleanup.stop()
	}
}

// A cleanup deletes expired sessions, whenever its timer fires. Between two sweeps, there is
// no goroutine, which a test in a bubble of testing/synctest would have to end, and nothing
// that keeps the table from being collected: its functions, such as Config.Owner, may refer
// to the session manager, and so to the store. Copies of a store share its cleanup.
type cleanup struct {
	table    weak.Pointer[sessiontable.Table]
	interval time.Duration
	ctx      context.Context // ends when the cleanup is stopped
	cancel   context.CancelFunc
	sweeping chan struct{} // holds an element during a sweep, and while timer is used
	timer    *time.Timer
}

// startCleanup starts the cleanup, unless interval is 0 or less.
func (s *ChaiStore) startCleanup(interval time.Duration) {
	if interval <= 0 {
		return
	}
	c := &cleanup{table: weak.Make(s.table), interval: interval, sweeping: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.sweeping <- struct{}{}
	defer func() { <-c.sweeping }()
	// A process that lives shorter than the interval sweeps, too. Many that start at
	// the same time don't sweep at the same time.
	c.timer = time.AfterFunc(interval/100+rand.N(interval/100+1), c.tick)
	s.cleanup = c
}

func (c *cleanup) stop() {
	c.cancel()
	c.sweeping <- struct{}{}
	c.timer.Stop()
	<-c.sweeping
}

// tick sweeps, and sets the timer for the next sweep, unless the cleanup is stopped, its
// table gone, or the database closed.
func (c *cleanup) tick() {
	c.sweeping <- struct{}{}
	defer func() { <-c.sweeping }()
	table := c.table.Value()
	if table == nil || c.ctx.Err() != nil {
		return
	}
	c.timer.Reset(c.interval)
	finished := false
	defer func() {
		switch { // Config.Owner has done it; what it panics with may have data of a session
		case recover() != nil:
			table.Logger().Error("chaistore: sweep for expired sessions panicked; trying again at the next tick", "stack", string(debug.Stack()))
		case !finished:
			table.Logger().Error("chaistore: Config.Owner has ended the goroutine of a sweep for expired sessions; trying again at the next tick", "stack", string(debug.Stack()))
		}
	}()
	_, err := sweep(c.ctx, table)
	finished = true
	switch {
	case err == nil, errors.Is(err, context.Canceled):
	case errors.Is(err, ErrClosed):
		c.timer.Stop()
		table.Logger().Error("chaistore: sweep for expired sessions failed; the cleanup has ended: call StopCleanup before Close", "error", err.Error())
	default:
		table.Logger().Error("chaistore: sweep for expired sessions failed; trying again at the next tick", "error", err.Error()) // %+v has a stack
	}
}
