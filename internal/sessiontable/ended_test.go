package sessiontable

import (
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

func TestEndedForgetsOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnded()
		time.Sleep(time.Hour) // ended may be older than its keys
		e.add("a moment before", time.Minute)
		time.Sleep(time.Nanosecond)
		e.add("long", time.Hour)
		e.add("short", time.Minute)
		e.add("extended", time.Minute)
		e.add("extended", time.Hour)
		e.add("not shortened", time.Hour)
		e.add("not shortened", time.Minute)
		e.add("for good", math.MaxInt64)
		for _, test := range []struct {
			wait time.Duration
			want map[string]bool
		}{
			{time.Minute - 1, map[string]bool{"short": true, "extended": true, "not shortened": true, "never added": false, "a moment before": false}},
			{1, map[string]bool{"short": false, "long": true, "extended": true, "not shortened": true}},
			{59*time.Minute - 1, map[string]bool{"long": true, "extended": true, "not shortened": true}},
			{1, map[string]bool{"long": false, "extended": false, "not shortened": false, "for good": true}},
			{100_000 * time.Hour, map[string]bool{"for good": true}},
		} {
			time.Sleep(test.wait)
			for key, want := range test.want {
				if got := e.has(key); got != want {
					t.Errorf("after %v more, has(%q) = %v, want %v", test.wait, key, got, want)
				}
			}
		}
	})
}

func TestNilEndedRemembersNothing(t *testing.T) {
	var e *ended
	e.add("a", time.Hour)
	if e.has("a") {
		t.Error("has = true, want false")
	}
}

// Remembered keys take little memory, and none once they are forgotten, even if there
// is always a key to remember.
func TestEndedMemory(t *testing.T) {
	testdb.Slow(t)
	synctest.Test(t, func(t *testing.T) {
		const keys, most = 100_000, 64
		e := newEnded()
		key := func(i int) string { return string(binary.BigEndian.AppendUint64(make([]byte, 43), uint64(i))) }
		before := testdb.HeapInUse()
		for i := range keys {
			e.add(key(i), time.Minute)
		}
		used := testdb.HeapInUse() - before
		t.Logf("%d keys take %d bytes each", keys, used/keys)
		if used > keys*most {
			t.Errorf("%d keys take %d bytes each, want at most %d", keys, used/keys, most)
		}
		if used < keys*8 {
			t.Errorf("%d keys take %d bytes each, want at least 8: the measurement is wrong", keys, used/keys)
		}
		for i := range 10 {
			if time.Sleep(30 * time.Second); e.has(key(keys-1)) != (i == 0) {
				t.Fatalf("has = %v after %v, want %v", i != 0, time.Duration(i+1)*30*time.Second, i == 0)
			}
			e.add(key(keys+i), time.Minute)
		}
		if left := testdb.HeapInUse() - before; left > 10_000 {
			t.Errorf("%d forgotten keys take %d bytes, want at most 10,000", keys, left)
		}
		runtime.KeepAlive(e)
	})
}

// No call forgets keys one by one, or copies those that remain. A generation is
// forgotten as a whole, and there are few of them.
func TestEndedForgetsWholeGenerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, remember = 10_000, time.Minute
		e := newEnded()
		made := make(map[*generation]int) // the number of keys
		added, most, mostHeld := 0, 0, 0
		add := func(n int) {
			for range n {
				e.add(string(binary.BigEndian.AppendUint64(nil, uint64(added))), []time.Duration{remember, time.Second}[added%2])
				added++
			}
			most = max(most, len(e.generations))
			held := 0
			for _, g := range e.generations {
				made[g] = len(g.until)
				held += len(g.until)
			}
			mostHeld = max(mostHeld, held)
		}
		for range 100 {
			add(keys / 100)
			time.Sleep(remember / 50)
		}
		time.Sleep(remember)
		add(1)
		if len(e.generations) != 1 {
			t.Errorf("got %d generations a minute after the last but one key, want 1", len(e.generations))
		}
		if inTime := keys / 2 / 2; mostHeld > inTime*5/4 {
			t.Errorf("%d keys were held at once, want little more than the %d to be remembered", mostHeld, inTime)
		}
		kept := 0
		for g, n := range made {
			if kept += n; len(g.until) != n {
				t.Fatalf("%d of the %d keys of a generation were forgotten one by one", n-len(g.until), n)
			}
		}
		if most > 20 || kept != added {
			t.Errorf("got up to %d generations with %d keys, want at most 20 with %d", most, kept, added)
		}
	})
}

// A deletion that fails after some of its sessions remembers none of them.
func TestFailedDeleteRemembersNothing(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	table := New(db, Options{Name: "sessions", RememberEnded: time.Hour})
	commit := func(token string) error {
		return table.Upsert(t.Context(), token, nil, time.Now().Add(time.Hour))
	}
	if err := commit("good"); err != nil {
		t.Fatal(err)
	}
	err := table.write(t.Context(), 0, func(b *engine.Batch, l *layout) error {
		b.Put(appendKey(nil, l.sessions.namespace, "bad"), []byte{textType})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Delete(t.Context(), "good", "bad"); err == nil {
		t.Fatal("Delete of a malformed row did not fail")
	}
	if err := commit("good"); err != nil {
		t.Errorf("Upsert after a failed deletion = %v, want nil", err)
	}
	if err := table.Delete(t.Context(), "good"); err != nil {
		t.Fatal(err)
	}
	if err := commit("good"); !errors.Is(err, ErrEnded) {
		t.Errorf("Upsert after a deletion = %v, want %v", err, ErrEnded)
	}
}

// Tables of the same name remember together. Tables of other names remember
// separately, so a long memory of one does not keep another's keys.
func TestTablesRememberByName(t *testing.T) {
	db := testdb.Memory(t)
	table := func(name string) *Table { return New(db, Options{Name: name, RememberEnded: time.Hour}) }
	a := table("a").ended
	if table("a").ended != a {
		t.Error("two Tables of the same name remember separately")
	}
	if table("b").ended == a {
		t.Error("two Tables of different names remember together")
	}
	if New(db, Options{Name: "a"}).ended != nil {
		t.Error("a Table that remembers nothing takes memory for it")
	}
}
