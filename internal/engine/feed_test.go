package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// Followers are told of every change, by whom it is made, before anyone can see it: of what
// is written out, rolled back and committed by SQL, and of this package's own batches.
func TestFeed(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT NOT NULL)")
	info, err := db.DB.Catalog().GetTableInfo("t")
	if err != nil {
		t.Fatal(err)
	}
	prefix := []byte{byte(info.StoreNamespace) + 48}
	key := func(k string) []byte { return append(append(bytes.Clone(prefix), 98, byte(len(k))), k...) }
	e := Open(db, nil)
	if err := e.Read(t.Context(), func(*Snapshot) error { return nil }); err != nil { // observes from now on
		t.Fatal(err)
	}
	var mu sync.Mutex
	var told []string
	var last, first uint64
	e.Follow(func(c Change) {
		mu.Lock()
		defer mu.Unlock()
		if c.Key == nil {
			first = c.End
			return
		}
		if c.End < last || c.End <= first {
			t.Errorf("told of a batch that ends at %d after %d and %d", c.End, last, first)
		}
		last = c.End
		rows := db.DB.Store.DB().NewSnapshot()
		if number := reach.SeqNum(rows); number >= c.End {
			t.Errorf("told of a batch that ends at %d when snapshots have the number %d", c.End, number)
		}
		_ = rows.Close()
		if bytes.HasPrefix(c.Key, prefix) {
			told = append(told, fmt.Sprintf("%s %v %v", c.Key[3:], c.Delete, c.By))
		}
	})
	if first == 0 {
		t.Error("not told of the batches before")
	}
	want := func(what string, want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(told, want) {
			t.Errorf("after %s, told %q, want %q", what, told, want)
		}
		told = nil
		err := e.Read(t.Context(), func(s *Snapshot) error {
			if s.Number() < last {
				return fmt.Errorf("the snapshot has the number %d, less than %d", s.Number(), last)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	testdb.Exec(t, db, "INSERT INTO t (k, v) VALUES ('a', '1')")
	want("an INSERT", "a false <nil>")
	err = errors.Join(
		e.Write(t.Context(), 0, func(b *Batch) error {
			b.Put(key("b"), []byte{1})
			b.By("me")
			b.Delete(key("b"))
			return nil
		}),
		e.Write(t.Context(), 0, func(b *Batch) error { b.PutEntry(key("c"), []byte{1}); return nil }),
		e.Write(t.Context(), 0, func(b *Batch) error { b.Delete(key("c")); return nil }),
	)
	if err != nil {
		t.Fatal(err)
	}
	want("own writes", "b false <nil>", "b true me", "c false <nil>", "c true <nil>")
	errNo := errors.New("no")
	err = e.Update(t.Context(), func(tx *chai.Tx) error {
		return errors.Join(tx.Exec("INSERT INTO t (k, v) VALUES ('d', '1')"), tx.Exec("UPDATE t SET v = '2' WHERE k = 'a'"), errNo)
	})
	if !errors.Is(err, errNo) {
		t.Fatal(err)
	}
	mu.Lock()
	undone := slices.Contains(told, "d true <nil>")
	mu.Unlock()
	if !undone {
		t.Errorf("after a rollback of what was written out, told %q, want d to be deleted", told)
	}
	told = nil
	_ = e.state.fail(errNo)
	if err := e.Write(t.Context(), 0, func(b *Batch) error { b.Put(key("e"), []byte{1}); return nil }); !errors.Is(err, errNo) {
		t.Errorf("Write = %v, want %v", err, errNo)
	}
	func() {
		defer func() { _ = recover() }()
		_ = db.Exec("INSERT INTO t (k, v) VALUES ('f', '1')")
	}()
	if len(told) != 0 {
		t.Errorf("told %q of batches that were refused", told)
	}
}

// Followers are told which changes belong to one transaction, and which undo it. Rows are
// told with them.
func TestFeedOfTransactions(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT NOT NULL)", "CREATE TABLE large (k INTEGER PRIMARY KEY, v TEXT NOT NULL)")
	err := db.Update(func(tx *chai.Tx) error {
		for i := range 1000 {
			if err := tx.Exec("INSERT INTO large (k, v) VALUES (?, ?)", i, fmt.Sprintf("%01000d", 1000-i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := db.DB.Catalog().GetTableInfo("t")
	if err != nil {
		t.Fatal(err)
	}
	prefix := []byte{byte(info.StoreNamespace) + 48}
	e := Open(db, discard)
	write(t, e, set("a", 1)) // observes from now on
	var mu sync.Mutex
	var told []string
	var transactions []uint64
	sorted := 0
	e.Follow(func(c Change) {
		mu.Lock()
		defer mu.Unlock()
		if len(c.Key) > 0 && c.Key[0] == transientType {
			sorted++
		}
		if !bytes.HasPrefix(c.Key, prefix) && !bytes.HasPrefix(c.Key, firstKey) {
			return
		}
		if (c.Row == nil) != c.Delete {
			t.Errorf("told a row of %d bytes with Delete = %v", len(c.Row), c.Delete)
		}
		if n := len(transactions); n == 0 || transactions[n-1] != c.Transaction {
			if n > 0 && c.Transaction < transactions[n-1] {
				t.Errorf("told of transaction %d after %d", c.Transaction, transactions[n-1])
			}
			transactions = append(transactions, c.Transaction)
			told = append(told, "")
		}
		what := "put"
		if c.Delete {
			what = "delete"
		}
		if c.Undo {
			what = "undo: " + what
		}
		told[len(told)-1] += fmt.Sprintf("%s %s, ", what, c.Row[max(0, len(c.Row)-1):])
	})
	transaction := func(err error, statements ...string) {
		t.Helper()
		got := e.Update(t.Context(), func(tx *chai.Tx) error {
			for _, sql := range statements {
				if err := tx.Exec(sql); err != nil {
					t.Error(err)
				}
			}
			// What others sort is written to the database, too, in batches between.
			testdb.Query(t, db, "SELECT k, v FROM large ORDER BY v", func(*chai.Row) error { return nil })
			return errors.Join(tx.Exec("SELECT * FROM t"), err)
		})
		if !errors.Is(got, err) {
			t.Fatal(got)
		}
	}
	transaction(nil, "INSERT INTO t (k, v) VALUES ('a', '1')", "UPDATE t SET v = '2'", "DELETE FROM t", "INSERT INTO t (k, v) VALUES ('a', '3')")
	transaction(errNo, "UPDATE t SET v = '4'", "DELETE FROM t", "INSERT INTO t (k, v) VALUES ('b', '5')")
	testdb.Exec(t, db, "UPDATE t SET v = '6'")
	write(t, e, func(b *Batch) error { b.Put(key("c"), []byte("7")); b.Delete(key("a")); return nil })
	write(t, e, set("c", 8))
	testdb.Exec(t, db, "DELETE FROM t")
	mu.Lock()
	defer mu.Unlock()
	want := []string{
		"put 1, put 2, delete , put 3, ",
		"put 4, delete , put 5, undo: put 3, undo: delete , ",
		"put 6, ", "put 7, delete , ", "put 8, ", "delete , ",
	}
	if sorted == 0 {
		t.Error("nothing was written to sort it")
	}
	if !slices.Equal(told, want) {
		t.Errorf("told\n%q, want\n%q", told, want)
	}
}

// Whoever begins to follow while others commit is told of each batch, or that it was before.
func TestFollowBesideCommits(t *testing.T) {
	db := testdb.Memory(t)
	e := Open(db, nil)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				key := fmt.Appendf(nil, "k%d-%d", g, i)
				if err := e.Write(t.Context(), 0, func(b *Batch) error { b.Put(key, []byte{1}); return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 100 {
		var mu sync.Mutex
		var first uint64
		ends := make(map[uint64]bool)
		e.Follow(func(c Change) {
			mu.Lock()
			defer mu.Unlock()
			if c.Key == nil {
				first = max(first, c.End)
			} else {
				ends[c.End] = true
			}
		})
		var end uint64
		err := e.Write(t.Context(), 0, func(b *Batch) error { b.Put([]byte("mine"), []byte{1}); return nil })
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		end = e.feed.end.Load()
		if first == 0 && len(ends) == 0 || first < end && len(ends) == 0 {
			t.Errorf("told of nothing after %d, up to %d", first, end)
		}
		mu.Unlock()
	}
	wg.Wait()
}
