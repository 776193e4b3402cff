// Package chaistore stores the sessions of [github.com/alexedwards/scs/v2] in a Chai
// database.
//
//	db, err := chaistore.Open(ctx, "chai_db")
//	if err != nil {
//		return err
//	}
//	defer db.Close()
//	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
//	if err != nil {
//		return err
//	}
//	defer store.StopCleanup()
//	sessionManager := scs.New()
//	sessionManager.Store = store
//
// A commit that returns nil is on disk. Concurrent commits share one fsync. Only one process
// at a time can open a Chai database.
//
// # Sharing the database
//
// The application may keep its own tables in the same database. The store does not use
// Chai's transactions. Its reads never wait for one. Its writes wait while a writable one is
// open, but can't be caught in a deadlock.
//
// Goroutines that write with Chai can deadlock, unless each uses [Update] or holds the
// [WriteLock]. Each HTTP handler runs in a goroutine, so use Update there. A program in
// which only one goroutine writes with Chai needs neither.
//
// # Shutting down
//
// Stop the server and everything else that writes, call [ChaiStore.StopCleanup], and then
// close the database.
//
// Close waits for the application's transactions that write, and not for its other reads: end
// those first. If goroutines have deadlocked in Chai, it never returns. So limit its time,
// and then exit without it: acknowledged writes are on disk.
//
//	time.AfterFunc(7*time.Second, func() { log.Fatal("a request or a transaction does not end") })
//	server.Shutdown(context.Background())
//	store.StopCleanup()
//	db.Close()
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
	defaultMemory          = 64 << 20
)

// ErrClosed is returned by every call on a closed database.
var ErrClosed = engine.ErrClosed

// ErrBusy is returned by waiting writes when no write has ended for 10 seconds. From then
// on, every write returns it at once, until the current write ends. A write that returned
// ErrBusy may still take effect.
//
// The usual reason: goroutines of the application, such as two HTTP handlers, have
// deadlocked in Chai. Only the end of the process ends the deadlock: closing the database
// would never return. To avoid it, write with [Update] in all handlers. Other reasons: a
// transaction or the [WriteLock] was left open, a function passed to Update has written
// through a store, or the disk is full or does not answer.
var ErrBusy = engine.ErrBusy

// ErrReadOnly is returned by writes after the first disk failure, until the database is
// opened again. It wraps the reason, such as [syscall.ENOSPC]. Finds still return what was
// acknowledged. Free space or check the disk, and restart the program.
var ErrReadOnly = engine.ErrReadOnly

// ErrTokenTooLong is returned when committing a session whose token is longer than
// 100 bytes. SCS makes tokens of 43 bytes. Chai alone confuses rows whose keys are longer
// than 127 bytes.
var ErrTokenTooLong = fmt.Errorf("token is longer than %d bytes: use SCS's tokens, which have 43", sessiontable.MaxKeyLen)

// ErrDataTooLarge is returned when committing a session with more than 16 MiB of
// data. Committing that much takes about half a second, during which nobody else can
// commit. Waiting commits hold copies of up to 32 MiB together. Further ones wait for room.
var ErrDataTooLarge = fmt.Errorf("data is larger than %d MiB: keep large values elsewhere, and their names in the session", maxDataLen>>20)

const maxDataLen = 16 << 20

// ErrEnded is returned when committing a session that the store remembers as deleted:
// see [Config.RememberEnded]. Have the ErrorFunc of the session manager send the visitor to
// the sign-in page, and use [LoadAndSave], as in the example. ErrEnded is also the cause of
// a context from [ChaiStore.SessionContext] whose session has ended.
var ErrEnded = sessiontable.ErrEnded

// ErrOwnerTooLong is returned when committing a session whose owner, according to
// [Config.Owner], is longer than 100 bytes, and when asking for the sessions of such an
// owner.
var ErrOwnerTooLong = sessiontable.ErrOwnerTooLong

// ErrOwnerUnreadable is returned by [ChaiStore.SessionsOf] and [ChaiStore.DeleteOf] if
// [Config.Owner] returns an error for some sessions, each of which may belong to any owner.
// All other sessions of the owner have been returned or deleted. To find and end the
// unreadable ones, call [ChaiStore.DeleteFunc] with a function that returns true where Owner
// returns an error, as in its example.
//
// The error wraps one of Owner's, for [errors.Is] and [errors.As]. The text of Owner's error
// may quote the session, so only its type is named.
var ErrOwnerUnreadable = sessiontable.ErrOwnerUnreadable

