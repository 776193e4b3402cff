package modeltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

// TestFindsAreNeverStale lets stores and an application change the sessions of two
// tables in every possible way, and compares each find with a model. A find must not
// be older than the writes acknowledged before it began, or than the earlier finds of
// its goroutine, and it must not return anything that was never committed, or that
// belongs to the other table.
func TestFindsAreNeverStale(t *testing.T) {
	testdb.Slow(t)
	t.Parallel()
	testdb.Watchdog(t, *modelTime+2*time.Minute)
	caches := []struct {
		name string
		size int64
	}{{"large", 0}, {"small", 160 << 10}, {"none", -1}}
	for i, cache := range caches {
		t.Run(cache.name, func(t *testing.T) {
			forEachTable(t, func(t *testing.T, db *chai.DB, indexed bool) {
				m := newModel(t, db, indexed, cache.size)
				m.run(uint64(i), *modelTime/time.Duration(2*len(caches)))
				finds, hits := uint64(0), uint64(0)
				for _, s := range m.stores {
					finds += s.Stats().Finds
					hits += s.Stats().CacheHits
				}
				if (hits > 0) != (cache.size >= 0) {
					t.Errorf("the cache answered %d of %d finds", hits, finds)
				}
				t.Logf("the cache answered %d of %d finds; the application did %v", hits, finds, m.did)
			})
		})
	}
}

const modelSessions = 24

// The two tables of sessions. Each has the same tokens.
var tables = [2]string{"sessions", "other"}

// A model knows what the sessions of the tables must be.
type model struct {
	t        *testing.T
	db       *chai.DB
	indexed  bool
	stores   []*chaistore.ChaiStore // of tables[0], tables[1], tables[0]
	sessions [modelSessions]atomic.Pointer[modelSession]
	tables   [2]history   // noTable, or another state
	states   atomic.Int64 // the number of states
	failed   atomic.Bool

	// An application may write without the write lock if none of its other goroutines
	// write. SQL's BEGIN covers everything that it does with Chai meanwhile. A
	// goroutine that does either locks app. All others of the application lock it for
	// reading.
	app sync.RWMutex
	did map[string]int // by writeSQLAlone
}

// A modelSession has the histories of a token, one for each table. It is locked while
// the session is changed in the database, or replaced by one with another token. A
// session that was replaced has ended in both tables, and nobody changes it any more.
type modelSession struct {
	sync.Mutex
	token string
	in    [2]history
}

func (m *model) newSession(token string) *modelSession {
	s := &modelSession{token: token}
	for i := range s.in {
		s.in[i].begin(ended)
	}
	return s
}

// lock locks the session of a slot, and returns it. It can't be replaced then.
func (m *model) lock(i int) *modelSession {
	for {
		s := m.sessions[i].Load()
		s.Lock()
		if m.sessions[i].Load() == s {
			return s
		}
		s.Unlock() // it was replaced meanwhile
	}
}

func newModel(t *testing.T, db *chai.DB, indexed bool, memory int64) *model {
	m := &model{t: t, db: db, indexed: indexed, did: make(map[string]int)}
	if memory > 0 { // less than a Config may ask for
		engine.Open(db, nil).UseMemory(memory)
		memory = -1
	}
	for i, cfg := range []chaistore.Config{
		{TableName: tables[0], Memory: memory},
		{TableName: tables[1], Memory: memory},
		{TableName: tables[0], Memory: -1},
	} {
		m.stores = append(m.stores, newStore(t, db, cfg))
		m.tables[i%2].begin(ended)
	}
	if indexed {
		testdb.Exec(t, db, "CREATE INDEX idx_other_expiry ON other(expiry)")
	}
	testdb.Exec(t, db, "CREATE TABLE visits (id INTEGER PRIMARY KEY, at INTEGER, page TEXT)")
	// Enough for Chai to sort them in a transient table, which it commits in parts.
	page := strings.Repeat("x", 2000)
	for i := range 400 {
		testdb.Exec(t, db, fmt.Sprintf("INSERT INTO visits (id, at, page) VALUES (%d, %d, '%s')", i, 7*i%400, page))
	}
	for i := range m.sessions {
		m.sessions[i].Store(m.newSession(fmt.Sprint("session", i)))
	}
	return m
}

