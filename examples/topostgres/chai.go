package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/chaisql/chai"
	"golang.org/x/sync/errgroup"

	"go.elara.ws/chaistore"
)

// A chaiSide is a table of sessions in a Chai directory.
type chaiSide struct {
	dir, table string
	db         *chai.DB
	store      *chaistore.ChaiStore

	// While missing is set, the directory or the table does not exist, and db is an
	// empty database in memory. The first write creates the directory and the table.
	missing bool
}

// openChai opens the database in dir. A missing database or table is an error, unless
// mayBeMissing is set.
func openChai(dir, table string, mayBeMissing bool) (*chaiSide, error) {
	s := &chaiSide{dir: dir, table: table}
	// Chai would create a missing database. An existing one has this directory.
	_, err := os.Stat(filepath.Join(dir, "pebble"))
	switch {
	case errors.Is(err, fs.ErrNotExist) && mayBeMissing:
		s.missing = true
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no Chai database in %s", dir)
	case err != nil:
		return nil, fmt.Errorf("look for the Chai database: %w", err)
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	if mayBeMissing && !s.missing {
		if _, err := s.db.QueryRow("SELECT name FROM __chai_catalog WHERE name = ?", table); chai.IsNotFoundError(err) {
			s.close()
			s.missing = true
			if err := s.open(); err != nil {
				return nil, err
			}
		}
	}
	if err := s.use(s.missing); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// open opens the database in dir, or one in memory if missing is set.
func (s *chaiSide) open() error {
	path := ":memory:"
	if !s.missing {
		var err error
		if path, err = filepath.Abs(s.dir); err != nil { // never ":memory:"
			return err
		}
	}
	db, err := chai.Open(path)
	if err != nil {
		return fmt.Errorf("open the Chai database in %s (is the application still running? only one process can have it open): %w", s.dir, err)
	}
	s.db = db
	return nil
}

// use makes the store, without a cleanup that would delete expired sessions.
func (s *chaiSide) use(createTable bool) (err error) {
	s.store, err = chaistore.NewWithConfig(s.db, chaistore.Config{
		TableName:       s.table,
		CreateTable:     createTable,
		CleanupInterval: -1,
	})
	return err
}

func (s *chaiSide) close() {
	s.db.Close()
}

func (s *chaiSide) String() string {
	return fmt.Sprintf("the table %s of the Chai directory %s", s.table, s.dir)
}

func (s *chaiSide) sessions(ctx context.Context) iter.Seq2[chaistore.Session, error] {
	return s.store.Sessions(ctx)
}

// The limits of a store: it refuses longer tokens, and changes later expiries.
const maxTokenLen = 100

var maxExpiry = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)

func (s *chaiSide) accepts(session chaistore.Session) error {
	if len(session.Token) > maxTokenLen {
		return chaistore.ErrTokenTooLong
	}
	if session.Expiry.After(maxExpiry) {
		return errors.New("it expires after the year 9999")
	}
	return nil
}

// maxCommits is the number of concurrent commits. They share an fsync.
const maxCommits = 64

func (s *chaiSide) write(ctx context.Context, sessions []chaistore.Session) error {
	if s.missing {
		s.close()
		s.missing = false
		if err := s.open(); err != nil {
			return err
		}
		if err := s.use(true); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxCommits)
	for _, session := range sessions {
		group.Go(func() error {
			return s.store.CommitCtx(ctx, session.Token, session.Data, session.Expiry)
		})
	}
	return group.Wait()
}

// rehearse checks that a missing directory can be created. An open database needs no
// check, since openChai has checked its table.
func (s *chaiSide) rehearse(context.Context, []chaistore.Session) error {
	if !s.missing {
		return nil
	}
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return err
	}
	for _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist); _, err = os.Stat(dir) {
		dir = filepath.Dir(dir)
	}
	probe, err := os.MkdirTemp(dir, "topostgres")
	if err != nil {
		return fmt.Errorf("create the Chai database in %s: %w", s.dir, err)
	}
	return os.Remove(probe)
}
