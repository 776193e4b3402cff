package chaistore_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
	"go.elara.ws/chaistore/storetest"
)

// All reads in pages, which end after a number of sessions or of bytes.
func TestAllReadsEveryPage(t *testing.T) {
	for _, test := range []struct{ sessions, size int }{{2500, 1}, {40, 100_000}} {
		t.Run(fmt.Sprintf("%d of %d bytes", test.sessions, test.size), func(t *testing.T) {
			s := newStore(t, testdb.Memory(t))
			want := make(map[string]string)
			for i := range test.sessions {
				token := fmt.Sprint(i)
				want[token] = strings.Repeat(token[:1], test.size)
				commit(t, s, token, want[token], inAnHour())
			}
			wantAll(t, s, want)
		})
	}
}

func TestExpiry(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		now := time.Now()
		for name, test := range map[string]struct {
			expiry time.Time
			active bool
		}{
			"east":          {now.Add(time.Minute).In(time.FixedZone("", 14*3600)), true},
			"west":          {now.Add(time.Minute).In(time.FixedZone("", -12*3600)), true},
			"past east":     {now.Add(-time.Minute).In(time.FixedZone("", 14*3600)), false},
			"past west":     {now.Add(-time.Minute).In(time.FixedZone("", -12*3600)), false},
			"a second ago":  {now.Add(-time.Second), false},
			"now":           {now, false},
			"1969":          {time.Unix(-1, 0), false},
			"zero":          {time.Time{}, false},
			"first instant": {time.Unix(-1<<62, 0), false},
			// As microseconds in 64 bits it would be in the far future.
			"overflow":     {time.Unix(-9_300_000_000_000, 0), false},
			"9999":         {time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), true},
			"20000":        {time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), true},
			"last instant": {time.Unix(1<<62, 0), true},
		} {
			commit(t, s, name, name, test.expiry)
			if test.active {
				wantFound(t, s, name, name)
			} else {
				wantMissing(t, s, name)
			}
		}
		if n, err := s.DeleteExpired(t.Context()); n != 8 || err != nil {
			t.Errorf("DeleteExpired = %d, %v; want 8, nil", n, err)
		}
		wantAll(t, s, map[string]string{
			"east": "east", "west": "west", "9999": "9999", "20000": "20000", "last instant": "last instant",
		})
	})
}

func TestSessionExpiresAtItsExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, testdb.Memory(t))
		commit(t, s, "alice", "one", time.Now().Add(time.Second))
		time.Sleep(time.Second - time.Microsecond)
		wantFound(t, s, "alice", "one")
		wantAll(t, s, map[string]string{"alice": "one"})
		if n, err := s.DeleteExpired(t.Context()); n != 0 || err != nil {
			t.Fatalf("DeleteExpired before the expiry = %d, %v; want 0, nil", n, err)
		}
		time.Sleep(time.Microsecond)
		wantMissing(t, s, "alice")
		wantAll(t, s, map[string]string{})
		if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
			t.Fatalf("DeleteExpired at the expiry = %d, %v; want 1, nil", n, err)
		}
	})
}

func TestTokens(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		want := map[string]string{
			"":                                     "the empty token",
			"'; DROP TABLE sessions; --":           "quotes",
			"\"`\\":                                "more quotes",
			"a\x00b":                               "NUL",
			"a\x00":                                "NUL at the end",
			"a":                                    "a prefix of others",
			"\xff\xfe\x80":                         "invalid UTF-8",
			"日本":                                   "valid UTF-8",
			strings.Repeat("x", 99):                "99 bytes",
			strings.Repeat("x", 100):               "100 bytes",
			strings.Repeat("\xff", 100):            "100 times 0xff",
			strings.Repeat("x", 98) + "\x00" + "y": "100 bytes with a NUL",
		}
		for token, data := range want {
			commit(t, s, token, "old", anHourAgo())
			commit(t, s, token, data, inAnHour())
		}
		for _, n := range []int{101, 127, 128, 200, 5000, 1 << 20} {
			token := strings.Repeat("x", n)
			err := s.Commit(token, nil, inAnHour())
			if !errors.Is(err, chaistore.ErrTokenTooLong) || strings.Contains(err.Error(), "xx") {
				t.Errorf("Commit of a token of %d bytes = %v, want %v", n, err, chaistore.ErrTokenTooLong)
			}
			wantMissing(t, s, token)
			if err := s.Delete(token); err != nil {
				t.Errorf("Delete of a token of %d bytes: %v", n, err)
			}
		}
		if n, err := s.DeleteExpired(t.Context()); n != 0 || err != nil {
			t.Fatalf("DeleteExpired = %d, %v; want 0, nil", n, err)
		}
		wantAll(t, s, want)
		for token, data := range want {
			wantFound(t, s, token, data)
			if err := s.Delete(token); err != nil {
				t.Errorf("Delete(%q): %v", token, err)
			}
			wantMissing(t, s, token)
		}
		wantAll(t, s, map[string]string{})
	})
}

func TestData(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		large := make([]byte, 1<<20)
		for i := range large {
			large[i] = byte(i * i)
		}
		for name, data := range map[string][]byte{"nil": nil, "empty": {}, "NUL": {0}, "large": large} {
			for range 2 { // added, then overwritten
				if err := s.Commit("alice", data, inAnHour()); err != nil {
					t.Fatalf("%s: Commit: %v", name, err)
				}
				got, found, err := s.Find("alice")
				if err != nil || !found || got == nil || !bytes.Equal(got, data) {
					t.Fatalf("%s: Find returned %d bytes (nil: %v), %v, %v", name, len(got), got == nil, found, err)
				}
			}
		}
	})
}

// Data is copied on the way in and out: the caller may change data that it passed or
// got, and data that it got does not change with the table.
func TestDataBelongsToTheCaller(t *testing.T) {
	forEachTable(t, func(t *testing.T, db *chai.DB) {
		s := newStore(t, db)
		in := []byte("one")
		if err := s.Commit("alice", in, inAnHour()); err != nil {
			t.Fatal(err)
		}
		copy(in, "XXX")
		wantFound(t, s, "alice", "one")

		found, _, err := s.Find("alice")
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.All()
		if err != nil {
			t.Fatal(err)
		}
		// Enough for the engine to reuse its buffers.
		for i := range 500 {
			commit(t, s, "alice", strings.Repeat("x", i), inAnHour())
			wantFound(t, s, "alice", strings.Repeat("x", i))
		}
		if string(found) != "one" || string(all["alice"]) != "one" {
			t.Errorf("the data from Find is now %q, and from All %q; want %q", found, all["alice"], "one")
		}
		_ = append(found, "grown"...)
		copy(found, "XXX")
		wantFound(t, s, "alice", strings.Repeat("x", 499))
	})
}

