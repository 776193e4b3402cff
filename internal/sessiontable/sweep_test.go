package sessiontable

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

func TestSweepSparesSessionsRenewedMeanwhile(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	now := time.Now()
	for _, token := range []string{"a", "b", "c", "d"} {
		upsert(t, table, token, now.Add(-time.Minute))
	}
	page, err := table.scanExpired(t.Context(), "", now, newCollection(t, table))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(page.tokens, []string{"a", "b", "c", "d"}) || page.scanned != 4 || page.next != "" {
		t.Fatalf("scanExpired = %+v", page)
	}
	upsert(t, table, "b", now.Add(time.Minute))
	if err := table.Delete(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if n, err := table.deleteIfExpired(t.Context(), page.tokens, now); n != 2 || err != nil {
		t.Fatalf("deleteIfExpired = %d, %v; want 2, nil", n, err)
	}
	if _, found, err := find(t, table, "b"); !found || err != nil {
		t.Errorf("Find of the renewed session = %v, %v; want true, nil", found, err)
	}
	if n := len(expiries(t, db)); n != 1 {
		t.Errorf("%d sessions are left, want 1", n)
	}
}

// A sweep at one instant spares sessions that expire a microsecond later.
func TestSweepComparesExpiries(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	now := time.Now().Truncate(time.Microsecond)
	for i := range 5 {
		upsert(t, table, fmt.Sprint(i), now.Add(time.Duration(i-2)*time.Microsecond))
	}
	sweep, err := table.DeleteExpired(t.Context(), now)
	if want := (Sweep{Scanned: 5, Deleted: 3, Active: 2}); sweep != want || err != nil {
		t.Errorf("DeleteExpired = %+v, %v; want %+v, nil", sweep, err, want)
	}
	if _, found, _ := find(t, table, "3"); !found {
		t.Error("the sweep deleted a session that expires later")
	}
}

// An interrupted sweep ends before its next turn, and returns what it has done until
// then.
func TestSweepEndsBetweenTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := newTable(t, db)
		now := time.Now()
		for i := range 3 * sweepWrite {
			upsert(t, table, fmt.Sprintf("%04d", i), now)
		}
		ctx, cancel := context.WithCancel(t.Context())
		lock := engine.Open(db, nil).Lock()
		lock.Lock()
		go func() {
			sweep, err := table.DeleteExpired(ctx, now)
			if sweep.Deleted != sweepWrite || !errors.Is(err, context.Canceled) {
				t.Errorf("DeleteExpired = %+v, %v; want %d deleted, canceled", sweep, err, sweepWrite)
			}
		}()
		synctest.Wait()
		go lock.Lock() // after the first turn, before the second
		synctest.Wait()
		lock.Unlock()
		synctest.Wait()
		cancel()
		synctest.Wait()
		lock.Unlock()
		synctest.Wait()
		if n := len(expiries(t, db)); n != 2*sweepWrite {
			t.Errorf("%d sessions are left, want %d", n, 2*sweepWrite)
		}
	})
}

