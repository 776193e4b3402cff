package engine_test

import (
	"errors"
	"testing"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// A store is not made on a version of Chai that is not known.
func TestNewStoreOnUnknownEngine(t *testing.T) {
	t.Cleanup(reach.Forget())
	for _, createTable := range []bool{false, true} {
		db := testdb.Memory(t)
		if !createTable {
			testdb.Exec(t, db, testdb.CreateTable)
		}
		s, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: createTable})
		if s != nil || !errors.Is(err, reach.Err()) {
			t.Errorf("NewWithConfig with CreateTable: %v = %v, %v; want nil, %v", createTable, s, err, reach.Err())
		}
	}
}
