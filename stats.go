// Counters and the state of a store, for metrics and health checks.

package chaistore

import (
	"errors"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// Stats holds a store's counters since it was made, and the state of its database.
// The fields are read one by one: while the store is used, they may not belong to the
// same moment. Stats can be encoded as JSON.
type Stats struct {
	Finds     uint64 // calls of Find that looked for a session
	CacheHits uint64 // finds that were answered from memory: see [Config.CacheSize]
	Commits   uint64 // sessions committed
	Deletes   uint64 // sessions deleted by Delete, DeleteFunc and DeleteOf, missing ones included
	Swept     uint64 // expired sessions deleted by sweeps

	// Active is the number of active sessions that the last successful sweep has seen. It is
	// 0 before the first one.
	Active int64

	// FilterBytes is the memory taken by the filter of tokens, by which the store knows that
	// a session does not exist. It is 0 if there is none: before the first sweep of a large
	// table, or if there is no memory for it.
	FilterBytes int64

	// Fsyncs is the number of fsyncs for commits, deletes and sweeps, by all stores
	// on the database together.
	Fsyncs uint64

	LastSweep      time.Time // when the last sweep ended; the zero time if there was none
	LastSweepError string    // why the last sweep failed, or ""

	// WriteError is the error that a commit would return now: "" if the store works,
	// otherwise why writing hangs, or why the database has to be reopened.
	WriteError string
	// WritesHang reports whether WriteError may go away by itself.
	WritesHang bool

	// BackgroundError is why the database can't write or merge its files in the
	// background, or "" if it can. It tries again by itself, at least every 5 seconds.
	// Commits are on disk all the same, in the log, which grows meanwhile. The usual
	// reason is a disk that is nearly full.
	BackgroundError string
}

// Stats returns the store's counters and state. It costs as much as a few atomic
// loads, never waits for the database, and works even if the store does not.
func (s *ChaiStore) Stats() Stats {
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
		WritesHang:     errors.Is(t.WriteErr, engine.ErrHangs),

		BackgroundError: errorText(t.BackgroundErr),
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