// Config configures [NewWithConfig]. The zero Config has the defaults of [New].
type Config struct {
	// TableName is the name of the table of sessions: letters, digits and
	// underscores, not starting with a digit, at most 100 bytes, and not an SQL
	// keyword. Default: "sessions".
	TableName string

	// CleanupInterval is the time between two sweeps for expired sessions. The first sweep
	// comes after 1 to 2 % of it. If it is negative, only [ChaiStore.DeleteExpired] sweeps.
	// Less than a millisecond is refused. Default: 5 minutes.
	CleanupInterval time.Duration

	// CreateTable makes NewWithConfig create the table if it does not exist.
	// Default: false.
	CreateTable bool

	// Memory is the number of bytes that the database may take for speed:
	//
	//   - a quarter for copies of sessions that were recently found or committed, and for a
	//     filter of all tokens, by which a store knows what does not exist;
	//   - three eighths for blocks of its files;
	//   - three eighths for what is not in files yet.
	//
	// The filter takes a few bytes for each session. A small or new table has one at once, a
	// large one after the first sweep.
	//
	// Memory is allocated when needed: a database that is hardly used takes almost none.
	// Closing the database frees it; the copies and the filter are freed with the stores. With
	// cgo, only the copies and the filter are on Go's heap. The rest may take twice as much,
	// because C's allocator keeps freed memory.
	//
	// All stores on a database share the memory: the largest Memory counts. A negative one asks
	// for nothing beyond the 12 MB that Chai takes by itself. Less than a megabyte is refused.
	// Default: 64 MiB, which has room for copies of 26,000 sessions of 300 bytes. With many or
	// large sessions, more memory makes finds and commits faster.
	Memory int64

	// RememberEnded is how long the store remembers a session deleted by Delete,
	// DeleteFunc, DeleteOf or SQL, and refuses to commit it again, with [ErrEnded].
	// Without it, a request that has loaded the session before its deletion, and commits it
	// afterwards, brings it back. Choose a time longer than any request takes, such as 10
	// minutes. A negative time, and less than a millisecond, are refused. Default: 0, nothing
	// is remembered.
	//
	// The stores on a table share the ended sessions that they remember, until the process
	// ends. Each session takes about 60 bytes. A deletion with SQL counts once its transaction
	// is committed, and its time begins at the DELETE. It does not count if the same
	// transaction puts the session back, or drops or replaces the table. The store does not
	// remember sessions deleted by a sweep, or by a transaction that was open when the first
	// store was made.
	//
	// SCS's RenewToken deletes the session under the old token, so other requests that still
	// use that token get ErrEnded. A request that renews its token while its session is being
	// ended keeps the session under the new token: to end a user's sessions for good, also
	// refuse the user.
	RememberEnded time.Duration

	// Owner returns the owner of the session with the given data, such as a user ID, or ""
	// if it has none, for [ChaiStore.SessionsOf] and [ChaiStore.DeleteOf]. It must return
	// an error for data that it can't read, for example because a new version of the program
	// has renamed a type: see [ErrOwnerUnreadable]. [OwnerByKey] makes an Owner for the usual
	// case.
	//
	// Owner is called from several goroutines. It must not change the data, nor call
	// SessionsOf, DeleteOf, DeleteExpired or StopCleanup. If it panics, so does each call that
	// reads the session: return an error instead, which is logged, at most once a minute. All
	// stores on a table that have an Owner must use the same one. Default: nil, no owners.
	Owner func(data []byte) (owner string, err error)

	// Logger gets
	//
	//   - an error when a sweep fails, when writing hangs, and, at most once a minute, while
	//     the database can't write its files in the background;
	//   - a warning when Owner is not the one that has listed the sessions;
	//   - a line for each sweep, at debug level.
	//
	// It never gets tokens or data. It must not call StopCleanup, which waits for it.
	// Default: slog.Default(), looked up for each line.
	Logger *slog.Logger
}

// ChaiStore is an SCS session store on a Chai database. Its methods are safe for
// concurrent use.
//
// Find, Commit, Delete and All have variants that take a context. Deletions continue when
// their context ends: see [ChaiStore.DeleteCtx]. Any other call whose context is done
// returns the context's error and writes nothing. So does a write whose context ends while
// it waits for other writes, or for the application. A write that has begun is finished.
//
// If no write has ended for 10 seconds, waiting writes return [ErrBusy]. Find, All and
// Sessions don't wait for writes.
//
// The first disk failure makes the database read-only: see [ErrReadOnly]. Restart the
// program, or close the database, open it again, and make a new store on it. Close waits for
// the application's open transactions that write. Calls on a closed database return [ErrClosed].
//
// A copy of a store, even in another struct, works like the store. Calls of the zero
// ChaiStore return errors.
type ChaiStore struct {
	table   *sessiontable.Table
	cleanup *cleanup // nil if nothing is swept
}

