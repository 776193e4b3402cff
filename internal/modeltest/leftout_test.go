package modeltest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

var leftOutTime = flag.Duration("leftout", 2*time.Second, "how long TestNoSessionIsLeftOut runs")

// Stores with and without an Owner, and SQL, change the tables of sessions and owners in
// every way: they insert, update and delete rows, roll that back, reindex, rebuild and
// rename tables, sweep, and are killed, with or without a transaction. Data becomes
// unreadable and readable again. After each change, SessionsOf has all sessions of an owner,
// or ends with an error.
func TestNoSessionIsLeftOut(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, *leftOutTime+2*time.Minute)
	seed := rand.Uint64()
	histories, answers, errs, steps := 0, 0, 0, make(map[string]int)
	for end := time.Now().Add(*leftOutTime); time.Now().Before(end) && !t.Failed(); histories++ {
		h := &leftOut{t: t, rng: rand.New(rand.NewPCG(seed, uint64(histories))), steps: steps}
		h.run()
		answers, errs = answers+h.answers, errs+h.errs
		if t.Failed() {
			t.Logf("seed %d, history %d: %q", seed, histories, h.log[max(0, len(h.log)-25):])
		}
	}
	t.Logf("%d histories, %d answers, %d of them errors, after %v", histories, answers, errs, steps)
}

// A leftOut is one history.
type leftOut struct {
	t       *testing.T
	rng     *rand.Rand
	disk    *testdb.FaultDisk
	dir     string
	cut     *vfs.MemFS // what is left after a kill
	db      *chai.DB
	owned   []*chaistore.ChaiStore
	plain   *chaistore.ChaiStore
	broken  atomic.Bool
	n       int // makes names and data that are new
	log     []string
	steps   map[string]int
	answers int
	errs    int
}

// owner reads the owner in data, unless it is broken and the data begins with "new".
func (h *leftOut) owner(data []byte) (string, error) {
	if h.broken.Load() && bytes.HasPrefix(data, []byte("new")) {
		return "", errors.New("unreadable")
	}
	return ownerInData(bytes.TrimPrefix(data, []byte("new")))
}

func (h *leftOut) run() {
	h.dir = h.t.TempDir()
	h.disk = testdb.NewFaultDisk(h.dir + "/pebble")
	h.open(h.disk)
	for i := range 20 { // which nothing changes
		commit(h.t, h.plain, fmt.Sprintf("fixed%02d", i), "fixed|", inAnHour())
	}
	for life := range 2 {
		h.cut = nil
		ctx, cancel := context.WithCancel(h.t.Context())
		var wg sync.WaitGroup
		for _, s := range h.owned {
			wg.Go(func() { h.read(ctx, s) })
		}
		for range 40 {
			h.step()
			h.check()
			if h.cut != nil || h.t.Failed() {
				break
			}
		}
		cancel()
		wg.Wait()
		if life == 0 {
			if h.cut == nil {
				h.cut = h.disk.Cut(testdb.KeepAll)
			}
			_ = h.db.Close()
			h.disk = nil
			h.open(h.cut)
			h.check()
		}
	}
	_ = h.db.Close()
}

func (h *leftOut) open(fs vfs.FS) {
	h.db = openFaultDisk(h.t, fs, h.dir)
	h.plain = newStore(h.t, h.db, chaistore.Config{})
	h.owned = nil
	for range 2 {
		h.owned = append(h.owned, newStore(h.t, h.db, chaistore.Config{Owner: h.owner}))
	}
}

