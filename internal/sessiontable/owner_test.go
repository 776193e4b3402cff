package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
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

var errUnreadable = errors.New("unreadable")

// firstByte is an OwnerOf that returns the first byte of the data, unless that is '!'.
func firstByte(data []byte) (string, error) {
	if bytes.HasPrefix(data, []byte("!")) {
		return "", errUnreadable
	}
	return string(data[:min(1, len(data))]), nil
}

func newTableWithOwners(t *testing.T, db *chai.DB) *Table {
	t.Helper()
	return newTableWithOwner(t, db, firstByte)
}

func newTableWithOwner(t *testing.T, db *chai.DB, ownerOf func(data []byte) (string, error)) *Table {
	t.Helper()
	table := New(db, Options{Name: "sessions", OwnerOf: ownerOf, Logger: func() *slog.Logger { return slog.New(slog.DiscardHandler) }})
	if err := errors.Join(table.Create(t.Context()), table.CreateOwners(t.Context())); err != nil {
		t.Fatal(err)
	}
	return table
}

func upsertData(t *testing.T, table *Table, token, data string) {
	t.Helper()
	if err := table.Upsert(t.Context(), token, []byte(data), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
}

// tokensOf returns the tokens of an owner's sessions, and how the sequence ended.
func tokensOf(ctx context.Context, table *Table, owner string) (tokens []string, err error) {
	for row, err := range table.SessionsOf(ctx, owner, time.Now()) {
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, row.Token)
	}
	return tokens, nil
}

func wantTokensOf(t *testing.T, table *Table, owner string, want ...string) {
	t.Helper()
	if got, err := tokensOf(t.Context(), table, owner); !slices.Equal(got, want) || err != nil {
		t.Errorf("SessionsOf(%q) = %q, %v; want %q, nil", owner, got, err, want)
	}
}

