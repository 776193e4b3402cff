// Package chaistore stores the sessions of [github.com/alexedwards/scs/v2] in a Chai
// database.
//
//	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
//	if err != nil {
//		return err
//	}
//	defer store.StopCleanup()
//	sessionManager := scs.New()
//	sessionManager.Store = store
//
// A commit is on disk when it returns. Concurrent commits share one fsync. Only one
// process at a time can open a Chai database.
//
// # Sharing the database
//
// The application may keep its own tables in the same database. The store reads and
// writes beneath Chai's transactions: its reads never wait for a transaction, and its
// writes wait for a writing transaction without deadlocking it. A single goroutine
// that writes with Chai needs no locking. Several deadlock each other in Chai, unless
// each uses [Update] or holds the [WriteLock].
package chaistore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/sessiontable"
)

var (
	_ scs.Store            = (*ChaiStore)(nil)
	_ scs.CtxStore         = (*ChaiStore)(nil)
	_ scs.IterableStore    = (*ChaiStore)(nil)
	_ scs.IterableCtxStore = (*ChaiStore)(nil)
)

const (
	defaultTableName       = "sessions"
	defaultCleanupInterval = 5 * time.Minute
	defaultCacheSize       = 64 << 20
)

// ErrTokenTooLong is returned when committing a session whose token is longer than
// 100 bytes. SCS makes tokens of 43 bytes. Chai confuses rows whose keys are longer
// than 127 bytes.
var ErrTokenTooLong = fmt.Errorf("token is longer than %d bytes", sessiontable.MaxKeyLen)

// ErrDataTooLarge is returned when committing a session with more than 16 MiB of
// data. Committing that much takes about half a second, during which nobody else can
// commit. Commits on a database that wait hold copies of up to 32 MiB together;
// further ones wait until there is room.
var ErrDataTooLarge = fmt.Errorf("data is larger than %d MiB", maxDataLen>>20)

const maxDataLen = 16 << 20

// ErrEnded is returned when committing a session that the store remembers as deleted:
// see [Config.RememberEnded].
var ErrEnded = sessiontable.ErrEnded

// ErrOwnerTooLong is returned when committing a session whose owner is longer than
// 100 bytes: see [Config.Owner].
var ErrOwnerTooLong = sessiontable.ErrOwnerTooLong

// Config configures [NewWithConfig]. The zero Config has the defaults of [New].
type Config struct {
	// TableName is the name of the table of sessions: letters, digits and
	// underscores, not starting with a digit, at most 100 bytes, and not an SQL
	// keyword. Default: "sessions".
	TableName string

	// CleanupInterval is the time between two sweeps for expired sessions. The first one
	// comes after a hundredth of it, or up to twice that. If it is negative, nothing is
	// swept. Default: 5 minutes.
	CleanupInterval time.Duration

	// CreateTable makes NewWithConfig create the table if it does not exist.
	// Default: false.
	CreateTable bool

	// CacheSize is the number of bytes of memory that the database may take for speed:
	// a quarter for copies of sessions that were recently found or committed, three
	// eighths for blocks of its files, and three eighths for what is not in files yet.
	// It is taken as it is needed, so a database that is hardly used takes next to
	// nothing. Closing the database gives it back, the copies once its stores are not
	// referred to any more. With cgo, only the copies are on Go's heap, and the process
	// may take twice as much, because C's allocator keeps what is freed.
	//
	// All stores on a database share this memory, which is the most that any of them
	// asks for. A negative size asks for none beyond the 12 MB that Chai takes by
	// itself. Default: 64 MiB, which has room for copies of 27,000 sessions of 300
	// bytes. With many or large sessions, more memory makes finds and commits faster.
	CacheSize int64

	// RememberEnded is how long the store remembers a session deleted by Delete,
	// DeleteFunc or DeleteOf, and refuses to commit it again, with [ErrEnded].
	// Without it, a request that loaded the session before it was deleted, and
	// commits it afterwards, brings it back. Choose a time longer than any request
	// takes, such as 10 minutes. The stores on a table that remember ended sessions
	// share them, about 60 bytes each, until the process ends.
	//
	// A request that renews its token (RenewToken) while its session is being ended
	// goes on under the new token: to end a user's sessions for good, also refuse the
	// user. RenewToken deletes the session with the old token, so other requests
	// still served with it get ErrEnded. Default: 0, nothing is remembered.
	RememberEnded time.Duration

	// Owner returns the owner of the session with the given data, such as a user ID, or
	// "" if it has none. [OwnerByKey] makes a function for the usual case.
	// [ChaiStore.SessionsOf] and [ChaiStore.DeleteOf] find the sessions of an owner in a
	// second table, which the store creates: it is named TableName followed by "_owners",
	// and has the columns owner and token. It may have rows that are out of date. A commit
	// with an owner of more than 100 bytes fails with [ErrOwnerTooLong].
	//
	// If Owner can't read the data, for example because a new version of the program has
	// renamed a type, it should return an error. The commit succeeds all the same. The
	// session may then be anybody's: SessionsOf and DeleteOf ask Owner for it again, and
	// return an error while that fails. DeleteOf also deletes it if it belonged to the
	// owner before.
	//
	// Owner is called in the goroutine that commits, before its turn, unless the store
	// knows that the data has not changed. It is also called by SessionsOf, DeleteOf and
	// sweeps, in several goroutines. It must not change the data, nor call SessionsOf,
	// DeleteOf, DeleteExpired or StopCleanup. A panic goes through to the caller, and
	// leaves nothing locked. So does the end of the goroutine.
	//
	// Sessions from before the process are listed in the first sweep, or in the first call
	// of SessionsOf or DeleteOf, which takes 1 to 3 seconds for 200,000 sessions in gob.
	// Meanwhile, other such calls wait, for up to 10 seconds. All stores on a table that
	// have an Owner must have the same. When Owner changes, drop the second table before
	// making the store. Default: nil, no owners.
	Owner func(data []byte) (owner string, err error)

	// Logger gets an error for each failed sweep, whenever writing hangs, and, at most
	// once a minute, while the database can't write its files in the background, and a
	// line for each sweep at debug level. It never gets tokens or data. It must not call
	// StopCleanup, which waits for it. Default: slog.Default(), looked up for each line.
	Logger *slog.Logger
}

