package modeltest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

var absentFinds = flag.Int64("absent", 80_000, "how many finds the tests of absent sessions make")

// A store with smallMemory has no room for copies of sessions with largeData. So the filter
// is asked for each.
const smallMemory = 160 << 10

var largeData = bytes.Repeat([]byte("x"), 1200)

// An absentModel looks for sessions beside everything that changes what there is.
type absentModel struct {
	t      *testing.T
	ctx    context.Context
	db     *chai.DB
	s      *chaistore.ChaiStore
	finds  atomic.Int64
	enough int64 // finds
	sweeps atomic.Int64

	commits, rollbacks, rebuilds, swaps atomic.Int64 // of the application
}

// Goroutines commit, delete and find sessions, beside transactions that write out, commit
// and roll back, renames and rebuilds of the table, and sweeps without a pause. No session
// is missing that is there, and none is there that is missing.
func TestNothingIsWronglyAbsent(t *testing.T) {
	testdb.Watchdog(t, 3*time.Minute+time.Duration(*absentFinds)*100*time.Microsecond)
	for name, open := range map[string]func(testing.TB) *chai.DB{"memory": testdb.Memory, "disk": testdb.Disk} {
		t.Run(name, func(t *testing.T) {
			m := newAbsentModel(t, open(t), smallMemory)
			m.run(*absentFinds*3/8, m.change, m.change, m.change, m.statements, m.statements, m.rebuild, m.sweep, m.sweep)
		})
	}
}

