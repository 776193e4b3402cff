package modeltest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// What the application of the model does, with SQL.

type execFunc func(sql string, args ...any) error

var errRollBack = errors.New("roll back")

// read runs a reading statement, as an application does all the time.
func (c *modelClient) read(table int, sql string, args ...any) {
	c.pause()
	c.app.RLock()
	defer c.app.RUnlock()
	oldest, _ := c.tables[table].now()
	result, err := c.db.Query(sql, args...)
	if err == nil {
		err = errors.Join(result.Iterate(func(*chai.Row) error { return nil }), result.Close())
	}
	if err != nil {
		c.mayFail(table, oldest, sql, err)
	}
}

func (c *modelClient) selectRow() {
	table := c.rng.IntN(2)
	c.read(table, "SELECT data FROM "+tables[table]+" WHERE token = ?", c.sessions[c.slot()].Load().token)
}

// selectOrdered makes Chai sort more rows than it does in memory: it commits them to
// the database, without the write lock, and never removes them.
func (c *modelClient) selectOrdered() {
	for range 50 {
		c.selectRow()
	}
	c.read(0, "SELECT id, page FROM visits ORDER BY at")
}

// writeSQLWithLock changes sessions with SQL, as one of several goroutines.
func (c *modelClient) writeSQLWithLock() {
	c.pause()
	c.changeWithSQL(false, func(change func(exec execFunc) error) error {
		c.app.RLock()
		defer c.app.RUnlock()
		if c.rng.IntN(2) == 0 {
			return chaistore.Update(context.Background(), c.db, func(tx *chai.Tx) error { return change(tx.Exec) })
		}
		lock := chaistore.WriteLock(c.db)
		lock.Lock()
		defer lock.Unlock()
		return c.db.Update(func(tx *chai.Tx) error { return change(tx.Exec) })
	})
}

// writeSQLAlone changes sessions or tables with SQL, as the only goroutine that does
// so: with or without the write lock, and with or without SQL's BEGIN.
func (c *modelClient) writeSQLAlone() {
	c.pause()
	switch n := c.rng.IntN(60); {
	case n < 2:
		c.replaceTable(c.rng.IntN(2))
	case n < 4:
		c.renameAway(c.rng.IntN(2))
	case n < 7:
		c.swapTables()
	case n < 10:
		c.rebuild(c.rng.IntN(2))
	case n < 20:
		c.rollBack(n == 19)
	case n < 21:
		c.did["large transaction"]++
		c.changeWithSQL(true, c.alone)
	default:
		c.did["transaction"]++
		c.changeWithSQL(false, c.alone)
	}
}

// alone runs change in a transaction.
func (c *modelClient) alone(change func(exec execFunc) error) error {
	c.app.Lock()
	defer c.app.Unlock()
	if c.rng.IntN(4) == 0 {
		lock := chaistore.WriteLock(c.db)
		lock.Lock()
		defer lock.Unlock()
	}
	if c.rng.IntN(2) == 0 {
		return c.db.Update(func(tx *chai.Tx) error { return change(tx.Exec) })
	}
	if err := c.db.Exec("BEGIN"); err != nil {
		return err
	}
	if err := change(c.db.Exec); err != nil {
		return errors.Join(err, c.db.Exec("ROLLBACK"))
	}
	return c.db.Exec("COMMIT")
}

// makeLarge makes a transaction so large that Chai writes it out in parts.
func (c *modelClient) makeLarge(exec execFunc) error {
	page := string(make([]byte, 256<<10))
	for range 44 {
		if err := exec("INSERT INTO visits (id, at, page) VALUES (?, 0, ?)", 1000+c.states.Add(1), page); err != nil {
			return err
		}
	}
	return nil
}

// removeLarge removes the rows of a large transaction.
func (c *modelClient) removeLarge(large bool) {
	if !large {
		return
	}
	err := c.alone(func(exec execFunc) error { return exec("DELETE FROM visits WHERE id > 1000") })
	if err != nil {
		c.fail("delete rows: %v", err)
	}
}

