package sessiontable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
	"go.elara.ws/chaistore/internal/writer"
)

func newTable(t *testing.T, db *chai.DB) *Table {
	t.Helper()
	return New(db, "sessions", func() *slog.Logger { return slog.New(slog.DiscardHandler) })
}

// The plans that the package relies on: sessions are reached through the primary
// key only, by one lookup or one range, whether or not expiry has an index.
func TestPlans(t *testing.T) {
	const (
		one  = `table.Scan("sessions", [{"min": [?], "exact": true}])`
		from = `table.Scan("sessions", [{"min": [?]}])`
		span = `table.Scan("sessions", [{"min": [?], "max": [?]}])`
	)
	for name, setup := range map[string][]string{
		"plain":   {testdb.CreateTable},
		"indexed": {testdb.CreateTable, testdb.CreateIndex},
	} {
		db := testdb.Memory(t)
		testdb.Exec(t, db, setup...)
		table := newTable(t, db)
		for sql, want := range map[string]string{
			table.find:          one + " | rows.Project(token, data, expiry)",
			table.findFrom:      from + " | rows.Project(token, data, expiry)",
			table.countExpired:  span + " | rows.Filter(expiry <= ?) | ",
			table.deleteExpired: span + " | rows.Filter(expiry <= ?) | ",
			table.delete:        one + " | ",
			table.update:        one + " | ",
		} {
			row, err := db.QueryRow("EXPLAIN " + sql)
			if err != nil {
				t.Fatalf("%s: EXPLAIN %s: %v", name, sql, err)
			}
			var plan string
			if err := row.Scan(&plan); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(plan, want) {
				t.Errorf("%s: plan of %s:\n got %s\nwant %s", name, sql, plan, want)
			}
		}
	}
}

func upsert(t *testing.T, table *Table, token string, expiry time.Time) {
	t.Helper()
	if err := table.Upsert(t.Context(), token, []byte(token), expiry); err != nil {
		t.Error(err)
	}
}

func TestSweepSparesSessionsRenewedMeanwhile(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	now := time.Now()
	for _, token := range []string{"a", "b", "c"} {
		upsert(t, table, token, now.Add(-time.Minute))
	}
	expired, err := table.scanExpired(t.Context(), "", now)
	if err != nil {
		t.Fatal(err)
	}
	if !expired.found || expired.first != "a" || expired.last != "c" || expired.scanned != 3 || expired.next != "" {
		t.Fatalf("scanExpired = %+v", expired)
	}
	upsert(t, table, "b", now.Add(time.Minute))
	if n, err := table.deleteExpiredIn(t.Context(), expired, now); n != 2 || err != nil {
		t.Fatalf("deleteExpiredIn = %d, %v; want 2, nil", n, err)
	}
	if _, found, err := table.Find("b"); !found || err != nil {
		t.Errorf("Find of the renewed session = %v, %v; want true, nil", found, err)
	}
}

func TestSweepLooksAtEverySessionOnce(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	now := time.Now()
	const sessions = 2*rangeLen + 1
	for i := range sessions {
		upsert(t, table, strings.Repeat("\x00", i%7)+string(rune('A'+i)), now.Add(time.Minute))
	}
	upsert(t, table, "\xff", now)
	sweep, err := table.DeleteExpired(t.Context(), now)
	if want := (Sweep{Scanned: sessions + 1, Deleted: 1}); sweep != want || err != nil {
		t.Errorf("DeleteExpired = %+v, %v; want %+v, nil", sweep, err, want)
	}
}

// Between two pages, and two ranges of a sweep, no token is left out, not even
// the next one that there can be.
func TestPagesMeet(t *testing.T) {
	for _, length := range []int{pageLen, rangeLen} {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := newTable(t, db)
		now := time.Now()
		last := ""
		for i := range length {
			last = fmt.Sprintf("%05d", i)
			upsert(t, table, last, now)
		}
		upsert(t, table, last+"\x00", now)
		seen := 0
		for from, more := "", true; more; more = from != "" {
			rows, next, err := table.Page(t.Context(), from)
			if err != nil {
				t.Fatal(err)
			}
			seen, from = seen+len(rows), next
		}
		if seen != length+1 {
			t.Errorf("%d of %d sessions are in the pages", seen, length+1)
		}
		if sweep, err := table.DeleteExpired(t.Context(), now); sweep.Deleted != length+1 || err != nil {
			t.Errorf("of %d expired sessions %+v were swept (%v)", length+1, sweep, err)
		}
	}
}

