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
	err := engine.Open(db, nil).Update(t.Context(), func(tx *chai.Tx) error { return tx.Exec("REINDEX sessions_owners") })
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
		return s.Scan(appendInt(nil, namespace), appendInt(nil, namespace+1), func(key, row []byte) (bool, error) {
			entries[string(key)] = bytes.Clone(row)
			return true, nil
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

// The value of a panic may have data of the session, so it must not get into a log.
func TestOwnerFunctionPanics(t *testing.T) {
	table := New(testdb.Memory(t), Options{Name: "sessions", OwnerOf: func(data []byte) string {
		switch string(data) {
		case "undecodable":
			panic(ErrUndecodable)
		case "runtime":
			return string(data[100:101])
		}
		panic("secret " + string(data))
	}})
	for data, want := range map[string]string{
		"undecodable": ErrUndecodable.Error(),
		"runtime":     "the owner function panicked: runtime error: slice bounds out of range [:101]",
		"data":        "the owner function panicked",
	} {
		owner, err := table.ReadOwner([]byte(data))
		if message, _, _ := strings.Cut(fmt.Sprint(err), " with "); owner != "" || message != want {
			t.Errorf("ReadOwner(%q) = %q, %v; want %q", data, owner, err, want)
		}
		if errors.Is(err, ErrUndecodable) != (data == "undecodable") {
			t.Errorf("ReadOwner(%q) = %v, which can't be told from %v", data, err, ErrUndecodable)
		}
	}
}

// countOwnerCalls makes table count the calls of its owner function.
func countOwnerCalls(table *Table) (calls *atomic.Int64) {
	calls = new(atomic.Int64)
	ownerOf := table.OwnerOf
	table.OwnerOf = func(data []byte) string {
		calls.Add(1)
		return ownerOf(data)
	}
	return calls
}

// The sessions of the longest possible owner are found. A commit with a longer one
// fails, since looking for it could panic in Chai. An earlier session with one stays,
// and so does one that can't be decoded, which is tried again.
func TestLongestOwner(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwners(t, db)
	table.OwnerOf = func(data []byte) string {
		if string(data) == "undecodable" {
			panic(ErrUndecodable)
		}
		return string(data)
	}
	calls := countOwnerCalls(table)
	longest := strings.Repeat("o", MaxKeyLen)
	plain := New(db, Options{Name: "sessions"})
	expiry := time.Now().Add(time.Hour)
	err := errors.Join(
		table.Upsert(t.Context(), "new", []byte(longest), expiry),
		plain.Upsert(t.Context(), "earlier", []byte(longest), expiry),
		plain.Upsert(t.Context(), "too long", []byte(longest+"o"), expiry),
		plain.Upsert(t.Context(), "undecodable", []byte("undecodable"), expiry),
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Upsert(t.Context(), "refused", []byte(longest+"o"), expiry); err != ErrOwnerTooLong {
		t.Errorf("Upsert with an owner of %d bytes = %v, want %v", MaxKeyLen+1, err, ErrOwnerTooLong)
	}
	for _, want := range []int64{5, 1} { // the second time, only the undecodable session
		if err := table.MatchOwners(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := calls.Swap(0); n != want {
			t.Errorf("the owner function was called %d times, want %d", n, want)
		}
	}
	rows, _, err := table.PageOf(t.Context(), longest, "")
	if len(rows) != 2 || err != errUnknownOwner {
		t.Errorf("PageOf the longest owner = %d sessions, %v; want 2, %v", len(rows), err, errUnknownOwner)
	}
	for _, owner := range []string{"", longest + "o"} {
		if rows, _, err := table.PageOf(t.Context(), owner, ""); len(rows) != 0 || err != nil {
			t.Errorf("PageOf an owner of %d bytes = %d sessions, %v; want none, nil", len(owner), len(rows), err)
		}
	}
	owners := make(map[string]string)
	testdb.Query(t, db, "SELECT token, owner FROM sessions_owners", func(row *chai.Row) error {
		var token, owner string
		err := row.Scan(&token, &owner)
		owners[token] = owner
		return err
	})
	if want := map[string]string{"new": longest, "earlier": longest, "too long": ""}; !maps.Equal(owners, want) {
		t.Errorf("got owners %q, want %q", owners, want)
	}
	if _, found, err := find(t, table, "too long"); !found || err != nil {
		t.Errorf("Find of a session whose owner is too long = %v, %v; want true, nil", found, err)
	}
}

// However many sessions a writer without owners has added and deleted, and wherever,
// each session gets its owner, and no other owner stays. Matching again decodes nothing
// and writes nothing.
func TestOwnersAreMatchedInParts(t *testing.T) {
	for _, sessions := range []int{sweepWrite, sweepWrite + 1, 2*sweepWrite + 7} {
		for name, writer := range map[string]func(i int) (owned, kept bool){
			"all owned":       func(int) (bool, bool) { return true, true },
			"none owned":      func(int) (bool, bool) { return false, true },
			"gone between":    func(i int) (bool, bool) { return true, i%2 == 0 },
			"owned between":   func(i int) (bool, bool) { return i%2 == 0, true },
			"mixed":           func(i int) (bool, bool) { return i%5 < 3, i%3 < 2 },
			"gone at the end": func(i int) (bool, bool) { return true, i < sessions/3 },
		} {
			t.Run(fmt.Sprint(name, "/", sessions), func(t *testing.T) {
				db := testdb.Memory(t)
				table := newTableWithOwners(t, db)
				plain := New(db, Options{Name: "sessions"})
				calls := countOwnerCalls(table)
				writers := map[bool]*Table{true: table, false: plain}
				var gone []string
				for i := range sessions {
					owned, kept := writer(i)
					token := fmt.Sprintf("%05d", i)
					if err := writers[owned].Upsert(t.Context(), token, []byte{byte('a' + i%3)}, time.Now()); err != nil {
						t.Fatal(err)
					}
					if !kept {
						gone = append(gone, token)
					}
				}
				if err := plain.Delete(t.Context(), gone...); err != nil {
					t.Fatal(err)
				}
				if err := table.MatchOwners(t.Context()); err != nil {
					t.Fatal(err)
				}
				testdb.CheckOwners(t, db, firstByte)
				fsyncs := table.db.Fsyncs()
				calls.Store(0)
				if err := table.MatchOwners(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := calls.Load(); n != 0 {
					t.Errorf("the owner function was called %d times for sessions with an owner, want none", n)
				}
				if n := table.db.Fsyncs() - fsyncs; n != 0 {
					t.Errorf("got %d commits for sessions with an owner, want none", n)
				}
			})
		}
	}
}

// Pages of an owner's sessions leave out no token between them, and are limited like
// other pages.
func TestPagesOfAnOwnerMeet(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwners(t, db)
	var want []string
	for i := range pageLen + 1 {
		want = append(want, fmt.Sprintf("%05d", i/2)+strings.Repeat("\x00", i%2))
		upsert(t, table, want[i], time.Now())
	}
	upsert(t, table, "another", time.Now())
	var got []string
	var lengths []int
	for from, more := "", true; more; more = from != "" {
		rows, next, err := table.PageOf(t.Context(), "0", from)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			got = append(got, row.Token)
		}
		lengths, from = append(lengths, len(rows)), next
	}
	if !slices.Equal(got, want) || !slices.Equal(lengths, []int{pageLen, 1}) {
		t.Errorf("got %d sessions in pages of %v, want %d in pages of %d", len(got), lengths, len(want), pageLen)
	}
}

// A damaged row is an error. Nobody takes the sessions before it for all of an owner, or
// the owners behind it for gone.
func TestDamagedRowsAreNotPassedOver(t *testing.T) {
	entry := func(l *layout) []byte { return appendText(appendInt(nil, l.byOwner.namespace), "o") }
	for name, test := range map[string]struct {
		damage             func(b *engine.Batch, l *layout)
		wantPage, wantRest error // from PageOf, and from MatchOwners, which reads no entries
	}{
		"session": {func(b *engine.Batch, l *layout) {
			b.Put(appendKey(nil, l.sessions.namespace, "b"), appendText(nil, "b"))
		}, errBadRow, errBadRow},
		"owner": {func(b *engine.Batch, l *layout) {
			b.Put(appendKey(nil, l.owners.namespace, "b"), appendText(nil, "b"))
		}, nil, errBadRow},
		"token of an owner": {func(b *engine.Batch, l *layout) {
			b.Put(appendKey(nil, l.owners.namespace, "b"), appendInt(appendInt(nil, 1), 2))
		}, nil, errBadRow},
		"entry": {func(b *engine.Batch, l *layout) {
			b.PutEntry(append(entry(l), textType, 9))
		}, errBadRow, nil},
		"token of an entry": {func(b *engine.Batch, l *layout) {
			b.PutEntry(appendBlob(entry(l), nil))
		}, errBadRow, nil},
	} {
		t.Run(name, func(t *testing.T) {
			table := newTableWithOwners(t, testdb.Memory(t))
			for _, token := range []string{"a", "b", "c"} {
				if err := table.Upsert(t.Context(), token, []byte("o"), time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			if rows, _, err := table.PageOf(t.Context(), "o", ""); len(rows) != 3 || err != nil {
				t.Fatalf("PageOf = %d sessions, %v; want 3, nil", len(rows), err)
			}
			err := table.write(t.Context(), 0, func(b *engine.Batch, l *layout) error {
				test.damage(b, l)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if rows, _, err := table.PageOf(t.Context(), "o", ""); !errors.Is(err, test.wantPage) {
				t.Errorf("PageOf = %d sessions, %v; want %v", len(rows), err, test.wantPage)
			}
			if err := table.MatchOwners(t.Context()); !errors.Is(err, test.wantRest) {
				t.Errorf("MatchOwners = %v, want %v", err, test.wantRest)
			}
		})
	}
}
