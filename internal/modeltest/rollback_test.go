package modeltest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// rollbacks are the ways in which a transaction of the application is undone.
var rollbacks = map[string]func(t *testing.T, db *chai.DB, f func(tx *chai.Tx) error){
	"chaistore.Update": func(t *testing.T, db *chai.DB, f func(tx *chai.Tx) error) {
		if err := chaistore.Update(t.Context(), db, func(tx *chai.Tx) error { return errors.Join(f(tx), errNo) }); !errors.Is(err, errNo) {
			t.Error(err)
		}
	},
	"chaistore.Update, panic": func(t *testing.T, db *chai.DB, f func(tx *chai.Tx) error) {
		defer func() { _ = recover() }()
		_ = chaistore.Update(t.Context(), db, func(tx *chai.Tx) error {
			if err := f(tx); err != nil {
				t.Error(err)
			}
			panic(errNo)
		})
	},
	"Update": func(t *testing.T, db *chai.DB, f func(tx *chai.Tx) error) {
		if err := db.Update(func(tx *chai.Tx) error { return errors.Join(f(tx), errNo) }); !errors.Is(err, errNo) {
			t.Error(err)
		}
	},
	"Rollback": func(t *testing.T, db *chai.DB, f func(tx *chai.Tx) error) {
		tx, err := db.Begin(true)
		if err == nil {
			err = errors.Join(f(tx), tx.Rollback())
		}
		if err != nil {
			t.Error(err)
		}
	},
}

var errNo = errors.New("no")

// A rolled back transaction leaves what was there, the entries of the application's indexes
// included: Chai alone loses them. UNIQUE holds again. So does a process that is killed in
// a transaction.
func TestRollbackKeepsEntries(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	changes := map[string][]string{
		"update":                   {"UPDATE users SET name = 'bob' WHERE name = 'alice'"},
		"update of the same value": {"UPDATE users SET name = 'alice' WHERE name = 'alice'", "SELECT * FROM users"},
		"swap":                     {"UPDATE users SET name = 'x' WHERE id = 1", "UPDATE users SET name = 'alice' WHERE id = 2", "UPDATE users SET name = 'carol' WHERE id = 1"},
		"delete":                   {"DELETE FROM users WHERE name = 'alice'", "SELECT * FROM users"},
		"delete and insert":        {"DELETE FROM users", "INSERT INTO users (id, name, team) VALUES (9, 'alice', 't')", "SELECT * FROM users"},
		"reindex":                  {"REINDEX users"},
		"drop index":               {"DROP INDEX users_team"},
		"drop":                     {"DROP TABLE users"},
		"insert":                   {"INSERT INTO users (id, name, team) VALUES (7, 'new', 't'), (8, 'newer', 't')"},
		"rename":                   {"ALTER TABLE users RENAME TO others", "SELECT * FROM others"},
	}
	check := func(t *testing.T, db *chai.DB) {
		t.Helper()
		for _, where := range []string{"name = 'alice'", "id = 1", "team = 'red'"} {
			if n := testdb.Count(t, db, "SELECT COUNT(*) FROM users WHERE "+where); n != 1 {
				t.Errorf("got %d users with %s, want 1", n, where)
			}
		}
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM users"); n != 3 {
			t.Errorf("got %d users, want 3", n)
		}
		if err := db.Exec("INSERT INTO users (id, name, team) VALUES (20, 'alice', 't')"); err == nil {
			t.Error("a second alice was added")
		}
		testdb.CheckIndexes(t, db)
		testdb.Exec(t, db, "UPDATE users SET name = 'alice2' WHERE name = 'alice'", "UPDATE users SET name = 'alice' WHERE name = 'alice2'", "UPDATE users SET team = 'red' WHERE team = 'red'")
	}
	for change, statements := range changes {
		run := func(tx *chai.Tx) error {
			for _, sql := range statements {
				if err := tx.Exec(sql); err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
			}
			return nil
		}
		setUp := func(t *testing.T, db *chai.DB) *chaistore.ChaiStore {
			s := newStore(t, db, chaistore.Config{})
			testdb.Exec(t, db, "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT UNIQUE, team TEXT)", "CREATE INDEX users_team ON users (team)", "CREATE TABLE filler (id INTEGER PRIMARY KEY, v BLOB)")
			for i, user := range []string{"'alice', 'red'", "'carol', 'blue'", "'dave', 'blue'"} {
				testdb.Exec(t, db, fmt.Sprintf("INSERT INTO users (id, name, team) VALUES (%d, %s)", i+1, user))
			}
			return s
		}
		for way, rollBack := range rollbacks {
			t.Run(change+"/"+way, func(t *testing.T) {
				db := testdb.Memory(t)
				setUp(t, db)
				for range 3 {
					rollBack(t, db, run)
					check(t, db)
				}
			})
		}
		t.Run(change+"/killed", func(t *testing.T) {
			dir := t.TempDir()
			disk := testdb.NewFaultDisk(dir + "/pebble")
			db := openFaultDisk(t, disk, dir)
			setUp(t, db)
			tx, err := db.Begin(true)
			if err != nil {
				t.Fatal(err)
			}
			if err := run(tx); err != nil {
				t.Fatal(err)
			}
			// What is written out comes into the log once it is followed by more than a block of
			// it. The last row is not written out, and the end of the one before may not come.
			row := make([]byte, 100_000)
			if err := tx.Exec("INSERT INTO filler (id, v) VALUES (1, ?), (2, ?), (3, ?)", row, row, row); err != nil {
				t.Fatal(err)
			}
			for written := int64(0); written < 100_000; {
				written = 0
				logs, err := disk.List(dir + "/pebble")
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range logs {
					if info, err := disk.Stat(dir + "/pebble/" + name); err == nil && strings.HasSuffix(name, ".log") {
						written += info.Size()
					}
				}
				time.Sleep(time.Millisecond)
			}
			again := openFaultDisk(t, disk.Cut(testdb.KeepAll), dir)
			newStore(t, again, chaistore.Config{})
			check(t, again)
			if err := errors.Join(again.Close(), tx.Rollback(), db.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("at its own UNIQUE", func(t *testing.T) {
		db := testdb.Memory(t)
		newStore(t, db, chaistore.Config{})
		testdb.Exec(t, db, "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT UNIQUE, team TEXT)", "CREATE INDEX users_team ON users (team)")
		for i, user := range []string{"'alice', 'red'", "'carol', 'blue'", "'dave', 'blue'"} {
			testdb.Exec(t, db, fmt.Sprintf("INSERT INTO users (id, name, team) VALUES (%d, %s)", i+1, user))
		}
		for range 3 {
			if err := db.Exec("UPDATE users SET name = 'alice'"); err == nil {
				t.Error("all users became alice")
			}
			check(t, db)
		}
	})
}
