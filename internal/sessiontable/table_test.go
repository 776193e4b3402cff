package sessiontable

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

func newTable(t testing.TB, db *chai.DB) *Table {
	t.Helper()
	return New(db, Options{Name: "sessions", Logger: func() *slog.Logger { return slog.New(slog.DiscardHandler) }})
}

// find is [Table.Find] that returns a Row.
func find(t *testing.T, table *Table, token string) (row Row, found bool, err error) {
	t.Helper()
	data, expiry, found, err := table.Find(t.Context(), token)
	if found {
		row = Row{token, data, expiry}
	}
	return row, found, err
}

// upsert adds a session whose data is its token.
func upsert(t testing.TB, table *Table, token string, expiry time.Time) {
	t.Helper()
	if err := table.Upsert(t.Context(), token, []byte(token), expiry); err != nil {
		t.Error(err)
	}
}

func TestCreateKeepsAnExistingTable(t *testing.T) {
	table := newTable(t, testdb.Memory(t))
	for i := range 2 {
		if err := table.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, found, err := find(t, table, "a"); found != (i > 0) || err != nil {
			t.Fatalf("Find = %v, %v; want %v, nil", found, err, i > 0)
		}
		upsert(t, table, "a", time.Now())
	}
}

// A name with another character could end a statement and begin the next one. A keyword
// makes the database unreadable once it is reopened, and a longer name makes Chai panic.
func TestCheckName(t *testing.T) {
	db := testdb.Memory(t)
	good := []string{"a", "z", "A", "Z", "_", "a0", "a9", "azAZ_09", "_chai_", "x__chai_", strings.Repeat("n", MaxKeyLen)}
	const notPlain = "is not a plain identifier"
	bad := map[string]string{ // and why
		"": "is empty", "0": notPlain, "9a": notPlain, "table": "is a keyword", "SELECT": "is a keyword",
		"__chai_": "is reserved", "__chai_sequence": "is reserved", strings.Repeat("n", MaxKeyLen+1): "is longer than 100 bytes",
	}
	for c := range 256 { // as the second character of a name
		isPlain := c == '_' || strings.ContainsRune("0123456789", rune(c)) ||
			strings.ContainsRune("abcdefghijklmnopqrstuvwxyz", rune(c)|0x20) && c < 0x80
		name := "a" + string([]byte{byte(c)})
		if !isPlain {
			bad[name], bad[name[1:]] = notPlain, notPlain
		} else if !strings.EqualFold(name, "as") { // a keyword
			good = append(good, name)
		}
	}
	for name, want := range bad {
		if err := CheckName(db, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CheckName(%q) = %v, want an error with %q", name, err, want)
		}
	}
	for _, name := range good {
		if err := CheckName(db, name); err != nil {
			t.Errorf("the name %q was refused: %v", name, err)
		}
	}
}

// A table of another form is refused. Its rows would be taken for sessions, or sessions
// would be written that its application can't read.
func TestCheckRefusesOtherTables(t *testing.T) {
	const owners = "CREATE TABLE sessions_owners (owner TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (owner, token))"
	const drop = ": rename the table, or set Config.TableName to another name"
	for want, statements := range map[string][]string{
		`table "sessions" does not exist`:                                                               {},
		`column 1 of table "sessions" is not "token"`:                                                   {"CREATE TABLE sessions (id TEXT PRIMARY KEY)"},
		`column 2 of table "sessions" is not "data"`:                                                    {"CREATE TABLE sessions (token TEXT PRIMARY KEY)"},
		`column 3 of table "sessions" is not "expiry"`:                                                  {"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB)"},
		`column "data" of table "sessions" is of type text, not blob`:                                   {"CREATE TABLE sessions (token TEXT PRIMARY KEY, data TEXT, expiry TIMESTAMP)"},
		`table "sessions" has columns other than token, data, expiry`:                                   {"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP, note TEXT)"},
		`the primary key of table "sessions" is not its column "token", ascending`:                      {"CREATE TABLE sessions (token TEXT, data BLOB, expiry TIMESTAMP)"},
		`table "sessions_owners" does not exist`:                                                        {testdb.CreateTable},
		`column 1 of table "sessions_owners" is not "owner"` + drop:                                     {testdb.CreateTable, "CREATE TABLE sessions_owners (token TEXT PRIMARY KEY)"},
		`the primary key of table "sessions_owners" is not its column "owner, token", ascending` + drop: {testdb.CreateTable, "CREATE TABLE sessions_owners (owner TEXT, token TEXT PRIMARY KEY)"},
		`index "one" of table "sessions_owners" is unique` + drop:                                       {testdb.CreateTable, owners, "CREATE UNIQUE INDEX one ON sessions_owners (token)"},
		"": {testdb.CreateTable, owners, "CREATE INDEX other ON sessions_owners (token)"},
	} {
		db := testdb.Memory(t)
		testdb.Exec(t, db, statements...)
		err := New(db, Options{Name: "sessions", OwnerOf: firstByte}).Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("Check = %v, want %q", err, want)
		}
	}
}

