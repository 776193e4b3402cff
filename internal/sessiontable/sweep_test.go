package sessiontable

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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
	page, err := table.scanExpired(t.Context(), "", now)
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
	if want := (Sweep{Scanned: 5, Deleted: 3}); sweep != want || err != nil {
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
		lock := engine.Lock(db)
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