// run lets all clients work for a time, and then compares the sessions that are left.
func (m *model) run(seed uint64, d time.Duration) {
	ctx, cancel := context.WithTimeout(m.t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	for g, work := range []func(c *modelClient){
		(*modelClient).find, (*modelClient).find, (*modelClient).find, (*modelClient).all,
		(*modelClient).write, (*modelClient).write, (*modelClient).write, (*modelClient).sweep,
		(*modelClient).selectRow, (*modelClient).selectOrdered,
		(*modelClient).writeSQLWithLock, (*modelClient).writeSQLWithLock, (*modelClient).writeSQLAlone,
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
		for store := range m.stores {
			c.findWith(store, i)
		}
	}
}

func (m *model) fail(format string, args ...any) {
	m.failed.Store(true)
	m.t.Errorf(format, args...)
}

// A modelClient is a goroutine that works with the sessions.
type modelClient struct {
	*model
	ctx  context.Context
	rng  *rand.Rand
	seen [2][modelSessions]struct { // in each table
		session *modelSession
		version int // found last
	}
}

func (c *modelClient) store() int { return c.rng.IntN(len(c.stores)) }
func (c *modelClient) slot() int  { return c.rng.IntN(modelSessions) }

// pause lets the others work, so that the cache is used between two changes.
func (c *modelClient) pause() { time.Sleep(time.Duration(c.rng.IntN(int(2 * time.Millisecond)))) }

func (c *modelClient) find() {
	runtime.Gosched() // lets the others work
	i := c.slot()
	for range 1 + c.rng.IntN(4) {
		c.findWith(c.store(), i)
	}
}

// findWith looks for a session, and compares it with the model.
func (c *modelClient) findWith(store, i int) {
	s := c.sessions[i].Load()
	oldest := c.oldest(store%2, i, s)
	data, found, err := c.stores[store].Find(s.token)
	c.saw(store%2, i, s, oldest, data, found, err)
}

// oldest returns the oldest version of a session in a table that may be found now.
func (c *modelClient) oldest(table, i int, s *modelSession) int {
	oldest, _ := s.in[table].now()
	if last := c.seen[table][i]; last.session == s {
		oldest = max(oldest, last.version)
	}
	return oldest
}

// saw compares the result of a find with the model.
func (c *modelClient) saw(table, i int, s *modelSession, oldest int, data []byte, found bool, err error) {
	state, token := int64(ended), s.token
	switch {
	case err != nil && strings.Contains(err.Error(), "does not exist"):
		state = noTable
		if c.sessions[i].Load() != s { // what happens to its tables since it was replaced, its histories don't say
			return
		}
	case err != nil:
		c.fail("find %s in %s: %v", s.token, tables[table], err)
		return
	case found:
		if _, err := fmt.Sscan(string(data), &state, &token); err != nil || token != s.token {
			c.fail("%s has the data %.50q", s.token, data)
			return
		}
	}
	version := s.in[table].see(oldest, state)
	if version < 0 {
		c.fail("found state %d of %s in %s (%d seen first), want one of %v", state, s.token, tables[table],
			s.in[table].see(0, state), s.in[table].since(oldest))
		return
	}
	c.seen[table][i].session, c.seen[table][i].version = s, version
}

// all reads all sessions, and compares them with the model.
func (c *modelClient) all() {
	c.pause()
	store := c.store()
	var sessions [modelSessions]*modelSession
	var oldest [modelSessions]int
	for i := range sessions {
		sessions[i] = c.sessions[i].Load()
		oldest[i] = c.oldest(store%2, i, sessions[i])
	}
	all, err := c.stores[store].All()
	for i, s := range sessions {
		data, found := all[s.token]
		c.saw(store%2, i, s, oldest[i], data, found, err)
	}
}

// mayFail fails the test, unless the table may have been missing at some time since
// the given version of it.
func (c *modelClient) mayFail(table, oldest int, what string, err error) {
	if !strings.Contains(err.Error(), "does not exist") || c.tables[table].see(oldest, noTable) < 0 {
		c.fail("%s of %s: %v", what, tables[table], err)
	}
}

// newState returns a new state of a session, and its data and expiry. Each has another
// expiry, because Chai can undo the changes of an index entry only once.
func (c *modelClient) newState(s *modelSession) (state int64, data []byte, expiry time.Time) {
	state = c.states.Add(1)
	padding := bytes.Repeat([]byte{'x'}, c.rng.IntN(2000))
	return state, fmt.Appendf(nil, "%d %s %s", state, s.token, padding), inAnHour().Add(time.Duration(state) * time.Millisecond)
}

// write changes a session through a store.
func (c *modelClient) write() {
	i := c.slot()
	s := c.lock(i)
	defer s.Unlock()
	c.writeWith(c.store(), s)
	c.findWith(c.store(), i)
}

// writeWith changes a session, which is locked, through a store.
func (c *modelClient) writeWith(n int, s *modelSession) {
	store, h := c.stores[n], &s.in[n%2]
	state, data, expiry := c.newState(s)
	if c.rng.IntN(4) == 0 {
		state = ended
	}
	version := h.begin(state)
	var err error
	switch n := c.rng.IntN(10); {
	case state != ended && n < 2: // if it gives up waiting, nothing is written
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.rng.IntN(int(time.Millisecond))))
		err = store.CommitCtx(ctx, s.token, data, expiry)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			h.end(version, err)
			return
		}
	case state != ended:
		err = store.Commit(s.token, data, expiry)
	case n < 2:
		err = store.Commit(s.token, data, anHourAgo())
	case n < 4:
		_, err = store.DeleteFunc(context.Background(), func(other chaistore.Session) bool { return other.Token == s.token })
	default:
		err = store.Delete(s.token)
	}
	if err != nil {
		c.fail("change %s: %v", s.token, err)
	}
	h.end(version, err)
}

func (c *modelClient) sweep() {
	c.pause()
	store := c.store()
	oldest, _ := c.tables[store%2].now()
	if _, err := c.stores[store].DeleteExpired(c.ctx); err != nil && c.ctx.Err() == nil {
		c.mayFail(store%2, oldest, "DeleteExpired", err)
	}
}

// A transaction of several statements writes out its changes before it reads. When it
// is rolled back, Chai lets others see these changes until it has undone them.
func TestFindSeesNoRollback(t *testing.T) {
	testdb.Slow(t)
	testdb.Watchdog(t, 3*time.Minute)
	db := testdb.Memory(t)
	s := newStore(t, db, chaistore.Config{})
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
			return errRollBack
		})
		if !errors.Is(err, errRollBack) {
			t.Fatal(err)
		}
		cancel()
		wg.Wait()
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
}
