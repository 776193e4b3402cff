package rivals

import (
	"database/sql"
	"fmt"
	"iter"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/alexedwards/scs/sqlite3store"
	_ "github.com/mattn/go-sqlite3"
)

// SQLite3store is SCS's store on SQLite, with the driver that its README uses, which
// wraps SQLite's C code. The table and its index are as in the README.
var SQLite3store = Rival{
	Name:     "sqlite3store",
	Kind:     Durable,
	Settings: "mattn/go-sqlite3; " + sqliteSettings,
	Sweeps:   true,
	Engine:   sqliteVersion,
	Open:     openSQLite3store,
}

const sqliteSettings = "WAL, synchronous=FULL, a busy timeout of 60 s, and up to 16 connections"

type sqlite3Store struct {
	*sqlite3store.SQLite3Store
	db *sql.DB
}

// sqliteName returns a data source name for the driver.
func sqliteName(dir string) string {
	query := url.Values{
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_busy_timeout": {"60000"},
	}
	return "file:" + filepath.Join(dir, "sessions.sqlite") + "?" + query.Encode()
}

// limitSQLite limits the number of connections. With a single connection, finds wait
// for commits. With a connection for each goroutine, most committing goroutines sleep
// most of the time, because SQLite makes them retry again and again.
func limitSQLite(db *sql.DB) {
	const connections = 16
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
}

func sqliteVersion() (version string, err error) {
	db, err := sql.Open("sqlite3", ":memory:")
	if err != nil {
		return "", err
	}
	defer db.Close()
	err = db.QueryRow("SELECT 'SQLite ' || sqlite_version()").Scan(&version)
	return version, err
}

// sqliteError recognizes the error of a program that was built without a C compiler, and
// so without SQLite.
func sqliteError(err error) error {
	if strings.Contains(err.Error(), "CGO_ENABLED=0") {
		return fmt.Errorf("%w: a C compiler, which SQLite is built with", ErrNotInstalled)
	}
	return err
}

func openSQLite3store(dir string) (Store, error) {
	db, err := sql.Open("sqlite3", sqliteName(dir))
	if err != nil {
		return nil, err
	}
	limitSQLite(db)
	for _, statement := range []string{
		"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry REAL NOT NULL)",
		"CREATE INDEX sessions_expiry_idx ON sessions(expiry)",
	} {
		if _, err := db.Exec(statement); err != nil {
			db.Close()
			return nil, sqliteError(err)
		}
	}
	return sqlite3Store{sqlite3store.NewWithCleanupInterval(db, 0), db}, nil
}

func (s sqlite3Store) Load(sessions iter.Seq[Session]) error {
	return loadSQL(s.db, "INSERT INTO sessions (token, data, expiry) VALUES ($1, $2, julianday($3))",
		sessions, func(expiry time.Time) any { return expiry.UTC().Format("2006-01-02T15:04:05.999") })
}

// loadSQL adds sessions in one transaction. The function form converts an expiry to the
// value that the store expects.
func loadSQL(db *sql.DB, insert string, sessions iter.Seq[Session], form func(time.Time) any) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	statement, err := tx.Prepare(insert)
	if err != nil {
		return err
	}
	defer statement.Close()
	for _, session := range byToken(sessions) {
		if _, err := statement.Exec(session.Token, session.Data, form(session.Expiry)); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func (s sqlite3Store) Sweep() error {
	start := func(interval time.Duration) (stop func()) {
		return sqlite3store.NewWithCleanupInterval(s.db, interval).StopCleanup
	}
	return sweepByCleanup(start, func() (expired int, err error) {
		err = s.db.QueryRow("SELECT COUNT(*) FROM sessions WHERE expiry < julianday('now')").Scan(&expired)
		return expired, err
	})
}

func (s sqlite3Store) Close() error {
	return s.db.Close()
}
