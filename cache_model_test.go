package chaistore_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

var modelTime = flag.Duration("model", 6*time.Second, "how long TestFindsAreNeverStale runs")

// TestFindsAreNeverStale lets two stores and an application change the same sessions
// in every possible way, and compares each find with a model. A find must not be
// older than the writes acknowledged before it began, or than the earlier finds of
// its goroutine, and it must not return anything that was never committed.
func TestFindsAreNeverStale(t *testing.T) {
	testdb.Watchdog(t, *modelTime+2*time.Minute)
	caches := []struct {
		name string
		size int64
	}{{"large", 0}, {"small", 40 << 10}, {"none", -1}}
	for i, cache := range caches {
		t.Run(cache.name, func(t *testing.T) {
			forEachTable(t, func(t *testing.T, db *chai.DB) {
				m := newModel(t, db, cache.size)
				m.run(uint64(i), *modelTime/time.Duration(2*len(caches)))
				finds, hits := uint64(0), uint64(0)
				for _, s := range m.stores {
					finds += s.Stats().Finds
					hits += s.Stats().CacheHits
				}
				if (hits > 0) != (cache.size >= 0) {
					t.Errorf("the cache answered %d of %d finds", hits, finds)
				}
				t.Logf("the cache answered %d of %d finds", hits, finds)
			})
		})
	}
}

const modelSessions = 24

// A model knows what the sessions of a table must be.
type model struct {
	t        *testing.T
	db       *chai.DB
	indexed  bool
	stores   [2]*chaistore.ChaiStore
	sessions [modelSessions]modelSession
	missing  atomic.Int64 // odd while there is no table
	failed   atomic.Bool

	// An application may write without the write lock if none of its other goroutines
	// write. SQL's BEGIN covers everything that it does with Chai meanwhile. A
	// goroutine that does either locks app. All others of the application lock it for
	// reading.
	app sync.RWMutex
}

// A modelSession is the model's knowledge of a session. It is locked while the
// session is changed in the database, so its versions follow each other.
type modelSession struct {
	sync.Mutex
	token string

	known   sync.Mutex
	changes []modelChange // by version
	acked   int           // the latest acknowledged version
}

// A modelChange is the change that a version makes to the session.
type modelChange int

const (
	modelCommitted  modelChange = iota // the session has this version now
	modelEnded                         // it is not found any more
	modelRolledBack                    // nothing has changed
)