// ownerPairs returns the table of owners as the engine has it.
func ownerPairs(t *testing.T, table *Table) map[string]string {
	t.Helper()
	pairs := make(map[string]string)
	err := table.read(t.Context(), func(s *engine.Snapshot, l *layout) error {
		r := rangeOf(l.owners.namespace)
		return s.Scan(r[0], r[1], func(key, row []byte) (bool, error) {
			pairs[string(key)] = string(row)
			return true, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return pairs
}

// The entries are those that SQL writes, byte for byte, and in the order of owner and token.
func TestEntriesEqualThoseOfSQL(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwner(t, db, func(data []byte) (string, error) { return string(data), nil })
	rng := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		b := make([]byte, []int{0, 1, 2, 31, 99, MaxKeyLen}[rng.IntN(6)])
		for i := range b {
			b[i] = []byte{0, 'a', 'b', 0xff}[rng.IntN(4)]
		}
		return string(b)
	}
	var pairs [][2]string
	for range 300 {
		owner, token := text()+"o", text()
		owner = owner[:min(len(owner), MaxKeyLen)]
		pairs = append(pairs, [2]string{owner, token})
		if err := table.Upsert(t.Context(), token, []byte(owner), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	got := ownerPairs(t, table)
	testdb.Exec(t, db, "DELETE FROM sessions_owners")
	slices.SortFunc(pairs, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	pairs = slices.Compact(pairs)
	for _, p := range pairs {
		if err := db.Exec("INSERT INTO sessions_owners (owner, token) VALUES (?, ?)", p[0], p[1]); err != nil {
			t.Fatal(err)
		}
	}
	if want := ownerPairs(t, table); len(got) < 100 || !maps.Equal(got, want) {
		t.Errorf("got %d entries (at least 100), want the %d of SQL", len(got), len(want))
	}
	// With an index, the entries of that are those of REINDEX.
	testdb.Exec(t, db, "DELETE FROM sessions_owners", "CREATE INDEX by_token ON sessions_owners (token, owner DESC)")
	for _, p := range pairs {
		if err := table.Upsert(t.Context(), p[1], []byte(p[0]), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	testdb.CheckIndexes(t, db)
	plan := ""
	testdb.Query(t, db, "EXPLAIN SELECT token FROM sessions_owners WHERE owner = ?", func(row *chai.Row) error { return row.Scan(&plan) }, "a")
	if !strings.Contains(plan, `table.Scan("sessions_owners", [{"min": [?], "exact": true}])`) {
		t.Errorf("the plan of SQL is %s, want a range of the table", plan)
	}
}

// Whatever others do to the tables, an answer has all sessions that could be seen when it
// began.
func TestChangesOfOthersAreListed(t *testing.T) {
	insert := func(t *testing.T, exec func(sql string, args ...any) error, token, data string) {
		t.Helper()
		if err := exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", token, []byte(data), time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
	}
	errNo := errors.New("no")
	update := func(t *testing.T, db *chai.DB, end error, f func(tx *chai.Tx) error) {
		t.Helper()
		err := engine.Open(db, nil).Update(t.Context(), func(tx *chai.Tx) error { return errors.Join(f(tx), end) })
		if !errors.Is(err, end) {
			t.Error(err)
		}
	}
	exec := func(statements ...string) func(tx *chai.Tx) error {
		return func(tx *chai.Tx) error {
			for _, sql := range statements {
				if err := tx.Exec(sql); err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
			}
			return nil
		}
	}
	rolledBack := func(statements ...string) func(t *testing.T, db *chai.DB, plain, _ *Table) {
		return func(t *testing.T, db *chai.DB, plain, _ *Table) { update(t, db, errNo, exec(statements...)) }
	}
	var many []string
	for i := range maxNoted + 10 {
		many = append(many, fmt.Sprintf("n%05d", i))
	}
	for name, test := range map[string]struct {
		change func(t *testing.T, db *chai.DB, plain, table *Table)
		want   []string
	}{
		"nothing":        {func(*testing.T, *chai.DB, *Table, *Table) {}, []string{"1", "2"}},
		"INSERT":         {func(t *testing.T, db *chai.DB, _, _ *Table) { insert(t, db.Exec, "3", "a") }, []string{"1", "2", "3"}},
		"another store":  {func(t *testing.T, _ *chai.DB, plain, _ *Table) { upsertData(t, plain, "3", "a") }, []string{"1", "2", "3"}},
		"renewed, plain": {func(t *testing.T, _ *chai.DB, plain, _ *Table) { upsertData(t, plain, "b", "a") }, []string{"1", "2", "b"}},
		"UPDATE": {func(t *testing.T, db *chai.DB, _, _ *Table) {
			update(t, db, nil, func(tx *chai.Tx) error { return tx.Exec("UPDATE sessions SET data = ?", []byte("a")) })
		}, []string{"1", "2", "b"}},
		"token moved": {func(t *testing.T, db *chai.DB, _, _ *Table) {
			testdb.Exec(t, db, "UPDATE sessions SET token = '9' WHERE token = '1'")
		}, []string{"2", "9"}},
		"one of two in a batch": {func(t *testing.T, db *chai.DB, plain, table *Table) {
			lock := engine.Open(db, nil).Lock()
			lock.Lock()
			var wg sync.WaitGroup
			for _, w := range []*Table{table, plain, table, plain} {
				wg.Go(func() { upsertData(t, w, "3", "a") })
				wg.Go(func() { upsertData(t, w, fmt.Sprintf("%p", w), "a"); w.Delete(t.Context(), fmt.Sprintf("%p", w)) })
			}
			time.Sleep(10 * time.Millisecond)
			lock.Unlock()
			wg.Wait()
		}, []string{"1", "2", "3"}},
		"owners deleted": {func(t *testing.T, db *chai.DB, _, _ *Table) { testdb.Exec(t, db, "DELETE FROM sessions_owners") }, []string{"1", "2"}},
		"one deleted": {func(t *testing.T, db *chai.DB, _, _ *Table) {
			testdb.Exec(t, db, "DELETE FROM sessions_owners WHERE token = '1'")
		}, []string{"1", "2"}},
		"owners changed": {func(t *testing.T, db *chai.DB, _, _ *Table) {
			testdb.Exec(t, db, "UPDATE sessions_owners SET owner = 'b' WHERE token = '1'")
		}, []string{"1", "2"}},
		"DELETE rolled back":  {rolledBack("DELETE FROM sessions_owners"), []string{"1", "2"}},
		"UPDATE rolled back":  {rolledBack("UPDATE sessions_owners SET owner = 'b'"), []string{"1", "2"}},
		"DROP rolled back":    {rolledBack("DROP TABLE sessions_owners"), []string{"1", "2"}},
		"REINDEX rolled back": {rolledBack("CREATE INDEX more ON sessions_owners (token)", "REINDEX"), []string{"1", "2"}},
		"INSERT rolled back":  {rolledBack("DELETE FROM sessions WHERE token = '1'", "UPDATE sessions SET expiry = expiry"), []string{"1", "2"}},
		"REINDEX of an index rolled back": {func(t *testing.T, db *chai.DB, _, table *Table) {
			update(t, db, nil, exec("CREATE INDEX more ON sessions_owners (owner, token)"))
			upsertData(t, table, "3", "a")
			update(t, db, errNo, exec("REINDEX sessions_owners"))
		}, []string{"1", "2", "3"}},
		"owners made anew": {func(t *testing.T, db *chai.DB, _, _ *Table) {
			update(t, db, nil, exec("DROP TABLE sessions_owners", createOwners))
		}, []string{"1", "2"}},
		"sessions made anew": {func(t *testing.T, db *chai.DB, _, _ *Table) {
			update(t, db, nil, func(tx *chai.Tx) error {
				err := exec("CREATE TABLE other (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)",
					"INSERT INTO other SELECT * FROM sessions", "DROP TABLE sessions", "ALTER TABLE other RENAME TO sessions")(tx)
				insert(t, tx.Exec, "3", "a")
				return err
			})
		}, []string{"1", "2", "3"}},
		"owners put away and back": {func(t *testing.T, db *chai.DB, _, table *Table) {
			update(t, db, nil, exec("ALTER TABLE sessions_owners RENAME TO former", createOwners))
			upsertData(t, table, "3", "a")
			update(t, db, nil, exec("DROP TABLE sessions_owners", "ALTER TABLE former RENAME TO sessions_owners"))
		}, []string{"1", "2", "3"}},
		"many": {func(t *testing.T, db *chai.DB, _, _ *Table) {
			update(t, db, nil, func(tx *chai.Tx) error {
				for _, token := range many {
					insert(t, tx.Exec, token, "a")
				}
				return nil
			})
		}, append([]string{"1", "2"}, many...)},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			table := newTableWithOwners(t, db)
			plain := New(db, Options{Name: "sessions", Logger: table.Logger})
			upsertData(t, plain, "1", "a") // from before the first answer
			upsertData(t, table, "2", "a")
			upsertData(t, table, "b", "b")
			wantTokensOf(t, table, "a", "1", "2")
			for range 2 {
				test.change(t, db, plain, table)
				wantTokensOf(t, table, "a", test.want...)
				if name != "nothing" {
					break
				}
			}
			fsyncs := table.db.Fsyncs()
			wantTokensOf(t, table, "a", test.want...)
			if n := table.db.Fsyncs() - fsyncs; n != 0 {
				t.Errorf("another answer made %d commits, want none", n)
			}
			if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			testdb.CheckOwners(t, db, firstByte, true)
			if n, err := table.DeleteOf(t.Context(), "a", time.Now()); n != len(test.want) || err != nil {
				t.Errorf("DeleteOf = %d, %v; want %d, nil", n, err, len(test.want))
			}
		})
	}
}

// While a transaction is open that has written out changes, answers do without them, and
// don't look at them again and again. Once it has ended, they have them.
func TestChangesOfAnOpenTransaction(t *testing.T) {
	for name, n := range map[string]int{"some": 20, "all": maxNoted + 10} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			calls := new(atomic.Int64)
			table := newTableWithOwner(t, db, func(data []byte) (string, error) {
				calls.Add(1)
				return firstByte(data)
			})
			upsertData(t, table, "0", "a")
			wantTokensOf(t, table, "a", "0")
			tx, err := db.Begin(true)
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"0"}
			for i := range n {
				want = append(want, fmt.Sprintf("1%05d", i))
				if err := tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", want[i+1], []byte("a"), time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
			if err := tx.Exec("UPDATE sessions SET expiry = expiry"); err != nil { // writes out
				t.Fatal(err)
			}
			calls.Store(0)
			for range 3 {
				wantTokensOf(t, table, "a", "0")
			}
			if got := calls.Load(); got != 3 {
				t.Errorf("the owner function was called %d times, want 3", got)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			wantTokensOf(t, table, "a", want...)
		})
	}
}

// Transactions that began before the table was used first are not told by the feed. While
// one is open, nothing is answered.
func TestTransactionsBeforeTheFeed(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)",
		"CREATE INDEX sessions_expiry_idx ON sessions (expiry)",
		"CREATE TABLE sessions_owners (owner TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (owner, token))")
	var table *Table
	for i := range 3 {
		tx, err := db.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		if table == nil {
			table = New(db, Options{Name: "sessions", OwnerOf: firstByte, Logger: func() *slog.Logger { return slog.New(slog.DiscardHandler) }})
		}
		if err := tx.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", fmt.Sprint("t", i), []byte("a"), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		got, err := tokensOf(ctx, table, "a")
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with transaction %d open, SessionsOf = %q, %v; want an error", i, got, err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	wantTokensOf(t, table, "a", "t0", "t1", "t2")
}

// A store without an owner function, or SQL, may change a session at any moment of a
// reconciliation.
func TestChangesWhileReconciling(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	db := testdb.Memory(t)
	plain := New(db, Options{Name: "sessions"})
	const sessions = 3 * reconcilePart
	if err := plain.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range sessions {
		upsertData(t, plain, fmt.Sprintf("%05d", i), "b")
	}
	var changed []string
	calls := 0
	var mu sync.Mutex
	table := newTableWithOwner(t, db, func(data []byte) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls%500 == 1 && calls < 3*sessions {
			for _, i := range []int{0, sessions / 2, sessions - 1} {
				token := fmt.Sprintf("%05d-%d", i, calls)
				changed = append(changed, token)
				upsertData(t, plain, token, "a")
			}
		}
		return firstByte(data)
	})
	wantTokensOf(t, table, "c")
	slices.Sort(changed)
	calls = 3 * sessions
	wantTokensOf(t, table, "a", changed...)
}

// What is unknown is asked for again: it is found for its owner once it can be read, and
// until then every answer ends with an error.
func TestUnknownOwners(t *testing.T) {
	db := testdb.Memory(t)
	var broken atomic.Bool
	table := newTableWithOwner(t, db, func(data []byte) (string, error) {
		if broken.Load() && bytes.HasSuffix(data, []byte("new")) {
			return "", errUnreadable
		}
		return firstByte(data)
	})
	plain := New(db, Options{Name: "sessions"})
	wantUnread := func(owner string, want ...string) {
		t.Helper()
		if got, err := tokensOf(t.Context(), table, owner); !slices.Equal(got, want) || !errors.Is(err, errUnreadable) || !errors.Is(err, ErrOwnerUnreadable) {
			t.Errorf("SessionsOf(%q) = %q, %v; want %q and %v", owner, got, err, want, errUnreadable)
		}
	}
	for name, writer := range map[string]*Table{"own": table, "plain": plain} {
		t.Run(name, func(t *testing.T) {
			upsertData(t, table, "1", "a")
			upsertData(t, table, "2", "a")
			broken.Store(true)
			upsertData(t, writer, "2", "a new")
			upsertData(t, writer, "3", "a new")
			wantUnread("a", "1")
			wantUnread("b")
			if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			wantUnread("a", "1")
			broken.Store(false)
			wantTokensOf(t, table, "a", "1", "2", "3")
			broken.Store(true)
			wantUnread("a", "1") // although they are listed
			if n, err := table.DeleteOf(t.Context(), "b", time.Now()); n != 0 || err != nil {
				t.Errorf("DeleteOf = %d, %v; want 0, nil: what is listed is not unknown", n, err)
			}
			upsertData(t, writer, "4", "b new")
			if n, err := table.DeleteOf(t.Context(), "a", time.Now()); n != 3 || !errors.Is(err, ErrOwnerUnreadable) {
				t.Errorf("DeleteOf = %d, %v; want 3, %v", n, err, ErrOwnerUnreadable)
			}
			if err := writer.Delete(t.Context(), "4"); err != nil {
				t.Fatal(err)
			}
			broken.Store(false)
			wantTokensOf(t, table, "a")
			wantTokensOf(t, table, "b")
		})
	}
	// A bounded number is asked for in vain.
	broken.Store(true)
	const sessions = 2*maxUnread + 7
	for i := range sessions {
		upsertData(t, table, fmt.Sprintf("%05d", i), "a")
		upsertData(t, table, fmt.Sprintf("%05d", i), "a new")
	}
	upsertData(t, table, "last", "a new")
	if n, err := table.DeleteOf(t.Context(), "a", time.Now()); n != sessions || !errors.Is(err, ErrOwnerUnreadable) {
		t.Errorf("DeleteOf = %d, %v; want %d, %v", n, err, sessions, ErrOwnerUnreadable)
	}
	broken.Store(false)
	wantTokensOf(t, table, "a", "last")
}

// A commit may happen after its caller has got an error, because its turn hangs. Its
// session is unknown from then on.
func TestUnknownOwnerAfterAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		table := newTableWithOwners(t, db)
		wantTokensOf(t, table, "a")
		lock := engine.Open(db, nil).Lock()
		lock.Lock()
		release := make(chan struct{})
		go table.write(t.Context(), 0, func(*engine.Batch, *layout) error {
			<-release
			return nil
		})
		synctest.Wait()
		done := make(chan error)
		go func() { done <- table.Upsert(t.Context(), "1", []byte("!"), time.Now().Add(time.Hour)) }()
		synctest.Wait()
		lock.Unlock()
		if err := <-done; err != engine.ErrBusy {
			t.Fatalf("Upsert = %v, want %v", err, engine.ErrBusy)
		}
		close(release)
		synctest.Wait()
		if _, found, err := find(t, table, "1"); !found || err != nil {
			t.Fatalf("Find = %v, %v; want true, nil", found, err)
		}
		if n, err := table.DeleteOf(t.Context(), "a", time.Now()); n != 0 || !errors.Is(err, ErrOwnerUnreadable) {
			t.Errorf("DeleteOf = %d, %v; want 0, %v", n, err, ErrOwnerUnreadable)
		}
	})
}