// Data found in a file must outlast the engine's cache of that file.
func TestDataOutlastsTheCache(t *testing.T) {
	testdb.Slow(t)
	db := testdb.Disk(t)
	s := newStore(t, db)
	const sessions, size = 160, 100_000 // twice the cache of 8 MB
	data := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), size) }
	for i := range sessions {
		commit(t, s, fmt.Sprint(i), data(i), inAnHour())
	}
	if err := db.DB.Store.DB().Flush(); err != nil {
		t.Fatal(err)
	}
	found := make([][]byte, sessions)
	for i := range found {
		var err error
		if found[i], _, err = s.Find(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, got := range found {
		if string(got) != data(i) {
			t.Fatalf("the data of session %d changed after it was found", i)
		}
	}
}

// A renewed session must not be taken for an expired one, as in an index that still
// has the former expiry.
func TestRenewedSessionOutlivesItsFormerExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forEach := map[string][]string{
			"plain":   {testdb.CreateTable},
			"indexed": {testdb.CreateTable, testdb.CreateIndex},
		}
		for name, setup := range forEach {
			db := testdb.Memory(t)
			testdb.Exec(t, db, setup...)
			s := newStore(t, db)
			commit(t, s, "alice", "one", time.Now().Add(time.Minute))
			commit(t, s, "bob", "two", time.Now().Add(time.Minute))
			for i := range 5 {
				commit(t, s, "alice", "renewed", time.Now().Add(time.Hour+time.Duration(i)))
			}
			time.Sleep(2 * time.Minute)
			if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
				t.Fatalf("%s: DeleteExpired = %d, %v; want 1, nil", name, n, err)
			}
			wantFound(t, s, "alice", "renewed")
			wantAll(t, s, map[string]string{"alice": "renewed"})
			if err := s.Delete("alice"); err != nil {
				t.Fatalf("%s: Delete: %v", name, err)
			}
			wantAll(t, s, map[string]string{})
		}
	})
}

// An older program has renewed sessions with ON CONFLICT REPLACE, which leaves wrong
// entries in the index on expiry.
func TestTableWithStaleIndex(t *testing.T) {
	for name, use := range map[string]func(t *testing.T, s *chaistore.ChaiStore){
		"commit": func(t *testing.T, s *chaistore.ChaiStore) {
			commit(t, s, "renewed", "three", inAnHour())
			wantFound(t, s, "renewed", "three")
		},
		"delete": func(t *testing.T, s *chaistore.ChaiStore) {
			if err := s.Delete("renewed"); err != nil {
				t.Fatalf("Delete: %v", err)
			}
			wantMissing(t, s, "renewed")
		},
		"sweep": func(t *testing.T, s *chaistore.ChaiStore) {
			if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
				t.Fatalf("DeleteExpired = %d, %v; want 1, nil", n, err)
			}
			wantAll(t, s, map[string]string{"renewed": "two", "untouched": "one"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
			replace := func(token, data string, expiry time.Time) {
				t.Helper()
				err := db.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT REPLACE",
					token, []byte(data), expiry)
				if err != nil {
					t.Fatal(err)
				}
			}
			replace("renewed", "one", anHourAgo())
			replace("renewed", "two", inAnHour())
			replace("shortened", "one", inAnHour())
			replace("shortened", "two", anHourAgo())
			replace("untouched", "one", inAnHour())

			s := newStore(t, db)
			wantAll(t, s, map[string]string{"renewed": "two", "untouched": "one"})
			use(t, s)
			commit(t, s, "untouched", "two", anHourAgo())
			if _, err := s.DeleteExpired(t.Context()); err != nil {
				t.Fatalf("DeleteExpired: %v", err)
			}
			wantMissing(t, s, "shortened")
			wantMissing(t, s, "untouched")

			var indexed int
			row, err := db.QueryRow("SELECT COUNT(*) FROM sessions WHERE expiry > ?", time.Unix(0, 0))
			if err != nil {
				t.Fatal(err)
			}
			if err := row.Scan(&indexed); err != nil {
				t.Fatal(err)
			}
			if all, err := s.All(); err != nil || len(all) != indexed {
				t.Errorf("All = %d sessions, %v; want %d as in the index, nil", len(all), err, indexed)
			}
		})
	}
}

func TestMissingTable(t *testing.T) {
	db := testdb.Memory(t)
	s := chaistore.NewWithCleanupInterval(db, 0)
	calls := map[string]func() error{
		"Find":          func() error { _, _, err := s.Find("alice"); return err },
		"Commit":        func() error { return s.Commit("alice", []byte("one"), inAnHour()) },
		"Delete":        func() error { return s.Delete("alice") },
		"All":           func() error { _, err := s.All(); return err },
		"DeleteExpired": func() error { _, err := s.DeleteExpired(t.Context()); return err },
	}
	wantErrors := func() {
		t.Helper()
		for name, call := range calls {
			if err := call(); err == nil || !strings.Contains(err.Error(), `table "sessions" does not exist`) {
				t.Errorf("%s without a table = %v", name, err)
			}
		}
	}
	wantErrors()
	testdb.Exec(t, db, testdb.CreateTable)
	for name, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s after the table was created: %v", name, err)
		}
	}
	testdb.Exec(t, db, "DROP TABLE sessions")
	wantErrors()
	testdb.Exec(t, db, "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TEXT)")
	for name, call := range calls {
		if err := call(); err == nil || !strings.Contains(err.Error(), "of type text, not timestamp") {
			t.Errorf("%s on a table that is not one of sessions: %v", name, err)
		}
	}
}

func TestIndexComesAndGoes(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	s := newStore(t, db)
	for i, sql := range []string{testdb.CreateIndex, "DROP INDEX idx_sessions_expiry", testdb.CreateIndex} {
		commit(t, s, "alice", "old", anHourAgo())
		testdb.Exec(t, db, sql)
		commit(t, s, "alice", "new", inAnHour())
		commit(t, s, "bob", "new", anHourAgo())
		if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
			t.Fatalf("after %d changes: DeleteExpired = %d, %v; want 1, nil", i+1, n, err)
		}
		wantAll(t, s, map[string]string{"alice": "new"})
	}
}

