package sessiontable

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

const (
	createOwners = "CREATE TABLE sessions_owners (owner TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (owner, token))"
	createVisits = "CREATE TABLE visits (at TEXT PRIMARY KEY)"
)

// A table that shares its rows with another table or with an index is refused, and neither
// dropped nor changed. The error says what to do, and that helps.
func TestSharedRows(t *testing.T) {
	former := []string{
		testdb.CreateTable, "CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT NOT NULL)",
		"CREATE INDEX sessions_owners_by_owner ON sessions_owners (owner, token)",
	}
	for name, test := range map[string]struct {
		before  []string // without a store, until the process is killed
		after   string   // what gets the last namespace once more
		mixed   string
		sharing string
	}{
		"sessions":            {[]string{testdb.CreateTable}, createVisits, "sessions", `table "sessions" and table "visits"`},
		"owners":              {[]string{testdb.CreateTable, createOwners}, createVisits, "sessions_owners", `table "sessions_owners" and table "visits"`},
		"index of sessions":   {[]string{testdb.CreateTable, testdb.CreateIndex}, createVisits, "sessions", `table "visits" and index "idx_sessions_expiry"`},
		"index and sessions":  {[]string{testdb.CreateTable}, testdb.CreateIndex, "sessions", `table "sessions" and index "idx_sessions_expiry"`},
		"index of other":      {[]string{createVisits, testdb.CreateTable}, "CREATE INDEX i ON visits (at)", "sessions", `table "sessions" and index "i"`},
		"former owners":       {former[:2], createVisits, "sessions_owners", `table "sessions_owners" and table "visits"`},
		"index of the former": {former, createVisits, "sessions_owners", `table "visits" and index "sessions_owners_by_owner"`},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Disk(t)
			testdb.Exec(t, db, test.before...)
			db = testdb.Killed(t, db)
			testdb.Exec(t, db, test.after)
			if test.after == createVisits {
				testdb.Exec(t, db, "INSERT INTO visits (at) VALUES ('now')")
			}
			table := New(db, Options{Name: "sessions", OwnerOf: firstByte})
			_ = table.CreateOwners(t.Context())
			err := table.Check()
			if !errors.Is(err, errShared) || !strings.HasPrefix(err.Error(), test.sharing+" share their rows") || strings.HasSuffix(err.Error(), "made anew") {
				t.Fatalf("Check = %v, want an error about %s, which does not say to drop either", err, test.sharing)
			}
			_, _, findErr := find(t, table, "a")
			wantShared(t, findErr)
			wantShared(t, table.Upsert(t.Context(), "a", []byte("a"), time.Now()))
			if test.after == createVisits && testdb.Count(t, db, "SELECT COUNT(*) FROM visits") != 1 {
				t.Error("the other table has lost its row")
			}
			_, advice, _ := strings.Cut(err.Error(), " run ")
			statements, _, _ := strings.Cut(advice, "; leave out the last")
			statements, insert, _ := strings.Cut(statements, "; INSERT")
			if want := " INTO " + test.mixed + " SELECT * FROM " + test.mixed + "_shared"; insert != want {
				t.Errorf("the last statement is INSERT%s, want INSERT%s", insert, want)
			}
			update(t, db, strings.Split(statements, "; ")...)
			if slices.Contains(test.before, former[1]) {
				update(t, db, "DROP TABLE sessions_owners") // as the next error says
			}
			newTableWithOwners(t, db)
			upsertData(t, table, "a", "alice")
			if test.after == createVisits {
				update(t, db, "DROP TABLE visits")
			}
			wantTokensOf(t, table, "a", "a")
		})
	}
}

// Sessions survive, unless the other table has rows of its own.
func TestCopyOfSharedRows(t *testing.T) {
	db := testdb.Disk(t)
	testdb.Exec(t, db, testdb.CreateTable)
	upsert(t, newTable(t, db), "a", time.Now())
	seq, err := db.DB.Catalog().GetSequence("__chai_store_seq")
	if err != nil {
		t.Fatal(err)
	}
	*seq.CurrentValue-- // as after a kill, without a store
	testdb.Exec(t, db, createVisits)
	table := newTable(t, db)
	err = table.Check()
	wantShared(t, err)
	_, advice, _ := strings.Cut(err.Error(), " run ")
	statements, _, _ := strings.Cut(advice, "; leave out the last")
	update(t, db, strings.Split(statements, "; ")...)
	update(t, db, "DROP TABLE visits")
	if _, found, err := find(t, table, "a"); !found || err != nil {
		t.Errorf("Find = %v, %v; want true, nil", found, err)
	}
}

// A new table of owners takes no rows of the table that a process made before it was killed.
func TestTableOfOwnersIsMadeAfterAKill(t *testing.T) {
	db := testdb.Disk(t)
	newTable(t, db)
	testdb.Exec(t, db, testdb.CreateTable, "CREATE TABLE friends (a TEXT, b TEXT, PRIMARY KEY (a, b))", "INSERT INTO friends (a, b) VALUES ('bob', 'carol')")
	db = testdb.Killed(t, db)
	table := newTableWithOwners(t, db)
	upsertData(t, table, "a", "alice")
	if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
		t.Error(err)
	}
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM friends WHERE a = 'bob'"); n != 1 {
		t.Errorf("the other table has %d of its rows, want 1", n)
	}
}

func wantShared(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, errShared) {
		t.Errorf("got error %v, want %v", err, errShared)
	}
}

// update runs statements in one transaction.
func update(t *testing.T, db *chai.DB, statements ...string) {
	t.Helper()
	err := engine.Open(db, nil).Update(t.Context(), func(tx *chai.Tx) error {
		for _, sql := range statements {
			if err := tx.Exec(sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%q: %v", statements, err)
	}
}
