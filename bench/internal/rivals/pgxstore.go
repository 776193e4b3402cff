package rivals

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"time"

	"github.com/alexedwards/scs/pgxstore"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"go.elara.ws/chaistore/internal/postgres"
)

// Pgxstore is SCS's store on PostgreSQL, with a server on the same machine. The table
// and its index are as in pgxstore's README.
var Pgxstore = Rival{
	Name:     "pgxstore",
	Kind:     Durable,
	Settings: "PostgreSQL on the same machine with its default settings, through a Unix socket, and up to 64 connections",
	Sweeps:   true,
	Engine:   postgres.Version,
	Open:     openPgxstore,
}

type pgxStore struct {
	*pgxstore.PostgresStore
	pool   *pgxpool.Pool
	server *postgres.Server
}

func openPgxstore(dir string) (Store, error) {
	server, err := postgres.Start(filepath.Join(dir, "postgres"))
	if errors.Is(err, postgres.ErrNotInstalled) {
		return nil, fmt.Errorf("%w: PostgreSQL", ErrNotInstalled)
	}
	if err != nil {
		return nil, err
	}
	// By default, a pool has at most as many connections as there are CPUs, or 4 if
	// that is more. Then finds wait for commits. The server accepts 100 connections.
	pool, err := openPool(server.URL(), 64)
	if err != nil {
		return nil, errors.Join(err, server.Stop())
	}
	return pgxStore{pgxstore.NewWithCleanupInterval(pool, 0), pool, server}, nil
}

// openPool connects to a database and creates the table in it.
func openPool(url string, connections int) (*pgxpool.Pool, error) {
	pool, err := pgxpool.New(context.Background(), fmt.Sprintf("%s&pool_max_conns=%d&pool_min_conns=%[2]d", url, connections))
	if err != nil {
		return nil, err
	}
	for _, statement := range []string{
		"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL)",
		"CREATE INDEX sessions_expiry_idx ON sessions (expiry)",
	} {
		if _, err := pool.Exec(context.Background(), statement); err != nil {
			pool.Close()
			return nil, err
		}
	}
	return pool, nil
}

// The store's methods without a context panic, so these call the others.

func (s pgxStore) Find(token string) (b []byte, exists bool, err error) {
	return s.FindCtx(context.Background(), token)
}

func (s pgxStore) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

func (s pgxStore) Delete(token string) error {
	return s.DeleteCtx(context.Background(), token)
}

func (s pgxStore) Load(sessions iter.Seq[Session]) error {
	next, stop := iter.Pull(sessions)
	defer stop()
	_, err := s.pool.CopyFrom(context.Background(), pgx.Identifier{"sessions"}, []string{"token", "data", "expiry"},
		pgx.CopyFromFunc(func() ([]any, error) {
			session, ok := next()
			if !ok {
				return nil, nil
			}
			return []any{session.Token, session.Data, session.Expiry}, nil
		}))
	return err
}

func (s pgxStore) Sweep() error {
	start := func(interval time.Duration) (stop func()) {
		return pgxstore.NewWithCleanupInterval(s.pool, interval).StopCleanup
	}
	return sweepByCleanup(start, func() (expired int, err error) {
		err = s.pool.QueryRow(context.Background(), "SELECT COUNT(*) FROM sessions WHERE expiry < now()").Scan(&expired)
		return expired, err
	})
}

func (s pgxStore) Close() error {
	s.pool.Close()
	return s.server.Stop()
}