// Two tables change their names again and again. What is in both is always found.
func TestNothingIsWronglyAbsentAfterSwaps(t *testing.T) {
	testdb.Watchdog(t, 3*time.Minute+time.Duration(*absentFinds)*100*time.Microsecond)
	const sessions = 5500                           // more than a sweep reads in one snapshot
	m := newAbsentModel(t, testdb.Memory(t), 1<<20) // for four filters of so many sessions
	o, err := chaistore.NewWithConfig(m.db, chaistore.Config{TableName: "other", CreateTable: true, Memory: -1, CleanupInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"sessions", "other"} {
		err := chaistore.Update(t.Context(), m.db, func(tx *chai.Tx) error {
			for i := range sessions {
				err := tx.Exec("INSERT INTO "+table+" (token, data, expiry) VALUES (?, ?, ?)", fmt.Sprint("both", i), largeData, inAnHour())
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	find := func(rng *rand.Rand) {
		m.find(m.s, fmt.Sprint("both", rng.IntN(sessions)), true)
		m.find(o, fmt.Sprint("both", rng.IntN(sessions)), true)
		m.find(m.s, fmt.Sprint("neither", rng.IntN(sessions)), false)
	}
	swap := func(*rand.Rand) {
		err := (&rebuilder{db: m.db}).run(rename("sessions", "third"), rename("other", "sessions"), rename("third", "other"))
		if err != nil {
			m.t.Error(err)
		}
		n := m.swaps.Add(1)
		for begin := m.sweeps.Load(); m.sweeps.Load() < begin+n%3 && m.ctx.Err() == nil; {
			time.Sleep(time.Millisecond)
		}
	}
	sweepOther := func(*rand.Rand) { m.sweepOf(o) }
	m.run(*absentFinds/4, find, find, swap, m.sweep, sweepOther)
}

func newAbsentModel(t *testing.T, db *chai.DB, memory int64) *absentModel {
	engine.Open(db, nil).UseMemory(memory)
	return &absentModel{t: t, db: db, s: newStore(t, db, chaistore.Config{Memory: -1})}
}

// run runs each function again and again in a goroutine, until enough sessions were looked
// for.
func (m *absentModel) run(finds int64, do ...func(rng *rand.Rand)) {
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	m.ctx, m.enough = ctx, finds
	var wg sync.WaitGroup
	for i, f := range do {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(i)))
			for !m.done() {
				f(rng)
			}
			cancel()
		})
	}
	wg.Wait()
	stats := m.s.Stats()
	m.t.Logf("%d finds, %d of them answered from memory, beside %d sweeps, %d commits, %d rollbacks, %d rebuilds and %d swaps",
		m.finds.Load(), stats.CacheHits, m.sweeps.Load(), m.commits.Load(), m.rollbacks.Load(), m.rebuilds.Load(), m.swaps.Load())
	if stats.CacheHits == 0 {
		m.t.Error("no find was answered from memory")
	}
}

func (m *absentModel) done() bool { return m.finds.Load() >= m.enough || m.t.Failed() }

func (m *absentModel) find(s *chaistore.ChaiStore, token string, want bool) {
	_, found, err := s.Find(token)
	if err != nil && strings.Contains(err.Error(), "does not exist") { // it is renamed
		return
	}
	if found != want || err != nil {
		m.t.Errorf("Find(%q) = %v, %v; want %v, nil", token, found, err, want)
	}
	m.finds.Add(1)
}

// change changes and finds sessions of its own.
func (m *absentModel) change(rng *rand.Rand) {
	prefix := fmt.Sprintf("%x/", rng.Uint64())
	there := make(map[string]bool)
	for range 200 {
		if m.done() {
			break
		}
		token := fmt.Sprint(prefix, rng.IntN(40))
		var err error
		if there[token] {
			err = m.s.Delete(token)
		} else {
			err = m.s.Commit(token, largeData, inAnHour())
		}
		if err == nil {
			there[token] = !there[token]
		} else if !strings.Contains(err.Error(), "does not exist") {
			m.t.Error(err)
		}
		for i := range max(400, int(*absentFinds/25_000)) { // when there are many to make, more beside each change
			token := fmt.Sprint(prefix, i%40)
			m.find(m.s, token, there[token])
		}
	}
	for token := range there {
		m.forget(token)
	}
}

// forget deletes a session as soon as the table has its name.
func (m *absentModel) forget(token string) {
	err := m.s.Delete(token)
	for ; err != nil && strings.Contains(err.Error(), "does not exist") && !m.t.Failed(); err = m.s.Delete(token) {
		time.Sleep(100 * time.Microsecond)
	}
	if err != nil {
		m.t.Error(err)
	}
}

// statements changes sessions with SQL, in a transaction that writes out. Others see none of
// it until it is committed, and never what is rolled back.
func (m *absentModel) statements(rng *rand.Rand) {
	prefix := fmt.Sprintf("sql%x/", rng.Uint64())
	const sessions = 20
	name := func(i int) string { return fmt.Sprint(prefix, i) }
	there := make([]bool, sessions)
	for range 8 {
		if m.done() {
			break
		}
		next := make([]bool, sessions)
		copy(next, there)
		rollBack := rng.IntN(2) == 0
		ctx, cancel := context.WithCancel(m.ctx)
		var wg sync.WaitGroup
		err := chaistore.Update(ctx, m.db, func(tx *chai.Tx) error {
			for range 1 + rng.IntN(30) {
				i := rng.IntN(sessions)
				var err error
				if next[i] {
					err = tx.Exec("DELETE FROM sessions WHERE token = ?", name(i))
				} else {
					err = tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", name(i), largeData, inAnHour())
				}
				if err != nil {
					return err
				}
				next[i] = !next[i]
				if rng.IntN(4) == 0 {
					rows, err := tx.Query("SELECT token FROM sessions WHERE token = ?", name(i)) // writes out
					if err == nil {
						err = errors.Join(rows.Iterate(func(*chai.Row) error { return nil }), rows.Close())
					}
					if err != nil {
						return err
					}
				}
			}
			for i := range sessions {
				m.find(m.s, name(i), there[i])
			}
			if rng.IntN(2) == 0 { // some sweeps begin and end meanwhile
				begun := m.sweeps.Load()
				for range 100 { // no longer: a sweep may need a turn, to see a table replaced
					if m.sweeps.Load() < begun+3 {
						time.Sleep(100 * time.Microsecond)
					}
				}
			}
			wg.Go(func() { // beside the rollback, too
				for ctx.Err() == nil && rollBack {
					for i := range sessions {
						m.find(m.s, name(i), there[i])
					}
				}
			})
			if rollBack {
				return errRollBack
			}
			return nil
		})
		cancel()
		wg.Wait()
		switch {
		case err == nil:
			copy(there, next)
			m.commits.Add(1)
		case errors.Is(err, errRollBack), strings.Contains(err.Error(), `"sessions" not found`): // it is renamed
			m.rollbacks.Add(1)
		case m.ctx.Err() == nil:
			m.t.Error(err)
		}
		for i := range sessions {
			m.find(m.s, name(i), there[i])
		}
	}
	for i := range sessions {
		m.forget(name(i))
	}
}

// rebuild renames the table for a moment, or rebuilds it.
func (m *absentModel) rebuild(rng *rand.Rand) {
	r := &rebuilder{db: m.db}
	var err error
	switch kind := rng.IntN(3); kind {
	case 0:
		err = errors.Join(r.run(rename("sessions", "away")), r.run(rename("away", "sessions")))
	default:
		err = r.run(copied("sessions", createLike("rebuilt"), kind*4)...)
	}
	if err != nil {
		m.t.Error(err)
	}
	m.rebuilds.Add(1)
	time.Sleep(time.Duration(rng.IntN(int(5 * time.Millisecond))))
}

func (m *absentModel) sweep(*rand.Rand) { m.sweepOf(m.s) }

func (m *absentModel) sweepOf(s *chaistore.ChaiStore) {
	_, err := s.DeleteExpired(m.ctx)
	switch {
	case err == nil:
		m.sweeps.Add(1)
	case strings.Contains(err.Error(), "does not exist"):
		time.Sleep(100 * time.Microsecond)
	case m.ctx.Err() == nil:
		m.t.Errorf("DeleteExpired: %v", err)
	}
}