func TestNewWithConfigRefuses(t *testing.T) {
	if _, err := chaistore.NewWithConfig(nil, chaistore.Config{}); err == nil {
		t.Error("a nil database was accepted")
	}
	if _, err := chaistore.NewWithConfig(new(chai.DB), chaistore.Config{}); err == nil {
		t.Error("an empty database handle was accepted")
	}
	db := testdb.Memory(t)
	for name, want := range map[string]string{
		"missing":                `table "missing" does not exist`,
		"1st":                    "not a plain identifier",
		"my sessions":            "not a plain identifier",
		"a-b":                    "not a plain identifier",
		"a`b":                    "not a plain identifier",
		"sessions; DROP TABLE x": "not a plain identifier",
		"é":                      "not a plain identifier",
		strings.Repeat("x", 101): "longer than 100 bytes",
		"__chai_catalog":         "reserved",
	} {
		s, err := chaistore.NewWithConfig(db, chaistore.Config{TableName: name})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("table %q: error %v, want one that says %q", name, err, want)
		}
		if s != nil {
			t.Errorf("table %q: a store was returned", name)
			s.StopCleanup()
		}
	}
}

func TestNewWithConfigRefusesAClosedDatabase(t *testing.T) {
	for _, create := range []bool{false, true} {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: create, CleanupInterval: -1})
		if err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("NewWithConfig on a closed database = %v, want an error that says so", err)
		}
	}
}

// The context of a handle has no effect, even if it has ended.
func TestHandleWhoseContextHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	db := testdb.Memory(t).WithContext(ctx)
	s := newOwnerStore(t, db) // creates both tables
	commit(t, s, "a", "alice|", inAnHour())
	wantTokensOf(t, s, "alice", "a")
	if _, err := chaistore.NewWithConfig(db, chaistore.Config{TableName: "select"}); err == nil || !strings.Contains(err.Error(), "keyword") {
		t.Errorf("NewWithConfig = %v, want an error about the keyword", err)
	}
	err := chaistore.Update(t.Context(), db, func(tx *chai.Tx) error { return tx.Exec("CREATE TABLE other (a INT)") })
	if err != nil {
		t.Errorf("Update = %v, want nil", err)
	}
}

// A table that is not a table of sessions is refused by NewWithConfig, and by each
// call of a store from New, even if it is changed while in use.
func TestTablesThatAreRefused(t *testing.T) {
	const (
		key        = `the primary key of table "sessions" is not its column "token", ascending`
		others     = `table "sessions" has columns other than token, data, expiry`
		constraint = `table "sessions" has a constraint besides its primary key`
	)
	replaced := func(columns string) []string {
		return []string{"DROP TABLE sessions", "CREATE TABLE sessions (" + columns + ")"}
	}
	for name, test := range map[string]struct {
		change []string
		want   string
	}{
		"no table":          {[]string{"DROP TABLE sessions"}, `table "sessions" does not exist`},
		"renamed":           {[]string{"ALTER TABLE sessions RENAME TO x"}, `table "sessions" does not exist`},
		"no expiry":         {replaced("token TEXT PRIMARY KEY, data BLOB"), `column 3 of table "sessions" is not "expiry"`},
		"other order":       {replaced("data BLOB, token TEXT PRIMARY KEY, expiry TIMESTAMP"), `column 1 of table "sessions" is not "token"`},
		"other name":        {replaced("token TEXT PRIMARY KEY, payload BLOB, expiry TIMESTAMP"), `column 2 of table "sessions" is not "data"`},
		"integer expiry":    {replaced("token TEXT PRIMARY KEY, data BLOB, expiry INTEGER"), `column "expiry" of table "sessions" is of type integer, not timestamp`},
		"blob token":        {replaced("token BLOB PRIMARY KEY, data BLOB, expiry TIMESTAMP"), `column "token" of table "sessions" is of type blob, not text`},
		"text data":         {replaced("token TEXT PRIMARY KEY, data TEXT, expiry TIMESTAMP"), `column "data" of table "sessions" is of type text, not blob`},
		"no key":            {replaced("token TEXT, data BLOB, expiry TIMESTAMP"), key},
		"other key":         {replaced("token TEXT, data BLOB, expiry TIMESTAMP PRIMARY KEY"), key},
		"long key":          {replaced("token TEXT, data BLOB, expiry TIMESTAMP, PRIMARY KEY (token, expiry)"), key},
		"descending key":    {replaced("token TEXT, data BLOB, expiry TIMESTAMP, PRIMARY KEY (token DESC)"), key},
		"another column":    {replaced("token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP, note TEXT"), others},
		"extra fields":      {replaced("token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP, ..."), others},
		"added column":      {[]string{"ALTER TABLE sessions ADD COLUMN note TEXT"}, others},
		"unique column":     {replaced("token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP UNIQUE"), constraint},
		"unique constraint": {replaced("token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP, UNIQUE (token, expiry)"), constraint},
		"check":             {replaced("token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP, CHECK (token != 'bad')"), constraint},
		"checked column":    {replaced("token TEXT PRIMARY KEY CHECK (token != 'bad'), data BLOB, expiry TIMESTAMP"), constraint},
		"unique index":      {[]string{"CREATE UNIQUE INDEX one ON sessions(expiry)"}, `index "one" of table "sessions" is unique`},
		"index on data":     {[]string{"CREATE INDEX one ON sessions(expiry, data)"}, `index "one" of table "sessions" is on a column that can't be indexed: data`},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable)
			s := chaistore.New(db)
			defer s.StopCleanup()
			commit(t, s, "alice", "one", inAnHour())
			testdb.Exec(t, db, test.change...)
			for name, call := range map[string]func() error{
				"Find":          func() error { _, _, err := s.Find("alice"); return err },
				"Commit":        func() error { return s.Commit("alice", []byte("one"), inAnHour()) },
				"Delete":        func() error { return s.Delete("alice") },
				"All":           func() error { _, err := s.All(); return err },
				"DeleteExpired": func() error { _, err := s.DeleteExpired(t.Context()); return err },
				"DeleteFunc": func() error {
					_, err := s.DeleteFunc(t.Context(), func(chaistore.Session) bool { return true })
					return err
				},
				"NewWithConfig": func() error {
					s, err := chaistore.NewWithConfig(db, chaistore.Config{})
					if s != nil {
						t.Error("a store was returned")
						s.StopCleanup()
					}
					return err
				},
			} {
				if err := call(); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%s = %v, want %q", name, err, test.want)
				}
			}
			testdb.Exec(t, db, "DROP TABLE IF EXISTS sessions", testdb.CreateTable)
			commit(t, s, "alice", "two", inAnHour())
			wantFound(t, s, "alice", "two")
		})
	}
}

