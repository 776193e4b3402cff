package rivals

import (
	"context"
	"iter"

	"github.com/chaisql/chai"
	"golang.org/x/sync/errgroup"

	"go.elara.ws/chaistore"
)

// Chaistore is the store that the others are compared with.
var Chaistore = Rival{
	Name:     "chaistore",
	Kind:     Durable,
	Settings: "the default settings, with the table that it creates",
	Modules:  []string{"go.elara.ws/chaistore", "github.com/chaisql/chai", "github.com/cockroachdb/pebble"},
	Sweeps:   true,
	Open:     openChaistore,
}

type chaiStore struct {
	*chaistore.ChaiStore
	db *chai.DB
}

func openChaistore(dir string) (Store, error) {
	db, err := chai.Open(dir)
	if err != nil {
		return nil, err
	}
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, CleanupInterval: -1})
	if err != nil {
		db.Close()
		return nil, err
	}
	return chaiStore{store, db}, nil
}

func (s chaiStore) Load(sessions iter.Seq[Session]) error {
	var group errgroup.Group
	group.SetLimit(256) // as many as share an fsync
	for session := range sessions {
		group.Go(func() error { return s.Commit(session.Token, session.Data, session.Expiry) })
	}
	return group.Wait()
}

func (s chaiStore) Sweep() error {
	_, err := s.DeleteExpired(context.Background())
	return err
}

func (s chaiStore) Close() error {
	s.StopCleanup()
	return s.db.Close()
}
