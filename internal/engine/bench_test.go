package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.elara.ws/chaistore/internal/testdb"
)

// BenchmarkGet looks up 100 of 200,000 rows in a snapshot: every second row of a
// part of the table, or random rows. It compares a reader with the session's Get.
func BenchmarkGet(b *testing.B) {
	const rows, lookups = 200_000, 100
	engine := testdb.Disk(b)
	db := For(engine, discard)
	keys := make([][]byte, rows)
	for first := 0; first < rows; first += 1000 {
		write(b, db, func(batch *Batch) error {
			for i := first; i < first+1000; i++ {
				keys[i] = key(fmt.Sprintf("%043d", i))
				row := make([]byte, 300)
				for j := range row {
					row[j] = byte(rand.Uint32())
				}
				batch.Put(keys[i], row)
			}
			return nil
		})
	}
	following := func(first, i int) []byte { return keys[first+2*i] }
	random := func(int, int) []byte { return keys[rand.IntN(rows)] }
	for name, pick := range map[string]func(first, i int) []byte{"following": following, "random": random} {
		lookUp := func(get func(key []byte) ([]byte, error)) (err error) {
			first := rand.IntN(rows - 2*lookups)
			for i := 0; i < lookups && err == nil; i++ {
				_, err = get(pick(first, i))
			}
			return err
		}
		b.Run(name+"/reader", func(b *testing.B) {
			for range b.N {
				if err := db.Read(b.Context(), func(s *Snapshot) error { return lookUp(s.Get) }); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/session", func(b *testing.B) {
			for range b.N {
				session := engine.DB.Store.NewSnapshotSession()
				if err := errors.Join(lookUp(session.Get), session.Close()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