// A commit that waits while its table gets an index maintains that index.
func TestIndexIsCreatedWhileCommitWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := newTable(t, db)
		lock := writer.Lock(db)
		lock.Lock()
		expiry := time.Now().Add(time.Hour)
		for _, token := range []string{"a", "b"} {
			go func() { upsert(t, table, token, expiry) }()
		}
		synctest.Wait()
		testdb.Exec(t, db, testdb.CreateIndex)
		lock.Unlock()
		synctest.Wait()
		row, err := db.QueryRow("SELECT COUNT(*) FROM sessions WHERE expiry > ?", time.Unix(0, 0)) // reads the index
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := row.Scan(&n); n != 2 || err != nil {
			t.Errorf("the index has %d sessions (%v), want 2", n, err)
		}
	})
}

// A sweep that is interrupted ends before its next range, and says what it has
// done until then.
func TestSweepEndsBetweenRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := newTable(t, db)
		now := time.Now()
		for i := range 3 * rangeLen {
			upsert(t, table, string(rune('A'+i)), now)
		}
		ctx, cancel := context.WithCancel(t.Context())
		lock := writer.Lock(db)
		lock.Lock()
		go func() {
			sweep, err := table.DeleteExpired(ctx, now)
			if sweep.Deleted != rangeLen || !errors.Is(err, context.Canceled) {
				t.Errorf("DeleteExpired = %+v, %v; want %d deleted, canceled", sweep, err, rangeLen)
			}
		}()
		synctest.Wait() // until the first range waits for its turn
		go func() {
			lock.Lock() // after the first range, before the second
			cancel()
			lock.Unlock()
		}()
		synctest.Wait()
		lock.Unlock()
		synctest.Wait()
	})
}

func TestCreateKeepsAnExistingTable(t *testing.T) {
	db := testdb.Memory(t)
	table := newTable(t, db)
	for range 2 {
		if err := table.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		upsert(t, table, "a", time.Now())
	}
	if err := table.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestIndexesAreRepairedOnce(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	var log testdb.Log
	table := New(db, "sessions", func() *slog.Logger { return log.Logger(slog.LevelDebug) })
	for range 3 {
		upsert(t, table, "a", time.Now())
	}
	if n := strings.Count(log.String(), "idx_sessions_expiry"); n != 1 {
		t.Errorf("the index was repaired %d times, want 1:\n%s", n, &log)
	}
}

// The engine's errors quote tokens, which must not get into anyone's log.
func TestCauseShowsNoToken(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	_, notFound := db.QueryRow("SELECT * FROM secret")
	if !chai.IsNotFoundError(notFound) || !strings.Contains(notFound.Error(), "secret") {
		t.Fatalf("the engine's error is %v", notFound)
	}
	for _, err := range []error{
		fmt.Errorf("failed to insert row %q: %w", "secret", io.ErrShortWrite),
		notFound,
		fmt.Errorf("can't replace key %q: %w", "secret", notFound),
	} {
		got := table.cause(err)
		if msg := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(msg, "secret") {
			t.Errorf("the cause of %q is %s", err, msg)
		}
		if errors.Is(err, io.ErrShortWrite) && !errors.Is(got, io.ErrShortWrite) {
			t.Errorf("the cause of %q is %q", err, got)
		}
	}
	testdb.Exec(t, db, "DROP TABLE sessions")
	if got := table.cause(notFound); !strings.Contains(got.Error(), `table "sessions" does not exist`) {
		t.Errorf("the cause without a table is %q", got)
	}
}
