package modeltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// returns calls f, and fails the test if it does not return soon. It returns f's error, or
// its panic as an error.
func returns(t *testing.T, name string, f func() error) (err error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		var err error
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("panic: %v", r)
			}
			result <- err
		}()
		err = f()
	}()
	select {
	case err = <-result:
		return err
	case <-time.After(5 * time.Second):
		t.Fatalf("%s has not returned for 5 seconds", name)
		return nil
	}
}

// statements are what an application may execute.
var statements = []string{
	"INSERT INTO app (k, name, v) VALUES (100, 'z', 1)",
	"INSERT INTO app (k, name, v) VALUES (101, 'x', 1), (102, 'y', 2)",
	"INSERT INTO app (k, name, v) VALUES (103, 'w', 1); INSERT INTO app (k, name, v) VALUES (104, 'u', 1)",
	"INSERT INTO large (k, v) VALUES (1, ?)", // 11 MB
	"UPDATE app SET v = 5",
	"UPDATE app SET name = 'changed' WHERE k = 3",
	"UPDATE app SET v = 7 WHERE name = 'name4'",
	"UPDATE sessions SET data = ?",
	"DELETE FROM app WHERE k = 2",
	"DELETE FROM app",
	"DELETE FROM sessions",
	"CREATE TABLE other (k INTEGER PRIMARY KEY)",
	"CREATE TABLE other (k INTEGER PRIMARY KEY); INSERT INTO other (k) VALUES (1)",
	"CREATE INDEX app_by_v ON app (v)",
	"CREATE UNIQUE INDEX app_unique ON app (k, v)",
	"CREATE SEQUENCE seq",
	"DROP TABLE app",
	"DROP TABLE sessions",
	"DROP INDEX app_by_name",
	"ALTER TABLE app RENAME TO app2",
	"ALTER TABLE sessions RENAME TO sessions2",
	"ALTER TABLE app ADD COLUMN more TEXT",
	"REINDEX app",
	"SELECT * FROM app",
	"SELECT name FROM app ORDER BY v",
}

// ways are how it executes them.
var ways = map[string]func(db *chai.DB, sql string, args ...any) error{
	"Exec": func(db *chai.DB, sql string, args ...any) error { return db.Exec(sql, args...) },
	"Prepare": func(db *chai.DB, sql string, args ...any) error {
		statement, err := db.Prepare(sql)
		if err != nil {
			return err
		}
		return statement.Exec(args...)
	},
	"Query": func(db *chai.DB, sql string, args ...any) error {
		result, err := db.Query(sql, args...)
		if err != nil {
			return err
		}
		return errors.Join(result.Iterate(func(*chai.Row) error { return nil }), result.Close())
	},
	"Update": func(db *chai.DB, sql string, args ...any) error {
		return db.Update(func(tx *chai.Tx) error { return tx.Exec(sql, args...) })
	},
	"rolled back": func(db *chai.DB, sql string, args ...any) error {
		tx, err := db.Begin(true)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		return tx.Exec(sql, args...)
	},
	"BEGIN": func(db *chai.DB, sql string, args ...any) error {
		if err := db.Exec("BEGIN"); err != nil {
			return err
		}
		err := db.Exec(sql, args...)
		defer func() { // unless COMMIT has ended it
			defer func() { _ = recover() }()
			_ = db.Exec("ROLLBACK")
		}()
		return errors.Join(err, db.Exec("COMMIT"))
	},
	"chaistore.Update": func(db *chai.DB, sql string, args ...any) error {
		return chaistore.Update(context.Background(), db, func(tx *chai.Tx) error { return tx.Exec(sql, args...) })
	},
}

// The disk has failed in a commit of the store, or in a statement of the application. Each
// statement of the application returns or panics at once, again and again, and leaves no
// lock of Chai locked. Finds return what was acknowledged, and nothing that was refused.
// Close returns.
func TestStatementsAfterAFailure(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	for i, way := range slices.Sorted(maps.Keys(ways)) {
		for j, by := range []string{"store", "application"} {
			t.Run(way+"/"+by, func(t *testing.T) {
				t.Parallel()
				for k, sql := range statements {
					if !testdb.Sampled(6, i, j, k) {
						continue
					}
					testStatementAfterAFailure(t, way, by, sql)
				}
			})
		}
	}
}

