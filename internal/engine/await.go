// Waiting for what the feed has told.

package engine

import (
	"context"
	"time"
)

// Await waits until snapshots have the batch that ends at the given number, of which
// followers of the feed have been told, or what has undone it. If a transaction has written
// it out before its end, Await sleeps until that. Then, or if it is being committed, it looks
// for it again and again: nobody tells when Chai's readers see a commit.
//
// Await returns an error when ctx ends or the database is closed, or if the database is
// read-only and the batch will not be seen.
func (db *DB) Await(ctx context.Context, end uint64) error {
	for start := time.Now(); ; {
		failed, good := db.state.failed(), db.undo.good.Load()
		over := db.undo.open()
		observed := db.isObserving()
		var number uint64
		err := db.Read(ctx, func(s *Snapshot) error { number = s.Number(); return nil })
		if err != nil || observed && number >= end {
			return err
		}
		if failed != nil && (good || over != nil || time.Since(start) > db.hangLimit) {
			return failed
		}
		if over == nil {
			const least = 100 * time.Microsecond
			timer := time.NewTimer(max(least, time.Since(start)/50))
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
		} else {
			select {
			case <-over:
				start = time.Now()
			case <-db.Closed():
			case <-ctx.Done():
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// Closed returns a channel that is closed when Close of the database begins.
func (db *DB) Closed() <-chan struct{} {
	if closed := db.state.closed.Load(); closed != nil {
		return *closed
	}
	return nil
}
