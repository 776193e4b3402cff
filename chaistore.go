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
// A commit has reached the disk when it returns. Commits that come at the same time
// share one fsync. A Chai database can be opened by one process at a time.
//
// # Sharing the database
//
// The application may keep its own tables in the same database. The store reads and
// writes beneath Chai's transactions, so its reads never wait for them, and its
// writes wait for one that writes without deadlocking it. One goroutine that writes
// with Chai needs nothing else. Several deadlock each other in Chai, unless each of
// them uses [Update] or holds the [WriteLock].
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
	defaultCacheSize       = 16 << 20
)

// ErrTokenTooLong is the error of committing a session whose token has more than
// 100 bytes. The tokens that SCS makes have 43. Chai confuses rows whose keys are
// longer than 127 bytes.
var ErrTokenTooLong = fmt.Errorf("token is longer than %d bytes", sessiontable.MaxKeyLen)

// ErrDataTooLarge is the error of committing a session with more than 16 MiB of
// data. Such a commit takes about half a second, in which nobody else can commit.
var ErrDataTooLarge = fmt.Errorf("data is larger than %d MiB", maxDataLen>>20)

const maxDataLen = 16 << 20

// ErrEnded is the error of committing a session that was deleted, by a store that
// remembers it: see [Config.RememberEnded].
var ErrEnded = sessiontable.ErrEnded

// ErrOwnerTooLong is the error of committing a session whose owner has more than 100
// bytes: see [Config.Owner].
var ErrOwnerTooLong = sessiontable.ErrOwnerTooLong

// Config says how [NewWithConfig] makes a store. The zero Config makes the store
// that [New] makes.
type Config struct {
	// TableName is the name of the table that holds the sessions: letters, digits
	// and underscores, not starting with a digit, at most 100 bytes, and not a
	// keyword of SQL. Default: "sessions".
	TableName string

	// CleanupInterval is the time between two sweeps for expired sessions. If it
	// is negative, there are none. Default: 5 minutes.
	CleanupInterval time.Duration

	// CreateTable makes NewWithConfig create the table if it does not exist.
	// Default: false.
	CreateTable bool

	// CacheSize is how many bytes of memory the copies of sessions that were found or
	// committed lately may take, the bookkeeping included. All stores on a database
	// share one cache, which is as large as the largest that one of them asks for. A
	// negative size asks for none. Default: 16 MiB, which hold 27,000 sessions of 300
	// bytes.
	CacheSize int64

	// RememberEnded is for how long the store remembers that a session was deleted, by
	// Delete, DeleteFunc or DeleteOf, and refuses to commit it again, with [ErrEnded].
	// Without it, a session that is ended comes back if a request is being served
	// meanwhile that has loaded it before and commits it afterwards. It should be
	// longer than any request takes, such as 10 minutes. All stores on the table that
	// remember share what they remember, about 60 bytes for each session, until the
	// process ends.
	//
	// A request that renews its token (RenewToken) while its session is ended goes on
	// under the new token: to end a user's sessions for good, refuse the user, too.
	// RenewToken deletes the session with the old token, so requests that are being
	// served with it get ErrEnded. Default: 0, nothing is remembered.
	RememberEnded time.Duration

	// Owner returns whose session it is that has the given data, such as the ID of a
	// user, and "" if it is nobody's. [OwnerByKey] makes one for the usual case. The
	// store creates a second table for them, whose name is TableName with "_owners"
	// behind it. [ChaiStore.SessionsOf] and [ChaiStore.DeleteOf] use it, and the
	// application's SQL may read its columns, token and owner. When Owner changes, drop
	// that table before you make the store, which then builds it anew.
	//
	// Owner is called once for each commit, by the goroutine that commits, and for
	// what SessionsOf finds; it must not change the data. A panic in it is an error of
	// that commit. An owner has at most 100 bytes: a commit with a longer one fails
	// with [ErrOwnerTooLong]. Default: nil, no owners.
	Owner func(data []byte) string

	// Logger gets an error for each failed sweep and when writing hangs, and a line
	// for each sweep at debug level. It never gets tokens or data.
	// Default: what slog.Default returns at that time.
	Logger *slog.Logger
}

// ChaiStore is an SCS session store on a Chai database. Its methods may be
// called from many goroutines.
//
// Each method has a twin that takes a context. A call whose context has ended
// returns the context's error and writes nothing. A write whose context ends while
// it waits, for other writes or for the application, does the same; once it has
// begun, it is finished. The methods without a context never give up waiting.
//
// A write that takes longer than 10 seconds returns an error, which does not tell
// whether it will still happen: a transaction of the application may be open all
// the while, or its goroutines may have deadlocked each other in Chai. Further
// writes return it at once until the hang has ended. Find, All and Sessions are not
// affected.
//
// When the engine fails in a way that it can't recover from, such as a full disk
// or a closed database, every call that needs it returns an error at once, until
// the database is opened again, with a new store on it.
type ChaiStore struct {
	table   *sessiontable.Table
	logger  func() *slog.Logger
	cleanup *cleanup // nil if there is no cleanup goroutine
}