func testStatementAfterAFailure(t *testing.T, way, by, sql string) {
	dir := t.TempDir()
	disk := testdb.NewFaultDisk(dir + "/pebble")
	db := openFaultDisk(t, disk, dir)
	s := newStore(t, db, chaistore.Config{Owner: ownerInData})
	testdb.Exec(t, db, "CREATE TABLE app (k INTEGER PRIMARY KEY, name TEXT UNIQUE, v INTEGER)", "CREATE INDEX app_by_name ON app (name)", "CREATE TABLE large (k INTEGER PRIMARY KEY, v BLOB)")
	for i := range 10 {
		testdb.Exec(t, db, fmt.Sprintf("INSERT INTO app (k, name, v) VALUES (%d, 'name%d', %d)", i, i, i))
	}
	want := make(map[string]string)
	for i := range 5 {
		token := fmt.Sprint("s", i)
		want[token] = fmt.Sprint("alice|", i)
		commit(t, s, token, want[token], inAnHour())
	}
	check := func(when string) {
		t.Helper()
		for token, data := range want {
			if got, exists, err := s.Find(token); string(got) != data || !exists || err != nil {
				t.Errorf("%q: %s, Find(%q) = %q, %v, %v; want %q", sql, when, token, got, exists, err, data)
			}
		}
		for _, token := range []string{"refused", "refused too"} {
			if got, exists, err := s.Find(token); exists || err != nil {
				t.Errorf("%q: %s, Find(%q) = %q, %v, %v; want nothing", sql, when, token, got, exists, err)
			}
		}
		if all, err := s.All(); len(all) != len(want) || err != nil {
			t.Errorf("%q: %s, All = %d sessions, %v; want %d", sql, when, len(all), err, len(want))
		}
	}
	var args []any
	switch {
	case strings.Contains(sql, "INTO large"):
		args = []any{make([]byte, 11<<20)}
	case strings.Contains(sql, "?"):
		args = []any{[]byte("alice|sql")}
	}
	// What changes nothing, or is not committed, may succeed. What the application's own
	// statement has changed is in memory, and the next one may find nothing to change.
	changes := !strings.HasPrefix(sql, "SELECT") && !strings.HasPrefix(sql, "REINDEX") && way != "rolled back"

	disk.Break(&testdb.Fault{Op: "sync", File: ".log", Err: syscall.EIO, Times: 1})
	if by == "store" {
		for _, call := range []func() error{
			func() error { return s.Commit("refused", []byte("alice|x"), inAnHour()) },
			func() error { return s.Commit("s1", []byte("alice|x"), inAnHour()) },
			func() error { return s.Delete("s2") },
		} {
			if err := returns(t, "call", call); !errors.Is(err, syscall.EIO) {
				t.Fatalf("a call of the store = %v, want %v", err, syscall.EIO)
			}
		}
		check("after the failure")
	}
	for i := range 3 {
		name := fmt.Sprintf("try %d of %s", i, sql)
		err := returns(t, name, func() error { return ways[way](db, sql, args...) })
		if err == nil && changes && (by == "store" || i == 0) {
			t.Errorf("%s = nil after the failure", name)
		}
		check(name)
		insert := func() error {
			return db.Exec("INSERT INTO app (k, name, v) VALUES (?, ?, 0)", 50+i, fmt.Sprint("n", i))
		}
		if err := returns(t, "a plain INSERT after "+name, insert); err == nil {
			t.Errorf("a plain INSERT after %s = nil", name)
		}
		_ = returns(t, "SELECT", func() error {
			_, err := db.QueryRow("SELECT COUNT(*) FROM sessions")
			return err
		})
		if err := returns(t, "Commit", func() error { return s.Commit("refused too", nil, inAnHour()) }); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: Commit = %v, want %v", name, err, syscall.EIO)
		}
		check("after others than " + name)
	}
	s.StopCleanup()
	if err := returns(t, "Close after "+sql, db.Close); err != nil && strings.Contains(err.Error(), "panic") {
		t.Errorf("%s: Close = %v", sql, err)
	}
}
