package rivals

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/chaisql/chai"
)

// Chai is a store as one would write it without a library: it runs a statement for each
// call, and holds a mutex while it writes, because two concurrent writers deadlock in
// Chai.
var Chai = Rival{
	Name:     "chai+mutex",
	Kind:     Yardstick,
	Settings: "a Chai table without a store: a mutex, and one statement for each commit and each find",
	Sweeps:   true,
	Open:     openChai,
}

type plainChai struct {
	db    *chai.DB
	write sync.Mutex // held during writes
}

func openChai(dir string) (Store, error) {
	db, err := chai.Open(dir)
	if err != nil {
		return nil, err
	}
	err = db.Exec("CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)")
	if err != nil {
		db.Close()
		return nil, err
	}
	return &plainChai{db: db}, nil
}

func (s *plainChai) Find(token string) (b []byte, exists bool, err error) {
	result, err := s.db.Query("SELECT data FROM sessions WHERE token = ? AND expiry > ?", token, time.Now())
	if err != nil {
		return nil, false, err
	}
	err = result.Iterate(func(row *chai.Row) error {
		if err := row.Scan(&b); err != nil {
			return err
		}
		b, exists = bytes.Clone(b), true
		return nil
	})
	return b, exists, errors.Join(err, result.Close())
}

const upsert = "INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT REPLACE"

func (s *plainChai) Commit(token string, b []byte, expiry time.Time) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.db.Exec(upsert, token, b, expiry)
}

func (s *plainChai) Delete(token string) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.db.Exec("DELETE FROM sessions WHERE token = ?", token)
}

// Load adds many sessions in each transaction. For each of them, Chai keeps about 100
// bytes on the heap until it is closed: the keys of all rows but the first that a
// transaction writes (RollbackSegment in its internal/kv). Commits, which write one row
// each, don't have that cost.
func (s *plainChai) Load(sessions iter.Seq[Session]) error {
	s.write.Lock()
	defer s.write.Unlock()
	for batch := range batches(sessions, 256) {
		if err := s.loadBatch(batch); err != nil {
			return fmt.Errorf("load sessions: %w", err)
		}
	}
	return nil
}

func (s *plainChai) loadBatch(batch []Session) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	statement, err := tx.Prepare(upsert)
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

func (s *plainChai) Sweep() error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.db.Exec("DELETE FROM sessions WHERE expiry <= ?", time.Now())
}

func (s *plainChai) Close() error {
	return s.db.Close()
}
