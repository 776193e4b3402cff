package robustness

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

var renewals = flag.Int("renewals", 50_000, "how many sessions TestRenewalsLeaveNoMemory renews")

// Neither the store nor the engine keeps memory for renewals.
func TestRenewalsLeaveNoMemory(t *testing.T) {
	testdb.Long(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, 4*time.Minute)
	const sessions, limit = 5000, 1 << 20
	for name, open := range map[string]func(testing.TB) *chai.DB{"plain": testdb.Disk, "indexed": func(t testing.TB) *chai.DB {
		db := testdb.Disk(t)
		testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
		return db
	}} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, open(t), nil)
			renew := func(n int) {
				testdb.InParallel(256, n, func(_ *rand.Rand, i int) {
					commit(t, s, fmt.Sprintf("%043d", i%sessions), strings.Repeat("x", 300))
				})
			}
			renew(10_000)
			before := testdb.HeapInUse()
			renew(*renewals)
			grown := testdb.HeapInUse() - before
			t.Logf("%d renewals of %d sessions left %d bytes on the heap", *renewals, sessions, grown)
			if grown > limit {
				t.Errorf("the heap has grown by %d bytes, want at most %d", grown, limit)
			}
		})
	}
}
