package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"go.elara.ws/chaistore/internal/testdb"
)

// BenchmarkGet looks up one of 500,000 rows: the next but one, a random one, or one that
// is missing, in a database with the engine's own settings or with a budget.
func BenchmarkGet(b *testing.B) {
	const rows = 500_000
	for _, budget := range []int64{-1, 64 << 20} {
		db := Open(testdb.Disk(b), discard)
		db.UseMemory(budget)
		keys := make([][]byte, rows)
		order := rand.Perm(rows)
		for first := 0; first < rows; first += 1000 {
			write(b, db, func(batch *Batch) error {
				for _, i := range order[first : first+1000] {
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
		run := func(name string, pick func(i int) []byte) {
			b.Run(fmt.Sprintf("budget=%d/%s", budget, name), func(b *testing.B) {
				err := db.Read(b.Context(), func(s *Snapshot) (err error) {
					for i := 0; i < b.N && err == nil; i++ {
						_, err = s.Get(pick(i))
					}
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			})
		}
		run("following", func(i int) []byte { return keys[2*i%rows] })
		run("random", func(int) []byte { return keys[rand.IntN(rows)] })
		run("missing", func(int) []byte { return append(keys[rand.IntN(rows)], '-') })
	}
}