// New returns a store that keeps sessions in the table "sessions" of db. It deletes
// expired sessions every 5 minutes, until [ChaiStore.StopCleanup].
//
// New does not look at the table, which may be created later. Until then, calls of the store
// return an error that says that the table does not exist. New panics if db is nil;
// [NewWithConfig] returns an error instead.
func New(db *chai.DB) *ChaiStore {
	return NewWithCleanupInterval(db, defaultCleanupInterval)
}

// NewWithCleanupInterval is like [New], but sweeps at the given interval. If it is 0 or
// negative, only [ChaiStore.DeleteExpired] sweeps. NewWithCleanupInterval panics if it is
// positive but less than a millisecond.
func NewWithCleanupInterval(db *chai.DB, cleanupInterval time.Duration) *ChaiStore {
	err := Config{CleanupInterval: cleanupInterval}.check()
	if isNil(db) {
		err = errNilDatabase
	}
	if err != nil {
		panic(err.Error())
	}
	s := newStore(db, Config{TableName: defaultTableName})
	s.startCleanup(cleanupInterval)
	return s
}

// NewWithConfig returns a store configured by cfg. It returns an error if
//
//   - db is nil or closed;
//   - a value of cfg makes no sense;
//   - the table does not exist, or is not a table of sessions. Its columns must be token
//     TEXT, data BLOB and expiry TIMESTAMP, in this order. The primary key must be token.
//     NOT NULL is allowed, and so are indexes on token and expiry that are not unique.
//     Nothing else is;
//   - the table shares its rows with another table or index. That happens when Chai alone
//     creates one of them, the process is killed, and Chai alone creates the other. The
//     error says how to copy the table.
//
// NewWithConfig creates tables in a transaction of Chai, like that of [Update]: if other
// goroutines write with Chai, make the store before they start. The context of a handle from
// [chai.DB.WithContext] has no effect on the store.
func NewWithConfig(db *chai.DB, cfg Config) (*ChaiStore, error) {
	if isNil(db) {
		return nil, errNilDatabase
	}
	if err := cfg.check(); err != nil {
		return nil, err
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
	s.table.CollectFew(context.Background())
	s.startCleanup(cmp.Or(cfg.CleanupInterval, defaultCleanupInterval))
	return s, nil
}

// minMemory is less than anyone means to set: a number of megabytes, for example.
const minMemory = 1_000_000

// check returns an error unless the numbers of cfg make sense. Times of less than a
// millisecond have been set without a unit: they would keep a processor busy with sweeps,
// or remember nothing.
func (cfg Config) check() error {
	short := func(d time.Duration) bool { return 0 < d && d < time.Millisecond }
	switch {
	case short(cfg.CleanupInterval):
		return fmt.Errorf("chaistore: the interval of the cleanup is %v: set a time with a unit, such as 5*time.Minute, or a negative one for no sweeps", cfg.CleanupInterval)
	case short(cfg.RememberEnded) || cfg.RememberEnded < 0:
		return fmt.Errorf("chaistore: Config.RememberEnded is %v: set a time longer than any request takes, such as 10*time.Minute", cfg.RememberEnded)
	case 0 < cfg.Memory && cfg.Memory < minMemory:
		return fmt.Errorf("chaistore: Config.Memory is %d bytes: set at least a megabyte, such as 64<<20, or a negative number for none", cfg.Memory)
	}
	return nil
}

var (
	errNilDatabase = errors.New("chaistore: the database is nil: pass one that was opened")
	errZeroStore   = errors.New("the store is the zero ChaiStore: make it with New or NewWithConfig")
)

func isNil(db *chai.DB) bool {
	return db == nil || db.DB == nil
}

// usable returns why the store can't be used, or nil.
func (s *ChaiStore) usable() error {
	if s.table == nil {
		return errZeroStore
	}
	return s.table.CheckDatabase()
}

// newStore returns a store without a cleanup.
func newStore(db *chai.DB, cfg Config) *ChaiStore {
	logger := slog.Default
	if cfg.Logger != nil {
		logger = func() *slog.Logger { return cfg.Logger }
	}
	return &ChaiStore{
		table: sessiontable.New(db, sessiontable.Options{
			Name:          cfg.TableName,
			Memory:        cmp.Or(cfg.Memory, defaultMemory),
			RememberEnded: cfg.RememberEnded,
			OwnerOf:       cfg.Owner,
			Logger:        logger,
		}),
	}
}

// Update calls f with a writable transaction of Chai. If f returns nil, Update commits
// the transaction. If f returns an error, Update rolls the transaction back and returns
// the same error. If f panics, Update rolls back and panics on.
//
// Don't confuse it with Chai's db.Update. Goroutines that call that, or db.Exec, at the same
// time can deadlock and never return.
//
// Update waits for other calls of Update, for the [WriteLock], and for the stores on db. If
// ctx ends while it waits, Update returns ctx's error. After 10 seconds, it returns
// [ErrBusy]. In both cases, f was not called. Once f is called, ctx has no effect.
//
//	err := chaistore.Update(ctx, db, func(tx *chai.Tx) error {
//		return tx.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
//	})
//
// While f runs, nobody else can write. So f must write with tx: db.Exec would wait for f
// and never return. f must not call Update, nor write through a store: that call would wait
// for f, and return an error after 10 seconds. The same goes for [ChaiStore.SessionsOf] and
// [ChaiStore.DeleteOf], which may write.
//
// f must not commit or roll back tx. If it does, and returns nil, Update returns an error
// that says so. What f has committed is kept, whatever f returns. Don't use tx after it has
// ended: writing to it panics. If f uses tx in other goroutines, f must wait for them.
//
// A rollback restores what was there; Chai alone loses index entries of rows that were
// updated or deleted. If the disk fails while f runs, Chai panics in f, and Update rolls
// back what it can and re-panics. Stores still read what was committed before.
func Update(ctx context.Context, db *chai.DB, f func(tx *chai.Tx) error) error {
	switch {
	case isNil(db):
		return errNilDatabase
	case f == nil:
		return errors.New("chaistore: the function passed to Update is nil")
	}
	var failure error // of f, which is returned as it is
	err := engine.Open(db, nil).Update(ctx, func(tx *chai.Tx) error {
		failure = f(tx)
		return failure
	})
	if failure != nil || err == nil {
		return failure
	}
	return fmt.Errorf("chaistore: update: %w", err)
}

// WriteLock returns the lock that [Update] holds, for work that does not fit into a
// function: transactions that begin and end in different places, statements outside any
// transaction, or several statements between which no store may write. Hold it from before
// a transaction begins until it is committed or rolled back. Lock waits without a limit.
//
//	lock := chaistore.WriteLock(db)
//	lock.Lock()
//	defer lock.Unlock()
//	err := db.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
//
// While the lock is held, writes of stores wait, and return [ErrBusy] after 10 seconds.
// WriteLock panics if db is nil.
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
// Backup makes dir, and returns an error if there is anything in it, or if it is in the
// database's own directory. Only the owner of dir can enter it: the tokens in a copy are as
// good as those in the database. On a file system without modes, such as FAT, Backup
// returns an error at once, unless it is mounted for its user alone.
//
// If ctx ends, or the database is closed, Backup returns an error. On any error, it leaves
// nothing behind. If the process ends during a backup, dir keeps a part of the copy, in a
// directory named incomplete. The copy shares no file with the database: to remove an old
// copy, remove its directory.
//
// Only the process that has the database open can copy it: call Backup in a goroutine with a
// ticker, as in the example, or in an HTTP handler for administrators. Don't copy the
// directory of an open database in any other way. Such a copy can't be opened. If this
// process makes it, closing the file pebble/LOCK gives up the lock. A second process can
// then open the database, and the two destroy it.
//
// To restore a copy, stop the program, move the database away, move the copy to where it
// was, and start the program. If the copy was moved into the database instead, [Open]
// refuses it. Sessions that have ended since the backup are back: people who have signed out
// are signed in again. To prevent that, delete all sessions with [ChaiStore.DeleteFunc].
//
// Backup can't copy a database that is in memory, closed or read-only. It may be called at
// any time from many goroutines.
func Backup(ctx context.Context, db *chai.DB, dir string) error {
	if isNil(db) {
		return errNilDatabase
	}
	if err := engine.Open(db, nil).Backup(ctx, dir); err != nil {
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
	if len(token) > sessiontable.MaxKeyLen || s.table == nil {
		if err := s.usable(); err != nil {
			return nil, false, fmt.Errorf("chaistore: find: %w", err)
		}
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
// The session is found until expiry, which is stored in microseconds, and is at most the end
// of the year 9999. An expiry before 1970 is stored as 1970. Nil data is stored as empty
// data. A token of more than 100 bytes is refused with [ErrTokenTooLong], data of more than
// 16 MiB with [ErrDataTooLarge].
func (s *ChaiStore) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if err := s.usable(); err != nil {
		return fmt.Errorf("chaistore: commit: %w", err)
	}
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

// DeleteCtx deletes the session with the given token. If there is none, it returns nil,
// usually without waiting. When it returns nil, the deletion is on disk.
//
// DeleteCtx continues when ctx ends, even beyond its deadline: a visitor who signs out and
// closes the tab, which cancels the context of the request, is signed out.
//
// SCS's RenewToken deletes the session, and SCS commits it under a new token later, with the
// context that the request had when it reached [LoadAndSave]. If the visitor goes away in
// between, the session is lost. So give such requests a context from [context.WithoutCancel]
// before LoadAndSave.
func (s *ChaiStore) DeleteCtx(ctx context.Context, token string) error {
	ctx = context.WithoutCancel(ctx)
	if err := s.usable(); err != nil {
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