// Rows that can't be are passed over, and logged once. Nothing else is affected.
func TestRowsThatCantBe(t *testing.T) {
	db := testdb.Memory(t)
	var log testdb.Log
	table := New(db, Options{Name: "sessions", Logger: func() *slog.Logger { return log.Logger(slog.LevelError) },
		OwnerOf: func(data []byte) (string, error) { return string(data), nil }})
	if err := errors.Join(table.Create(t.Context()), table.CreateOwners(t.Context())); err != nil {
		t.Fatal(err)
	}
	upsertData(t, table, "1", "a")
	wantTokensOf(t, table, "a", "1")
	for _, length := range []int{MaxKeyLen + 1, 127, 128, 300, 20_000} {
		long := strings.Repeat("z", length)
		for _, pair := range [][2]string{{"a", long}, {"", long}, {long, "1"}, {long, long}} {
			if err := db.Exec("INSERT INTO sessions_owners (owner, token) VALUES (?, ?)", pair[0], pair[1]); err != nil {
				t.Fatal(err)
			}
		}
		for _, pair := range [][2]string{{long, "a"}, {"1" + fmt.Sprint(length), long}} {
			err := db.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", pair[0], []byte(pair[1]), time.Now().Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
		}
		upsertData(t, table, "2", "b")
		wantTokensOf(t, table, "a", "1")
		wantTokensOf(t, table, "b", "2")
		if _, err := tokensOf(t.Context(), table, long); err != ErrOwnerTooLong {
			t.Errorf("SessionsOf an owner of %d bytes ended with %v, want %v", length, err, ErrOwnerTooLong)
		}
		if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
			t.Errorf("DeleteExpired: %v", err)
		}
		if err := table.Upsert(t.Context(), "1", []byte(long), time.Now()); err != ErrOwnerTooLong {
			t.Errorf("Upsert with an owner of %d bytes = %v, want %v", length, err, ErrOwnerTooLong)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || strings.Contains(got, "zz") {
		t.Errorf("logged %q, want one line", got)
	}
	if n, err := table.DeleteOf(t.Context(), "a", time.Now()); n != 1 || err != nil {
		t.Errorf("DeleteOf = %d, %v; want 1, nil", n, err)
	}
}

// A damaged row is an error. Nobody takes the sessions before it for all of an owner.
func TestDamagedRowsAreNotPassedOver(t *testing.T) {
	for name, damage := range map[string]func(b *engine.Batch, l *layout){
		"session": func(b *engine.Batch, l *layout) {
			b.Put(appendKey(nil, l.sessions.namespace, "b"), appendText(nil, "b"))
		},
		"entry": func(b *engine.Batch, l *layout) {
			b.Put(append(appendText(appendInt(nil, l.owners.namespace), "o"), textType, 9), []byte{1})
		},
		"token of an entry": func(b *engine.Batch, l *layout) {
			b.Put(appendBlob(appendText(appendInt(nil, l.owners.namespace), "o"), nil), []byte{1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := newTableWithOwners(t, testdb.Memory(t))
			for _, token := range []string{"a", "b", "c"} {
				upsertData(t, table, token, "o")
			}
			wantTokensOf(t, table, "o", "a", "b", "c")
			err := table.write(t.Context(), 0, func(b *engine.Batch, l *layout) error {
				damage(b, l)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := tokensOf(t.Context(), table, "o"); !errors.Is(err, errBadRow) {
				t.Errorf("SessionsOf = %q, %v; want %v", got, err, errBadRow)
			}
			if err := table.owners.sweep(t.Context(), true, nil); !errors.Is(err, errBadRow) {
				t.Errorf("the sweep ended with %v, want %v", err, errBadRow)
			}
		})
	}
}

// A table can be used while sessions are listed. What asks for an owner's sessions waits,
// and gets an error when its context ends, or after 10 seconds.
func TestTableIsUsedWhileReconciling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		plain := New(db, Options{Name: "sessions"})
		if err := plain.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		upsertData(t, plain, "a", "blocks")
		release := make(chan struct{})
		table := newTableWithOwner(t, db, func(data []byte) (string, error) {
			if string(data) == "blocks" {
				<-release
			}
			return "owner", nil
		})
		first := make(chan error)
		go func() {
			tokens, err := tokensOf(t.Context(), table, "owner")
			if err == nil && len(tokens) != 2 {
				err = fmt.Errorf("got %q, want 2", tokens)
			}
			first <- err
		}()
		synctest.Wait()
		upsertData(t, table, "b", "does not")
		if _, found, err := find(t, table, "a"); !found || err != nil {
			t.Errorf("Find = %v, %v; want true, nil", found, err)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tokensOf(ctx, table, "owner"); err != context.DeadlineExceeded || time.Since(start) != time.Second {
			t.Errorf("SessionsOf = %v after %v, want %v after 1s", err, time.Since(start), context.DeadlineExceeded)
		}
		if _, err := tokensOf(t.Context(), table, "owner"); err != errReconciling || time.Since(start) != 11*time.Second {
			t.Errorf("SessionsOf = %v after %v, want %v after 11s", err, time.Since(start), errReconciling)
		}
		close(release)
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

// A sweep removes the entries of sessions that are gone, and former ones of sessions that
// have changed hands. Without changes, sweeps neither write nor ask for an owner.
func TestSweepForgets(t *testing.T) {
	db := testdb.Memory(t)
	calls := new(atomic.Int64)
	table := newTableWithOwner(t, db, func(data []byte) (string, error) {
		calls.Add(1)
		return firstByte(data)
	})
	plain := New(db, Options{Name: "sessions"})
	rng := rand.New(rand.NewPCG(3, 4))
	sweep := func() {
		t.Helper()
		if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		for range 2 * sweepScan / 5 {
			token := fmt.Sprint(rng.IntN(500))
			w := []*Table{table, plain}[rng.IntN(2)]
			if rng.IntN(3) == 0 {
				if err := w.Delete(t.Context(), token); err != nil {
					t.Fatal(err)
				}
			} else {
				upsertData(t, w, token, string(rune('a'+rng.IntN(5))))
			}
		}
		sweep()
		testdb.CheckOwners(t, db, firstByte, true)
		fsyncs := table.db.Fsyncs()
		calls.Store(0)
		sweep() // its own changes
		sweep()
		if n, m := calls.Load(), table.db.Fsyncs()-fsyncs; n != 0 || m != 0 {
			t.Errorf("sweeps after no change asked for %d owners, and made %d commits, want none", n, m)
		}
	}
}

// What a sweep finds wrong may be right when its turn has come.
func TestForgetComparesAgain(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, table *Table){
		"back":    func(t *testing.T, table *Table) { upsertData(t, table, "gone", "a") },
		"renewed": func(t *testing.T, table *Table) { upsertData(t, table, "moved", "a again") },
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			table := newTableWithOwners(t, db)
			upsertData(t, table, "gone", "a")
			upsertData(t, table, "moved", "a")
			upsertData(t, table, "moved", "b")
			if err := table.Delete(t.Context(), "gone"); err != nil {
				t.Fatal(err)
			}
			err := table.owners.forgetIf(t.Context(), func(string) bool { return true }, func(data []byte) (string, error) {
				change(t, table)
				return firstByte(data)
			})
			if err != nil {
				t.Fatal(err)
			}
			testdb.CheckOwners(t, db, firstByte, false)
		})
	}
}

// The former table of owners is replaced if it is surely one, and only then.
func TestFormerTableOfOwners(t *testing.T) {
	const create = "CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT NOT NULL)"
	const index = "CREATE INDEX sessions_owners_by_owner ON sessions_owners (owner, token)"
	for name, test := range map[string]struct {
		statements []string
		replaced   bool
	}{
		"former":        {[]string{create, index}, true},
		"no index":      {[]string{create}, false},
		"another index": {[]string{create, "CREATE INDEX mine ON sessions_owners (owner, token)"}, false},
		"other columns": {[]string{create, "CREATE INDEX sessions_owners_by_owner ON sessions_owners (owner)"}, false},
		"descending":    {[]string{create, "CREATE INDEX sessions_owners_by_owner ON sessions_owners (owner, token DESC)"}, false},
		"unique":        {[]string{create, "CREATE UNIQUE INDEX sessions_owners_by_owner ON sessions_owners (owner, token)"}, false},
		"two indexes":   {[]string{create, index, "CREATE INDEX mine ON sessions_owners (owner)"}, false},
		"NULL":          {[]string{"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT)", index}, false},
		"more columns":  {[]string{"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner TEXT NOT NULL, note TEXT)", index}, false},
		"another type":  {[]string{"CREATE TABLE sessions_owners (token TEXT PRIMARY KEY, owner BLOB NOT NULL)", index}, false},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, testdb.CreateTable)
			testdb.Exec(t, db, test.statements...)
			testdb.Exec(t, db, "INSERT INTO sessions_owners (token, owner) VALUES ('gone', 'gone')")
			upsertData(t, New(db, Options{Name: "sessions"}), "1", "a")
			tables := make([]*Table, 4)
			var wg sync.WaitGroup
			for i := range tables {
				tables[i] = New(db, Options{Name: "sessions", OwnerOf: firstByte})
				wg.Go(func() {
					if err := tables[i].CreateOwners(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			err := tables[0].Check()
			if !test.replaced {
				if err == nil || !strings.HasSuffix(err.Error(), ": rename the table, or set Config.TableName to another name") || testdb.Count(t, db, "SELECT COUNT(*) FROM sessions_owners") != 1 {
					t.Errorf("Check = %v, want an error that says to drop it, and the table as it was", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantTokensOf(t, tables[0], "a", "1")
			testdb.CheckOwners(t, db, firstByte, true)
		})
	}
}

// Older tables allow NULL. Rows with NULL are nobody's.
func TestOwnersOfNullData(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP)")
	if err := db.Exec("INSERT INTO sessions (token, expiry) VALUES ('a', ?)", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	table := newTableWithOwners(t, db)
	wantTokensOf(t, table, "a")
	testdb.CheckOwners(t, db, firstByte, true)
}

// Pages of an owner's sessions leave out no token between them, and are limited like
// other pages.
func TestPagesOfAnOwnerMeet(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwners(t, db)
	var want []string
	for i := range pageLen + 1 {
		want = append(want, fmt.Sprintf("%05d", i/2)+strings.Repeat("\x00", i%2))
		upsertData(t, table, want[i], "0")
	}
	upsertData(t, table, "another", "1")
	wantTokensOf(t, table, "0", want...)
	a, err := table.owners.begin("0")
	if err != nil {
		t.Fatal(err)
	}
	rows, next, err := table.owners.page(t.Context(), a, "0", "")
	if len(rows) != pageLen || next != after(want[pageLen-1]) || err != nil {
		t.Errorf("the first page has %d sessions, and ends before %q, %v; want %d, %q, nil", len(rows), next, err, pageLen, want[pageLen])
	}
}

// A commit that keeps the data of a session asks for no owner. The session may have changed
// before its turn.
func TestSameDataIsListed(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, table *Table){
		"not":             func(*testing.T, *Table) {},
		"deleted":         func(t *testing.T, table *Table) { table.DeleteOf(t.Context(), "a", time.Now()) },
		"somebody else's": func(t *testing.T, table *Table) { upsertData(t, table, "1", "b") },
		"and swept": func(t *testing.T, table *Table) {
			upsertData(t, table, "1", "b")
			table.DeleteExpired(t.Context(), time.Now())
		},
		"without an entry": func(t *testing.T, table *Table) { testdb.Exec(t, table.handle, "DELETE FROM sessions_owners") },
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			table := newTableWithOwner(t, testdb.Memory(t), func(data []byte) (string, error) {
				calls.Add(1)
				return firstByte(data)
			})
			table.db.GrowCache(1 << 20)
			upsertData(t, table, "1", "a")
			wantTokensOf(t, table, "a", "1")
			calls.Store(0)
			n, err := table.owners.prepare("1", []byte("a"))
			if err != nil || calls.Load() != 0 {
				t.Fatalf("the owner function was called %d times, %v; want 0, nil", calls.Load(), err)
			}
			change(t, table)
			err = table.write(t.Context(), 0, func(b *engine.Batch, l *layout) error {
				row := encodeRow(Row{"1", []byte("a"), time.Now().Add(time.Hour)})
				return errors.Join(table.owners.commit(b, l, n), l.sessions.put(b, appendKey(nil, l.sessions.namespace, "1"), row))
			})
			if err != nil {
				t.Fatal(err)
			}
			wantTokensOf(t, table, "a", "1")
		})
	}
}

// A note stays while it is on a batch that the snapshot did not have in which its session
// was read.
func TestNoteOnLaterBatch(t *testing.T) {
	n, followed := newOwnerNotes(), tables{1, 2}
	n.told(engine.Change{End: 4})
	if !n.follow(followed, 4) {
		t.Error("the sessions from before are not noted")
	}
	n.compared(followed, 4, 4)
	put := func(end uint64) { n.told(engine.Change{Key: appendKey(nil, 1, "a"), End: end}) }
	put(5)
	put(7)
	if n.current(followed, 6, 6) || !n.current(followed, 4, 9) {
		t.Error("the change of batch 5 is noted for other snapshots than those from 5 on")
	}
	if got, _ := n.noted(followed, 6, 10); !slices.Equal(got, []string{"a"}) {
		t.Errorf("noted %q, want a", got)
	}
	n.settled(followed, []string{"a"}, 6, 6)
	if got, _ := n.noted(followed, 6, 10); len(got) != 0 || !n.current(followed, 6, 6) {
		t.Errorf("noted %q after it was read in snapshot 6, want nothing", got)
	}
	if got, _ := n.noted(followed, 7, 10); !slices.Equal(got, []string{"a"}) || n.current(followed, 7, 7) {
		t.Errorf("noted %q for snapshot 7, want a", got)
	}
	n.settled(followed, []string{"a"}, 7, 8)
	if got, _ := n.noted(followed, 9, 10); len(got) != 0 || !n.current(followed, 9, 9) {
		t.Errorf("noted %q after all was read, want nothing", got)
	}
	if n.current(followed, 7, 7) {
		t.Error("snapshot 7 is current, but a was listed in snapshot 8")
	}
}

// With many sessions, the owner function is called in other goroutines, too. Its panic
// reaches the caller, and if it ends a goroutine, the caller gets an error.
func TestOwnerFunctionEndsOtherGoroutines(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("bug") }, "Goexit": runtime.Goexit} {
		table := newTableWithOwner(t, testdb.Memory(t), func(data []byte) (string, error) {
			if len(data) > 1 {
				end()
			}
			return firstByte(data)
		})
		plain := New(table.handle, Options{Name: "sessions"})
		for i := range 100 {
			upsertData(t, plain, fmt.Sprint(i), "a")
		}
		upsertData(t, plain, "last", "a bug")
		var recovered any
		var err error
		func() {
			defer func() { recovered = recover() }()
			_, err = tokensOf(t.Context(), table, "a")
		}()
		if (recovered == "bug") != (name == "panic") || (err != nil) != (name == "Goexit") {
			t.Errorf("%s: SessionsOf ended with %v, or panicked with %v", name, err, recovered)
		}
		upsertData(t, plain, "last", "a")
		if tokens, err := tokensOf(t.Context(), table, "a"); len(tokens) != 101 || err != nil {
			t.Errorf("%s: then SessionsOf has %d sessions, %v; want 101, nil", name, len(tokens), err)
		}
	}
}

// A hook is called by an owner function, with the data of the session.
type hook struct {
	mu sync.Mutex
	f  func(data string) error // nil at first
}

func (h *hook) set(f func(data string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.f = f
}

// ownerOf is firstByte after the hook. The hook may use the table.
func (h *hook) ownerOf(data []byte) (string, error) {
	h.mu.Lock()
	f := h.f
	h.mu.Unlock()
	if f != nil {
		if err := f(string(data)); err != nil {
			return "", err
		}
	}
	return firstByte(data)
}

// once returns a hook that calls f for the first session with the given data.
func (h *hook) once(data string, f func() error) {
	var called atomic.Bool
	h.set(func(d string) error {
		if d == data && !called.Swap(true) {
			return f()
		}
		return nil
	})
}

func newTableWithHook(t *testing.T) (db *chai.DB, table *Table, h *hook) {
	t.Helper()
	db, h = testdb.Memory(t), new(hook)
	return db, newTableWithOwner(t, db, h.ownerOf), h
}

// inUpdate runs statements in one transaction.
func inUpdate(t *testing.T, db *chai.DB, statements ...string) {
	t.Helper()
	err := engine.Open(db, nil).Update(t.Context(), func(tx *chai.Tx) error {
		for _, sql := range statements {
			if err := tx.Exec(sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

const (
	createSessions = "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)"
)

// away puts a table away, with an empty one in its place.
func away(t *testing.T, db *chai.DB, name, create string) {
	t.Helper()
	inUpdate(t, db, "ALTER TABLE "+name+" RENAME TO away", create)
}

func back(t *testing.T, db *chai.DB, name string) {
	t.Helper()
	inUpdate(t, db, "DROP TABLE "+name, "ALTER TABLE away RENAME TO "+name)
}

// wantAllOf fails unless an owner has the given number of sessions, before and after a sweep,
// and DeleteOf deletes them.
func wantAllOf(t *testing.T, table *Table, owner string, want int) {
	t.Helper()
	for _, when := range []string{"", "after a sweep, "} {
		if got, err := tokensOf(t.Context(), table, owner); len(got) != want || err != nil {
			t.Errorf("%sSessionsOf(%q) has %d sessions, %v; want %d, nil", when, owner, len(got), err, want)
		}
		if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
			t.Error(err)
		}
	}
	if n, err := table.DeleteOf(t.Context(), owner, time.Now()); n != want || err != nil {
		t.Errorf("DeleteOf(%q) = %d, %v; want %d, nil", owner, n, err, want)
	}
}

// An entry that is gone is put back during an answer, and just then its session can't be
// read. A moment later, it can.
func TestUnreadableForAMoment(t *testing.T) {
	for name, ask := range map[string]func(t *testing.T, table *Table) (int, error){
		"SessionsOf": func(t *testing.T, table *Table) (int, error) {
			tokens, err := tokensOf(t.Context(), table, "a")
			return len(tokens), err
		},
		"DeleteOf": func(t *testing.T, table *Table) (int, error) { return table.DeleteOf(t.Context(), "a", time.Now()) },
	} {
		for _, by := range []string{"the answer", "another answer"} {
			t.Run(name+", listed by "+by, func(t *testing.T) {
				db, table, h := newTableWithHook(t)
				upsertData(t, table, "1", "a")
				wantTokensOf(t, table, "a", "1")
				h.set(func(string) error { return errUnreadable })
				upsertData(t, table, "unknown", "b")
				var step atomic.Int64
				h.set(func(data string) error {
					switch {
					case data == "b" && step.CompareAndSwap(0, 1): // the answer has begun
						testdb.Exec(t, db, "DELETE FROM sessions_owners WHERE owner = 'a'")
						if by != "the answer" {
							err := table.owners.reconcile(t.Context())
							if err != nil {
								t.Error(err)
							}
						}
					case data == "a" && step.CompareAndSwap(1, 2):
						return errUnreadable
					}
					return nil
				})
				if n, err := ask(t, table); n != 1 || err != nil || step.Load() != 2 {
					t.Errorf("got %d sessions, %v, at step %d; want 1, nil, 2", n, err, step.Load())
				}
			})
		}
	}
}

// A session becomes unknown while an answer looks at unknown sessions with greater tokens.
func TestUnknownBehindAnAnswer(t *testing.T) {
	db, table, h := newTableWithHook(t)
	upsertData(t, table, "a", "a")
	wantTokensOf(t, table, "a", "a")
	h.set(func(string) error { return errUnreadable })
	for i := range reconcilePart + 1 {
		upsertData(t, table, fmt.Sprintf("u%03d", i), "b")
	}
	var deleted atomic.Bool
	h.set(func(data string) error {
		if data == "a" {
			return errUnreadable
		}
		if !deleted.Swap(true) {
			testdb.Exec(t, db, "DELETE FROM sessions_owners WHERE owner = 'a'")
		}
		return nil
	})
	if got, err := tokensOf(t.Context(), table, "a"); !errors.Is(err, ErrOwnerUnreadable) {
		t.Errorf("SessionsOf = %q, %v; want %v", got, err, ErrOwnerUnreadable)
	}
}

// A sweep finds that a session can be read which was unknown a moment ago. It has another
// owner than before.
func TestReadableInASweep(t *testing.T) {
	_, table, h := newTableWithHook(t)
	upsertData(t, table, "1", "a")
	h.set(func(string) error { return errUnreadable })
	upsertData(t, table, "1", "b")
	h.once("b", func() error { return errUnreadable })
	if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	wantAllOf(t, table, "b", 1)
}

// Sessions are listed in a table of owners that takes the place of the other for a moment.
func TestListedInAnotherTable(t *testing.T) {
	const sessions = 2*reconcilePart + 1
	for _, first := range []bool{false, true} { // whether all are compared
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			db, table, h := newTableWithHook(t)
			if !first {
				wantTokensOf(t, table, "a")
			}
			plain := New(db, Options{Name: "sessions"})
			for i := range sessions {
				upsertData(t, plain, fmt.Sprintf("%04d", i), "a")
			}
			var calls atomic.Int64
			h.set(func(string) error {
				switch calls.Add(1) {
				case 1:
					away(t, db, "sessions_owners", createOwners)
				case reconcilePart + 1:
					back(t, db, "sessions_owners")
				}
				return nil
			})
			wantAllOf(t, table, "a", sessions)
		})
	}
}

// A table of sessions is away for a moment, while a sweep or DeleteOf removes entries.
func TestEntriesRemovedWhileAway(t *testing.T) {
	t.Run("sweep", func(t *testing.T) {
		db, table, h := newTableWithHook(t)
		wantTokensOf(t, table, "a")
		h.set(func(string) error { return errUnreadable })
		upsertData(t, table, "unknown", "b")
		h.once("b", func() error { // after the sweep has gone through the sessions
			upsertData(t, table, "1", "a")
			away(t, db, "sessions", createSessions)
			return nil
		})
		if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		back(t, db, "sessions")
		wantAllOf(t, table, "a", 1)
	})
	t.Run("DeleteOf", func(t *testing.T) {
		db, table, h := newTableWithHook(t)
		wantTokensOf(t, table, "a")
		upsertData(t, table, "1", "a")
		h.once("a", func() error {
			away(t, db, "sessions", createSessions)
			return nil
		})
		if n, err := table.DeleteOf(t.Context(), "a", time.Now()); n != 0 || err != nil {
			t.Errorf("DeleteOf = %d, %v; want 0, nil: the table is empty", n, err)
		}
		back(t, db, "sessions")
		wantAllOf(t, table, "a", 1)
	})
	t.Run("DeleteOf, and back", func(t *testing.T) {
		db, table, h := newTableWithHook(t)
		for i := range deleteBatch + 1 {
			upsertData(t, table, fmt.Sprintf("%03d", i), "a")
		}
		wantTokensOf(t, table, "b")
		var calls atomic.Int64
		h.set(func(string) error {
			switch calls.Add(1) {
			case 1:
				away(t, db, "sessions", createSessions)
			case deleteBatch + 1: // those before are deleted
				back(t, db, "sessions")
			}
			return nil
		})
		n, err := table.DeleteOf(t.Context(), "a", time.Now())
		if err != nil {
			t.Error(err)
		}
		if calls.Load() <= deleteBatch {
			back(t, db, "sessions")
		}
		h.set(nil)
		wantAllOf(t, table, "a", deleteBatch+1-n)
	})
}

// All pages of an answer are of one table.
func TestReplacedBetweenPages(t *testing.T) {
	db, table, _ := newTableWithHook(t)
	var want []string
	for i := range pageLen + 1 {
		want = append(want, fmt.Sprintf("%05d", i))
		upsertData(t, table, want[i], "a")
	}
	n := 0
	var last error
	for _, err := range table.SessionsOf(t.Context(), "a", time.Now()) {
		if n++; n == 1 {
			away(t, db, "sessions", createSessions)
		}
		last = err
	}
	if n != pageLen+1 || last != errReplaced {
		t.Errorf("got %d elements, and %v; want %d, and %v", n, last, pageLen+1, errReplaced)
	}
	back(t, db, "sessions")
	wantTokensOf(t, table, "a", want...)
}

// Two stores have each other's tables for a moment. What they do then is told to the other.
func TestTablesUnderOtherNames(t *testing.T) {
	newTable := func(t *testing.T, db *chai.DB, name string) *Table {
		t.Helper()
		table := New(db, Options{Name: name, OwnerOf: firstByte, Logger: func() *slog.Logger { return slog.New(slog.DiscardHandler) }})
		if err := errors.Join(table.Create(t.Context()), table.CreateOwners(t.Context())); err != nil {
			t.Fatal(err)
		}
		return table
	}
	swapped := func(name1, name2 string) []string {
		return []string{"ALTER TABLE " + name1 + " RENAME TO other", "ALTER TABLE " + name2 + " RENAME TO " + name1, "ALTER TABLE other RENAME TO " + name2}
	}
	for name, test := range map[string]struct {
		swap []string
		call func(t *testing.T, table *Table)
		want int
	}{
		"committed":     {swapped("s1", "s2"), func(t *testing.T, table *Table) { upsertData(t, table, "2", "a") }, 2},
		"swept":         {swapped("s1_owners", "s2_owners"), func(t *testing.T, table *Table) { table.DeleteExpired(t.Context(), time.Now()) }, 1},
		"sessions":      {swapped("s1", "s2"), func(t *testing.T, table *Table) { table.DeleteExpired(t.Context(), time.Now()) }, 1},
		"entry deleted": {swapped("s1_owners", "s2_owners"), func(t *testing.T, table *Table) { table.DeleteOf(t.Context(), "a", time.Now()) }, 1},
		"both":          {append(swapped("s1", "s2"), swapped("s1_owners", "s2_owners")...), func(t *testing.T, table *Table) { upsertData(t, table, "2", "a") }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			s1, s2 := newTable(t, db, "s1"), newTable(t, db, "s2")
			upsertData(t, s1, "1", "a")
			upsertData(t, s2, "1", "a")
			wantTokensOf(t, s1, "a", "1")
			inUpdate(t, db, test.swap...)
			if _, err := tokensOf(t.Context(), s2, "b"); err != nil { // s2 follows the tables
				t.Error(err)
			}
			test.call(t, s2)
			inUpdate(t, db, test.swap...)
			wantAllOf(t, s1, "a", test.want)
		})
	}
}

// Entries are deleted after a comparison has read them, and too many to be noted one by one.
func TestEntriesDeletedWhileCompared(t *testing.T) {
	db, table, _ := newTableWithHook(t)
	const sessions = maxNoted + 1
	testdb.InParallel(64, sessions, func(_ *rand.Rand, i int) { upsertData(t, table, fmt.Sprintf("%05d", i), "a") })
	wantTokensOf(t, table, "b")
	l, err := table.layout()
	if err != nil {
		t.Fatal(err)
	}
	present, err := table.owners.entries(t.Context(), l.tables())
	if err != nil {
		t.Fatal(err)
	}
	inUpdate(t, db, "DELETE FROM sessions_owners")
	if err := table.owners.listAll(t.Context(), l.tables(), present); err != nil {
		t.Fatal(err)
	}
	wantAllOf(t, table, "a", sessions)
}

// Others delete an entry each time it is put. An answer ends with an error.
func TestEntriesDeletedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, table, h := newTableWithHook(t)
		upsertData(t, table, "1", "a")
		wantTokensOf(t, table, "a", "1")
		var busy atomic.Bool
		h.set(func(string) error {
			if busy.Load() {
				testdb.Exec(t, db, "INSERT INTO sessions_owners (owner, token) VALUES ('a', '1') ON CONFLICT DO NOTHING", "DELETE FROM sessions_owners")
				time.Sleep(time.Second)
			}
			return nil
		})
		for name, ask := range map[string]func() error{
			"SessionsOf": func() error { _, err := tokensOf(t.Context(), table, "a"); return err },
			"DeleteOf":   func() error { _, err := table.DeleteOf(t.Context(), "a", time.Now()); return err },
		} {
			testdb.Exec(t, db, "DELETE FROM sessions_owners")
			busy.Store(true)
			start := time.Now()
			if err := ask(); !errors.Is(err, errReconciling) || time.Since(start) > 2*engine.HangLimit {
				t.Errorf("%s = %v after %v, want %v after at most %v", name, err, time.Since(start), errReconciling, 2*engine.HangLimit)
			}
			busy.Store(false)
		}
		wantAllOf(t, table, "a", 1)
	})
}