// ChaiStore is an SCS session store on a Chai database. Its methods are safe for
// concurrent use.
//
// Find, Commit, Delete and All have variants that take a context. A call whose context
// is done returns the context's error and writes nothing. A write whose context ends
// while it waits, for other writes or for the application, does the same. Once a
// write has begun, it is finished. Deletions go on without their caller: see
// [ChaiStore.DeleteCtx].
//
// A write that takes longer than 10 seconds returns an error, and may or may not
// still happen. The application may be holding a transaction open, or its goroutines
// may have deadlocked each other in Chai. Further writes fail at once until the hang
// ends. Find, All and Sessions are not affected.
//
// The first failure of the disk ends writing: the write that meets it returns the
// error, and so does each later one, at once. Finds go on from what was acknowledged.
// Close the database, open it again, and make a new store on it, or restart the
// process: Close waits for transactions that the application has begun and not ended.
// Calls on a closed database return an error.
type ChaiStore struct {
	table   *sessiontable.Table
	cleanup *cleanup // nil if there is no cleanup goroutine
}

// New returns a store that keeps sessions in the table "sessions" of db, and deletes
// expired ones every 5 minutes until [ChaiStore.StopCleanup].
//
// New does not touch the database, so the table may be created afterwards. Until
// then, calls of the store return an error that says that it does not exist. New
// panics if db is nil; [NewWithConfig] returns an error instead.
func New(db *chai.DB) *ChaiStore {
	return NewWithCleanupInterval(db, defaultCleanupInterval)
}

// NewWithCleanupInterval is like [New], with another time between two sweeps. If it
// is 0 or less, only [ChaiStore.DeleteExpired] sweeps.
func NewWithCleanupInterval(db *chai.DB, cleanupInterval time.Duration) *ChaiStore {
	if isNil(db) {
		panic(errNilDatabase.Error())
	}
	s := newStore(db, Config{TableName: defaultTableName})
	s.startCleanup(cleanupInterval)
	return s
}

