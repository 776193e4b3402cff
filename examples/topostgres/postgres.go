package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"go.elara.ws/chaistore"
)

// A postgresSide is a pgxstore table in a PostgreSQL database.
type postgresSide struct {
	pool  *pgxpool.Pool
	table string // as in SQL, quoted if necessary
}

// connectTimeout limits connecting to an address, unless the URL or the environment sets
// a timeout.
var connectTimeout = 10 * time.Second

// openPostgres connects to the database and looks for the table. The name of the table is
// parsed as SQL, as in pgxstore. Errors don't show passwords.
func openPostgres(ctx context.Context, url, table string) (*postgresSide, error) {
	config, err := pgxpool.ParseConfig(url)
	// A slash ends a password in a URL. pgx would take the rest, with the @, for the
	// name of a database, and show it. Its errors for malformed URLs may show parts of a
	// password, too.
	_, rest, _ := strings.Cut(url, "://")
	end := strings.IndexAny(rest, "/?#")
	if err != nil || end >= 0 && strings.Contains(rest[end:], "@") {
		return nil, errors.New("the URL of the PostgreSQL database is malformed: want postgres://user:password@host:port/database, " +
			"with percent-encoding of special characters")
	}
	config.MaxConns = 2 // one reads while the other writes
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	s := &postgresSide{pool: pool}
	if err := s.find(ctx, table); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

// find looks for the table, and checks its columns.
func (s *postgresSide) find(ctx context.Context, name string) error {
	var found, columns *string
	err := s.pool.QueryRow(ctx, `
		SELECT to_regclass($1)::text, string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attname)
		FROM pg_attribute
		WHERE attrelid = to_regclass($1) AND attname IN ('token', 'data', 'expiry')`, name).Scan(&found, &columns)
	if err != nil {
		return fmt.Errorf("look for the table in PostgreSQL: %w", err)
	}
	if found == nil {
		return fmt.Errorf("there is no table %[1]s in the PostgreSQL database; create it with\n\n"+
			"CREATE TABLE %[1]s (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL);\n"+
			"CREATE INDEX ON %[1]s (expiry);", name)
	}
	const want = "data bytea, expiry timestamp with time zone, token text"
	if columns == nil || *columns != want {
		return fmt.Errorf("the PostgreSQL table %s is not a table of sessions, which has the columns %s", name, want)
	}
	s.table = *found
	return nil
}

func (s *postgresSide) close() {
	s.pool.Close()
}

func (s *postgresSide) String() string {
	return fmt.Sprintf("the PostgreSQL table %s", s.table)
}

// sessions reads a snapshot row by row. Only the rows in the connection's buffer are in
// memory.
func (s *postgresSide) sessions(ctx context.Context) iter.Seq2[chaistore.Session, error] {
	return func(yield func(chaistore.Session, error) bool) {
		fail := func(err error) { yield(chaistore.Session{}, fmt.Errorf("read sessions from PostgreSQL: %w", err)) }
		// The collation "C" orders tokens by their bytes.
		rows, err := s.pool.Query(ctx, "SELECT token, data, expiry FROM "+s.table+` WHERE expiry > $1 ORDER BY token COLLATE "C"`, time.Now())
		if err != nil {
			fail(err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			var session chaistore.Session
			if err := rows.Scan(&session.Token, &session.Data, &session.Expiry); err != nil {
				fail(err)
				return
			}
			if !yield(session, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}

func (s *postgresSide) accepts(session chaistore.Session) error {
	if !utf8.ValidString(session.Token) || strings.Contains(session.Token, "\x00") {
		return errors.New("its token is not a valid PostgreSQL TEXT")
	}
	return nil
}

// write runs a single statement, which PostgreSQL executes completely or not at all.
func (s *postgresSide) write(ctx context.Context, sessions []chaistore.Session) error {
	return s.insert(ctx, s.pool, sessions)
}

// rehearse writes in a transaction that it rolls back.
func (s *postgresSide) rehearse(ctx context.Context, sessions []chaistore.Session) error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	// Otherwise deferred constraints are checked only at the commit.
	if _, err := tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE"); err != nil {
		return err
	}
	return s.insert(ctx, tx, sessions)
}

// An execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func (s *postgresSide) insert(ctx context.Context, db execer, sessions []chaistore.Session) error {
	tokens, data, expiries := make([]string, len(sessions)), make([][]byte, len(sessions)), make([]time.Time, len(sessions))
	for i, session := range sessions {
		tokens[i], expiries[i] = session.Token, session.Expiry
		data[i] = append([]byte{}, session.Data...) // nil would be NULL
	}
	_, err := db.Exec(ctx, "INSERT INTO "+s.table+` (token, data, expiry)
		SELECT * FROM unnest($1::text[], $2::bytea[], $3::timestamptz[])
		ON CONFLICT (token) DO UPDATE SET data = EXCLUDED.data, expiry = EXCLUDED.expiry`, tokens, data, expiries)
	// PostgreSQL's own message does not name the column.
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "42P10" {
		return fmt.Errorf("the PostgreSQL table %s has no primary key or unique constraint on token: %w", s.table, err)
	}
	if err != nil {
		return fmt.Errorf("write sessions to PostgreSQL: %w", err)
	}
	return nil
}
