package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
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

// firstByte is an OwnerOf that returns the first byte of the data.
func firstByte(data []byte) string { return string(data[:min(1, len(data))]) }

func newTableWithOwners(t *testing.T, db *chai.DB) *Table {
	t.Helper()
	table := New(db, Options{Name: "sessions", OwnerOf: firstByte})
	if err := errors.Join(table.Create(t.Context()), table.CreateOwners(t.Context())); err != nil {
		t.Fatal(err)
	}
	return table
}

// The entries of the index on owners are those that REINDEX makes.
func TestIndexOfOwnersEqualsReindex(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwners(t, db)
	plain := New(db, Options{Name: "sessions"})
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		token := strings.Repeat("t", rng.IntN(3)) + fmt.Sprint(rng.IntN(200))
		data := []byte{byte(rng.IntN(4) * 85)}[:rng.IntN(2)]
		expiry := time.Now().Add(time.Hour * time.Duration(rng.IntN(4)-1))
		var err error
		switch rng.IntN(20) {
		case 0:
			err = plain.Upsert(t.Context(), token, data, expiry)
		case 1:
			err = plain.Delete(t.Context(), token)
		case 2, 3, 4, 5:
			err = table.Delete(t.Context(), token)
		default:
			err = table.Upsert(t.Context(), token, data, expiry)
		}
		if i%500 == 499 {
			_, err = table.DeleteExpired(t.Context(), time.Now())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	got := entriesOfOwners(t, table)
	err := engine.Update(t.Context(), db, func(tx *chai.Tx) error { return tx.Exec("REINDEX sessions_owners") })
	if err != nil {
		t.Fatal(err)
	}
	want := entriesOfOwners(t, table)
	if len(want) < 100 || !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("got %d entries, want the %d (at least 100) of REINDEX", len(got), len(want))
	}
}