// A snapshot is current just as long as no note is on what it needs: its number, and that of
// the first snapshot of an answer, are compared with the ends of batches.
func TestNotesAtTheirBatch(t *testing.T) {
	at, other := tables{1, 2}, tables{3, 4}
	const end = 10 // of the batch
	for name, test := range map[string]struct {
		note          func(n *ownerNotes)
		begun, number uint64 // of the latest snapshots for which an answer is current
	}{
		"put":             {func(n *ownerNotes) { n.note("a", end, false) }, end - 1, math.MaxUint64},
		"entry deleted":   {func(n *ownerNotes) { n.note("a", end, true) }, end - 1, end - 1},
		"all put":         {func(n *ownerNotes) { n.noteAll(end, false) }, end - 1, math.MaxUint64},
		"entries deleted": {func(n *ownerNotes) { n.noteAll(end, true) }, end - 1, end - 1},
		"put twice": {func(n *ownerNotes) {
			n.note("a", end, false)
			n.note("a", end+5, false)
		}, end - 1, math.MaxUint64},
		"listed": {func(n *ownerNotes) {
			n.note("a", end, true)
			n.settled(at, []string{"a"}, end, end)
			n.noted(at, end, 1)
		}, math.MaxUint64, math.MaxUint64},
		"listed in part": {func(n *ownerNotes) {
			n.note("a", end, true)
			n.note("a", end+5, true)
			n.settled(at, []string{"a"}, end, end)
			n.noted(at, end, 1)
		}, end, end},
		"all compared": {func(n *ownerNotes) {
			n.noteAll(end, true)
			n.compared(at, end, end)
		}, math.MaxUint64, math.MaxUint64},
		"compared in part": {func(n *ownerNotes) {
			n.noteAll(end-5, true)
			n.noteAll(end+5, true)
			n.compared(at, end, end)
		}, end, end},
		"compared too early": {func(n *ownerNotes) {
			n.noteAll(end, true)
			n.compared(at, end-1, end-1)
		}, end - 1, end - 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := newOwnerNotes()
			n.followed.Store(&followed{tables: at})
			test.note(n)
			for begun := uint64(end - 2); begun <= end+2; begun++ {
				for number := max(begun, n.listed); number <= end+2; number++ {
					want := begun <= test.begun && number <= test.number
					if got := n.current(at, begun, number); got != want {
						t.Errorf("current for an answer from %d in %d = %v, want %v", begun, number, got, want)
					}
				}
			}
			if n.listed > 0 && n.current(at, 0, n.listed-1) {
				t.Error("a snapshot from before what was listed is current")
			}
			if n.current(other, 0, end-1) {
				t.Error("a snapshot of other tables is current")
			}
		})
	}
}

