package rivals

import (
	"bytes"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/chaisql/chai"
)

// Chai is what one would write without a library: a statement for each call, and
// a mutex, because Chai deadlocks when two goroutines write.
var Chai = Rival{
	Name:     "chai+mutex",
	Kind:     Yardstick,
	Settings: "a Chai table without a store: a mutex, and one statement for each commit and each find",
	Modules:  []string{"github.com/chaisql/chai"},
	Sweeps:   true,
	Open:     openChai,
}

type plainChai struct {
	db    *chai.DB
	write sync.Mutex // held by whoever writes
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

func (s *plainChai) Commit(token string, b []byte, expiry time.Time) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.db.Exec(upsertChai, token, b, expiry)
}

func (s *plainChai) Delete(token string) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.db.Exec("DELETE FROM sessions WHERE token = ?", token)
}

func (s *plainChai) Load(sessions iter.Seq[Session]) error {
	s.write.Lock()
	defer s.write.Unlock()
	return loadChai(s.db, sessions)
}

func (s *plainChai) Sweep() error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.db.Exec("DELETE FROM sessions WHERE expiry <= ?", time.Now())
}

func (s *plainChai) Close() error {
	return s.db.Close()
}
