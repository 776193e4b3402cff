package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.elara.ws/chaistore/internal/testdb"
)

func TestPutGetDelete(t *testing.T) {
	_, db := newDB(t)
	wantValue(t, db, "a", 0)
	write(t, db, set("a", 1))
	write(t, db, set("aa", 2))
	wantValue(t, db, "a", 1)
	write(t, db, set("a", 3))
	wantValue(t, db, "a", 3)
	for range 2 {
		write(t, db, func(b *Batch) error { b.Delete(key("a")); return nil })
		wantValue(t, db, "a", 0)
	}
	wantValue(t, db, "aa", 2)
	// The last change of a key counts.
	write(t, db, func(b *Batch) error {
		b.Delete(key("a"))
		b.Put(key("a"), []byte("4"))
		b.Put(key("aa"), []byte("5"))
		b.Delete(key("aa"))
		return nil
	})
	wantValue(t, db, "a", 4)
	wantValue(t, db, "aa", 0)
}

func TestWaitingWritesShareBatches(t *testing.T) {
	for _, test := range []struct{ writes, batches int }{
		{1, 1}, {2, 1}, {maxGroup, 1}, {maxGroup + 1, 2}, {3 * maxGroup, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, db := newDB(t)
			queued(db, test.writes, func() {
				for i := range test.writes {
					go write(t, db, set(fmt.Sprint(i), i))
				}
			})
			if got := db.Fsyncs(); got != uint64(test.batches) {
				t.Errorf("%d waiting writes took %d batches, want %d", test.writes, got, test.batches)
			}
			for i := range test.writes {
				wantValue(t, db, fmt.Sprint(i), i)
			}
		})
	}
}

func TestBatchesAreLimitedInBytes(t *testing.T) {
	const m = maxGroupBytes
	for _, test := range []struct {
		sizes   []int
		batches int
	}{
		{[]int{m / 2, m / 2}, 1},
		{[]int{m / 2, m/2 + 1}, 2},
		{[]int{m, 1}, 2},
		{[]int{1, m}, 2},
		{[]int{m / 2, m / 2, m / 2, m / 2, m / 2}, 3},
		{[]int{1, 1, 3 * m, 1, 1}, 3}, // a large write is committed alone
		{[]int{3 * m, 3 * m}, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, db := newDB(t)
			queued(db, len(test.sizes), func() {
				for i, size := range test.sizes {
					go func() {
						if err := db.Write(t.Context(), size, set(fmt.Sprint(i), 1)); err != nil {
							t.Error(err)
						}
					}()
					synctest.Wait()
				}
			})
			if got := db.Fsyncs(); got != uint64(test.batches) {
				t.Errorf("writes of %d bytes took %d batches, want %d", test.sizes, got, test.batches)
			}
			for i := range test.sizes {
				wantValue(t, db, fmt.Sprint(i), 1)
			}
		})
	}
}

func TestFailingOperationFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		write(t, db, set("bad", 7))
		queued(db, 20, func() {
			for i := range 20 {
				go func() {
					if i%7 == 3 {
						wantError(t, db.Write(t.Context(), 100, failing("bad")), errNo)
						return
					}
					write(t, db, set(fmt.Sprint(i), i+1))
				}()
			}
		})
		if got := db.Fsyncs(); got != 2 {
			t.Errorf("got %d batches, want 2", got)
		}
		for i := range 20 {
			if i%7 != 3 {
				wantValue(t, db, fmt.Sprint(i), i+1)
			}
		}
		wantValue(t, db, "bad", 7)
	})
}

func TestNoCommitWithoutChanges(t *testing.T) {
	_, db := newDB(t)
	write(t, db, func(*Batch) error { return nil })
	wantError(t, db.Write(t.Context(), 100, failing("a")), errNo)
	if got := db.Fsyncs(); got != 0 {
		t.Errorf("got %d batches, want none", got)
	}
	wantValue(t, db, "a", 0)
}

