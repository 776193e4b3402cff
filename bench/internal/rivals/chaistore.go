package rivals

import (
	"context"
	"fmt"
	"iter"

	"github.com/chaisql/chai"

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
	lock := chaistore.WriteLock(s.db)
	lock.Lock()
	defer lock.Unlock()
	return loadChai(s.db, sessions)
}

func (s chaiStore) Sweep() error {
	_, err := s.DeleteExpired(context.Background())
	return err
}

func (s chaiStore) Close() error {
	s.StopCleanup()
	return s.db.Close()
}

const upsertChai = "INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT REPLACE"

// loadChai adds sessions to a table, many in a transaction. Of each, Chai keeps
// about 80 bytes on the heap until it is closed: the keys of rows that were written
// after others in one transaction (RollbackSegment in its internal/kv).
func loadChai(db *chai.DB, sessions iter.Seq[Session]) error {
	for batch := range batches(sessions, 256) {
		if err := loadChaiBatch(db, batch); err != nil {
			return fmt.Errorf("load sessions: %w", err)
		}
	}
	return nil
}

func loadChaiBatch(db *chai.DB, batch []Session) error {
	tx, err := db.Begin(true)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	statement, err := tx.Prepare(upsertChai)
	if err != nil {
		return err
	}
	for _, session := range batch {
		if err := statement.Exec(session.Token, session.Data, session.Expiry); err != nil {
			return err
		}
	}
	return tx.Commit()
}
