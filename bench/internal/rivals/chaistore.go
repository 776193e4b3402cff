package rivals

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"time"

	"github.com/chaisql/chai"
	"golang.org/x/sync/errgroup"

	"go.elara.ws/chaistore"
)

// Chaistore is the store that the others are compared with.
var Chaistore = Rival{
	Name:     "chaistore",
	Kind:     Durable,
	Settings: "the default settings, with the table that it creates",
	Sweeps:   true,
	Open:     openChaistore,
}

// ChaistoreIndexed is chaistore on a table with an index on the expiry.
var ChaistoreIndexed = Rival{
	Name:     "chaistore+index",
	Kind:     Durable,
	Settings: "chaistore on a table with an index on the expiry",
	Sweeps:   true,
	Open: func(dir string) (Store, error) {
		store, err := openChaistore(dir)
		if err != nil {
			return nil, err
		}
		if err := store.(chaiStore).db.Exec("CREATE INDEX idx_sessions_expiry ON sessions(expiry)"); err != nil {
			return nil, errors.Join(err, store.Close())
		}
		return store, nil
	},
}

// ChaistoreShared is chaistore beside an application that inserts rows into its own
// table in the same database, one after another, without a lock.
var ChaistoreShared = Rival{
	Name:     "chaistore+app",
	Kind:     Durable,
	Settings: "chaistore beside a goroutine that inserts rows into another table of the same database, one after the other",
	Sweeps:   true,
	Open: func(dir string) (Store, error) {
		store, err := openChaistore(dir)
		if err != nil {
			return nil, err
		}
		shared := &sharedChaiStore{chaiStore: store.(chaiStore)}
		if err := shared.db.Exec("CREATE TABLE visits (at TIMESTAMP NOT NULL)"); err != nil {
			return nil, errors.Join(err, store.Close())
		}
		return shared, nil
	},
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
	group.SetLimit(256) // so many commits share an fsync
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

type sharedChaiStore struct {
	chaiStore
	app    errgroup.Group
	closed atomic.Bool
}

// Load loads the sessions, and then starts the application.
func (s *sharedChaiStore) Load(sessions iter.Seq[Session]) error {
	if err := s.chaiStore.Load(sessions); err != nil {
		return err
	}
	s.app.Go(func() error {
		for !s.closed.Load() {
			if err := s.db.Exec("INSERT INTO visits (at) VALUES (?)", time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}

func (s *sharedChaiStore) Close() error {
	s.closed.Store(true)
	return errors.Join(s.app.Wait(), s.chaiStore.Close())
}