// An operation sees the changes of earlier operations in its batch, except failed
// ones.
func TestBatchGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		write(t, db, set("b", 5))
		write(t, db, set("c", 7))
		want := func(b *Batch, k, want string) {
			t.Helper()
			if got, err := b.Get(key(k)); string(got) != want || (got == nil) != (want == "") || err != nil {
				t.Errorf("Get(%s) = %q, %v; want %q", k, got, err, want)
			}
		}
		ops := []Op{
			func(b *Batch) error {
				b.Put(key("a"), []byte("0"))
				b.Put(key("a"), []byte("1"))
				b.Delete(key("b"))
				return nil
			},
			func(b *Batch) error {
				want(b, "a", "1")
				want(b, "b", "")
				want(b, "c", "7")
				b.Put(key("a"), []byte("2"))
				b.Put(key("b"), []byte("2"))
				b.Delete(key("c"))
				b.Put(key("d"), []byte("2"))
				want(b, "a", "2")
				want(b, "b", "2")
				want(b, "c", "")
				want(b, "d", "2")
				return errNo
			},
			func(b *Batch) error {
				want(b, "a", "1")
				want(b, "b", "")
				want(b, "c", "7")
				want(b, "d", "")
				b.Delete(key("a"))
				b.Put(key("c"), []byte("8"))
				want(b, "a", "")
				want(b, "c", "8")
				return nil
			},
			func(b *Batch) error {
				want(b, "a", "")
				want(b, "c", "8")
				return nil
			},
		}
		queued(db, len(ops), func() {
			for i, op := range ops {
				go func() {
					err := db.Write(t.Context(), 100, op)
					if failed := errors.Is(err, errNo); failed != (i == 1) || err != nil && !failed {
						t.Errorf("operation %d: %v", i, err)
					}
				}()
				synctest.Wait()
			}
		})
		if got := db.Fsyncs(); got != 3 {
			t.Errorf("got %d batches, want 3", got)
		}
		wantValue(t, db, "a", 0)
		wantValue(t, db, "b", 0)
		wantValue(t, db, "c", 8)
		wantValue(t, db, "d", 0)
	})
}

// A caller of Lock that comes after a group of writes waits for no other group.
func TestTurnsAreTakenInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db := newDB(t)
		const n = 2*maxGroup + 10
		var got, want []int
		queued(db, n, func() {
			for i := range n {
				go write(t, db, func(*Batch) error { got = append(got, i); return nil })
				synctest.Wait()
			}
			go func() {
				lock := Open(db.handle, discard).Lock()
				lock.Lock()
				defer lock.Unlock()
				got = append(got, -1)
			}()
			synctest.Wait()
		})
		for i := range n {
			if i == maxGroup {
				want = append(want, -1)
			}
			want = append(want, i)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got the order %v, want %v", got, want)
		}
	})
}

// A batch is atomic, even if it is larger than the engine writes at once.
func TestLargeWriteIsAtomic(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, time.Minute)
	engine := testdb.Disk(t)
	db := Open(engine, discard)
	reader := engine.DB.Store.DB() // sees what a batch has written out
	found := func(k string) bool {
		_, closer, err := reader.Get(key(k))
		if err == nil {
			closer.Close()
		}
		return err == nil
	}
	large := bytes.Repeat([]byte("x"), 2<<20)
	const parts = 6
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			time.Sleep(50 * time.Microsecond)
			if found("0") && !found(fmt.Sprint(parts-1)) {
				t.Error("got a part of a batch, want all or nothing")
				return
			}
		}
	})
	err := db.Write(context.Background(), parts*len(large), func(b *Batch) error {
		for i := range parts {
			b.Put(key(fmt.Sprint(i)), large)
		}
		return nil
	})
	close(done)
	wg.Wait()
	if err != nil || !found("0") {
		t.Errorf("Write = %v, found = %t; want nil, true", err, found("0"))
	}
	if got := db.Fsyncs(); got != 1 {
		t.Errorf("got %d batches, want 1", got)
	}
}