// Chai can't read its own catalog when the database is reopened if a table's name is
// a keyword.
func TestTableNameIsKeywordOrWorks(t *testing.T) {
	testdb.Slow(t)
	names := []string{
		"order", "ORDER", "table", "select", "index", "key", "values", "group", "limit", "null", "true", "text", "conflict",
		"sessions", "Sessions", "user_sessions", "_", "s1", "token", "data", "expiry", "count", "session", "timestamps",
		strings.Repeat("x", 100),
	}
	refused := 0
	for _, name := range names {
		dir := t.TempDir()
		db, err := chai.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		cfg := chaistore.Config{TableName: name, CreateTable: true, CleanupInterval: -1}
		s, err := chaistore.NewWithConfig(db, cfg)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "keyword") {
				t.Errorf("table %q: %v", name, err)
			}
		} else {
			commit(t, s, "alice", "one", inAnHour())
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db, reopenErr := chai.Open(dir)
		if reopenErr != nil {
			t.Fatalf("table %q: the database can't be opened again: %v", name, reopenErr)
		}
		if err == nil {
			if s, err = chaistore.NewWithConfig(db, cfg); err != nil {
				t.Fatalf("table %q: %v", name, err)
			}
			wantFound(t, s, "alice", "one")
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if refused != 13 {
		t.Errorf("got %d refused names, want the 13 keywords", refused)
	}
}

func TestTwoTablesInOneDatabase(t *testing.T) {
	db := testdb.Memory(t)
	stores := make([]*chaistore.ChaiStore, 2)
	for i, name := range []string{"users", "admins"} {
		var err error
		stores[i], err = chaistore.NewWithConfig(db, chaistore.Config{TableName: name, CreateTable: true, CleanupInterval: -1})
		if err != nil {
			t.Fatal(err)
		}
		commit(t, stores[i], "alice", name, inAnHour())
	}
	wantAll(t, stores[0], map[string]string{"alice": "users"})
	wantAll(t, stores[1], map[string]string{"alice": "admins"})
}

func TestDoneContext(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	commit(t, s, "alice", "one", inAnHour())
	commit(t, s, "old", "one", anHourAgo())
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("gone"))
	for name, call := range map[string]func() error{
		"FindCtx":       func() error { _, _, err := s.FindCtx(ctx, "alice"); return err },
		"CommitCtx":     func() error { return s.CommitCtx(ctx, "alice", []byte("two"), inAnHour()) },
		"AllCtx":        func() error { _, err := s.AllCtx(ctx); return err },
		"DeleteExpired": func() error { _, err := s.DeleteExpired(ctx); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a done context = %v, want %v", name, err, context.Canceled)
		}
	}
	wantFound(t, s, "alice", "one")
	if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
		t.Errorf("DeleteExpired = %d, %v; want 1, nil", n, err)
	}
}

// Deletions don't stop when their contexts end, neither before nor while they wait.
func TestDeletionsGoOnWithoutTheirCallers(t *testing.T) {
	for name, del := range map[string]func(ctx context.Context, s *chaistore.ChaiStore) error{
		"DeleteCtx": func(ctx context.Context, s *chaistore.ChaiStore) error { return s.DeleteCtx(ctx, "a") },
		"DeleteOf": func(ctx context.Context, s *chaistore.ChaiStore) error {
			n, err := s.DeleteOf(ctx, "alice")
			if n != 1 {
				t.Errorf("DeleteOf = %d, want 1", n)
			}
			return err
		},
	} {
		for _, wait := range []time.Duration{0, time.Second} {
			t.Run(fmt.Sprint(name, " after ", wait), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					db := testdb.Memory(t)
					s := newStoreWith(t, db, chaistore.Config{Owner: ownerInData, RememberEnded: time.Minute})
					commit(t, s, "a", "alice|", inAnHour())
					ctx, cancel := context.WithTimeout(t.Context(), wait)
					defer cancel()
					lock := chaistore.WriteLock(db)
					lock.Lock()
					var err error
					go func() { err = del(ctx, s) }()
					time.Sleep(2 * time.Second)
					wantFound(t, s, "a", "alice|")
					lock.Unlock()
					synctest.Wait()
					if err != nil {
						t.Errorf("the deletion = %v, want nil", err)
					}
					wantMissing(t, s, "a")
					wantEnded(t, s, "a")
				})
			})
		}
	}
}

// A visitor who signs out and closes the tab is signed out.
func TestSignOutWithoutItsVisitor(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	manager := scs.New()
	manager.Store = s
	manager.IdleTimeout = time.Hour // so each request commits its session
	ctx, err := manager.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	manager.Put(ctx, "user", "alice")
	token, _, err := manager.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	handler := manager.LoadAndSave(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		r.Context().Value(closeTab{}).(context.CancelFunc)()
		if err := manager.Destroy(r.Context()); err != nil {
			t.Errorf("Destroy = %v, want nil", err)
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(context.WithValue(ctx, closeTab{}, cancel), "POST", "/sign-out", nil)
	r.AddCookie(&http.Cookie{Name: manager.Cookie.Name, Value: token})
	handler.ServeHTTP(httptest.NewRecorder(), r)
	wantAll(t, s, map[string]string{})
}

type closeTab struct{}

// Large commits that wait don't all hold a copy of their data. They can give up, they
// get an error when writing hangs, and otherwise all of them succeed.
func TestLargeCommitsWait(t *testing.T) {
	testdb.Slow(t)
	data := make([]byte, 2<<20)
	for name, wait := range map[string]time.Duration{"short": time.Second, "until it hangs": 15 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := testdb.Memory(t)
				s := newStore(t, db)
				lock := chaistore.WriteLock(db)
				lock.Lock()
				before := testdb.HeapInUse()
				start := time.Now()
				var failed atomic.Int32
				for i := range 32 {
					go func() {
						if err := s.Commit(fmt.Sprint(i), data, inAnHour()); err != nil {
							failed.Add(1)
							if waited := time.Since(start); !errors.Is(err, chaistore.ErrBusy) || waited > 10*time.Second {
								t.Errorf("Commit = %v after %v", err, waited)
							}
						}
					}()
				}
				synctest.Wait()
				if used := testdb.HeapInUse() - before; used > 40<<20 {
					t.Errorf("32 commits of 2 MiB that wait take %d MiB, want at most 40", used>>20)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if err := s.CommitCtx(ctx, "gives up", data, inAnHour()); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("CommitCtx = %v, want %v", err, context.DeadlineExceeded)
				}
				time.Sleep(wait)
				lock.Unlock()
				synctest.Wait()
				if n, hangs := failed.Load(), wait > 10*time.Second; hangs != (n == 32) || !hangs && n > 0 {
					t.Errorf("%d of 32 commits failed; writing hung: %v", n, hangs)
				}
			})
		})
	}
}

func TestContextEndsWhileAnotherWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		commit(t, s, "alice", "one", inAnHour())
		commit(t, s, "old", "one", anHourAgo())
		lock := chaistore.WriteLock(db)
		lock.Lock()
		for name, call := range map[string]func(ctx context.Context) error{
			"CommitCtx":     func(ctx context.Context) error { return s.CommitCtx(ctx, "alice", []byte("two"), inAnHour()) },
			"DeleteExpired": func(ctx context.Context) error { _, err := s.DeleteExpired(ctx); return err },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s while another writes = %v, want %v", name, err, context.DeadlineExceeded)
			}
			if waited := time.Since(start); waited != time.Second {
				t.Errorf("%s gave up after %v, want 1s", name, waited)
			}
			cancel()
		}
		wantFound(t, s, "alice", "one") // a find takes no turn
		lock.Unlock()
		wantFound(t, s, "alice", "one")
		commit(t, s, "alice", "three", inAnHour())
		wantFound(t, s, "alice", "three")
	})
}

func TestUnlockOfUnlockedWriteLockPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	chaistore.WriteLock(testdb.Memory(t)).Unlock()
}

func TestSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		db, err := chai.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		s := newStore(t, db)
		if i > 0 {
			wantFound(t, s, "alice", fmt.Sprint(i-1))
		}
		commit(t, s, "alice", fmt.Sprint(i), inAnHour())
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCallsAfterCloseFail(t *testing.T) {
	testdb.Watchdog(t, 30*time.Second)
	// The first call after Close may leave the engine's locks held for all later
	// calls.
	first := []string{"Find", "Commit", "Delete", "All", "DeleteExpired"}
	application := map[string]func(db *chai.DB){
		"no call":     func(*chai.DB) {},
		"Begin":       func(db *chai.DB) { _, _ = db.Begin(true) },
		"Begin(read)": func(db *chai.DB) { _, _ = db.Begin(false) },
		"Exec":        func(db *chai.DB) { _ = db.Exec("DELETE FROM sessions") },
		"Query":       func(db *chai.DB) { _, _ = db.QueryRow("SELECT * FROM sessions") },
	}
	for before, call := range application {
		for _, name := range first {
			t.Run(fmt.Sprintf("%s first, after %s of the application", name, before), func(t *testing.T) {
				db := testdb.Memory(t)
				s := newStore(t, db)
				commit(t, s, "alice", "one", inAnHour())
				wantFound(t, s, "alice", "one")
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				func() {
					defer func() { _ = recover() }() // as net/http does
					call(db)
				}()
				calls := map[string]func() error{
					"Find":          func() error { _, _, err := s.Find("alice"); return err },
					"Commit":        func() error { return s.Commit("alice", []byte("two"), inAnHour()) },
					"Delete":        func() error { return s.Delete("alice") },
					"All":           func() error { _, err := s.All(); return err },
					"DeleteExpired": func() error { _, err := s.DeleteExpired(t.Context()); return err },
				}
				order := append([]string{name}, first...)
				for range 3 {
					for _, name := range order {
						start := time.Now()
						err := calls[name]()
						if err == nil || !strings.Contains(err.Error(), "closed") {
							t.Errorf("%s after Close: %v", name, err)
						}
						if took := time.Since(start); took > time.Second {
							t.Errorf("%s after Close took %v", name, took)
						}
					}
				}
				// Another store on the same database returns the failure, too.
				if _, _, err := chaistore.NewWithCleanupInterval(db, 0).Find("alice"); err == nil {
					t.Error("Find with another store on the closed database: no error")
				}
			})
		}
	}
}