// diskUsage returns the bytes that a range of keys takes in files.
func diskUsage(t *testing.T, db *chai.DB, from, to []byte) uint64 {
	t.Helper()
	n, err := db.DB.Store.DB().EstimateDiskUsage(from, to)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// rangesOf returns the ranges of the keys of a table with owners, by what they are.
func rangesOf(t *testing.T, table *Table) map[string][2][]byte {
	t.Helper()
	l, err := table.layout()
	if err != nil {
		t.Fatal(err)
	}
	return map[string][2][]byte{
		"sessions":    rangeOf(l.sessions.namespace),
		"their index": rangeOf(l.sessions.indexes[0].namespace),
		"owners":      rangeOf(l.owners.namespace),
	}
}

// newTableInFiles returns a table with owners and an index, with sessions of 4,000 bytes
// in files, and the number of bytes that their rows have.
func newTableInFiles(t *testing.T, sessions int, expiry time.Time) (db *chai.DB, table *Table, size int64) {
	t.Helper()
	db = testdb.Memory(t)
	table = newTableWithOwners(t, db)
	testdb.Exec(t, db, testdb.CreateIndex)
	return db, table, addInFiles(t, db, table, sessions, expiry)
}

// addInFiles adds sessions of 4,000 bytes in files, and returns the number of bytes that
// their rows have.
func addInFiles(t *testing.T, db *chai.DB, table *Table, sessions int, expiry time.Time) (size int64) {
	t.Helper()
	rng := rand.NewChaCha8([32]byte{}) // can't be compressed
	rows := make([]Row, sessions)
	for i := range rows {
		rows[i] = Row{fmt.Sprintf("%03d", i), make([]byte, 4000), expiry}
		rng.Read(rows[i].Data)
		size += int64(len(encodeRow(rows[i])))
	}
	testdb.InParallel(64, sessions, func(_ *rand.Rand, i int) {
		if err := table.Upsert(t.Context(), rows[i].Token, rows[i].Data, rows[i].Expiry); err != nil {
			t.Error(err)
		}
	})
	if err := db.DB.Store.DB().Flush(); err != nil {
		t.Fatal(err)
	}
	for name, r := range rangesOf(t, table) {
		if n := diskUsage(t, db, r[0], r[1]); n == 0 {
			t.Fatalf("the %s take no space", name)
		}
	}
	return size
}

// A sweep frees the space of deleted sessions, of their owners and of the entries of
// both, once that is worth it.
func TestSweepFreesSpace(t *testing.T) {
	for _, enough := range []bool{false, true} {
		now := time.Now()
		db, table, size := newTableInFiles(t, 30, now)
		table.garbage.Store(compactAfter - size)
		if !enough {
			table.garbage.Add(-1)
		}
		sweep, err := table.DeleteExpired(t.Context(), now)
		if want := (Sweep{Scanned: 30, Deleted: 30}); sweep != want || err != nil {
			t.Fatalf("DeleteExpired = %+v, %v; want %+v, nil", sweep, err, want)
		}
		for name, r := range rangesOf(t, table) {
			if n := diskUsage(t, db, r[0], r[1]); n == 0 != enough {
				t.Errorf("the %s take %d bytes in files; enough for merging: %v", name, n, enough)
			}
		}
		if n := table.garbage.Load(); enough && n != 0 || !enough && n != compactAfter-1 {
			t.Errorf("%d bytes remain to be freed; enough for merging: %v", n, enough)
		}
	}
}

// The first sweep frees what an earlier process has deleted, such as in a sweep that it
// did not finish. Later ones don't look for it.
func TestFirstSweepFreesSpace(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, time.Minute)
	const sessions = 5 * compactAfter / 4 / 4000
	db, former, size := newTableInFiles(t, sessions, time.Now())
	table, keys := newTableWithOwners(t, db), rangesOf(t, former)["sessions"]
	for i, wantFreed := range []bool{true, false} {
		if i > 0 {
			addInFiles(t, db, table, sessions, time.Now())
		}
		for from, more := "", true; more; {
			rows, next, err := former.Page(t.Context(), from)
			if err != nil {
				t.Fatal(err)
			}
			var tokens []string
			for _, row := range rows {
				tokens = append(tokens, row.Token)
			}
			if err := former.Delete(t.Context(), tokens...); err != nil {
				t.Fatal(err)
			}
			from, more = next, next != ""
		}
		if n := diskUsage(t, db, keys[0], keys[1]); n < uint64(size) {
			t.Fatalf("the deleted sessions take %d bytes, want %d", n, size)
		}
		if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if n := diskUsage(t, db, keys[0], keys[1]); n == 0 != wantFreed {
			t.Errorf("after sweep %d, the deleted sessions take %d bytes in files", i+1, n)
		}
	}
}

// What files have more than the sessions is garbage, unless it is counted already.
func TestFindGarbage(t *testing.T) {
	db, table, _ := newTableInFiles(t, 30, time.Now())
	sessions := rangesOf(t, table)["sessions"]
	size := int64(diskUsage(t, db, sessions[0], sessions[1]))
	for _, test := range []struct{ left, counted, want int64 }{
		{0, 0, size},
		{size - 100, 0, 100},
		{size + 100, 0, 0},
		{0, 100, size},
		{0, 2 * size, 2 * size},
	} {
		table.garbage.Store(test.counted)
		if err := table.findGarbage(test.left); err != nil {
			t.Fatal(err)
		}
		if got := table.garbage.Load(); got != test.want {
			t.Errorf("findGarbage(%d) beside %d = %d, want %d", test.left, test.counted, got, test.want)
		}
	}
	table.foundGarbage.Store(false)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := table.findGarbage(0); err == nil || table.foundGarbage.Load() {
		t.Errorf("findGarbage of a closed database = %v, done: %v; want an error, false", err, table.foundGarbage.Load())
	}
}