func newModel(t *testing.T, db *chai.DB, cacheSize int64) *model {
	m := &model{t: t, db: db, indexed: strings.HasSuffix(t.Name(), "indexed")}
	for i, size := range []int64{cacheSize, -1} {
		var err error
		m.stores[i], err = chaistore.NewWithConfig(db, chaistore.Config{
			CleanupInterval: -1, CacheSize: size, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range m.sessions {
		m.sessions[i].token = fmt.Sprint("session", i)
		m.sessions[i].changes = []modelChange{modelEnded}
	}
	return m
}

// run lets all clients work for a time, and then compares the sessions that are left.
func (m *model) run(seed uint64, d time.Duration) {
	ctx, cancel := context.WithTimeout(m.t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	for g, work := range []func(c *modelClient){
		(*modelClient).find, (*modelClient).find, (*modelClient).find, (*modelClient).find,
		(*modelClient).write, (*modelClient).write, (*modelClient).write, (*modelClient).sweep,
		(*modelClient).selectRow, (*modelClient).writeSQLWithLock, (*modelClient).writeSQLWithLock, (*modelClient).writeSQLAlone,
	} {
		wg.Go(func() {
			c := &modelClient{model: m, ctx: ctx, rng: rand.New(rand.NewPCG(seed, uint64(g)))}
			for ctx.Err() == nil && !m.failed.Load() {
				work(c)
			}
		})
	}
	wg.Wait()
	c := &modelClient{model: m, ctx: m.t.Context(), rng: rand.New(rand.NewPCG(seed, 100))}
	for i := range m.sessions {
		c.findWith(m.stores[0], i)
		c.findWith(m.stores[1], i)
	}
}

func (m *model) fail(format string, args ...any) {
	m.failed.Store(true)
	m.t.Errorf(format, args...)
}

// begin adds a version that may be committed from now on.
func (s *modelSession) begin(c modelChange) (version int) {
	s.known.Lock()
	defer s.known.Unlock()
	s.changes = append(s.changes, c)
	return len(s.changes) - 1
}

// end records that a version was committed, or that it never will be.
func (s *modelSession) end(version int, err error) {
	s.known.Lock()
	defer s.known.Unlock()
	if err != nil {
		s.changes[version] = modelRolledBack
	} else if s.changes[version] != modelRolledBack {
		s.acked = version
	}
}

// A modelClient is a goroutine that works with the sessions.
type modelClient struct {
	*model
	ctx  context.Context
	rng  *rand.Rand
	seen [modelSessions]int // the versions found last
}

func (c *modelClient) store() *chaistore.ChaiStore { return c.stores[c.rng.IntN(len(c.stores))] }

// pause lets the others work, so that the cache is used between two changes.
func (c *modelClient) pause() { time.Sleep(time.Duration(c.rng.IntN(int(2 * time.Millisecond)))) }

func (c *modelClient) find() {
	i := c.rng.IntN(modelSessions)
	for range 1 + c.rng.IntN(4) {
		c.findWith(c.store(), i)
	}
}

// findWith looks for a session, and compares it with the model.
func (c *modelClient) findWith(store *chaistore.ChaiStore, i int) {
	s := &c.sessions[i]
	s.known.Lock()
	oldest := max(s.acked, c.seen[i])
	s.known.Unlock()
	missing := c.missing.Load()

	data, found, err := store.Find(s.token)
	if err != nil {
		c.mayFail(missing, "Find", err)
		return
	}

	s.known.Lock()
	defer s.known.Unlock()
	if !found {
		for v := oldest; v < len(s.changes); v++ {
			if s.changes[v] == modelEnded {
				c.seen[i] = v
				return
			}
		}
		c.fail("%s is missing, but exists since version %d: %v", s.token, oldest, s.changes[oldest:])
		return
	}
	version, token := 0, ""
	if _, err := fmt.Sscan(string(data), &version, &token); err != nil || token != s.token {
		c.fail("%s has the data %.50q", s.token, data)
		return
	}
	switch {
	case version < oldest:
		c.fail("found version %d of %s, after version %d", version, s.token, oldest)
	case version >= len(s.changes) || s.changes[version] != modelCommitted:
		c.fail("found version %d of %s, which was never committed", version, s.token)
	}
	c.seen[i] = version
}

// mayFail fails the test, unless the table may have been missing at some time since
// the value missing was read.
func (c *modelClient) mayFail(missing int64, what string, err error) {
	if missing%2 == 0 && c.missing.Load() == missing || !strings.Contains(err.Error(), "does not exist") {
		c.fail("%s: %v", what, err)
	}
}

// data returns the data and the expiry of a version. Each version has another expiry,
// because Chai can undo the changes of an index entry only once.
func (c *modelClient) data(s *modelSession, version int) ([]byte, time.Time) {
	padding := bytes.Repeat([]byte{'x'}, c.rng.IntN(2000))
	return fmt.Appendf(nil, "%d %s %s", version, s.token, padding), inAnHour().Add(time.Duration(version) * time.Millisecond)
}

// write changes a session through a store.
func (c *modelClient) write() {
	i := c.rng.IntN(modelSessions)
	s := &c.sessions[i]
	s.Lock()
	defer s.Unlock()
	change := modelCommitted
	if c.rng.IntN(4) == 0 {
		change = modelEnded
	}
	version := s.begin(change)
	data, expiry := c.data(s, version)
	var err error
	switch n := c.rng.IntN(10); {
	case change == modelCommitted && n < 2: // if it gives up waiting, nothing is written
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.rng.IntN(int(time.Millisecond))))
		err = c.store().CommitCtx(ctx, s.token, data, expiry)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			s.end(version, err)
			return
		}
	case change == modelCommitted:
		err = c.store().Commit(s.token, data, expiry)
	case n < 2:
		err = c.store().Commit(s.token, data, anHourAgo())
	case n < 4:
		_, err = c.store().DeleteFunc(context.Background(), func(other chaistore.Session) bool { return other.Token == s.token })
	default:
		err = c.store().Delete(s.token)
	}
	if err != nil {
		c.fail("change %s: %v", s.token, err)
	}
	s.end(version, err)
	c.findWith(c.store(), i)
}

func (c *modelClient) sweep() {
	c.pause()
	missing := c.missing.Load()
	if _, err := c.store().DeleteExpired(c.ctx); err != nil && c.ctx.Err() == nil {
		c.mayFail(missing, "DeleteExpired", err)
	}
}

// selectRow begins a reading transaction, as an application does all the time.
func (c *modelClient) selectRow() {
	c.pause()
	c.app.RLock()
	defer c.app.RUnlock()
	missing := c.missing.Load()
	result, err := c.db.Query("SELECT data FROM sessions WHERE token = ?", c.sessions[c.rng.IntN(modelSessions)].token)
	if err == nil {
		err = errors.Join(result.Iterate(func(*chai.Row) error { return nil }), result.Close())
	}
	if err != nil {
		c.mayFail(missing, "SELECT", err)
	}
}

// writeSQLWithLock changes a session with SQL, as one of several goroutines.
func (c *modelClient) writeSQLWithLock() {
	c.pause()
	c.changeWithSQL(func(change func(exec execFunc) error) error {
		c.app.RLock()
		defer c.app.RUnlock()
		if c.rng.IntN(2) == 0 {
			return chaistore.Update(context.Background(), c.db, func(tx *chai.Tx) error { return change(tx.Exec) })
		}
		lock := chaistore.WriteLock(c.db)
		lock.Lock()
		defer lock.Unlock()
		return c.db.Update(func(tx *chai.Tx) error { return change(tx.Exec) })
	})
}

// writeSQLAlone changes a session with SQL, as the only goroutine that does so: with
// or without the write lock, and with or without SQL's BEGIN. Now and then it
// replaces the table.
func (c *modelClient) writeSQLAlone() {
	c.pause()
	if c.rng.IntN(20) == 0 {
		c.replaceTable()
		return
	}
	c.changeWithSQL(func(change func(exec execFunc) error) error {
		c.app.Lock()
		defer c.app.Unlock()
		if c.rng.IntN(4) == 0 {
			lock := chaistore.WriteLock(c.db)
			lock.Lock()
			defer lock.Unlock()
		}
		if c.rng.IntN(2) == 0 {
			return c.db.Update(func(tx *chai.Tx) error { return change(tx.Exec) })
		}
		return c.beginAndCommit(func() error { return change(c.db.Exec) })
	})
}

func (c *modelClient) beginAndCommit(change func() error) error {
	if err := c.db.Exec("BEGIN"); err != nil {
		return err
	}
	if err := change(); err != nil {
		return errors.Join(err, c.db.Exec("ROLLBACK"))
	}
	return c.db.Exec("COMMIT")
}

type execFunc func(sql string, args ...any) error

var errRollBack = errors.New("roll back")

// changeWithSQL changes a session in a transaction of the application, which transact
// runs, or rolls the change back.
func (c *modelClient) changeWithSQL(transact func(change func(exec execFunc) error) error) {
	i := c.rng.IntN(modelSessions)
	s := &c.sessions[i]
	s.Lock()
	defer s.Unlock()
	change := []modelChange{modelCommitted, modelCommitted, modelEnded, modelRolledBack}[c.rng.IntN(4)]
	if c.indexed && change == modelRolledBack {
		// If a transaction reads after it wrote, as it does to maintain an index, Chai
		// can't undo the second change of a row between two commits.
		return
	}
	version := s.begin(change)
	data, expiry := c.data(s, version)
	err := transact(func(exec execFunc) error {
		if change == modelEnded || change == modelRolledBack && c.rng.IntN(2) == 0 {
			if err := exec("DELETE FROM sessions WHERE token = ?", s.token); err != nil {
				return err
			}
		} else {
			if err := exec("UPDATE sessions SET data = ?, expiry = ? WHERE token = ?", data, expiry, s.token); err != nil {
				return err
			}
			err := exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", s.token, data, expiry)
			if err != nil {
				return err
			}
		}
		if change == modelRolledBack {
			return errRollBack
		}
		return nil
	})
	if (change == modelRolledBack) != errors.Is(err, errRollBack) || change != modelRolledBack && err != nil {
		c.fail("change %s with SQL: %v", s.token, err)
	}
	s.end(version, err)
	c.findWith(c.store(), i)
}

// replaceTable drops the table and creates it again, in one transaction or in
// several.
func (c *modelClient) replaceTable() {
	versions := make([]int, modelSessions)
	for i := range c.sessions {
		c.sessions[i].Lock()
		defer c.sessions[i].Unlock()
		versions[i] = c.sessions[i].begin(modelEnded)
	}
	c.app.Lock()
	defer c.app.Unlock()
	replace := func(exec execFunc) error {
		statements := []string{"DROP TABLE sessions", testdb.CreateTable}
		if c.indexed {
			statements = append(statements, testdb.CreateIndex)
		}
		for _, sql := range statements {
			if err := exec(sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	}
	var err error
	if c.rng.IntN(2) == 0 {
		err = c.db.Update(func(tx *chai.Tx) error { return replace(tx.Exec) })
	} else {
		c.missing.Add(1)
		err = replace(c.db.Exec)
		c.missing.Add(1)
	}
	if err != nil {
		c.fail("replace the table: %v", err)
	}
	for i := range c.sessions {
		c.sessions[i].end(versions[i], err)
		c.findWith(c.store(), i)
	}
}

// A transaction of several statements writes out its changes before it reads. When it
// is rolled back, Chai lets others see these changes until it has undone them.
func TestFindSeesNoRollback(t *testing.T) {
	testdb.Watchdog(t, 3*time.Minute)
	db := testdb.Memory(t)
	s := newStore(t, db)
	for i := range 300 {
		token := fmt.Sprint("session", i) // Chai can undo only one change of each
		commit(t, s, token, "one", inAnHour())
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if data, found, err := s.Find(token); err != nil || !found || string(data) != "one" {
						t.Errorf("Find = %q, %v, %v; want one", data, found, err)
						return
					}
				}
			})
		}
		err := db.Update(func(tx *chai.Tx) error {
			for range 2 {
				if err := tx.Exec("UPDATE sessions SET data = ? WHERE token = ?", []byte("two"), token); err != nil {
					return err
				}
			}
			return errors.New("roll back")
		})
		if err == nil {
			t.Fatal("no error")
		}
		cancel()
		wg.Wait()
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
}