// No call hangs when the database is closed while it is in use.
func TestCloseWhileInUse(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	for range testdb.Rounds(20, 50) {
		db := testdb.Memory(t)
		s := newStore(t, db)
		commit(t, s, "alice", "one", inAnHour())
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for {
					var err error
					if g%2 == 0 {
						_, _, err = s.Find("alice")
					} else {
						err = s.Commit("alice", []byte("one"), inAnHour())
					}
					if err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		db.Close() // may return an error for open readers
		wg.Wait()
	}
}

func TestWithSessionManager(t *testing.T) {
	for _, hash := range []bool{false, true} {
		t.Run(fmt.Sprintf("HashTokenInStore %v", hash), func(t *testing.T) {
			s := newStore(t, testdb.Disk(t))
			manager := scs.New()
			manager.Store = s
			manager.HashTokenInStore = hash

			ctx, err := manager.Load(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			manager.Put(ctx, "name", "alice")
			token, _, err := manager.Commit(ctx)
			if err != nil {
				t.Fatal(err)
			}
			ctx, err = manager.Load(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			if got := manager.GetString(ctx, "name"); got != "alice" {
				t.Errorf("got the name %q, want alice", got)
			}
			if err := manager.RenewToken(ctx); err != nil {
				t.Fatal(err)
			}
			newToken, _, err := manager.Commit(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if all, err := s.All(); err != nil || len(all) != 1 {
				t.Errorf("All after RenewToken = %d sessions, %v; want 1, nil", len(all), err)
			}
			ctx, err = manager.Load(t.Context(), newToken)
			if err != nil {
				t.Fatal(err)
			}
			if err := manager.Destroy(ctx); err != nil {
				t.Fatal(err)
			}
			wantAll(t, s, map[string]string{})
		})
	}
}

// Chai reads what a store has written, with all its memory and its files merged, and
// a store what Chai has.
func TestChaiReadsTheDirectory(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	const sessions, size = 5_000, 1000
	dir := t.TempDir()
	open := func() *chai.DB {
		t.Helper()
		db, err := chai.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	closeDB := func(db *chai.DB) {
		t.Helper()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	data := func(i int) string { return strings.Repeat(fmt.Sprintf("%05d", i), size/5) }

	db := open()
	s := newStoreWith(t, db, chaistore.Config{CreateTable: true, Memory: 256 << 20})
	testdb.InParallel(64, sessions, func(_ *rand.Rand, i int) {
		if err := s.Commit(fmt.Sprintf("%05d", i), []byte(data(i)), inAnHour()); err != nil {
			t.Errorf("Commit: %v", err)
		}
	})
	if err := db.DB.Store.DB().Compact([]byte{0}, []byte{255}, false); err != nil {
		t.Fatal(err)
	}
	closeDB(db)

	db = open()
	n := 0
	testdb.Query(t, db, "SELECT token, data FROM sessions", func(row *chai.Row) error {
		var token string
		var got []byte
		err := row.Scan(&token, &got)
		if want := data(n); token != fmt.Sprintf("%05d", n) || string(got) != want {
			t.Errorf("got row %q with %d bytes, want %05d with %d", token, len(got), n, len(want))
		}
		n++
		return err
	})
	if n != sessions {
		t.Errorf("Chai reads %d sessions, want %d", n, sessions)
	}
	if err := db.Exec("UPDATE sessions SET data = ? WHERE token = '00001'", []byte("changed")); err != nil {
		t.Fatal(err)
	}
	testdb.Exec(t, db, "DELETE FROM sessions WHERE token = '00002'")
	closeDB(db)

	db = open()
	s = newStoreWith(t, db, chaistore.Config{})
	wantFound(t, s, "00000", data(0))
	wantFound(t, s, "00001", "changed")
	wantMissing(t, s, "00002")
	closeDB(db)
}

func TestUpdate(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	testdb.Exec(t, db, "CREATE TABLE visits (id INTEGER PRIMARY KEY)")
	insert := func(id int) func(tx *chai.Tx) error {
		return func(tx *chai.Tx) error { return tx.Exec("INSERT INTO visits (id) VALUES (?)", id) }
	}
	wantVisits := func(want int) {
		t.Helper()
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM visits"); n != want {
			t.Fatalf("got %d visits, want %d", n, want)
		}
	}
	if err := chaistore.Update(t.Context(), db, insert(1)); err != nil {
		t.Fatal(err)
	}
	wantVisits(1)

	failure := errors.New("failure")
	err := chaistore.Update(t.Context(), db, func(tx *chai.Tx) error { return errors.Join(insert(2)(tx), failure) })
	if !errors.Is(err, failure) {
		t.Errorf("Update = %v, want %v", err, failure)
	}
	wantVisits(1)

	func() {
		defer func() {
			if r := recover(); r != failure {
				t.Errorf("recovered %v, want %v", r, failure)
			}
		}()
		_ = chaistore.Update(t.Context(), db, func(tx *chai.Tx) error {
			if err := insert(2)(tx); err != nil {
				t.Error(err)
			}
			panic(failure)
		})
	}()
	wantVisits(1)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	notCalled := func(*chai.Tx) error { t.Error("the function was called"); return nil }
	if err := chaistore.Update(ctx, db, notCalled); !errors.Is(err, context.Canceled) {
		t.Errorf("Update with a done context = %v, want %v", err, context.Canceled)
	}
	if err := chaistore.Update(t.Context(), nil, notCalled); err == nil {
		t.Error("a nil database was accepted")
	}
	// Update waits for the lock, and for a transaction of the application.
	lock := chaistore.WriteLock(db)
	lock.Lock()
	wantTimeout := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := chaistore.Update(ctx, db, notCalled); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Update = %v, want %v", err, context.DeadlineExceeded)
		}
	}
	wantTimeout()
	lock.Unlock()
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	wantTimeout()
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := chaistore.Update(t.Context(), db, insert(2)); err != nil {
		t.Fatal(err)
	}
	wantVisits(2)
}

// A function that ends its transaction itself gets an error that says what happened and what
// to do. What it writes afterwards panics, and gets into no other batch.
func TestUpdateEndedByFunction(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	testdb.Exec(t, db, "CREATE TABLE visits (id INTEGER PRIMARY KEY)")
	id := 0
	insert := func(tx *chai.Tx) error { id++; return tx.Exec("INSERT INTO visits (id) VALUES (?)", id) }
	const (
		committed  = "chaistore: update: the function has committed the transaction itself, so its changes are kept: leave that to Update, which commits when the function returns nil"
		rolledBack = "chaistore: update: the function has rolled the transaction back itself, so its changes are gone: leave that to Update, which rolls back when the function returns an error or panics"
	)
	for _, test := range []struct {
		name string
		f    func(tx *chai.Tx) error
		want string // the error, or what it panics with
		kept int
	}{
		{"Commit", func(tx *chai.Tx) error { return errors.Join(insert(tx), tx.Commit()) }, committed, 1},
		{"COMMIT", func(tx *chai.Tx) error { return errors.Join(insert(tx), tx.Exec("COMMIT")) }, committed, 1},
		{"Commit, deferred Rollback", func(tx *chai.Tx) error { defer tx.Rollback(); return errors.Join(insert(tx), tx.Commit()) }, committed, 1},
		{"Commit and an error", func(tx *chai.Tx) error { return errors.Join(insert(tx), tx.Commit(), errors.New("failure")) }, "failure", 1},
		{"Rollback", func(tx *chai.Tx) error { return errors.Join(insert(tx), tx.Rollback()) }, rolledBack, 0},
		{"deferred Rollback", func(tx *chai.Tx) error { defer tx.Rollback(); return insert(tx) }, rolledBack, 0},
		{"Rollback and an error", func(tx *chai.Tx) error { return errors.Join(insert(tx), tx.Rollback(), errors.New("failure")) }, "failure", 0},
		{"Commit and more", func(tx *chai.Tx) error { return errors.Join(insert(tx), tx.Commit(), insert(tx)) }, "runtime error: invalid memory address or nil pointer dereference", 1},
		{"Rollback and more", func(tx *chai.Tx) error { return errors.Join(insert(tx), tx.Rollback(), insert(tx)) }, "runtime error: invalid memory address or nil pointer dereference", 0},
	} {
		want := testdb.Count(t, db, "SELECT COUNT(*) FROM visits") + test.kept
		got := func() (err error) {
			defer func() {
				if r := recover(); r != nil {
					err = r.(error)
				}
			}()
			return chaistore.Update(t.Context(), db, test.f)
		}()
		if got == nil || got.Error() != test.want {
			t.Errorf("%s: Update = %v, want %s", test.name, got, test.want)
		}
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM visits"); n != want {
			t.Errorf("%s: got %d visits, want %d", test.name, n, want)
		}
		if err := chaistore.Update(t.Context(), db, insert); err != nil {
			t.Errorf("%s: the next Update = %v, want nil", test.name, err)
		}
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM visits"); n != want+1 {
			t.Errorf("%s: got %d visits after the next Update, want %d", test.name, n, want+1)
		}
	}
}

// A transaction that is used after its end changes no table: not even in memory, where the
// table would not be the one on disk.
func TestTablesAfterEndInUpdate(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	for _, change := range []string{"ALTER TABLE visits ADD COLUMN z INTEGER", "DROP INDEX by_page", "DROP TABLE visits", "DROP TABLE sessions"} {
		for _, end := range []string{"COMMIT", "ROLLBACK"} {
			t.Run(change+"/"+end, func(t *testing.T) {
				dir := t.TempDir()
				db := testdb.Open(t, dir)
				s := newStore(t, db)
				commit(t, s, "alice", "one", inAnHour())
				testdb.Exec(t, db, "CREATE TABLE visits (id INTEGER PRIMARY KEY, page TEXT)", "CREATE UNIQUE INDEX by_page ON visits(page)",
					"INSERT INTO visits (id, page) VALUES (1, 'one')")
				panicked := func() (value any) {
					defer func() { value = recover() }()
					return chaistore.Update(t.Context(), db, func(tx *chai.Tx) error {
						return errors.Join(tx.Exec("CREATE TABLE other (id INTEGER PRIMARY KEY)"), tx.Exec(end), tx.Exec(change))
					})
				}()
				if err, ok := panicked.(error); panicked == nil || ok && !strings.Contains(err.Error(), "nil pointer") {
					t.Errorf("%s after %s: %v, want a panic", change, end, panicked)
				}
				for range 2 {
					if err := db.Exec("INSERT INTO visits (id, page, z) VALUES (3, 'three', 4)"); err == nil {
						t.Error("visits has a new column")
					}
					if err := db.Exec("INSERT INTO visits (id, page) VALUES (2, 'one')"); err == nil {
						t.Error("visits has no index")
					}
					if n := testdb.Count(t, db, "SELECT COUNT(*) FROM visits WHERE page = 'one'"); n != 1 {
						t.Errorf("got %d visits, want 1", n)
					}
					wantFound(t, s, "alice", "one")
					if err := db.Close(); err != nil {
						t.Fatal(err)
					}
					db = testdb.Open(t, dir)
					s = newStore(t, db)
				}
			})
		}
	}
}

// Sessions far larger than the limit of a shared batch are committed next to others.
// Sessions larger than the maximum are refused.
func TestLargeData(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	db := indexedOnDisk(t)
	s := newStore(t, db)
	data := func(i, size int) []byte { return bytes.Repeat([]byte{byte(i)}, size) }
	sizes := []int{1, 1 << 20, 300, 16 << 20, 1<<20 - 1000, 5}
	var wg sync.WaitGroup
	for i, size := range sizes {
		wg.Go(func() { commit(t, s, fmt.Sprint(i), string(data(i, size)), inAnHour()) })
	}
	wg.Wait()
	tooLarge := data(1, 16<<20+1)
	for _, token := range []string{"0", "new"} {
		if err := s.Commit(token, tooLarge, inAnHour()); !errors.Is(err, chaistore.ErrDataTooLarge) {
			t.Errorf("Commit of %d bytes = %v, want %v", len(tooLarge), err, chaistore.ErrDataTooLarge)
		}
	}
	wantMissing(t, s, "new")
	for i, size := range sizes {
		if got, found, err := s.Find(fmt.Sprint(i)); !found || err != nil || !bytes.Equal(got, data(i, size)) {
			t.Errorf("Find of %d bytes = %d bytes, %v, %v", size, len(got), found, err)
		}
	}
	testdb.CheckIndexes(t, db)
}

func wantEnded(t *testing.T, s *chaistore.ChaiStore, token string) {
	t.Helper()
	if err := s.Commit(token, nil, inAnHour()); !errors.Is(err, chaistore.ErrEnded) {
		t.Errorf("Commit(%q) = %v, want %v", token, err, chaistore.ErrEnded)
	}
}

// By default, Commit adds a deleted session again, as SCS expects.
func TestEndedSessionComesBackByDefault(t *testing.T) {
	s := newStore(t, testdb.Memory(t))
	commit(t, s, "a", "old", inAnHour())
	if err := s.Delete("a"); err != nil {
		t.Fatal(err)
	}
	commit(t, s, "a", "new", inAnHour())
	wantFound(t, s, "a", "new")
}

func TestRememberEnded(t *testing.T) {
	deletions := map[string]func(s *chaistore.ChaiStore) error{
		"Delete": func(s *chaistore.ChaiStore) error {
			return s.Delete("a")
		},
		"Delete of a missing session": func(s *chaistore.ChaiStore) error {
			return errors.Join(s.Delete("a"), s.Delete("a"))
		},
		"DeleteFunc": func(s *chaistore.ChaiStore) error {
			_, err := s.DeleteFunc(context.Background(), func(session chaistore.Session) bool { return session.Token == "a" })
			return err
		},
		"DeleteOf": func(s *chaistore.ChaiStore) error {
			_, err := s.DeleteOf(context.Background(), "alice")
			return err
		},
	}
	for name, del := range deletions {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStoreWith(t, testdb.Memory(t), chaistore.Config{RememberEnded: time.Minute, Owner: ownerInData})
				commit(t, s, "a", "alice|1", inAnHour())
				commit(t, s, "b", "bob|1", inAnHour())
				if err := del(s); err != nil {
					t.Fatal(err)
				}
				for _, wait := range []time.Duration{0, time.Minute - time.Microsecond} {
					time.Sleep(wait)
					wantEnded(t, s, "a")
					wantMissing(t, s, "a")
					commit(t, s, "b", "bob|2", inAnHour())
				}
				time.Sleep(time.Microsecond)
				commit(t, s, "a", "alice|2", inAnHour())
				wantFound(t, s, "a", "alice|2")
			})
		})
	}
}

func TestRememberEndedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStoreWith(t, testdb.Memory(t), chaistore.Config{RememberEnded: math.MaxInt64})
		time.Sleep(time.Second)
		if err := s.Delete("a"); err != nil {
			t.Fatal(err)
		}
		wantEnded(t, s, "a")
	})
}

func TestSweptSessionsAreNotRemembered(t *testing.T) {
	s := newStoreWith(t, testdb.Memory(t), chaistore.Config{RememberEnded: time.Hour})
	commit(t, s, "a", "old", anHourAgo())
	if n, err := s.DeleteExpired(t.Context()); n != 1 || err != nil {
		t.Fatalf("DeleteExpired = %d, %v; want 1, nil", n, err)
	}
	commit(t, s, "a", "new", inAnHour())
	wantFound(t, s, "a", "new")
}

// All stores on a table that remember ended sessions share them.
func TestStoresRememberTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		long := newStoreWith(t, db, chaistore.Config{RememberEnded: time.Hour})
		copied := &chai.DB{DB: db.DB} // another handle of the same database
		short := newStoreWith(t, copied, chaistore.Config{RememberEnded: time.Minute})
		forgetful := newStore(t, db)
		other := newStoreWith(t, db, chaistore.Config{TableName: "other", RememberEnded: time.Hour})

		end := func(s *chaistore.ChaiStore, token string) {
			if err := s.Delete(token); err != nil {
				t.Fatal(err)
			}
		}
		end(long, "by long")
		end(short, "by short")
		end(long, "by both")
		end(short, "by both")
		end(forgetful, "by forgetful")
		for _, token := range []string{"by long", "by short", "by both"} {
			wantEnded(t, long, token)
			wantEnded(t, short, token)
			commit(t, forgetful, token, "", inAnHour())
			commit(t, other, token, "", inAnHour())
			end(forgetful, token)
		}
		for _, s := range []*chaistore.ChaiStore{long, short, forgetful, other} {
			commit(t, s, "by forgetful", "", inAnHour())
		}

		time.Sleep(time.Minute)
		for _, s := range []*chaistore.ChaiStore{long, short} {
			wantEnded(t, s, "by long")
			wantEnded(t, s, "by both")
			commit(t, s, "by short", "", inAnHour())
		}
		// A store made later remembers it, too.
		wantEnded(t, newStoreWith(t, db, chaistore.Config{RememberEnded: time.Second}), "by long")
		time.Sleep(59 * time.Minute)
		for _, token := range []string{"by long", "by both"} {
			commit(t, short, token, "", inAnHour())
		}
	})
}

