package rivals

import (
	"database/sql"
	"iter"
	"time"

	"github.com/alexedwards/scs/gormstore"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// Gormstore is SCS's store on GORM, here with SQLite, set up as for sqlite3store.
var Gormstore = Rival{
	Name:     "gormstore",
	Kind:     Durable,
	Settings: "GORM's SQLite driver, which uses mattn/go-sqlite3; " + sqliteSettings,
	Sweeps:   true,
	Open:     openGormstore,
}

type gormStore struct {
	*gormstore.GORMStore
	orm *gorm.DB
	db  *sql.DB
}

func openGormstore(dir string) (Store, error) {
	orm, err := gorm.Open(sqlite.Open(sqliteName(dir)), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return nil, sqliteError(err)
	}
	db, err := orm.DB()
	if err != nil {
		return nil, err
	}
	limitSQLite(db)
	store, err := gormstore.NewWithCleanupInterval(orm, 0)
	if err != nil {
		db.Close()
		return nil, err
	}
	return gormStore{store, orm, db}, nil
}

func (s gormStore) Load(sessions iter.Seq[Session]) error {
	return loadSQL(s.db, "INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)",
		sessions, func(expiry time.Time) any { return expiry })
}

func (s gormStore) Sweep() error {
	var failed error
	start := func(interval time.Duration) (stop func()) {
		store, err := gormstore.NewWithCleanupInterval(s.orm, interval)
		if err != nil {
			failed = err
			return func() {}
		}
		return store.StopCleanup
	}
	return sweepByCleanup(start, func() (expired int, err error) {
		if failed != nil {
			return 0, failed
		}
		err = s.db.QueryRow("SELECT COUNT(*) FROM sessions WHERE expiry < ?", time.Now()).Scan(&expired)
		return expired, err
	})
}

func (s gormStore) Close() error {
	return s.db.Close()
}
