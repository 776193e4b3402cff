package sessiontable

import (
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

func TestEndedForgetsOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnded("sessions")
		time.Sleep(time.Hour) // ended may be older than its keys
		e.add("a moment before", time.Minute)
		time.Sleep(time.Nanosecond)
		e.add("long", time.Hour)
		e.add("short", time.Minute)
		e.add("extended", time.Minute)
		e.add("extended", time.Hour)
		e.add("not shortened", time.Hour)
		e.add("not shortened", time.Minute)
		e.add("for good", math.MaxInt64)
		for _, test := range []struct {
			wait time.Duration
			want map[string]bool
		}{
			{time.Minute - 1, map[string]bool{"short": true, "extended": true, "not shortened": true, "never added": false, "a moment before": false}},
			{1, map[string]bool{"short": false, "long": true, "extended": true, "not shortened": true}},
			{59*time.Minute - 1, map[string]bool{"long": true, "extended": true, "not shortened": true}},
			{1, map[string]bool{"long": false, "extended": false, "not shortened": false, "for good": true}},
			{100_000 * time.Hour, map[string]bool{"for good": true}},
		} {
			time.Sleep(test.wait)
			for key, want := range test.want {
				if got := e.has(key, 0); got != want {
					t.Errorf("after %v more, has(%q) = %v, want %v", test.wait, key, got, want)
				}
			}
		}
	})
}

func TestNilEndedRemembersNothing(t *testing.T) {
	var e *ended
	e.add("a", time.Hour)
	if e.has("a", 0) {
		t.Error("has = true, want false")
	}
}

// Remembered keys take little memory, and none once they are forgotten, even if there
// is always a key to remember.
func TestEndedMemory(t *testing.T) {
	testdb.Slow(t)
	synctest.Test(t, func(t *testing.T) {
		const keys, most = 100_000, 64
		e := newEnded("sessions")
		key := func(i int) string { return string(binary.BigEndian.AppendUint64(make([]byte, 43), uint64(i))) }
		before := testdb.HeapInUse()
		for i := range keys {
			e.add(key(i), time.Minute)
		}
		used := testdb.HeapInUse() - before
		t.Logf("%d keys take %d bytes each", keys, used/keys)
		if used > keys*most {
			t.Errorf("%d keys take %d bytes each, want at most %d", keys, used/keys, most)
		}
		if used < keys*8 {
			t.Errorf("%d keys take %d bytes each, want at least 8: the measurement is wrong", keys, used/keys)
		}
		for i := range 10 {
			if time.Sleep(30 * time.Second); e.has(key(keys-1), 0) != (i == 0) {
				t.Fatalf("has = %v after %v, want %v", i != 0, time.Duration(i+1)*30*time.Second, i == 0)
			}
			e.add(key(keys+i), time.Minute)
		}
		if left := testdb.HeapInUse() - before; left > 10_000 {
			t.Errorf("%d forgotten keys take %d bytes, want at most 10,000", keys, left)
		}
		runtime.KeepAlive(e)
	})
}

// No call forgets keys one by one, or copies those that remain. A generation is
// forgotten as a whole, and there are few of them.
func TestEndedForgetsWholeGenerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, remember = 10_000, time.Minute
		e := newEnded("sessions")
		made := make(map[*generation]int) // the number of keys
		added, most, mostHeld := 0, 0, 0
		add := func(n int) {
			for range n {
				e.add(string(binary.BigEndian.AppendUint64(nil, uint64(added))), []time.Duration{remember, time.Second}[added%2])
				added++
			}
			most = max(most, len(e.generations))
			held := 0
			for _, g := range e.generations {
				made[g] = len(g.until)
				held += len(g.until)
			}
			mostHeld = max(mostHeld, held)
		}
		for range 100 {
			add(keys / 100)
			time.Sleep(remember / 50)
		}
		time.Sleep(remember)
		add(1)
		if len(e.generations) != 1 {
			t.Errorf("got %d generations a minute after the last but one key, want 1", len(e.generations))
		}
		if inTime := keys / 2 / 2; mostHeld > inTime*5/4 {
			t.Errorf("%d keys were held at once, want little more than the %d to be remembered", mostHeld, inTime)
		}
		kept := 0
		for g, n := range made {
			if kept += n; len(g.until) != n {
				t.Fatalf("%d of the %d keys of a generation were forgotten one by one", n-len(g.until), n)
			}
		}
		if most > 20 || kept != added {
			t.Errorf("got up to %d generations with %d keys, want at most 20 with %d", most, kept, added)
		}
	})
}

