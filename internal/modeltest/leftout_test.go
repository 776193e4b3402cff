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

var leftOutTime = flag.Duration("leftout", time.Second, "how long TestNoSessionIsLeftOut runs")

// Stores with and without an Owner, and SQL, change the tables of sessions and owners in
// every way: they insert, update and delete rows, roll that back, reindex, rebuild and
// rename tables, sweep, and are killed, with or without a transaction. Data becomes
// unreadable and readable again, also from one call of the Owner to the next. Tables are away
// for some calls, or are those of another store, also from a call of the Owner on. After each
// change, SessionsOf has all sessions of an owner, or ends with an error, and after DeleteOf
// none is left, or there is an error.
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
	others  *chaistore.ChaiStore // on another table
	broken  atomic.Bool
	flicker atomic.Bool            // whether data can be read at some times only
	hook    atomic.Pointer[func()] // is called once by the Owner
	moved   atomic.Int64           // how often tables were moved; odd while they are
	n       int                    // makes names and data that are new
	log     []string
	steps   map[string]int
	answers int
	errs    int
}

// owner is read, after the hook.
func (h *leftOut) owner(data []byte) (string, error) {
	if f := h.hook.Swap(nil); f != nil {
		(*f)()
	}
	return h.read(data)
}

// read reads the owner in data. If it is broken, it can't, or only sometimes, where the data
// begins with "new".
func (h *leftOut) read(data []byte) (string, error) {
	if (h.broken.Load() || h.flicker.Load() && rand.IntN(3) == 0) && bytes.HasPrefix(data, []byte("new")) {
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
		for range 2 {
			s := newStore(h.t, h.db, chaistore.Config{Owner: h.read})
			wg.Go(func() { h.readFixed(ctx, s) })
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
	h.others = newStore(h.t, h.db, chaistore.Config{TableName: "others", Owner: h.owner})
}

// readFixed asks for sessions that nothing changes, whatever happens beside it.
func (h *leftOut) readFixed(ctx context.Context, s *chaistore.ChaiStore) {
	for ctx.Err() == nil {
		n, moved := 0, h.moved.Load()
		var last error
		for _, err := range s.SessionsOf(ctx, "fixed") {
			if last = err; err == nil {
				n++
			}
		}
		if last == nil && n != 20 && moved%2 == 0 && moved == h.moved.Load() {
			h.t.Errorf("SessionsOf has %d of 20 sessions that did not change, and no error", n)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// check compares what stores say with all sessions.
func (h *leftOut) check() {
	h.t.Helper()
	h.checkTable("sessions", h.owned[h.rng.IntN(2)])
	if h.rng.IntN(3) == 0 {
		h.checkTable("others", h.others)
	}
}

func (h *leftOut) checkTable(table string, s *chaistore.ChaiStore) {
	h.t.Helper()
	owner := fmt.Sprint("user", h.rng.IntN(3))
	want := h.sessionsOf(table, owner)
	var got []string
	var last error
	for session, err := range s.SessionsOf(h.t.Context(), owner) {
		if last = err; err == nil {
			got = append(got, session.Token)
		}
	}
	h.answers++
	if last != nil {
		h.errs++
	}
	if last == nil && !slices.Equal(got, want) {
		h.t.Errorf("SessionsOf(%s) in %s = %q, and no error, want %q", owner, table, got, want)
	}
	if last != nil && !h.broken.Load() && !h.flicker.Load() {
		h.t.Errorf("SessionsOf(%s) in %s ended with %v, but all can be read", owner, table, last)
	}
}

// sessionsOf returns the tokens of the sessions of an owner.
func (h *leftOut) sessionsOf(table, owner string) (tokens []string) {
	testdb.Query(h.t, h.db, "SELECT token, data, expiry FROM "+table, func(row *chai.Row) error {
		var token string
		var data []byte
		var expiry time.Time
		err := row.Scan(&token, &data, &expiry)
		if of, _ := ownerInData(bytes.TrimPrefix(data, []byte("new"))); of == owner && len(token) <= 100 && expiry.After(time.Now()) {
			tokens = append(tokens, token)
		}
		return err
	})
	return tokens
}

// deleteOf deletes the sessions of an owner.
func (h *leftOut) deleteOf() {
	owner := fmt.Sprint("user", h.rng.IntN(3))
	n, err := h.owned[h.rng.IntN(2)].DeleteOf(h.t.Context(), owner)
	if left := h.sessionsOf("sessions", owner); err == nil && len(left) > 0 {
		h.t.Errorf("DeleteOf(%s) = %d, nil, and %q are left", owner, n, left)
	}
	if err != nil && !h.broken.Load() && !h.flicker.Load() {
		h.t.Errorf("DeleteOf(%s) = %d, %v, but all can be read", owner, n, err)
	}
}

// calls makes some calls while tables may be moved.
func (h *leftOut) calls() {
	for range 1 + h.rng.IntN(3) {
		store := []*chaistore.ChaiStore{h.owned[0], h.owned[1], h.plain, h.others}[h.rng.IntN(4)]
		owner := fmt.Sprint("user", h.rng.IntN(3))
		data := fmt.Sprintf("%s%s|%d", []string{"", "new"}[h.rng.IntN(2)], owner, h.n)
		switch h.rng.IntN(5) {
		case 0, 1:
			h.log = append(h.log, "commit")
			commit(h.t, store, fmt.Sprint("s", h.rng.IntN(30)), data, inAnHour())
		case 2:
			h.log = append(h.log, "sweep")
			if _, err := store.DeleteExpired(h.t.Context()); err != nil {
				h.t.Error(err)
			}
		case 3:
			h.log = append(h.log, "DeleteOf")
			_, _ = store.DeleteOf(h.t.Context(), owner)
		case 4:
			h.log = append(h.log, "SessionsOf")
			for range store.SessionsOf(h.t.Context(), owner) {
			}
		}
	}
}

// move returns functions that move a table, and move it back.
func (h *leftOut) move() (move, back func()) {
	const owners = " (owner TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (owner, token))"
	away := fmt.Sprint("away", h.n)
	swap := func(table, other string) []string {
		return []string{rename(table, away), rename(other, table), rename(away, other)}
	}
	swaps := [][]string{
		swap("sessions", "others"), swap("sessions_owners", "others_owners"),
		append(swap("sessions", "others"), swap("sessions_owners", "others_owners")...),
	}
	there := swaps[h.rng.IntN(len(swaps))]
	again := there
	switch n := h.rng.IntN(4); {
	case h.disk == nil: // see statements
	case n == 0:
		there = []string{rename("sessions_owners", away), "CREATE TABLE sessions_owners" + owners}
		again = []string{"DROP TABLE sessions_owners", rename(away, "sessions_owners")}
	case n == 1:
		there = []string{rename("sessions", away), createLike("sessions")}
		again = []string{"DROP TABLE sessions", rename(away, "sessions")}
	}
	run := func(statements []string) {
		if err := (&rebuilder{db: h.db}).run(statements...); err != nil {
			h.t.Error(err)
		}
	}
	return func() {
			h.moved.Add(1)
			run(there)
		}, func() {
			run(again)
			h.moved.Add(1)
		}
}

func (h *leftOut) step() {
	h.n++
	token, data := fmt.Sprint("s", h.rng.IntN(30)), fmt.Sprintf("%suser%d|%d", []string{"", "new"}[h.rng.IntN(2)], h.rng.IntN(3), h.n/3)
	store := []*chaistore.ChaiStore{h.owned[0], h.owned[1], h.plain}[h.rng.IntN(3)]
	expiry := []time.Time{inAnHour(), inAnHour(), inAnHour(), anHourAgo()}[h.rng.IntN(4)]
	name := "statements"
	var err error
	switch h.rng.IntN(16) {
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
		name = "DeleteOf"
		h.deleteOf()
	case 8:
		name = "flicker"
		h.flicker.Store(!h.flicker.Load())
	case 9:
		name = "calls while moved"
		move, back := h.move()
		h.log = append(h.log, name)
		move()
		h.calls()
		back()
	case 10:
		name = "moved by the Owner"
		move, back := h.move()
		h.log = append(h.log, name)
		h.hook.Store(&move)
		h.calls()
		if h.hook.Swap(nil) == nil {
			back()
		}
	case 11:
		name = "changed by the Owner"
		f := func() {
			if err := (&rebuilder{db: h.db}).run("DELETE FROM sessions_owners", "UPDATE sessions SET expiry = expiry WHERE token < 's2'"); err != nil {
				h.t.Error(err)
			}
		}
		h.hook.Store(&f)
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