// changeWithSQL changes sessions in a transaction of the application, which transact
// runs, or, in a table without an index, rolls the change back.
func (c *modelClient) changeWithSQL(large bool, transact func(change func(exec execFunc) error) error) {
	first, table := c.slot(), c.rng.IntN(2)
	count := 1
	if c.rng.IntN(4) == 0 {
		count = min(3, modelSessions-first)
	}
	// A transaction of one session does not read what it wrote. Others write it out;
	// Chai can't undo that twice for a row (see rollBack).
	rollBack := !c.indexed && count == 1 && !large && c.rng.IntN(4) == 0
	type modelChange struct {
		s       *modelSession
		state   int64
		data    []byte
		expiry  time.Time
		version int
	}
	var changes []modelChange
	for i := first; i < first+count; i++ {
		s := c.lock(i)
		defer s.Unlock()
		change := modelChange{s: s}
		change.state, change.data, change.expiry = c.newState(s)
		if c.rng.IntN(3) == 0 {
			change.state = ended
		}
		if !rollBack {
			change.version = s.in[table].begin(change.state)
		}
		changes = append(changes, change)
	}
	name := tables[table]
	err := transact(func(exec execFunc) error {
		for _, change := range changes {
			if change.state == ended {
				if err := exec("DELETE FROM "+name+" WHERE token = ?", change.s.token); err != nil {
					return err
				}
				continue
			}
			err := exec("UPDATE "+name+" SET data = ?, expiry = ? WHERE token = ?", change.data, change.expiry, change.s.token)
			if err != nil {
				return err
			}
			err = exec("INSERT INTO "+name+" (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
				change.s.token, change.data, change.expiry)
			if err != nil {
				return err
			}
		}
		if rollBack {
			return errRollBack
		}
		if large {
			return c.makeLarge(exec)
		}
		return nil
	})
	if rollBack != errors.Is(err, errRollBack) || !rollBack && err != nil {
		c.fail("change %s with SQL: %v", changes[0].s.token, err)
	}
	for i, change := range changes {
		if !rollBack {
			change.s.in[table].end(change.version, err)
		}
		c.findWith(table, first+i)
	}
	c.removeLarge(large)
}

// rollBack rolls back a transaction that has written out its changes, either because
// it reads what it wrote, or because it is large. Chai can undo only the first change
// of a row, and no change or deletion of an index entry: a new session is changed in a
// table without an index, and added in one with an index.
func (c *modelClient) rollBack(large bool) {
	c.did["rollback"]++
	i, table := c.slot(), c.rng.IntN(2)
	old := c.lock(i)
	for store := range tables { // the token is not used any more
		version := old.in[store].begin(ended)
		err := c.stores[store].Delete(old.token)
		if err != nil {
			c.fail("delete %s: %v", old.token, err)
		}
		old.in[store].end(version, err)
	}
	s := c.newSession(fmt.Sprint("session", i, "-", c.states.Add(1)))
	s.Lock()
	defer s.Unlock()
	c.sessions[i].Store(s)
	old.Unlock() // those who have waited for it look for the new one
	if !c.indexed {
		for store := range tables {
			c.writeWith(store, s)
		}
	}
	name := tables[table]
	_, data, expiry := c.newState(s)
	_, data2, expiry2 := c.newState(s)
	err := c.alone(func(exec execFunc) error {
		err := exec("INSERT INTO "+name+" (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", s.token, data, expiry)
		if err != nil {
			return err
		}
		for range 2 {
			if err := exec("UPDATE "+name+" SET data = ?, expiry = ? WHERE token = ?", data2, expiry2, s.token); err != nil {
				return err
			}
		}
		c.findWith(table, i)
		if large {
			if err := c.makeLarge(exec); err != nil {
				return err
			}
		}
		if c.rng.IntN(2) == 0 {
			if err := exec("DELETE FROM "+name+" WHERE token = ?", s.token); err != nil {
				return err
			}
		}
		return errRollBack
	})
	if !errors.Is(err, errRollBack) {
		c.fail("roll back: %v", err)
	}
	for store := range c.stores {
		c.findWith(store, i)
	}
}

// lockAll locks all sessions, and returns a function that unlocks them.
func (m *model) lockAll() (unlock func()) {
	for i := range m.sessions {
		m.lock(i)
	}
	return func() {
		for i := range m.sessions {
			m.sessions[i].Load().Unlock()
		}
	}
}

// A modelStep is a statement that gives the sessions of tables new states.
type modelStep struct {
	sql    string
	states [2]func(s *modelSession) int64 // for each table; nil for one that does not change
}