// The counters say what has been done, and nothing of what has failed.
func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := New(db, Options{Name: "sessions", Memory: 1 << 20})
		if last := table.Stats().LastSweep; !last.IsZero() {
			t.Errorf("LastSweep = %v before the first, want the zero time", last)
		}
		start := time.Now()
		for i := range 3 {
			upsert(t, table, fmt.Sprint(i), start)
			if _, found, err := find(t, table, fmt.Sprint(i)); !found || err != nil {
				t.Fatalf("Find = %v, %v; want true, nil", found, err)
			}
		}
		// Another Table of the database finds the copies from its second look on.
		other := New(db, table.options)
		for i := range uint64(3) {
			if _, found, err := find(t, other, "0"); !found || err != nil || other.Stats().CacheHits != i {
				t.Errorf("Find = %v, %v, with %d of %d found in the cache", found, err, other.Stats().CacheHits, i+1)
			}
		}
		if err := table.Delete(t.Context(), "0", "none"); err != nil {
			t.Fatal(err)
		}
		if _, err := table.DeleteExpired(t.Context(), start); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := table.DeleteExpired(ctx, start); err == nil {
			t.Error("a sweep whose context has ended did not fail")
		}
		testdb.Exec(t, db, "DROP TABLE sessions")
		if err := errors.Join(table.Upsert(t.Context(), "3", nil, start), table.Delete(t.Context(), "1")); err == nil {
			t.Error("writes to a dropped table did not fail")
		}
		got := table.Stats()
		want := Stats{Finds: 3, CacheHits: 3, Upserts: 3, Deletes: 2, Swept: 2,
			LastSweep: start.Add(time.Second), LastSweepErr: context.Canceled, Fsyncs: got.Fsyncs, FilterBytes: got.FilterBytes}
		if got != want {
			t.Errorf("Stats = %+v, want %+v", got, want)
		}
	})
}

// A waiting write uses the table that exists in its turn.
func TestTableChangesWhileWritesWait(t *testing.T) {
	for name, test := range map[string]struct {
		during []string
		want   string // the error
	}{
		"replaced": {[]string{"DROP TABLE sessions", testdb.CreateTable}, ""},
		"renamed":  {[]string{"ALTER TABLE sessions RENAME TO old", testdb.CreateTable}, ""},
		"dropped":  {[]string{"DROP TABLE sessions"}, `table "sessions" does not exist`},
		"altered":  {[]string{"ALTER TABLE sessions ADD COLUMN note TEXT"}, `table "sessions" has columns other than token, data, expiry`},
		"unique":   {[]string{"CREATE UNIQUE INDEX one ON sessions(expiry)"}, `index "one" of table "sessions" is unique`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := testdb.Memory(t)
				testdb.Exec(t, db, testdb.CreateTable)
				table := newTable(t, db)
				now := time.Now()
				upsert(t, table, "a", now)
				lock := engine.Open(db, nil).Lock()
				lock.Lock()
				calls := []func() error{
					func() error { return table.Upsert(t.Context(), "b", []byte("b"), now.Add(time.Hour)) },
					func() error { return table.Delete(t.Context(), "c") },
					func() error { _, err := table.DeleteExpired(t.Context(), now); return err },
				}
				for _, call := range calls {
					go func() {
						err := call()
						if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
							t.Errorf("got error %v, want %q", err, test.want)
						}
					}()
				}
				synctest.Wait()
				testdb.Exec(t, db, test.during...)
				lock.Unlock()
				synctest.Wait()
				if test.want == "" {
					if found := expiries(t, db); len(found) != 1 || found["b"].IsZero() {
						t.Errorf("got sessions %v in the new table, want b", found)
					}
				}
				if name == "renamed" {
					row, err := db.QueryRow("SELECT COUNT(*) FROM old")
					if err != nil {
						t.Fatal(err)
					}
					var n int
					if err := row.Scan(&n); n != 1 || err != nil {
						t.Errorf("got %d sessions in the old table, %v; want 1, nil", n, err)
					}
				}
			})
		})
	}
}