// NewWithConfig returns a store configured by cfg. It returns an error if db is nil
// or closed, if the table's name can't be used, or if the table does not exist or is
// not a table of sessions: its columns must be token TEXT, data BLOB and expiry
// TIMESTAMP, in this order, token must be the primary key, and there must be no other
// constraints. Non-unique indexes on token and expiry are allowed. The context of a
// handle from [chai.DB.WithContext] has no effect on the store.
//
// Creating a table is a transaction of Chai, as in [Update]: if other goroutines
// write with Chai, create the store before they start.
func NewWithConfig(db *chai.DB, cfg Config) (*ChaiStore, error) {
	if isNil(db) {
		return nil, errNilDatabase
	}
	cfg.TableName = cmp.Or(cfg.TableName, defaultTableName)
	if err := sessiontable.CheckName(db, cfg.TableName); err != nil {
		return nil, fmt.Errorf("chaistore: %w", err)
	}
	s := newStore(db, cfg)
	if err := s.table.CheckDatabase(); err != nil {
		return nil, fmt.Errorf("chaistore: %w", err)
	}
	if cfg.CreateTable {
		if err := s.table.Create(context.Background()); err != nil {
			return nil, fmt.Errorf("chaistore: create table %q: %w", cfg.TableName, err)
		}
	}
	if cfg.Owner != nil {
		if err := s.table.CreateOwners(context.Background()); err != nil {
			return nil, fmt.Errorf("chaistore: %w", err)
		}
	}
	if err := s.table.Check(); err != nil {
		return nil, fmt.Errorf("chaistore: %w", err)
	}
	s.startCleanup(cmp.Or(cfg.CleanupInterval, defaultCleanupInterval))
	return s, nil
}

var errNilDatabase = errors.New("chaistore: the database is nil")

func isNil(db *chai.DB) bool {
	return db == nil || db.DB == nil
}

// newStore returns a store without a cleanup goroutine.
func newStore(db *chai.DB, cfg Config) *ChaiStore {
	logger := slog.Default
	if cfg.Logger != nil {
		logger = func() *slog.Logger { return cfg.Logger }
	}
	return &ChaiStore{
		table: sessiontable.New(db, sessiontable.Options{
			Name:          cfg.TableName,
			CacheSize:     cmp.Or(cfg.CacheSize, defaultCacheSize),
			RememberEnded: cfg.RememberEnded,
			OwnerOf:       cfg.Owner,
			Logger:        logger,
		}),
	}
}

// Update calls f with a writable transaction of Chai. If f returns nil, Update commits
// the transaction. If f returns an error or panics, Update rolls the transaction back,
// and does the same.
//
// Update waits for other calls of Update, for the [WriteLock], and for the stores on db.
// If ctx ends before the transaction has begun, or after 10 seconds, Update returns an
// error and does not call f. Once f has been called, ctx has no effect.
//
//	err := chaistore.Update(ctx, db, func(tx *chai.Tx) error {
//		return tx.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
//	})
//
// While f runs, nobody else can write. So f must not call Update, nor write through a
// store: the call would wait for f, and return an error after 10 seconds. So may
// [ChaiStore.SessionsOf] and [ChaiStore.DeleteOf], which list sessions. f must not
// commit or roll back tx, and nobody may use tx after f: writing to it panics.
//
// When Chai rolls a transaction back, it does not restore the index entries of rows that
// were updated or deleted: SQL that uses the index misses these rows, and changing them
// fails, until REINDEX in a transaction. Stores are not affected.
//
// When the disk fails while f runs, Chai panics in f. Update rolls back what it can, and
// panics on. Stores go on reading what was committed before.
func Update(ctx context.Context, db *chai.DB, f func(tx *chai.Tx) error) error {
	if isNil(db) {
		return errNilDatabase
	}
	return engine.Open(db, nil).Update(ctx, f)
}

// WriteLock returns the lock that [Update] holds, for work that does not fit into a
// function: transactions that begin and end in different places, statements outside
// any transaction, or several statements that no store may write between. Hold it
// from before a transaction begins until it is committed or rolled back.
//
//	lock := chaistore.WriteLock(db)
//	lock.Lock()
//	defer lock.Unlock()
//	err := db.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
//
// Stores can't write while the lock is held. WriteLock panics if db is nil.
func WriteLock(db *chai.DB) sync.Locker {
	if isNil(db) {
		panic(errNilDatabase.Error())
	}
	return engine.Open(db, nil).Lock()
}

// Backup copies the whole database, with the tables of the application, to the
// directory dir while it is used. The copy has everything that was acknowledged before
// the call, and is on disk when Backup returns nil.
//
// Backup creates dir, and returns an error if there is anything in it. Only the owner
// of dir can enter it: the tokens in a copy are as good as those in the database. If
// dir is on the same file system, the copy shares files with the database that neither
// changes, so it takes little time and space at first. If the process ends meanwhile,
// what it leaves in dir is named incomplete.
//
// To restore a copy, stop the program, move the copy to where the database was, and
// open it with [chai.Open]. It must be all that is there. Copy the directory of an open
// database with Backup only. The other ways give copies that can't be opened, and when
// they are taken in the same process, closing the file pebble/LOCK also gives up its
// lock: then a second process can open the directory, and destroy what both write.
//
// Backup can't copy a database that is in memory, is closed, or has failed for good.
// It may be called at any time from many goroutines.
func Backup(db *chai.DB, dir string) error {
	if isNil(db) {
		return errNilDatabase
	}
	if err := engine.Open(db, nil).Backup(dir); err != nil {
		return fmt.Errorf("chaistore: %w", err)
	}
	return nil
}

