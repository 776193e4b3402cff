// Comparing what is read with the model, while a history runs and afterwards.

package robustness

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore"
)

// compare compares all that can be read. After a failure, the application's statements
// only have to return.
func (r *historyRun) compare() {
	for i := range historyTokens {
		r.find(&r.model.book, fmt.Sprintf("s%02d", i))
	}
	all, err := r.all(r.store)
	r.storeError("All", err, !r.mayNotRead())
	if err == nil {
		for i := range historyTokens {
			token := fmt.Sprintf("s%02d", i)
			r.judge(&r.model.book, token, all[token])
		}
	}
	if r.owners {
		for i := range historyOwners {
			r.compareOwner(r.store, fmt.Sprint("o", i), r.model.visible())
		}
	}
	var got *appState
	err = r.call("SELECT", func() (err error) { got, err = readTables(r.db); return err })
	if r.struck() {
		return
	}
	if err != nil {
		r.fail("error", "SELECT: %v", err)
	}
	r.judgeTables("stale", got)
	r.compareIndexes(r.db, got, 5)
}

// all returns the sessions that All returns.
func (r *historyRun) all(store *chaistore.ChaiStore) (map[string]session, error) {
	var data map[string][]byte
	if err := r.call("All", func() (err error) { data, err = store.All(); return err }); err != nil {
		return nil, err
	}
	all := make(map[string]session)
	for token, data := range data {
		all[token] = r.parse(token, data)
	}
	return all, nil
}

// compareOwner compares the sessions of an owner.
func (r *historyRun) compareOwner(store *chaistore.ChaiStore, owner string, sessions map[string]session) {
	got := make(map[string]session)
	err := r.call("SessionsOf", func() error {
		for s, err := range store.SessionsOf(background, owner) {
			if err != nil {
				return err
			}
			if s.Token[0] == 's' {
				got[s.Token] = r.parse(s.Token, s.Data)
			}
		}
		return nil
	})
	r.storeError("SessionsOf", err, !r.mayNotRead() && store.Stats().WriteError == "") // the first one writes
	if err != nil {
		return
	}
	want := maps.Clone(sessions)
	maps.DeleteFunc(want, func(token string, _ session) bool { return token[0] != 's' || ownerOfToken(token) != owner })
	if !maps.Equal(got, want) {
		r.fail("index", "SessionsOf(%s) = %v, want %v", owner, got, want)
	}
}