// rebuild rebuilds the table of sessions in one transaction, together with another
// table.
func rebuild(t *testing.T, db *chai.DB) {
	t.Helper()
	inTx(t, db, true, func(tx *chai.Tx) error {
		for _, sql := range []string{
			"DROP TABLE IF EXISTS visits",
			strings.Replace(testdb.CreateTable, "sessions", "rebuilt", 1),
			"INSERT INTO rebuilt SELECT * FROM sessions",
			"ALTER TABLE sessions RENAME TO old",
			"DROP TABLE old",
			"ALTER TABLE rebuilt RENAME TO sessions",
			testdb.CreateIndex,
			"CREATE TABLE visits (token TEXT PRIMARY KEY, data BLOB)",
			"INSERT INTO visits (token, data) VALUES ('" + otherToken + `', '\x78')`,
		} {
			if err := tx.Exec(sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
}

const otherToken = "of another table"

// While an application rebuilds the table in one transaction, no call misses a
// session, or returns a row of another table. (Nothing is rolled back: rolling such a
// transaction back a second time loses the rows, see Chai's internal/kv, rollback.go,
// seen.)
func TestTableIsRebuiltWhileInUse(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	const sessions, rebuilds = 20, 60
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	table := newTable(t, db)
	for i := range sessions {
		upsert(t, table, fmt.Sprint(i), time.Now().Add(time.Hour))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var finds, pages, commits, sweeps atomic.Int64
	loop := func(count *atomic.Int64, f func(n int64)) {
		wg.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				f(count.Add(1))
			}
		})
	}
	for range 2 {
		loop(&finds, func(n int64) {
			token := fmt.Sprint(n % sessions)
			row, found, err := find(t, table, token)
			if err != nil || !found || row.Token != token || string(row.Data) != token {
				t.Errorf("Find(%s) = %+v, %v, %v; want its token as data", token, row, found, err)
			}
			if _, found, err := find(t, table, otherToken); found || err != nil {
				t.Errorf("Find(%q) = %v, %v; want false, nil", otherToken, found, err)
			}
		})
	}
	loop(&pages, func(int64) {
		rows, _, err := table.Page(t.Context(), "")
		if len(rows) != sessions || err != nil {
			t.Errorf("Page = %d sessions, %v; want %d, nil", len(rows), err, sessions)
		}
	})
	loop(&commits, func(n int64) { upsert(t, table, fmt.Sprint(n%sessions), time.Now().Add(time.Hour)) })
	loop(&sweeps, func(int64) {
		if sweep, err := table.DeleteExpired(t.Context(), time.Now()); sweep.Deleted > 0 || err != nil {
			t.Errorf("DeleteExpired = %+v, %v; want none deleted, nil", sweep, err)
		}
	})
	for range rebuilds {
		if !t.Failed() {
			rebuild(t, db)
		}
	}
	cancel()
	wg.Wait()
	t.Logf("%d finds, %d pages, %d commits and %d sweeps beside %d rebuilds", finds.Load(), pages.Load(), commits.Load(), sweeps.Load(), rebuilds)
	if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	testdb.CheckIndexes(t, db)
}

// Tables are swapped, and swapped back. A layout from before describes what is there then,
// but who has it may have seen a copy of a row between that, when it was the other table's.
func TestSwappedTwice(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, "CREATE TABLE other (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)")
	table := newTable(t, db)
	read := func(l *layout) {
		t.Helper()
		err := table.db.Read(t.Context(), func(s *engine.Snapshot) error {
			if same, err := table.describes(l, s); !same || err != nil {
				t.Errorf("the layout is said to describe the snapshot: %v, %v; want true, nil", same, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	former, err := table.layout()
	if err != nil {
		t.Fatal(err)
	}
	read(former)
	for range 2 {
		if !former.isOf(table.db.Catalog()) {
			t.Fatal("the layout is not known to describe the catalog")
		}
		for range 2 {
			update(t, db, "ALTER TABLE sessions RENAME TO away", "ALTER TABLE other RENAME TO sessions", "ALTER TABLE away RENAME TO other")
		}
		read(former)
		if former.isOf(table.db.Catalog()) {
			t.Error("the layout from before the tables were swapped is taken for the present one")
		}
		if former, err = table.layout(); err != nil {
			t.Fatal(err)
		}
		read(former)
	}
}

// An application replaces the table, and later replaces or renames it again, but rolls
// that back. Chai undoes it, unless the second transaction is already open when the
// first store is made: then the next calls fail, and none hangs.
func TestRolledBackTable(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	replace := []string{"ALTER TABLE sessions RENAME TO old", testdb.CreateTable, "DROP TABLE old"}
	for name, undone := range map[string][]string{"replaced": replace, "renamed": replace[:1]} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprint(name, "/late=", late), func(t *testing.T) {
				db := testdb.Memory(t)
				testdb.Exec(t, db, testdb.CreateTable)
				var table *Table
				if !late {
					table = newTable(t, db)
					upsert(t, table, "a", time.Now().Add(time.Hour))
				}
				exec := func(tx *chai.Tx, statements []string) error {
					for _, sql := range statements {
						if err := tx.Exec(sql); err != nil {
							return err
						}
					}
					return nil
				}
				inTx(t, db, true, func(tx *chai.Tx) error { return exec(tx, replace) })
				inTx(t, db, false, func(tx *chai.Tx) error {
					if late {
						table = newTable(t, db)
					}
					return exec(tx, undone)
				})
				var want error
				if late {
					want = errOtherCatalog
				}
				_, _, err := find(t, table, "a")
				_, _, pageErr := table.Page(t.Context(), "")
				writeErr := table.Upsert(t.Context(), "a", nil, time.Now().Add(time.Hour))
				if !errors.Is(err, want) || !errors.Is(pageErr, want) || !errors.Is(writeErr, want) {
					t.Errorf("Find = %v, Page = %v, Upsert = %v; want %v", err, pageErr, writeErr, want)
				}
			})
		}
	}
}