// Find calls [ChaiStore.FindCtx] with context.Background().
func (s *ChaiStore) Find(token string) (b []byte, exists bool, err error) {
	return s.FindCtx(context.Background(), token)
}

// FindCtx returns the data of the session with the given token. If the session does
// not exist or has expired, or if the token could never have been committed, exists
// is false and err is nil. The data belongs to the caller, and is not nil if exists
// is true.
func (s *ChaiStore) FindCtx(ctx context.Context, token string) (b []byte, exists bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, fmt.Errorf("chaistore: find: %w", err)
	}
	if len(token) > sessiontable.MaxKeyLen {
		return nil, false, nil
	}
	data, expiry, found, err := s.table.Find(ctx, token)
	if err != nil {
		return nil, false, fmt.Errorf("chaistore: find: %w", err)
	}
	if !found || !isActive(expiry, time.Now()) {
		return nil, false, nil
	}
	return data, true, nil
}

// Commit calls [ChaiStore.CommitCtx] with context.Background().
func (s *ChaiStore) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// CommitCtx adds the session to the store, or overwrites its data and expiry. When it
// returns nil, the session is on disk.
//
// The session is found until expiry, which is stored in microseconds and is at most
// the end of the year 9999. Nil data is stored as empty data. A token of more than
// 100 bytes is refused with [ErrTokenTooLong], data of more than 16 MiB with
// [ErrDataTooLarge].
func (s *ChaiStore) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if len(token) > sessiontable.MaxKeyLen {
		return fmt.Errorf("chaistore: commit: %w", ErrTokenTooLong)
	}
	if len(b) > maxDataLen {
		return fmt.Errorf("chaistore: commit: %w", ErrDataTooLarge)
	}
	if err := s.table.Upsert(ctx, token, b, expiry); err != nil {
		return fmt.Errorf("chaistore: commit: %w", err)
	}
	return nil
}

// Delete calls [ChaiStore.DeleteCtx] with context.Background().
func (s *ChaiStore) Delete(token string) error {
	return s.DeleteCtx(context.Background(), token)
}

// DeleteCtx deletes the session with the given token. If there is none, it returns
// nil. When it returns nil, the deletion is on disk.
//
// The end of ctx does not stop it: a visitor who signs out and closes the tab, which
// cancels the context of the request, is signed out. So it may wait for the
// application for 10 seconds, as every write may, whatever the deadline of ctx.
//
// SCS's RenewToken deletes a session and commits it under a new token later, with the
// context of the request. Serve requests that renew a token with
// [context.WithoutCancel], or the session of a visitor who goes away meanwhile ends.
func (s *ChaiStore) DeleteCtx(ctx context.Context, token string) error {
	ctx = context.WithoutCancel(ctx)
	if len(token) > sessiontable.MaxKeyLen {
		return nil
	}
	if err := s.table.Delete(ctx, token); err != nil {
		return fmt.Errorf("chaistore: delete: %w", err)
	}
	return nil
}

// All calls [ChaiStore.AllCtx] with context.Background().
func (s *ChaiStore) All() (map[string][]byte, error) {
	return s.AllCtx(context.Background())
}

// AllCtx returns the data of all active sessions by token. Unless there is an error,
// the map is not nil. It belongs to the caller. Sessions that are committed or
// deleted meanwhile may or may not be in it. To go through many sessions without
// having all of them in memory, use [ChaiStore.Sessions].
func (s *ChaiStore) AllCtx(ctx context.Context) (map[string][]byte, error) {
	all := make(map[string][]byte)
	for session, err := range s.Sessions(ctx) {
		if err != nil {
			return nil, err
		}
		all[session.Token] = session.Data
	}
	return all, nil
}

// isActive reports whether a session has not expired yet: it expires at its expiry.
// [sessiontable.Table.DeleteExpired] deletes the sessions that are not active.
func isActive(expiry, now time.Time) bool {
	return expiry.After(now)
}
