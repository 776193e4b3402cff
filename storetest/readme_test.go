package storetest_test

import (
	"os"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/storetest"
)

// What README.md and the package documentation call mydb and mystore: here, the
// database does nothing, and the store is like those of SCS.
var (
	mydb = struct {
		Open func(dir string) (*os.File, error)
	}{os.Open}
	mystore = struct {
		NewWithCleanupInterval func(db *os.File, interval time.Duration) stopsOnce
	}{func(*os.File, time.Duration) stopsOnce { return newStopsOnce() }}
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) scs.Store {
		db, err := mydb.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		store := mystore.NewWithCleanupInterval(db, 50*time.Millisecond)
		t.Cleanup(store.StopCleanup)
		return store
	})
}