// readTables reads the application's tables, row by row.
func readTables(db *chai.DB) (*appState, error) {
	s := &appState{tables: make(map[string]*appTable)}
	names := []string{"users", "plain"}
	for i := range appTables {
		names = append(names, fmt.Sprint("x", i))
	}
	for _, name := range names {
		t := &appTable{unique: name == "users", rows: make(map[int]appRow)}
		result, err := db.Query("SELECT id, name, team, n, body FROM " + name)
		if chai.IsNotFoundError(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = result.Iterate(func(row *chai.Row) error {
			var id int
			var text string
			var r appRow
			var err error
			if name == "plain" {
				if err = row.Scan(&text, &r.name, &r.team, &r.n, &r.body); err == nil {
					id, err = strconv.Atoi(strings.TrimRight(text[1:], "-"))
				}
			} else {
				err = row.Scan(&id, &r.name, &r.team, &r.n, &r.body)
			}
			t.rows[id] = r
			return err
		})
		if err := errors.Join(err, result.Close()); err != nil {
			return nil, err
		}
		s.tables[name] = t
	}
	return s, nil
}

// judgeTables fails unless the tables are in a possible state.
func (r *historyRun) judgeTables(class string, got *appState) {
	difference := ""
	for _, want := range r.model.states {
		if difference = got.difference(want); difference == "" {
			return
		}
	}
	if !r.model.unjudged {
		r.fail(class, "the application's tables are in none of %d states; %s", len(r.model.states), difference)
	}
}

// difference says how a state differs from the one it should be.
func (s *appState) difference(want *appState) string {
	for name, t := range want.tables {
		got := s.tables[name]
		if got == nil {
			return "table " + name + " is missing"
		}
		for id, row := range t.rows {
			if got.rows[id] != row {
				return fmt.Sprintf("row %d of %s is %v, want %v", id, name, got.rows[id], row)
			}
		}
		if len(got.rows) != len(t.rows) {
			return fmt.Sprintf("%s has %d rows, want %d", name, len(got.rows), len(t.rows))
		}
	}
	if len(s.tables) != len(want.tables) {
		return fmt.Sprintf("there are %d tables, want %d", len(s.tables), len(want.tables))
	}
	return ""
}

// compareIndexes compares what is found in other ways with the rows of a table. It looks
// at one of some rows only, and at fewer of those of large statements.
func (r *historyRun) compareIndexes(db *chai.DB, s *appState, some int) {
	for name, t := range s.tables {
		names, teams := make(map[string][]int), make(map[string][]int)
		for i := range appNames {
			names[fmt.Sprint("n", i)] = nil
		}
		for i := range appTeams {
			teams[fmt.Sprint("t", i)] = nil
		}
		for id, row := range t.rows {
			if id%some == 0 && (id < bulk || id%10 == 0) {
				r.compareIDs(db, name, "id = "+key(name, id), []int{id})
			}
			names[row.name] = append(names[row.name], id)
			teams[row.team] = append(teams[row.team], id)
		}
		i := 0
		for value, ids := range names {
			if i++; name == "users" && i%some == 0 && (value[0] == 'n' || ids[0]%10 == 0) {
				r.compareIDs(db, name, "name = '"+value+"'", ids)
			}
		}
		for value, ids := range teams {
			if name != "plain" {
				r.compareIDs(db, name, "team = '"+value+"'", ids)
			}
		}
	}
}

// compareIDs fails unless a condition finds the given rows.
func (r *historyRun) compareIDs(db *chai.DB, table, where string, want []int) {
	var got []int
	err := r.call("SELECT", func() error {
		result, err := db.Query("SELECT id FROM " + table + " WHERE " + where)
		if err != nil {
			return err
		}
		defer result.Close()
		return result.Iterate(func(row *chai.Row) error {
			var id int
			var text string
			var err error
			if table == "plain" {
				if err = row.Scan(&text); err == nil {
					id, err = strconv.Atoi(strings.TrimRight(text[1:], "-"))
				}
			} else {
				err = row.Scan(&id)
			}
			got = append(got, id)
			return err
		})
	})
	slices.Sort(got)
	slices.Sort(want)
	if !r.struck() && (!slices.Equal(got, want) || err != nil) {
		r.fail("index", "in %s, rows %v are found by %s, want %v; error %v", table, got, where, want, err)
	}
}

// compareOn opens what is on a disk, and compares.
func (r *historyRun) compareOn(fs vfs.FS) {
	r.result.Struck = r.hasStruck()
	r.fault.Store(nil) // all must work
	var db *chai.DB
	var store *chaistore.ChaiStore
	err := r.call("Open", func() (err error) {
		if db, err = openChai(r.dir, fs); err == nil {
			store, err = r.newStore(db)
		}
		return err
	})
	if err != nil {
		r.fail("unopenable", "open again: %v", err)
	}
	all, err := r.all(store)
	if err != nil {
		r.fail("unopenable", "opened again: All: %v", err)
	}
	for n := range historyTokens {
		token := fmt.Sprintf("s%02d", n)
		r.judgeOpened(&r.model.book, token, all[token])
		if r.crowd == nil {
			continue
		}
		for i := range r.crowd.books {
			r.judgeOpened(&r.crowd.books[i], crowdToken(i, n), all[crowdToken(i, n)])
		}
	}
	if r.owners {
		for i := range historyOwners {
			r.compareOwner(store, fmt.Sprint("o", i), all)
		}
	}
	var got *appState
	if err := r.call("SELECT", func() (err error) { got, err = readTables(db); return err }); err != nil {
		r.fail("unopenable", "opened again: SELECT: %v", err)
	}
	r.judgeTables("lost", got)
	r.compareIndexes(db, got, 1)
	r.compareUnique(db, got)
	if err := r.call("Commit", func() error { return store.Commit("more", nil, inAnHour()) }); err != nil {
		r.fail("unopenable", "opened again: Commit: %v", err)
	}
	if err := r.call("Close", db.Close); err != nil {
		r.fail("unopenable", "opened again: Close: %v", err)
	}
	if r.db != nil {
		r.noGoroutines()
	}
}

// compareUnique fails unless names that are there can't be inserted again, and others can.
func (r *historyRun) compareUnique(db *chai.DB, s *appState) {
	taken := make(map[string]bool)
	for _, row := range s.tables["users"].rows {
		taken[row.name] = true
	}
	for i := range 8 {
		name := fmt.Sprint("n", i)
		err := r.call("INSERT", func() error {
			return db.Exec("INSERT INTO users (id, name, team, n, body) VALUES (?, ?, '', 0, '')", 1_000_000+i, name)
		})
		if (err != nil) != taken[name] {
			r.fail("index", "INSERT of name %s = %v, want an error: %v", name, err, taken[name])
		}
	}
}