// read asks for sessions that nothing changes, whatever happens beside it.
func (h *leftOut) read(ctx context.Context, s *chaistore.ChaiStore) {
	for ctx.Err() == nil {
		n := 0
		var last error
		for _, err := range s.SessionsOf(ctx, "fixed") {
			if last = err; err == nil {
				n++
			}
		}
		if last == nil && n != 20 {
			h.t.Errorf("SessionsOf has %d of 20 sessions that did not change, and no error", n)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// check compares what a store says with all sessions.
func (h *leftOut) check() {
	h.t.Helper()
	want := make(map[string][]string)
	testdb.Query(h.t, h.db, "SELECT token, data, expiry FROM sessions", func(row *chai.Row) error {
		var token string
		var data []byte
		var expiry time.Time
		err := row.Scan(&token, &data, &expiry)
		if owner, _ := ownerInData(bytes.TrimPrefix(data, []byte("new"))); len(token) <= 100 && expiry.After(time.Now()) {
			want[owner] = append(want[owner], token)
		}
		return err
	})
	owner := fmt.Sprint("user", h.rng.IntN(3))
	var got []string
	var last error
	for session, err := range h.owned[h.rng.IntN(2)].SessionsOf(h.t.Context(), owner) {
		if last = err; err == nil {
			got = append(got, session.Token)
		}
	}
	h.answers++
	if last != nil {
		h.errs++
	}
	if last == nil && !slices.Equal(got, want[owner]) {
		h.t.Errorf("SessionsOf(%s) = %q, and no error, want %q", owner, got, want[owner])
	}
	if last != nil && !h.broken.Load() {
		h.t.Errorf("SessionsOf(%s) ended with %v, but all can be read", owner, last)
	}
}

func (h *leftOut) step() {
	h.n++
	token, data := fmt.Sprint("s", h.rng.IntN(30)), fmt.Sprintf("%suser%d|%d", []string{"", "new"}[h.rng.IntN(2)], h.rng.IntN(3), h.n/3)
	store := []*chaistore.ChaiStore{h.owned[0], h.owned[1], h.plain}[h.rng.IntN(3)]
	expiry := []time.Time{inAnHour(), inAnHour(), inAnHour(), anHourAgo()}[h.rng.IntN(4)]
	name := "statements"
	var err error
	switch h.rng.IntN(12) {
	case 0, 1, 2:
		name, err = "commit", store.Commit(token, []byte(data), expiry)
	case 3:
		name, err = "delete", store.Delete(token)
	case 4:
		name = "sweep"
		_, err = store.DeleteExpired(h.t.Context())
	case 5:
		name = "readable"
		h.broken.Store(!h.broken.Load())
	case 6:
		name = "several at once"
		var wg sync.WaitGroup
		for i, s := range []*chaistore.ChaiStore{h.owned[0], h.plain, h.owned[1], h.plain} {
			wg.Go(func() {
				if err := s.Commit(token, fmt.Appendf(nil, "user%d|", i%3), expiry); err != nil {
					h.t.Error(err)
				}
			})
		}
		wg.Wait()
	case 7:
		if h.broken.Load() {
			return // an error would be right
		}
		name = "DeleteOf"
		_, err = h.owned[0].DeleteOf(h.t.Context(), fmt.Sprint("user", h.rng.IntN(3)))
	default:
		err = h.update()
	}
	h.steps[name]++
	h.log = append(h.log, name)
	if err != nil {
		h.t.Errorf("%s: %v", name, err)
	}
}

// update runs some statements in a transaction, which is committed, rolled back, or cut off.
func (h *leftOut) update() error {
	end := errors.New("")
	err := chaistore.Update(h.t.Context(), h.db, func(tx *chai.Tx) error {
		how := h.rng.IntN(10)
		for range 1 + h.rng.IntN(3) {
			if err := h.statements(tx, how < 5); err != nil {
				return err
			}
		}
		switch how {
		case 0:
			if h.disk != nil {
				h.cut = h.disk.Cut(testdb.KeepAll)
				h.log = append(h.log, "kill")
				h.steps["kill"]++
			}
			return end
		case 1, 2, 3, 4:
			h.log = append(h.log, "rollback")
			h.steps["rollback"]++
			return end
		}
		return nil
	})
	if err == end {
		return nil
	}
	return err
}

// statements runs some statements, which may have to be undone.
func (h *leftOut) statements(tx *chai.Tx, undone bool) error {
	token, owner := fmt.Sprint("s", h.rng.IntN(30)), fmt.Sprint("user", h.rng.IntN(3))
	data := []byte(fmt.Sprintf("%s%s|%d", []string{"", "new"}[h.rng.IntN(2)], owner, h.n))
	type statement struct {
		sql  string
		args []any
	}
	one := func(sql string, args ...any) []statement { return []statement{{sql, args}} }
	several := func(sql ...string) (all []statement) {
		for _, sql := range sql {
			all = append(all, statement{sql: sql})
		}
		return all
	}
	const owners = " (owner TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (owner, token))"
	other := fmt.Sprint("other", h.n, "x", h.rng.IntN(1000))
	all := [][]statement{
		{{"DELETE FROM sessions WHERE token = ?", []any{token}}, {"INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", []any{token, data, inAnHour()}}},
		one("UPDATE sessions SET data = ? WHERE token = ?", data, token),
		one("UPDATE sessions SET data = ? WHERE token < 'fixed' OR token >= 's2'", data),
		one("UPDATE sessions SET expiry = expiry"),
		one("DELETE FROM sessions WHERE token = ?", token),
		one("DELETE FROM sessions_owners"),
		one("DELETE FROM sessions_owners WHERE owner = ?", owner),
		one("DELETE FROM sessions_owners WHERE token = ?", token),
		one("UPDATE sessions_owners SET owner = ? WHERE owner = ? AND token = ?", fmt.Sprint(owner, "x", h.n, h.rng.IntN(1000)), owner, token),
		one("INSERT INTO sessions_owners (owner, token) VALUES (?, ?) ON CONFLICT DO NOTHING", owner, token),
		one("INSERT INTO sessions_owners (owner, token) VALUES (?, ?) ON CONFLICT DO NOTHING", owner, string(bytes.Repeat([]byte("t"), 300))),
		one("REINDEX"),
	}
	if undone || h.disk == nil {
		// Chai gives a namespace twice when a database that was not closed is opened again, or
		// the creation of a table is undone. So the tables are made before.
		if undone {
			all = append(all, one("DROP TABLE sessions_owners"))
		}
	} else {
		all = append(all,
			several("CREATE INDEX "+other+" ON sessions_owners (owner)"),
			several("DROP TABLE sessions_owners", "CREATE TABLE sessions_owners"+owners),
			several("CREATE TABLE "+other+owners, "INSERT INTO "+other+" SELECT * FROM sessions_owners", "DROP TABLE sessions_owners", rename(other, "sessions_owners")),
			several(rename("sessions_owners", other), "CREATE TABLE sessions_owners"+owners),
			several(rename("sessions_owners", other), "CREATE TABLE sessions_owners"+owners, "DROP TABLE sessions_owners", rename(other, "sessions_owners")),
			several(createLike(other), "INSERT INTO "+other+" SELECT * FROM sessions", "DROP TABLE sessions", rename(other, "sessions")),
			several(rename("sessions", other), createLike("sessions"), "INSERT INTO sessions SELECT * FROM "+other),
		)
	}
	for _, s := range all[h.rng.IntN(len(all))] {
		h.log = append(h.log, s.sql)
		if err := tx.Exec(s.sql, s.args...); err != nil {
			if undone { // the table of owners has been dropped
				continue
			}
			return fmt.Errorf("%s: %w", s.sql, err)
		}
	}
	return nil
}
