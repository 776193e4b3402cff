package engine

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"go.elara.ws/chaistore/internal/testdb"
)

// A file has two versions of a key in different blocks, because a snapshot is open.
// The rows behind them are found. In Chai alone, they are not.
func TestRowsBehindTwoVersionsAreFound(t *testing.T) {
	chaiDB := testdb.Disk(t)
	db := For(chaiDB, discard)
	const rows = 200
	row := bytes.Repeat([]byte("x"), 1000) // four fill a block
	put := func(keys ...string) {
		t.Helper()
		err := db.Write(t.Context(), 0, func(b *Batch) error {
			for _, k := range keys {
				b.Put(key(k), row)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var keys []string
	for i := range rows {
		keys = append(keys, fmt.Sprintf("%03d", i))
	}
	put(keys...)
	snapshot := chaiDB.DB.Store.NewSnapshotSession()
	put(keys...)
	if err := errors.Join(chaiDB.DB.Store.DB().Flush(), snapshot.Close()); err != nil {
		t.Fatal(err)
	}
	missing := 0
	for _, k := range keys {
		err := db.Read(t.Context(), func(s *Snapshot) error {
			found, err := s.Get(key(k))
			if found == nil {
				missing++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if missing > 0 {
		t.Errorf("got %d missing rows of %d, want none", missing, rows)
	}
}
