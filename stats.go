// Counters and the state of a store, for metrics and health checks.

package chaistore

import (
	"fmt"
	"time"
)

// Stats holds a store's counters since it was made, and the state of its database.
// The fields are read one by one: while the store is used, they may not belong to the
// same moment. Stats can be encoded as JSON.
type Stats struct {
	Finds     uint64 // calls of Find that looked for a session
	CacheHits uint64 // finds that were answered from memory, missing sessions included: see [Config.Memory]
	Commits   uint64 // sessions committed
	Deletes   uint64 // sessions deleted by Delete, DeleteFunc and DeleteOf, missing ones included
	Swept     uint64 // expired sessions deleted by sweeps

	// Active is the number of active sessions that the last successful sweep has seen. It is
	// 0 before the first one.
	Active int64

	// FilterBytes is the memory taken by the filter of tokens, by which the store knows what
	// does not exist: see [Config.Memory]. It is 0 if there is none: before the first sweep
	// of a large table, or if there is no memory for it.
	FilterBytes int64

	// Fsyncs is the number of fsyncs for commits, deletes and sweeps, by all stores
	// on the database together.
	Fsyncs uint64

	LastSweep      time.Time // when the last sweep ended; the zero time if there was none
	LastSweepError string    // why the last sweep failed, or ""

	// WriteError is the text of the error that a commit would return now because of the
	// database, or "" if there is none.
	WriteError string
	// BusySince is when writes began to return ErrBusy, or the zero time if they don't.
	BusySince time.Time

	// BackgroundError is why the database can't write or merge its files in the
	// background, or "" if it can. It tries again by itself, at least every 5 seconds.
	// Meanwhile, commits are on disk in the log, which grows. The usual reason is a disk
	// that is nearly full.
	BackgroundError string
}

// Err returns nil if a commit would work now, as far as is known, and otherwise its error,
// for health checks:
//
//   - [ErrBusy] may go away by itself. If [Stats.BusySince] is a minute ago, restart the
//     program. Don't wait for Close of the database, which may never return.
//   - After [ErrReadOnly], free space on the disk or check it, and then restart the program.
//     Not before: finds still work, and a database can't be opened while its disk is full.
//   - [ErrClosed] should not come before the program ends.
//
// Other errors, such as that the table does not exist, name the remedy, too. Err never waits
// for the database. It starts an empty write: if that hangs, Err returns ErrBusy from 10
// seconds later on.
func (s *ChaiStore) Err() error {
	if s.table == nil {
		return fmt.Errorf("chaistore: %w", errZeroStore)
	}
	if err := s.table.Err(); err != nil {
		return fmt.Errorf("chaistore: %w", err)
	}
	return nil
}

// Stats returns the store's counters and state. It costs as much as a few atomic
// loads, never waits for the database, and works even if the store does not.
func (s *ChaiStore) Stats() Stats {
	if s.table == nil {
		return Stats{WriteError: errZeroStore.Error()}
	}
	t := s.table.Stats()
	return Stats{
		Finds:          t.Finds,
		CacheHits:      t.CacheHits,
		Commits:        t.Upserts,
		Deletes:        t.Deletes,
		Swept:          t.Swept,
		Active:         t.Active,
		FilterBytes:    t.FilterBytes,
		Fsyncs:         t.Fsyncs,
		LastSweep:      t.LastSweep,
		LastSweepError: errorText(t.LastSweepErr),
		WriteError:     errorText(t.WriteErr),
		BusySince:      t.BusySince,

		BackgroundError: errorText(t.BackgroundErr),
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