// A token and an owner of 100 bytes are the longest ones.
func TestLongestTokensAndOwners(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	table := newTableWithOwner(t, db, func(data []byte) (string, error) { return string(data), nil })
	plain := New(db, Options{Name: "sessions", Logger: table.Logger})
	owner := strings.Repeat("o", MaxKeyLen)
	var tokens []string
	for i := range 3 {
		tokens = append(tokens, strings.Repeat("t", MaxKeyLen-1)+fmt.Sprint(i))
	}
	upsertData(t, plain, tokens[0], owner) // listed by the first answer
	wantTokensOf(t, table, owner, tokens[:1]...)
	upsertData(t, table, tokens[1], owner)
	upsertData(t, plain, tokens[2], owner) // noted
	wantTokensOf(t, table, owner, tokens...)
	testdb.Exec(t, db, "DELETE FROM sessions_owners") // the entries are noted
	wantTokensOf(t, table, owner, tokens...)
	if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	wantTokensOf(t, table, owner, tokens...)
	ctx, cancel := table.Context(t.Context(), tokens[0])
	defer cancel()
	if ctx.Err() != nil {
		t.Errorf("the context of a session has ended: %v", context.Cause(ctx))
	}
	if n, err := table.DeleteOf(t.Context(), owner, time.Now()); n != len(tokens) || err != nil {
		t.Errorf("DeleteOf = %d, %v; want %d, nil", n, err, len(tokens))
	}
	if !errors.Is(context.Cause(ctx), ErrEnded) {
		t.Errorf("the context of the deleted session: %v, want %v", context.Cause(ctx), ErrEnded)
	}
	upsertData(t, table, tokens[0], owner)
	if err := plain.Delete(t.Context(), tokens[0]); err != nil { // leaves the entry to the next sweep
		t.Fatal(err)
	}
	if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions_owners"); n != 0 {
		t.Errorf("got %d entries without sessions after a sweep, want 0", n)
	}
	if err := table.Upsert(t.Context(), "a", []byte(owner+"o"), time.Now().Add(time.Hour)); !errors.Is(err, ErrOwnerTooLong) {
		t.Errorf("Upsert with an owner of %d bytes = %v, want %v", MaxKeyLen+1, err, ErrOwnerTooLong)
	}
	for _, err := range table.SessionsOf(t.Context(), owner+"o", time.Now()) {
		if !errors.Is(err, ErrOwnerTooLong) {
			t.Errorf("SessionsOf an owner of %d bytes: %v, want %v", MaxKeyLen+1, err, ErrOwnerTooLong)
		}
	}
}