// New returns a store that keeps its sessions in the table "sessions" of db, and
// deletes the expired ones every 5 minutes until [ChaiStore.StopCleanup].
//
// New does not touch the database, so that the table may be created afterwards.
// As long as it does not exist, calls of the store return an error that says so.
// New panics if db is nil; [NewWithConfig] returns an error instead.
func New(db *chai.DB) *ChaiStore {
	return NewWithCleanupInterval(db, defaultCleanupInterval)
}

// NewWithCleanupInterval is like [New] with another time between two sweeps for
// expired sessions. With 0, or less, there are none: [ChaiStore.DeleteExpired]
// makes one.
func NewWithCleanupInterval(db *chai.DB, cleanupInterval time.Duration) *ChaiStore {
	if isNil(db) {
		panic(errNilDatabase.Error())
	}
	s := newStore(db, Config{TableName: defaultTableName})
	s.startCleanup(cleanupInterval)
	return s
}

// NewWithConfig returns a store as cfg describes it. It returns an error if db is
// nil, if the table's name can't be used, and if the table does not exist or is
// not one of sessions: its columns are token of type TEXT, data of type BLOB and
// expiry of type TIMESTAMP, in this order, token is its primary key, and it has no
// other constraints. Indexes on token and expiry that are not unique are allowed.
//
// To create the table is a transaction of Chai, as in [Update]: when other
// goroutines write with Chai, create the store before they start.
func NewWithConfig(db *chai.DB, cfg Config) (*ChaiStore, error) {
	if isNil(db) {
		return nil, errNilDatabase
	}
	cfg.TableName = cmp.Or(cfg.TableName, defaultTableName)
	if err := sessiontable.CheckName(db, cfg.TableName); err != nil {
		return nil, fmt.Errorf("chaistore: %w", err)
	}
	s := newStore(db, cfg)
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
		logger: logger,
	}
}

// Update calls f with a transaction of Chai that writes, commits it if f returns
// nil, and rolls it back if f returns an error, which Update returns, or panics. It
// waits for other calls of Update and for the [WriteLock], and for the stores on db.
// If ctx ends before the transaction has begun, Update returns the context's error
// and does not call f. Afterwards ctx has no influence.
//
//	err := chaistore.Update(ctx, db, func(tx *chai.Tx) error {
//		return tx.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
//	})
//
// Writes of a store wait as long as f runs, so f must not write through one: it
// would wait for itself, until the store's write returns an error.
func Update(ctx context.Context, db *chai.DB, f func(tx *chai.Tx) error) error {
	if isNil(db) {
		return errNilDatabase
	}
	return engine.Update(ctx, db, f)
}

// WriteLock returns the lock that [Update] holds, for what does not fit into a
// function: transactions that begin and end in different places, statements that
// run in none, or several that no store may write between. It is held from before a
// transaction begins until it is committed or rolled back.
//
//	lock := chaistore.WriteLock(db)
//	lock.Lock()
//	defer lock.Unlock()
//	err := db.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
//
// Writes of a store wait as long as the lock is held.
func WriteLock(db *chai.DB) sync.Locker {
	return engine.Lock(db)
}

// Find is [ChaiStore.FindCtx] with a context that does not end.
func (s *ChaiStore) Find(token string) (b []byte, exists bool, err error) {
	return s.FindCtx(context.Background(), token)
}

// FindCtx returns the data of the session with the given token. If there is no
// such session, or it has expired, or the token is not one that could have been
// committed, exists is false and err is nil. The data is the caller's, and not
// nil if exists is true.
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

// Commit is [ChaiStore.CommitCtx] with a context that does not end.
func (s *ChaiStore) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// CommitCtx adds the session to the store, or overwrites its data and its expiry.
// When it returns nil, the session is on the disk.
//
// The session is found until expiry, which is kept in microseconds, and not
// beyond the year 9999. Nil data is kept as empty data. A token of more than 100
// bytes is refused with [ErrTokenTooLong], data of more than 16 MiB with
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

// Delete is [ChaiStore.DeleteCtx] with a context that does not end.
func (s *ChaiStore) Delete(token string) error {
	return s.DeleteCtx(context.Background(), token)
}

// DeleteCtx deletes the session with the given token. If there is none, it does
// nothing and returns nil. When it returns nil, the deletion is on the disk.
func (s *ChaiStore) DeleteCtx(ctx context.Context, token string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("chaistore: delete: %w", err)
	}
	if len(token) > sessiontable.MaxKeyLen {
		return nil
	}
	if err := s.table.Delete(ctx, token); err != nil {
		return fmt.Errorf("chaistore: delete: %w", err)
	}
	return nil
}

// All is [ChaiStore.AllCtx] with a context that does not end.
func (s *ChaiStore) All() (map[string][]byte, error) {
	return s.AllCtx(context.Background())
}

// AllCtx returns the data of all active sessions, by token. The map is not nil,
// even if there are none, and it is the caller's. Sessions that are committed or
// deleted meanwhile may be in it or not. To look at many sessions without having
// them all in memory, use [ChaiStore.Sessions].
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

// isActive reports whether a session has not expired: a session expires at its
// expiry. [sessiontable.Table.DeleteExpired] deletes all others.
func isActive(expiry, now time.Time) bool {
	return expiry.After(now)
}