// inTables runs the steps that plan returns in one transaction, or each in its own.
func (c *modelClient) inTables(what string, plan func() []modelStep) {
	unlock := c.lockAll()
	steps := plan()
	var err error
	if c.rng.IntN(2) == 0 {
		c.did[what+" in one transaction"]++
		end := c.begin(steps)
		err = c.alone(func(exec execFunc) error {
			for _, step := range steps {
				if err := exec(step.sql); err != nil {
					return fmt.Errorf("%s: %w", step.sql, err)
				}
			}
			return nil
		})
		end(err)
	} else {
		c.did[what]++
		c.app.Lock()
		for i, step := range steps {
			end := c.begin(steps[i : i+1])
			if err = c.db.Exec(step.sql); err != nil {
				err = fmt.Errorf("%s: %w", step.sql, err)
			}
			end(err)
			c.findWith(c.store(), c.slot())
		}
		c.app.Unlock()
	}
	unlock()
	if err != nil {
		c.fail("%s: %v", what, err)
	}
	for range 8 {
		c.findWith(c.store(), c.slot())
	}
}

// begin begins the states that steps leave.
func (m *model) begin(steps []modelStep) (end func(err error)) {
	var last [2]func(s *modelSession) int64
	for _, step := range steps {
		for table, of := range step.states {
			if of != nil {
				last[table] = of
			}
		}
	}
	var ends []func(err error)
	begin := func(h *history, state int64) {
		version := h.begin(state)
		ends = append(ends, func(err error) { h.end(version, err) })
	}
	for table, of := range last {
		if of == nil {
			continue
		}
		for i := range m.sessions {
			s := m.sessions[i].Load()
			begin(&s.in[table], of(s))
		}
		begin(&m.tables[table], of(nil))
	}
	return func(err error) {
		for _, end := range ends {
			end(err)
		}
	}
}

func gone(*modelSession) int64  { return noTable }
func empty(*modelSession) int64 { return ended }

// of returns a function that returns the present state of a session in a table.
func (m *model) of(table int) func(s *modelSession) int64 {
	states := make(map[*modelSession]int64)
	for i := range m.sessions {
		s := m.sessions[i].Load()
		_, states[s] = s.in[table].now()
	}
	return func(s *modelSession) int64 { return states[s] }
}

func (c *modelClient) createIndex(table string) string {
	return fmt.Sprintf("CREATE INDEX idx_%d ON %s(expiry)", c.states.Add(1), table)
}

func rename(from, to string) string { return "ALTER TABLE " + from + " RENAME TO " + to }

// replaceTable drops a table and creates it again.
func (c *modelClient) replaceTable(table int) {
	c.inTables("replace", func() []modelStep {
		name := tables[table]
		steps := []modelStep{{sql: "DROP TABLE " + name}, {sql: createLike(name)}}
		steps[0].states[table], steps[1].states[table] = gone, empty
		if c.indexed {
			steps = append(steps, modelStep{sql: c.createIndex(name)})
		}
		return steps
	})
}

// renameAway renames a table, and back.
func (c *modelClient) renameAway(table int) {
	c.inTables("rename away", func() []modelStep {
		steps := []modelStep{{sql: rename(tables[table], "away")}, {sql: rename("away", tables[table])}}
		steps[0].states[table], steps[1].states[table] = gone, c.of(table)
		return steps
	})
}

// swapTables gives each table the name of the other one.
func (c *modelClient) swapTables() {
	c.inTables("swap", func() []modelStep {
		steps := []modelStep{{sql: rename(tables[0], "away")}, {sql: rename(tables[1], tables[0])}, {sql: rename("away", tables[1])}}
		steps[0].states[0] = gone
		steps[1].states = [2]func(*modelSession) int64{c.of(1), gone}
		steps[2].states[1] = c.of(0)
		return steps
	})
}

// rebuild copies a table, and puts the copy in its place, in one transaction. That
// changes no session, so others change sessions meanwhile.
func (c *modelClient) rebuild(table int) {
	c.did["rebuild"]++
	name := tables[table]
	steps := []string{createLike("rebuilt"), "INSERT INTO rebuilt SELECT * FROM " + name}
	if c.rng.IntN(2) == 0 {
		steps = append(steps, "DROP TABLE "+name, rename("rebuilt", name))
	} else {
		steps = append(steps, rename(name, "former"), rename("rebuilt", name), "DROP TABLE former")
	}
	if c.indexed {
		steps = append(steps, c.createIndex(name))
	}
	err := c.alone(func(exec execFunc) error {
		for _, sql := range steps {
			if err := exec(sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
	if err != nil {
		c.fail("rebuild: %v", err)
	}
	for range 8 {
		c.findWith(c.store(), c.slot())
	}
}