// The sessions that stay count for a quarter: if they counted for more, a table of middle
// size would not get smaller.
func TestSweepFreesSpaceBesideSessions(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	now := time.Now()
	if err := table.Upsert(t.Context(), "stays", make([]byte, compactAfter/4), now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	table.garbage.Store(compactAfter)
	if _, err := table.DeleteExpired(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if n := table.garbage.Load(); n != 0 {
		t.Errorf("%d bytes remain to be freed beside a quarter of them, want none", n)
	}
}

// A sweep repairs what writers without owners have left: each session that stays has its
// owner, and no other owner does.
func TestSweepMatchesOwners(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwners(t, db)
	plain := New(db, Options{Name: "sessions"})
	now := time.Now()
	upsert(t, plain, "stays", now.Add(time.Hour))
	upsert(t, plain, "expired", now)
	upsert(t, table, "deleted", now)
	if err := plain.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	if _, err := table.DeleteExpired(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	testdb.CheckOwners(t, db, firstByte, true)
}

// Sessions that stay are no garbage.
func TestSessionsThatStayAreNoGarbage(t *testing.T) {
	_, table, size := newTableInFiles(t, 30, time.Now().Add(time.Hour))
	if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := table.garbage.Load(); got > size/10 {
		t.Errorf("got %d bytes of garbage beside %d of sessions that stay, want next to none", got, size)
	}
}

// A session that is renewed when it was about to be deleted is no garbage.
func TestRenewedSessionIsNoGarbage(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table, now := newTable(t, db), time.Now()
	upsert(t, table, "a", now)
	upsert(t, table, "b", now)
	renewed := false
	const scanned = 1 + 2 // looks at the context, before and at each session
	ctx := &hookContext{t.Context(), scanned, func() error {
		if !renewed {
			renewed = true
			upsert(t, table, "a", now.Add(time.Hour))
		}
		return nil
	}}
	if sweep, err := table.DeleteExpired(ctx, now); sweep.Deleted != 1 || err != nil {
		t.Fatalf("DeleteExpired = %+v, %v; want 1 deleted, nil", sweep, err)
	}
	page, err := table.scanExpired(t.Context(), "", now, newCollection(t, table))
	if got := table.garbage.Load(); got != page.left || err != nil {
		t.Errorf("got %d bytes of garbage, %v; want as many as of the session that is left, %d", got, err, page.left)
	}
}

// A sweep whose context ends while it frees space leaves that to the next one.
func TestInterruptedCompactIsTriedAgain(t *testing.T) {
	db, table, _ := newTableInFiles(t, 30, time.Now())
	if sweep, err := table.DeleteExpired(t.Context(), time.Now()); sweep.Deleted != 30 || err != nil {
		t.Fatalf("DeleteExpired = %+v, %v; want 30 deleted, nil", sweep, err)
	}
	table.garbage.Store(compactAfter)
	sessions := rangesOf(t, table)["sessions"]
	for n := 0; ; n++ {
		if n > 1000 {
			t.Fatal("sweeps go on being interrupted")
		}
		_, err := table.DeleteExpired(&hookContext{t.Context(), n, canceled}, time.Now())
		if err == nil {
			break
		}
		if garbage := table.garbage.Load(); garbage < compactAfter {
			t.Fatalf("after a sweep that ended at moment %d, %d bytes are left to be freed, want at least %d", n, garbage, compactAfter)
		}
	}
	if n := diskUsage(t, db, sessions[0], sessions[1]); n > 0 || table.garbage.Load() != 0 {
		t.Errorf("the deleted sessions take %d bytes, and %d are left to be freed; want none", n, table.garbage.Load())
	}
}

// Freeing space ends at the next step when its context does. Without that, a store could
// not be closed for a long time.
func TestCompactEndsBetweenSteps(t *testing.T) {
	db, table, _ := newTableInFiles(t, 30, time.Now())
	err := table.write(t.Context(), 0, func(b *engine.Batch, l *layout) error {
		for i := range 30 {
			if err := l.delete(b, []string{fmt.Sprintf("%03d", i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, table.owners.forget(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	const steps = 3 // the sessions, their index, and their owners
	for n := range steps {
		ctx := &hookContext{t.Context(), n, canceled}
		if done, err := table.compact(ctx); done || !errors.Is(err, context.Canceled) {
			t.Errorf("compact = %v, %v with a context that ends after step %d of %d, want false, %v", done, err, n, steps, context.Canceled)
		}
	}
	if done, err := table.compact(t.Context()); !done || err != nil {
		t.Fatalf("compact = %v, %v; want true, nil", done, err)
	}
	for name, r := range rangesOf(t, table) {
		if n := diskUsage(t, db, r[0], r[1]); n > 0 {
			t.Errorf("the deleted %s take %d bytes, want none", name, n)
		}
	}
	testdb.Exec(t, db, "DROP TABLE sessions")
	if _, err := table.compact(t.Context()); err == nil {
		t.Error("compact of a dropped table did not fail")
	}
}
