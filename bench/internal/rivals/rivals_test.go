package rivals

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestRivals checks that each rival does what the benchmarks measure.
func TestRivals(t *testing.T) {
	for _, rival := range slices.Concat(All(), Variants()) {
		t.Run(rival.Name, func(t *testing.T) {
			store, err := rival.Open(t.TempDir())
			if errors.Is(err, ErrNotInstalled) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			}()
			testStore(t, rival, store)
		})
	}
}

func testStore(t *testing.T, rival Rival, store Store) {
	const count = 1000
	var active, expired []Session
	for i := range count {
		session := Session{
			Token:  fmt.Sprintf("token-%d", (i*7919)%count),
			Data:   []byte(fmt.Sprint("data of ", i)),
			Expiry: time.Now().Add(time.Hour),
		}
		if rival.Sweeps && i%2 == 0 {
			session.Expiry = time.Now().Add(-time.Hour)
			expired = append(expired, session)
		} else {
			active = append(active, session)
		}
	}
	if err := store.Load(slices.Values(slices.Concat(active, expired))); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for _, session := range active {
			b, exists, err := store.Find(session.Token)
			if err != nil || !exists || !bytes.Equal(b, session.Data) {
				t.Fatalf("Find: %q, %v, %v, want %q", b, exists, err, session.Data)
			}
		}
		for _, session := range expired {
			if _, exists, err := store.Find(session.Token); exists || err != nil {
				t.Fatalf("Find of an expired session: %v, %v", exists, err)
			}
		}
	}
	check()

	if rival.Sweeps {
		if err := store.Sweep(); err != nil {
			t.Fatal(err)
		}
		check()
	}

	renewed := &active[0]
	renewed.Data = []byte("renewed")
	if err := store.Commit(renewed.Token, renewed.Data, renewed.Expiry); err != nil {
		t.Fatal(err)
	}
	check()
	if err := store.Delete(renewed.Token); err != nil {
		t.Fatal(err)
	}
	if _, exists, err := store.Find(renewed.Token); exists || err != nil {
		t.Fatalf("Find of a deleted session: %v, %v", exists, err)
	}
}