// A deletion that fails after some of its sessions remembers none of them.
func TestFailedDeleteRemembersNothing(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	table := New(db, Options{Name: "sessions", RememberEnded: time.Hour})
	commit := func(token string) error {
		return table.Upsert(t.Context(), token, nil, time.Now().Add(time.Hour))
	}
	if err := commit("good"); err != nil {
		t.Fatal(err)
	}
	err := table.write(t.Context(), 0, func(b *engine.Batch, l *layout) error {
		b.Put(appendKey(nil, l.sessions.namespace, "bad"), []byte{textType})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Delete(t.Context(), "good", "bad"); err == nil {
		t.Fatal("Delete of a malformed row did not fail")
	}
	if err := commit("good"); err != nil {
		t.Errorf("Upsert after a failed deletion = %v, want nil", err)
	}
	if err := table.Delete(t.Context(), "good"); err != nil {
		t.Fatal(err)
	}
	if err := commit("good"); !errors.Is(err, ErrEnded) {
		t.Errorf("Upsert after a deletion = %v, want %v", err, ErrEnded)
	}
}

// Tables of the same name remember together. Tables of other names remember
// separately, so a long memory of one does not keep another's keys.
func TestTablesRememberByName(t *testing.T) {
	db := testdb.Memory(t)
	table := func(name string) *Table { return New(db, Options{Name: name, RememberEnded: time.Hour}) }
	a := table("a").ended
	if table("a").ended != a {
		t.Error("two Tables of the same name remember separately")
	}
	if table("b").ended == a {
		t.Error("two Tables of different names remember together")
	}
	if New(db, Options{Name: "a"}).ended != nil {
		t.Error("a Table that remembers nothing takes memory for it")
	}
}

// What SQL deletes is remembered, unless its transaction puts it again, is rolled back, or
// replaces the table.
func TestRemembersWhatSQLDeletes(t *testing.T) {
	const (
		deleteA = "DELETE FROM sessions WHERE token = 'a'"
		insertA = "INSERT INTO sessions (token, data, expiry) VALUES ('a', '\\x61', '2099-01-01T00:00:00Z')"
		renew   = "UPDATE sessions SET expiry = '2099-01-01T00:00:00Z'"
		create  = "CREATE TABLE rebuilt (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)"
		copied  = "INSERT INTO rebuilt SELECT * FROM sessions"
		drop    = "DROP TABLE sessions"
		rename  = "ALTER TABLE rebuilt RENAME TO sessions"
	)
	errNo := errors.New("no")
	type steps [][]string // in transactions; the last one may be "ROLLBACK"
	for name, test := range map[string]struct {
		steps steps
		want  bool
	}{
		"DELETE":                    {steps{{deleteA}}, true},
		"DELETE of all":             {steps{{"DELETE FROM sessions"}}, true},
		"written out":               {steps{{deleteA, renew}}, true},
		"put, then deleted":         {steps{{deleteA, insertA, renew, deleteA}}, true},
		"put by another":            {steps{{deleteA}, {insertA}}, true},
		"before others":             {steps{{deleteA}, {renew}, {"DELETE FROM sessions WHERE token = 'b'"}}, true},
		"before one rolled back":    {steps{{deleteA}, {renew, renew, "ROLLBACK"}}, true},
		"after one rolled back":     {steps{{deleteA, renew, "ROLLBACK"}, {deleteA}}, true},
		"after a rebuild":           {steps{{create, copied, drop, rename}, {deleteA}}, true},
		"after a new table":         {steps{{drop}, {testdb.CreateTable}, {insertA}, {deleteA}}, true},
		"after a drop, rolled back": {steps{{drop, "ROLLBACK"}, {deleteA}}, true},
		"rolled back":               {steps{{deleteA, "ROLLBACK"}}, false},
		"written out, rolled back":  {steps{{deleteA, renew, "ROLLBACK"}}, false},
		"put, rolled back":          {steps{{deleteA}, {insertA, renew, "ROLLBACK"}}, true},
		"new one, rolled back":      {steps{{strings.ReplaceAll(insertA, "'a'", "'new'"), renew, "ROLLBACK"}}, false},
		"deleted and put":           {steps{{deleteA, insertA}}, false},
		"written out and put":       {steps{{deleteA, renew, insertA, renew}}, false},
		"UPDATE":                    {steps{{renew}}, false},
		"DROP":                      {steps{{drop}, {testdb.CreateTable}}, false},
		"rebuilt":                   {steps{{create, copied, drop, rename}}, false},
		"rebuilt, then deleted":     {steps{{create, copied, drop, rename, deleteA}}, true},
		"moved":                     {steps{{create, copied, "DELETE FROM sessions", drop, rename}}, false},
		"the former table":          {steps{{"ALTER TABLE sessions RENAME TO former"}, {"DELETE FROM former"}, {testdb.CreateTable}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable)
			table := New(db, Options{Name: "sessions", RememberEnded: time.Hour})
			commit := func(token string) error {
				return table.Upsert(t.Context(), token, nil, time.Now().Add(time.Hour))
			}
			if err := errors.Join(commit("a"), commit("b")); err != nil {
				t.Fatal(err)
			}
			for _, statements := range test.steps {
				err := table.db.Update(t.Context(), func(tx *chai.Tx) error {
					for _, sql := range statements {
						if sql == "ROLLBACK" {
							return errNo
						}
						if err := tx.Exec(sql); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil && !errors.Is(err, errNo) {
					t.Fatal(err)
				}
			}
			if err := commit("new"); err != nil {
				t.Errorf("Upsert of another session = %v", err)
			}
			if err := commit("a"); errors.Is(err, ErrEnded) != test.want || err != nil && !test.want {
				t.Errorf("Upsert = %v, want ErrEnded: %v", err, test.want)
			}
		})
	}
}

// What SQL deletes is remembered from then on, for the longest time of the stores. A sweep
// remembers nothing.
func TestForgetsWhatSQLDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := New(db, Options{Name: "sessions", RememberEnded: time.Hour})
		New(db, Options{Name: "sessions", RememberEnded: time.Minute})
		commit := func(token string, d time.Duration) error {
			return table.Upsert(t.Context(), token, nil, time.Now().Add(d))
		}
		if err := errors.Join(commit("a", time.Hour), commit("b", -time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := commit("b", time.Hour); err != nil {
			t.Errorf("after a sweep, Upsert = %v", err)
		}
		time.Sleep(30 * time.Minute)
		testdb.Exec(t, db, "DELETE FROM sessions WHERE token = 'a'")
		time.Sleep(time.Hour - time.Nanosecond)
		if err := commit("a", time.Hour); !errors.Is(err, ErrEnded) {
			t.Errorf("Upsert = %v, want %v", err, ErrEnded)
		}
		time.Sleep(time.Nanosecond)
		if err := commit("a", time.Hour); err != nil {
			t.Errorf("an hour later, Upsert = %v", err)
		}
	})
}

// What SQL deletes is remembered before the table has been used, and before there is a table
// of owners.
func TestRemembersWhatSQLDeletesAtFirst(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, "INSERT INTO sessions (token, data, expiry) VALUES ('a', '\\x61', '2099-01-01T00:00:00Z')")
	table := New(db, Options{Name: "sessions", RememberEnded: time.Hour, OwnerOf: func([]byte) (string, error) { return "", nil }})
	if err := table.CreateOwners(t.Context()); err != nil {
		t.Fatal(err)
	}
	testdb.Exec(t, db, "DELETE FROM sessions")
	if err := table.Upsert(t.Context(), "a", nil, time.Now().Add(time.Hour)); !errors.Is(err, ErrEnded) {
		t.Errorf("Upsert = %v, want %v", err, ErrEnded)
	}
}

// The first store may be made while a transaction is open that replaces the table.
func TestRemembersWhatSQLDeletesFromReplacedTable(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := errors.Join(tx.Exec("DROP TABLE sessions"), tx.Exec(testdb.CreateTable)); err != nil {
		t.Fatal(err)
	}
	table := New(db, Options{Name: "sessions", RememberEnded: time.Hour})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	commit := func() error { return table.Upsert(t.Context(), "a", nil, time.Now().Add(time.Hour)) }
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	testdb.Exec(t, db, "DELETE FROM sessions")
	if err := commit(); !errors.Is(err, ErrEnded) {
		t.Errorf("Upsert = %v, want %v", err, ErrEnded)
	}
}