// In one turn, a commit queued behind a deletion is refused, and a session committed
// before it is deleted.
func TestRememberEndedInOneTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStoreWith(t, db, chaistore.Config{RememberEnded: time.Hour})
		fsyncs := s.Stats().Fsyncs
		lock := chaistore.WriteLock(db)
		lock.Lock()
		calls := []func() error{
			func() error { return s.Commit("a", []byte("before"), inAnHour()) },
			func() error { return s.Delete("a") },
			func() error { return s.Commit("a", []byte("after"), inAnHour()) },
			func() error { return s.Commit("b", nil, inAnHour()) },
		}
		errs := make([]error, len(calls))
		for i, call := range calls {
			go func() { errs[i] = call() }()
			synctest.Wait() // until it is in the queue
		}
		lock.Unlock()
		synctest.Wait()
		if n := s.Stats().Fsyncs - fsyncs; n != 1 {
			t.Errorf("got %d turns, want 1", n)
		}
		if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], chaistore.ErrEnded) || errs[3] != nil {
			t.Errorf("got errors %v, want only the third, %v", errs, chaistore.ErrEnded)
		}
		wantMissing(t, s, "a")
		wantFound(t, s, "b", "")
	})
}

func TestFailedDeletionRemembersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		s := newStoreWith(t, db, chaistore.Config{RememberEnded: time.Hour})
		commit(t, s, "a", "one", inAnHour())
		lock := chaistore.WriteLock(db)
		lock.Lock()
		err := s.Delete("a")
		lock.Unlock()
		if !errors.Is(err, chaistore.ErrBusy) {
			t.Fatalf("Delete = %v, want an error that writing has hung", err)
		}
		synctest.Wait()
		commit(t, s, "a", "two", inAnHour())
		wantFound(t, s, "a", "two")
	})
}

// TestConformance runs the suite for SCS stores, advice included, on each kind of
// database and table, while the cleanup sweeps all the time.
func TestConformance(t *testing.T) {
	const custom = "Web_Sessions2"
	for _, test := range []struct {
		name string
		open func(t testing.TB) *chai.DB
		cfg  chaistore.Config
		opts []storetest.Option
	}{
		{"memory", testdb.Memory, chaistore.Config{CreateTable: true}, nil},
		{"disk, custom table with an index", func(t testing.TB) *chai.DB {
			db := testdb.Disk(t)
			testdb.Exec(t, db, strings.Replace(testdb.CreateTable, "sessions", custom, 1), "CREATE INDEX by_expiry ON "+custom+"(expiry)")
			return db
		}, chaistore.Config{TableName: custom}, []storetest.Option{withoutPlain}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name != "memory" {
				testdb.Long(t)
			}
			t.Parallel()
			test.cfg.CleanupInterval = 50 * time.Millisecond
			table := cmp.Or(test.cfg.TableName, "sessions")
			runConformance(t, test.open, test.cfg, append(test.opts, storetest.Count(func(store scs.Store) (n int, err error) {
				row, err := store.(storeOnDB).db.QueryRow("SELECT COUNT(*) FROM " + table)
				if err != nil {
					return 0, err
				}
				err = row.Scan(&n)
				return n, err
			}))...)
		})
	}
}

// withoutPlain leaves out the methods that only call others, to save time.
var withoutPlain = storetest.CtxOnly()

// A storeOnDB is a store with its database.
type storeOnDB struct {
	*chaistore.ChaiStore
	db *chai.DB
}

func runConformance(t *testing.T, open func(t testing.TB) *chai.DB, cfg chaistore.Config, opts ...storetest.Option) {
	cfg.Logger = slog.New(slog.DiscardHandler)
	storetest.Run(t, func(t *testing.T) scs.Store {
		db := open(t)
		store, err := chaistore.NewWithConfig(db, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(store.StopCleanup)
		return storeOnDB{store, db}
	}, append(opts, storetest.Strict())...)
}

// A store that remembers ended sessions refuses them.
func TestConformanceWithRememberEnded(t *testing.T) {
	testdb.Long(t)
	t.Parallel()
	cfg := chaistore.Config{CreateTable: true, RememberEnded: time.Hour, CleanupInterval: 50 * time.Millisecond}
	runConformance(t, testdb.Memory, cfg, withoutPlain, storetest.RefusesEnded())
}

// TestConformanceWithStaleIndex runs the suite on a table of an older setup. A
// program has renewed sessions in it with ON CONFLICT REPLACE, which does not
// maintain the index. All of them have expired.
func TestConformanceWithStaleIndex(t *testing.T) {
	testdb.Slow(t)
	t.Parallel()
	testdb.WithoutRace(t)
	const sessions = 6000 // more than a sweep reads in one snapshot
	t.Run("repair", func(t *testing.T) {
		db := staleIndex(t, sessions)
		s := newStore(t, db)
		wantAll(t, s, map[string]string{})
		commit(t, s, "alice", "one", inAnHour())
		if n, err := s.DeleteExpired(t.Context()); n != sessions || err != nil {
			t.Fatalf("DeleteExpired = %d, %v; want %d, nil", n, err, sessions)
		}
		if n := countByIndex(t, db, time.Unix(0, 0)); n != 1 {
			t.Fatalf("got %d sessions in the index after the sweep, want 1", n)
		}
	})
	testdb.Long(t)
	runConformance(t, func(t testing.TB) *chai.DB { return staleIndex(t, 100) }, chaistore.Config{CleanupInterval: -1}, withoutPlain)
}

// staleIndex returns a database with a stale index of expired sessions.
func staleIndex(t testing.TB, sessions int) *chai.DB {
	t.Helper()
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for i := range sessions {
		for _, expiry := range []time.Time{inAnHour(), anHourAgo()} {
			err := tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT REPLACE",
				fmt.Sprintf("%043d", i), []byte("old"), expiry)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := countByIndex(t, db, time.Now()); n != sessions {
		t.Fatalf("got %d active sessions in the stale index, want %d", n, sessions)
	}
	return db
}

// countByIndex returns the number of sessions that expire after t0 according to the
// index on expiry.
func countByIndex(t testing.TB, db *chai.DB, t0 time.Time) int {
	t.Helper()
	return testdb.Count(t, db, "SELECT COUNT(*) FROM sessions WHERE expiry > ?", t0)
}