// entriesOfOwners returns the entries of the index on owners by their keys.
func entriesOfOwners(t *testing.T, table *Table) map[string][]byte {
	t.Helper()
	entries := make(map[string][]byte)
	err := table.read(t.Context(), func(s *engine.Snapshot, l *layout) error {
		namespace := l.owners.indexes[0].namespace
		return s.Scan(appendInt(nil, namespace), appendInt(nil, namespace+1), func(key, row []byte) error {
			entries[string(key)] = bytes.Clone(row)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// Sessions and owners that have changed since the comparison are left as they are.
func TestCorrectOwnersLooksAgain(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwners(t, db)
	plain := New(db, Options{Name: "sessions"})
	expiry := time.Now().Add(time.Hour)
	upsert := func(table *Table, token, data string) {
		t.Helper()
		if err := table.Upsert(t.Context(), token, []byte(data), expiry); err != nil {
			t.Fatal(err)
		}
	}
	for _, token := range []string{"changed", "owned", "deleted", "same"} {
		upsert(plain, token, "a")
	}
	upsert(table, "back", "a")
	upsert(table, "gone", "a")
	if err := plain.Delete(t.Context(), "back", "gone"); err != nil {
		t.Fatal(err)
	}
	var m ownerMismatch
	err := table.read(t.Context(), func(s *engine.Snapshot, l *layout) (err error) {
		m, err = l.compareOwners(s, "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.without) != 4 || !slices.Equal(m.gone, []string{"back", "gone"}) || m.next != "" {
		t.Fatalf("got mismatch %+v, want 4 without an owner, and 2 gone", m)
	}
	upsert(plain, "changed", "b")
	upsert(table, "owned", "b")
	if err := plain.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	upsert(plain, "back", "a")
	if unknown, changed, err := table.correctOwners(t.Context(), m); unknown || !changed || err != nil {
		t.Fatalf("correctOwners = %v, %v, %v; want false, true, nil", unknown, changed, err)
	}
	got := make(map[string]string)
	result, err := db.Query("SELECT token, owner FROM sessions_owners")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	err = result.Iterate(func(row *chai.Row) error {
		var token, owner string
		err := row.Scan(&token, &owner)
		got[token] = owner
		return err
	})
	if want := map[string]string{"same": "a", "owned": "b", "back": "a"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got owners %v, %v; want %v, nil", got, err, want)
	}
}

// Older tables allow NULL. Rows with NULL have owners, too.
func TestOwnersOfNullData(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP)")
	if err := db.Exec("INSERT INTO sessions (token, expiry) VALUES ('a', ?)", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := newTableWithOwners(t, db).MatchOwners(t.Context()); err != nil {
		t.Fatal(err)
	}
	row, err := db.QueryRow("SELECT COUNT(*) FROM sessions_owners")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := row.Scan(&n); err != nil || n != 1 {
		t.Errorf("got %d owners, %v; want 1, nil", n, err)
	}
}

// A table can be used while its owners are being matched. What asks for an owner's
// sessions waits, and gets an error when its context ends, or after 10 seconds.
func TestTableIsUsedWhileOwnersAreMatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		plain := New(db, Options{Name: "sessions"})
		if err := plain.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		upsert := func(table *Table, token, data string) {
			t.Helper()
			if err := table.Upsert(t.Context(), token, []byte(data), time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		upsert(plain, "a", "blocks")
		release := make(chan struct{})
		table := New(db, Options{Name: "sessions", OwnerOf: func(data []byte) string {
			if string(data) == "blocks" {
				<-release
			}
			return "owner"
		}})
		if err := table.CreateOwners(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := make(chan error)
		go func() {
			rows, _, err := table.PageOf(t.Context(), "owner", "")
			if err == nil && len(rows) != 2 {
				err = fmt.Errorf("got %d rows, want 2", len(rows))
			}
			first <- err
		}()
		synctest.Wait()

		upsert(table, "b", "does not")
		if _, _, found, err := table.Find(t.Context(), "a"); !found || err != nil {
			t.Errorf("Find = %v, %v; want true, nil", found, err)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := table.PageOf(ctx, "owner", ""); err != context.DeadlineExceeded || time.Since(start) != time.Second {
			t.Errorf("PageOf = %v after %v, want %v after 1s", err, time.Since(start), context.DeadlineExceeded)
		}
		if err := table.MatchOwners(t.Context()); err != nil {
			t.Errorf("MatchOwners = %v, want nil", err)
		}
		if _, _, err := table.PageOf(t.Context(), "owner", ""); err != errMatching || time.Since(start) != 11*time.Second {
			t.Errorf("PageOf = %v after %v, want %v after 11s", err, time.Since(start), errMatching)
		}
		close(release)
		if err := <-first; err != nil {
			t.Error(err)
		}
		// From then on, nobody matches again for a page.
		upsert(plain, "c", "without")
		if rows, _, err := table.PageOf(t.Context(), "owner", ""); len(rows) != 2 || err != nil {
			t.Errorf("PageOf = %d rows, %v; want 2, nil", len(rows), err)
		}
	})
}

// No call says that it has all sessions of an owner when it has only some: when the
// table of owners is made anew, a store without owners renews a session, or the owner
// function can't read one.
func TestOwnersAreNeverLeftOutSilently(t *testing.T) {
	expiry := time.Now().Add(time.Hour)
	upsert := func(t *testing.T, table *Table, token, data string) {
		t.Helper()
		if err := table.Upsert(t.Context(), token, []byte(data), expiry); err != nil {
			t.Error(err)
		}
	}
	wantPage := func(t *testing.T, table *Table, owner string, n int, want error) {
		t.Helper()
		rows, next, err := table.PageOf(t.Context(), owner, "")
		if len(rows) != n || next != "" || err != want {
			t.Errorf("PageOf(%q) = %d rows, %q, %v; want %d, \"\", %v", owner, len(rows), next, err, n, want)
		}
	}
	const sessions = 3 * sweepWrite
	newTables := func(t *testing.T, ownerOf func(data []byte) string) (plain, table *Table) {
		db := testdb.Memory(t)
		plain = New(db, Options{Name: "sessions"})
		if err := plain.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		table = New(db, Options{Name: "sessions", OwnerOf: ownerOf})
		if err := table.CreateOwners(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range sessions {
			upsert(t, plain, fmt.Sprintf("%03d", i), "alice")
		}
		return plain, table
	}
	makeAnew := func(t *testing.T, table *Table) {
		t.Helper()
		testdb.Exec(t, table.handle, "DROP TABLE sessions_owners")
		if err := table.CreateOwners(t.Context()); err != nil {
			t.Error(err)
		}
	}

	t.Run("made anew", func(t *testing.T) {
		_, table := newTables(t, firstByte)
		wantPage(t, table, "a", sessions, nil)
		makeAnew(t, table)
		wantPage(t, table, "a", sessions, nil)
	})
	t.Run("made anew meanwhile", func(t *testing.T) {
		var table *Table
		calls := 0
		var mu sync.Mutex
		_, table = newTables(t, func(data []byte) string {
			mu.Lock()
			defer mu.Unlock()
			if calls++; calls == sessions/2 {
				makeAnew(t, table)
			}
			return firstByte(data)
		})
		wantPage(t, table, "a", sessions, nil)
	})
	t.Run("renewed meanwhile", func(t *testing.T) {
		var plain, table *Table
		var once sync.Once
		plain, table = newTables(t, func(data []byte) string {
			once.Do(func() { upsert(t, plain, "042", "alice's") })
			return firstByte(data)
		})
		wantPage(t, table, "a", sessions, nil)
	})
	t.Run("unreadable", func(t *testing.T) {
		unreadable := true
		plain, table := newTables(t, func(data []byte) string {
			if unreadable && string(data) == "bob" {
				panic(ErrUndecodable)
			}
			return firstByte(data)
		})
		upsert(t, plain, "bob's", "bob")
		wantPage(t, table, "a", sessions, errUnknownOwner)
		wantPage(t, table, "b", 0, errUnknownOwner)
		unreadable = false
		if err := table.MatchOwners(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantPage(t, table, "a", sessions, nil)
		wantPage(t, table, "b", 1, nil)
	})
	t.Run("swept by the owner function", func(t *testing.T) {
		testdb.Watchdog(t, time.Minute)
		var table *Table
		var once sync.Once
		_, table = newTables(t, func(data []byte) string {
			once.Do(func() {
				if _, err := table.DeleteExpired(t.Context(), time.Now()); err != nil {
					t.Error(err)
				}
			})
			return firstByte(data)
		})
		wantPage(t, table, "a", sessions, nil)
	})
	t.Run("ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var calls atomic.Int32
		_, table := newTables(t, func(data []byte) string {
			calls.Add(1)
			cancel()
			return firstByte(data)
		})
		if _, _, err := table.PageOf(ctx, "a", ""); err != context.Canceled {
			t.Errorf("PageOf = %v, want %v", err, context.Canceled)
		}
		if n, most := int(calls.Load()), 2*runtime.GOMAXPROCS(0); n > most {
			t.Errorf("the owner function was called %d times, want at most %d", n, most)
		}
		wantPage(t, table, "a", sessions, nil)
	})
}
