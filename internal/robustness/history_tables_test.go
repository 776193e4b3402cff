// The application's tables and statements: as SQL, and what they do in the model.

package robustness

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
)

// An appState is a state of the application's tables. What is in one does not change.
type appState struct{ tables map[string]*appTable }

type appTable struct {
	unique bool // whether names are
	rows   map[int]appRow
}

type appRow struct {
	name, team string
	n          int
	body       string
}

func (row appRow) String() string {
	return fmt.Sprintf("{%.20s %s %d %.20s}", row.name, row.team, row.n, row.body)
}

// permanentTables are always there. Others are created and dropped: x0, x1 and x2.
var permanentTables = []struct {
	name   string
	create []string
}{
	{"users", []string{
		"CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, team TEXT NOT NULL, n INTEGER NOT NULL, body TEXT NOT NULL)",
		"CREATE INDEX users_team ON users(team)",
	}},
	{"plain", []string{
		"CREATE TABLE plain (id TEXT PRIMARY KEY, name TEXT NOT NULL, team TEXT NOT NULL, n INTEGER NOT NULL, body TEXT NOT NULL)",
	}},
}

const (
	appNames, appTeams, appIDs = 30, 4, 40
	appTables                  = 3
)

// A stmt is a statement, and what it does to the state that the transaction has.
type stmt struct {
	sql   string
	args  []any
	apply func(s *appState) error // nil for a statement on sessions
	token string
	to    func(former session) session
}

func (s stmt) String() string {
	text := s.sql
	for _, arg := range s.args {
		switch arg := arg.(type) {
		case string:
			text = strings.Replace(text, "?", fmt.Sprintf("<%d bytes>", len(arg)), 1)
		case []byte:
			text = strings.Replace(text, "?", fmt.Sprintf("<%d bytes>", len(arg)), 1)
		}
	}
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return text
}

// table returns a table that may be changed.
func (s *appState) table(name string) (*appTable, error) {
	t := s.tables[name]
	if t == nil {
		return nil, errors.New("no such table")
	}
	t = &appTable{t.unique, maps.Clone(t.rows)}
	s.tables[name] = t
	return t, nil
}

func (t *appTable) put(id int, row appRow) error {
	for other, r := range t.rows {
		if t.unique && other != id && r.name == row.name {
			return errors.New("the name is there")
		}
	}
	t.rows[id] = row
	return nil
}

// steps returns the states after each statement, up to the first that fails.
func (s *appState) steps(stmts []stmt) (states []*appState, err error) {
	states = []*appState{s}
	for _, stmt := range stmts {
		if stmt.apply == nil {
			continue
		}
		s = &appState{maps.Clone(s.tables)}
		if err := stmt.apply(s); err != nil {
			return states, err
		}
		states = append(states, s)
	}
	return states, nil
}

// stmts returns statements, some of which fail. With tx, they are for a transaction.
func (g *generator) stmts(n int, tx bool) (stmts []stmt) {
	for range n {
		name := pick(g, []string{"users", "users", "users", "plain", "plain", fmt.Sprint("x", g.IntN(appTables))})
		switch k := g.IntN(20); {
		case k < 11:
			stmts = append(stmts, g.change(name))
		case k < 13:
			stmts = append(stmts, g.onTable(fmt.Sprint("x", g.IntN(appTables))))
		case k < 15 && tx:
			stmts = append(stmts, stmt{sql: "REINDEX " + pick(g, permanentTables).name, apply: func(*appState) error { return nil }})
		case k < 17 && tx:
			stmts = append(stmts, stmt{sql: "SELECT id FROM users", apply: func(*appState) error { return nil }}) // writes out what was written before
		case k < 18:
			stmts = append(stmts, g.onSession())
		default:
			stmts = append(stmts, g.change(name))
		}
	}
	return stmts
}

// onSession returns a statement that changes a session.
func (g *generator) onSession() stmt {
	token := g.token()
	if g.IntN(3) == 0 {
		return stmt{sql: "DELETE FROM sessions WHERE token = '" + token + "'", token: token, to: func(session) session { return session{} }}
	}
	s := session{number: g.next(), size: g.IntN(300)}
	return stmt{
		sql: "UPDATE sessions SET data = ? WHERE token = '" + token + "'", args: []any{s.data(token)}, token: token,
		to: func(former session) session {
			if former.number == 0 {
				return former
			}
			return session{s.number, s.size, former.expired}
		},
	}
}

// onTable returns a statement that changes the catalog.
func (g *generator) onTable(name string) stmt {
	number, other := g.next(), fmt.Sprint("x", g.IntN(appTables))
	exists := func(s *appState) error { _, err := s.table(name); return err }
	switch g.IntN(7) {
	case 0:
		return stmt{sql: "DROP TABLE " + name, apply: func(s *appState) error {
			err := exists(s)
			delete(s.tables, name)
			return err
		}}
	case 1:
		return stmt{sql: fmt.Sprintf("CREATE INDEX x_%d ON %s(team)", number, name), apply: exists}
	case 2:
		return stmt{sql: fmt.Sprintf("ALTER TABLE %s ADD COLUMN c%d INTEGER", name, number), apply: exists}
	case 3:
		return stmt{sql: fmt.Sprintf("ALTER TABLE %s RENAME TO %s", name, other), apply: func(s *appState) error {
			if err := exists(s); err != nil {
				return err
			}
			if s.tables[other] != nil {
				return errors.New("the table is there")
			}
			s.tables[other] = s.tables[name]
			delete(s.tables, name)
			return nil
		}}
	default:
		return stmt{
			sql: fmt.Sprintf("CREATE TABLE %s (id INTEGER PRIMARY KEY, name TEXT NOT NULL, team TEXT NOT NULL, n INTEGER NOT NULL, body TEXT NOT NULL)", name),
			apply: func(s *appState) error {
				if s.tables[name] != nil {
					return errors.New("the table is there")
				}
				s.tables[name] = &appTable{rows: make(map[int]appRow)}
				return nil
			},
		}
	}
}

