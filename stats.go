// What a store has done, for metrics and health checks.

package chaistore

import (
	"errors"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// Stats is what a store has done since it was made, and the state of its database.
// Its numbers are counted one by one: while the store is used, they need not belong
// to the same moment. It can be encoded as JSON.
type Stats struct {
	Finds     uint64 // calls of Find that looked for a session
	CacheHits uint64 // those of them that needed no access to the database
	Commits   uint64 // sessions committed
	Deletes   uint64 // sessions deleted by Delete, DeleteFunc and DeleteOf, even if they were not there
	Swept     uint64 // expired sessions deleted by sweeps

	// Fsyncs is how many times the commits, deletes and sweeps of all stores on the
	// database have waited for the disk, together.
	Fsyncs uint64

	LastSweep      time.Time // when the last sweep ended; the zero time if there was none
	LastSweepError string    // why it failed, or ""

	// WriteError is the error that a commit gets at present: "" if the store works,
	// else why writing hangs, or why the database has to be opened again.
	WriteError string
	// WritesHang reports whether WriteError may go away by itself.
	WritesHang bool
}

// Stats returns what the store has done. It costs as much as a few atomic loads,
// never waits for the database, and works when the store does not.
func (s *ChaiStore) Stats() Stats {
	t := s.table.Stats()
	return Stats{
		Finds:          t.Finds,
		CacheHits:      t.CacheHits,
		Commits:        t.Upserts,
		Deletes:        t.Deletes,
		Swept:          t.Swept,
		Fsyncs:         t.Fsyncs,
		LastSweep:      t.LastSweep,
		LastSweepError: errorText(t.LastSweepErr),
		WriteError:     errorText(t.WriteErr),
		WritesHang:     errors.Is(t.WriteErr, engine.ErrHangs),
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
