package engine

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// An undone is a database between the two halves of a rollback: others see what a
// transaction has changed, and the notes on how to undo that.
type undone struct {
	*DB
	t         *testing.T
	engine    *chai.DB
	committed map[string]string // the rows before the transaction, by their keys
	tx        cacheTx
}

func newUndone(t *testing.T, committed map[string]string) *undone {
	t.Helper()
	u := &undone{t: t, engine: testdb.Memory(t), committed: committed}
	u.DB = newCacheDB(t, u.engine, 1<<20)
	if err := u.Write(t.Context(), 0, func(b *Batch) error {
		b.Delete(cacheKey)
		for k, row := range committed {
			b.Put([]byte(k), []byte(row))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	u.tx = begin(t, u.DB)
	return u
}

// change makes the transaction put rows, and delete those that are "".
func (u *undone) change(rows map[string]string) {
	u.t.Helper()
	deleter := u.tx.session.(interface{ Delete(key []byte) error })
	for k, row := range rows {
		var err error
		if row == "" {
			err = deleter.Delete([]byte(k))
		} else {
			err = u.tx.session.Put([]byte(k), []byte(row))
		}
		if err != nil {
			u.t.Fatal(err)
		}
	}
}

// show does the first half of the rollback.
func (u *undone) show() {
	u.t.Helper()
	u.tx.put(u.t, cacheOtherKey, "any")
	u.tx.writeOut(u.t, cacheOtherKey)
	closeSession(u.t, u.tx)
	if _, closer, err := u.pebble().Get(cacheOtherKey); err != nil {
		u.t.Fatal("others don't see what is to be undone")
	} else {
		closer.Close()
	}
}

// undo does the second half.
func (u *undone) undo() {
	u.t.Helper()
	if err := u.engine.DB.Store.Rollback(); err != nil {
		u.t.Fatal(err)
	}
	u.tx.unlock()
}

// rows returns what a scan finds between two keys, and checks that it is in order.
func (u *undone) rows(from, to []byte) map[string]string {
	u.t.Helper()
	compare := reach.Opts(u.pebble()).Comparer.Compare
	found := make(map[string]string)
	var last []byte
	err := u.Read(u.t.Context(), func(s *Snapshot) error {
		return s.Scan(from, to, func(key, row []byte) (bool, error) {
			if last != nil && compare(last, key) >= 0 {
				u.t.Errorf("the scan has %q after %q", key, last)
			}
			last = bytes.Clone(key)
			found[string(key)] = string(row)
			return true, nil
		})
	})
	if err != nil {
		u.t.Fatal(err)
	}
	return found
}

// check compares all ways to read with the committed rows, and enters nothing.
func (u *undone) check(keys [][]byte, ranges [][2][]byte) {
	u.t.Helper()
	for _, k := range keys {
		want, exists := u.committed[string(k)]
		for name, get := range map[string]func(s *Snapshot, key []byte) ([]byte, error){"Get": (*Snapshot).Get, "Find": (*Snapshot).Find} {
			if err := u.Read(u.t.Context(), func(s *Snapshot) error {
				row, err := get(s, k)
				if string(row) != want || (row != nil) != exists {
					u.t.Errorf("%s(%q) = %q, want %q", name, k, row, want)
				}
				return err
			}); err != nil {
				u.t.Fatal(err)
			}
		}
	}
	for _, r := range ranges {
		want := maps.Clone(u.committed)
		compare := reach.Opts(u.pebble()).Comparer.Compare
		maps.DeleteFunc(want, func(k, _ string) bool {
			return compare([]byte(k), r[0]) < 0 || compare([]byte(k), r[1]) >= 0
		})
		if got := u.rows(r[0], r[1]); !maps.Equal(got, want) {
			u.t.Errorf("Scan(%q, %q) found\n%q, want\n%q", r[0], r[1], got, want)
		}
	}
}

// Rows are read as before a transaction that is being rolled back.
func TestReadBesideRollback(t *testing.T) {
	k := func(text string) string { return string(cacheKeyOf(text)) }
	committed := map[string]string{k("b"): "b", k("d"): "d", k("f"): "f", k("h"): "h", k("k"): "k", k("m"): "m"}
	keys := make([][]byte, 0, 16)
	for c := 'a'; c <= 'p'; c++ {
		keys = append(keys, []byte(k(string(c))))
	}
	var ranges [][2][]byte
	for i := range keys {
		for j := i; j < len(keys); j++ {
			ranges = append(ranges, [2][]byte{keys[i], keys[j]})
		}
	}
	for name, change := range map[string]map[string]string{
		"nothing":              {},
		"changed":              {k("d"): "new"},
		"changed at both ends": {k("b"): "new", k("m"): "new"},
		"deleted":              {k("f"): ""},
		"deleted at both ends": {k("b"): "", k("m"): ""},
		"all deleted":          {k("b"): "", k("d"): "", k("f"): "", k("h"): "", k("k"): "", k("m"): ""},
		"inserted":             {k("e"): "new"},
		"inserted at the ends": {k("a"): "new", k("o"): "new"},
		"neighbors":            {k("c"): "new", k("d"): "", k("e"): "new", k("f"): "new", k("g"): "new", k("h"): ""},
		"everything":           {k("a"): "new", k("b"): "new", k("c"): "new", k("d"): "", k("f"): "", k("h"): "new", k("k"): "", k("m"): "new", k("n"): "new"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUndone(t, committed)
			u.change(change)
			u.show()
			u.check(keys, ranges)
			if n := u.cache.check(t); n > len(committed) {
				t.Errorf("got %d rows in the cache, want at most %d", n, len(committed))
			}
			for k := range change {
				wantCached(t, u.DB, []byte(k), "")
			}
			u.undo()
			u.check(keys, ranges)
			for k := range change { // found and entered again
				wantCached(t, u.DB, []byte(k), committed[k])
			}
		})
	}
}

// Random transactions, which write out what they have several times.
func TestReadBesideRandomRollbacks(t *testing.T) {
	for seed := range 30 {
		rng := rand.New(rand.NewPCG(uint64(seed), 4))
		var keys [][]byte
		committed := make(map[string]string)
		for i := range 60 {
			k := cacheKeyOf(fmt.Sprintf("%0*d", 1+rng.IntN(90), i))
			keys = append(keys, k)
			if rng.IntN(2) == 0 {
				committed[string(k)] = fmt.Sprint("row ", i)
			}
		}
		u := newUndone(t, committed)
		for i := range rng.IntN(80) {
			k := keys[rng.IntN(len(keys))]
			if rng.IntN(3) == 0 {
				u.change(map[string]string{string(k): ""})
			} else {
				u.change(map[string]string{string(k): fmt.Sprint("new ", i)})
			}
			if rng.IntN(4) == 0 {
				u.tx.put(t, cacheOtherKey, "any")
				u.tx.writeOut(t, cacheOtherKey)
			}
		}
		u.show()
		ranges := [][2][]byte{{{79}, {79, 99}}}
		for range 20 {
			ranges = append(ranges, [2][]byte{keys[rng.IntN(len(keys))], keys[rng.IntN(len(keys))]})
		}
		u.check(keys, ranges)
		u.undo()
		u.check(keys, ranges)
	}
}

// Which snapshots may have notes, by their numbers.
func TestNotes(t *testing.T) {
	var n undoLog
	want := func(number uint64, want bool) {
		t.Helper()
		if got := n.absent(number); got != want {
			t.Errorf("absent(%d) = %v, want %v", number, got, want)
		}
	}
	n.start(10)
	want(9, false)
	want(10, true)
	n.began(11)
	want(10, true)
	want(11, true) // it has what is before 11
	want(12, false)
	n.end(13, false)
	want(12, false)
	want(13, true)
	n.began(14)
	want(13, true)
	want(14, true) // it has what is before 14
	want(15, false)
	n.end(17, true)
	want(16, false)
	want(17, true)
}

// A snapshot is not taken for one without notes while the notes are being removed.
func TestNotesInParallel(t *testing.T) {
	testdb.Slow(t)
	var n undoLog
	var newest atomic.Uint64 // the number of the newest snapshot
	last := uint64(testdb.Rounds(3_000_000, 30_000_000))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for end := uint64(10); end < last; end += 10 {
			n.began(end - 8)
			newest.Store(end - 5) // it has notes
			n.end(end, true)
			newest.Store(end)
		}
	}()
	for {
		if number := newest.Load(); n.absent(number) && number%10 == 5 {
			t.Fatalf("absent(%d) = true, want false", number)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}