// change returns a statement that changes the rows of a table.
func (g *generator) change(table string) stmt {
	switch g.IntN(11) {
	case 0, 1, 2:
		return g.insert(table, 1)
	case 3:
		return g.insert(table, 2)
	case 4:
		return g.insert(table, 200)
	case 5:
		return g.delete1(table)
	default:
		return g.update(table)
	}
}

func (g *generator) name() string {
	n := g.IntN(appNames)
	if historyLong && n%5 == 0 {
		return fmt.Sprint("n", n, strings.Repeat("-", 150))
	}
	return fmt.Sprint("n", n)
}

func (g *generator) team() string { return fmt.Sprint("t", g.IntN(appTeams)) }

// key returns the primary key of a row, as SQL.
func key(table string, id int) string {
	if table != "plain" {
		return fmt.Sprint(id)
	}
	long := ""
	if historyLong && id%7 == 0 {
		long = strings.Repeat("-", 150)
	}
	return fmt.Sprintf("'k%05d%s'", id, long)
}

// bulk is where rows of large statements begin.
const bulk = 1000

func (g *generator) insert(table string, n int) stmt {
	rows := make(map[int]appRow)
	var values []string
	var order []int
	var args []any
	for first := bulk + n*g.IntN(3); len(order) < n; {
		id, row := g.IntN(appIDs), appRow{g.name(), g.team(), g.next(), ""}
		if n > 2 {
			id = first + len(order)
			row.name = fmt.Sprint("b", id)
		}
		if _, ok := rows[id]; ok {
			continue
		}
		if len(order) == 0 {
			row.body = body(row.n, g.size()/3)
		}
		rows[id], order, args = row, append(order, id), append(args, row.body)
		values = append(values, fmt.Sprintf("(%s, '%s', '%s', %d, ?)", key(table, id), row.name, row.team, row.n))
	}
	return stmt{
		sql:  fmt.Sprintf("INSERT INTO %s (id, name, team, n, body) VALUES %s", table, strings.Join(values, ", ")),
		args: args,
		apply: func(s *appState) error {
			t, err := s.table(table)
			if err != nil {
				return err
			}
			for _, id := range order {
				if _, ok := t.rows[id]; ok {
					return errors.New("the row is there")
				}
				if err := t.put(id, rows[id]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// body returns a text that hardly compresses.
func body(number, size int) string {
	b := make([]byte, size/2)
	rand.NewChaCha8([32]byte{byte(number), byte(number >> 8)}).Read(b)
	return fmt.Sprintf("%x", b)
}

// where returns a condition, as SQL and as a function.
func (g *generator) where(table string) (string, func(id int, row appRow) bool) {
	id, name, team := g.IntN(appIDs), g.name(), g.team()
	switch g.IntN(6) {
	case 0:
		return " WHERE name = '" + name + "'", func(_ int, row appRow) bool { return row.name == name }
	case 1:
		return " WHERE team = '" + team + "'", func(_ int, row appRow) bool { return row.team == team }
	case 2:
		to := id + 10
		if g.IntN(3) == 0 {
			id, to = bulk, bulk+200
		}
		return fmt.Sprintf(" WHERE id BETWEEN %s AND %s", key(table, id), key(table, to)), func(i int, _ appRow) bool { return i >= id && i <= to }
	default:
		return fmt.Sprintf(" WHERE id = %s", key(table, id)), func(i int, _ appRow) bool { return i == id }
	}
}

func (g *generator) delete1(table string) stmt {
	where, matches := g.where(table)
	return stmt{sql: "DELETE FROM " + table + where, apply: func(s *appState) error {
		t, err := s.table(table)
		if err == nil {
			maps.DeleteFunc(t.rows, matches)
		}
		return err
	}}
}

// update returns an UPDATE. Only one row at a time gets a new name.
func (g *generator) update(table string) stmt {
	where, matches := g.where(table)
	if g.IntN(4) == 0 {
		where, matches = "", func(int, appRow) bool { return true }
	}
	var set string
	var args []any
	var change func(row *appRow)
	switch name, team, n := g.name(), g.team(), g.next(); g.IntN(4) {
	case 0:
		id := g.IntN(appIDs)
		where, matches = fmt.Sprintf(" WHERE id = %s", key(table, id)), func(i int, _ appRow) bool { return i == id }
		set, change = "name = '"+name+"'", func(row *appRow) { row.name = name }
	case 1:
		set, change = "team = '"+team+"'", func(row *appRow) { row.team = team }
	case 2:
		text := body(n, g.IntN(300))
		set, args, change = "body = ?", []any{text}, func(row *appRow) { row.body = text }
	default:
		set, change = fmt.Sprint("n = ", n), func(row *appRow) { row.n = n }
	}
	return stmt{sql: "UPDATE " + table + " SET " + set + where, args: args, apply: func(s *appState) error {
		t, err := s.table(table)
		if err != nil {
			return err
		}
		for id, row := range t.rows {
			if matches(id, row) {
				change(&row)
				if err := t.put(id, row); err != nil {
					return err
				}
			}
		}
		return nil
	}}
}
