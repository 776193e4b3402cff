package chaistore_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

// TestMain fails if a test leaves a cleanup goroutine behind. More tests run in parallel
// than there are CPUs, because most of them wait for time to pass.
func TestMain(m *testing.M) {
	if os.Getenv(holdEnv) != "" {
		hold()
		return
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	stacks := make([]byte, 4<<20)
	left := func() bool {
		n := runtime.Stack(stacks, true)
		return bytes.Contains(stacks[:n], []byte("chaistore.(*cleanup)"))
	}
	for i := 0; left() && i < 100; i++ { // the last goroutines may be about to end
		time.Sleep(10 * time.Millisecond)
	}
	if left() {
		fmt.Fprintf(os.Stderr, "a cleanup goroutine is left:\n\n%s", stacks)
		code = 1
	}
	os.Exit(code)
}

// forEachTable runs test as a subtest for each kind of session table.
func forEachTable(t *testing.T, test func(t *testing.T, db *chai.DB)) {
	t.Run("plain", func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		test(t, db)
	})
	t.Run("indexed", func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
		test(t, db)
	})
}

// newStore returns a store on db that logs nothing and sweeps only on demand.
func newStore(t testing.TB, db *chai.DB) *chaistore.ChaiStore {
	t.Helper()
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CleanupInterval: -1,
		CreateTable:     true,
		Logger:          slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func commit(t *testing.T, s scs.Store, token, data string, expiry time.Time) {
	t.Helper()
	if err := s.Commit(token, []byte(data), expiry); err != nil {
		t.Errorf("Commit(%q): %v", token, err)
	}
}

func wantFound(t *testing.T, s scs.Store, token, want string) {
	t.Helper()
	got, found, err := s.Find(token)
	if err != nil || !found || string(got) != want {
		t.Fatalf("Find(%q) = %q, %v, %v; want %q, true, nil", token, got, found, err, want)
	}
}

func wantMissing(t *testing.T, s scs.Store, token string) {
	t.Helper()
	got, found, err := s.Find(token)
	if err != nil || found || got != nil {
		t.Fatalf("Find(%q) = %q, %v, %v; want nil, false, nil", token, got, found, err)
	}
}

func wantAll(t *testing.T, s scs.IterableStore, want map[string]string) {
	t.Helper()
	all, err := s.All()
	if err != nil {
		t.Fatalf("All: %v", err)
	}
	if all == nil {
		t.Fatal("All returned a nil map")
	}
	got := make(map[string]string)
	for token, data := range all {
		got[token] = string(data)
	}
	if !maps.Equal(got, want) {
		t.Fatalf("All = %q, want %q", got, want)
	}
}

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

func anHourAgo() time.Time { return time.Now().Add(-time.Hour) }

// newStoreWith returns a store configured by cfg that logs nothing, unless cfg has a Logger,
// and sweeps only on demand.
func newStoreWith(t testing.TB, db *chai.DB, cfg chaistore.Config) *chaistore.ChaiStore {
	t.Helper()
	cfg.CleanupInterval, cfg.CreateTable = -1, true
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	s, err := chaistore.NewWithConfig(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ownerInData is an Owner for data that consists of the owner, a bar, and text
// without a bar.
func ownerInData(data []byte) (string, error) {
	return string(data[:max(0, bytes.LastIndexByte(data, '|'))]), nil
}

func newOwnerStore(t testing.TB, db *chai.DB) *chaistore.ChaiStore {
	t.Helper()
	return newStoreWith(t, db, chaistore.Config{Owner: ownerInData})
}

// The benchmarks use a database on disk with this many sessions of this many bytes.
const (
	benchSessions = 20_000
	benchDataLen  = 300
)

// The tokens of the committed sessions, and as many other tokens.
var (
	benchTokens   = newBenchTokens(1)
	missingTokens = newBenchTokens(2)
)

// newBenchTokens returns tokens as long as SCS tokens.
func newBenchTokens(seed uint64) []string {
	tokens := make([]string, benchSessions)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range tokens {
		tokens[i] = fmt.Sprintf("%027x%016x", rng.Uint64(), rng.Uint64())
	}
	return tokens
}

func newBenchStore(b *testing.B, open func(testing.TB) *chai.DB) (*chai.DB, *chaistore.ChaiStore) {
	b.Helper()
	return newBenchStoreWithCache(b, open, 0)
}

func newBenchStoreWithCache(b *testing.B, open func(testing.TB) *chai.DB, cacheSize int64) (*chai.DB, *chaistore.ChaiStore) {
	b.Helper()
	db := open(b)
	s, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1, CreateTable: true, Memory: cacheSize})
	if err != nil {
		b.Fatal(err)
	}
	data, expiry := make([]byte, benchDataLen), inAnHour()
	testdb.InParallel(64, benchSessions, func(_ *rand.Rand, i int) {
		if err := s.Commit(benchTokens[i], data, expiry); err != nil {
			b.Error(err)
		}
	})
	return db, s
}

// BenchmarkCommit renews random sessions from a number of goroutines: sharing
// batches, each commit in a batch of its own (alone), in a table with an index on
// expiry (indexed), beside contexts of other sessions (contexts), and in a database
// without a disk to wait for (memory). The
// benchmark called pebble writes as much to Pebble itself, which is the least that a
// commit can take.
func BenchmarkCommit(b *testing.B) {
	for _, goroutines := range []int{1, 8, 64, 256} {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			db, s := newBenchStore(b, testdb.Disk)
			benchmarkGroups(b, db, goroutines, s.Commit)
		})
		b.Run(fmt.Sprint(goroutines, "/indexed"), func(b *testing.B) {
			db, s := newBenchStore(b, indexedOnDisk)
			benchmarkGroups(b, db, goroutines, s.Commit)
		})
		b.Run(fmt.Sprint(goroutines, "/alone"), func(b *testing.B) {
			db, s := newBenchStore(b, testdb.Disk)
			var mu sync.Mutex
			benchmarkGroups(b, db, goroutines, func(token string, data []byte, expiry time.Time) error {
				mu.Lock()
				defer mu.Unlock()
				return s.Commit(token, data, expiry)
			})
		})
	}
	for _, contexts := range []int{1, 10_000} {
		b.Run(fmt.Sprint("64/contexts=", contexts), func(b *testing.B) {
			db, s := newBenchStore(b, testdb.Disk)
			watchOthers(b, s, contexts)
			benchmarkGroups(b, db, 64, s.Commit)
		})
	}
	b.Run("1/pebble", func(b *testing.B) {
		db, _ := newBenchStore(b, testdb.Disk)
		engine := db.DB.Store.DB()
		// In the engine's encoding, a key is the number of a table (31, which no table
		// has) and a value: its type (text), its length and its bytes.
		const table, text = 79, 98
		benchmarkCommit(b, 1, func(token string, data []byte, _ time.Time) error {
			key := append([]byte{table, text, byte(len(token))}, token...)
			return engine.Set(key, append(key, data...), nil) // with an fsync
		})
	})
	b.Run("1/memory", func(b *testing.B) {
		_, s := newBenchStore(b, testdb.Memory)
		benchmarkCommit(b, 1, s.Commit)
	})
}

// watchOthers makes contexts of sessions that the benchmark does not use.
func watchOthers(b *testing.B, s *chaistore.ChaiStore, contexts int) {
	const sessions = 100
	for i := range contexts {
		if i < sessions {
			if err := s.Commit(missingTokens[i], nil, inAnHour()); err != nil {
				b.Fatal(err)
			}
		}
		ctx, cancel := s.SessionContext(b.Context(), missingTokens[i%sessions])
		b.Cleanup(cancel)
		if ctx.Err() != nil {
			b.Fatal(context.Cause(ctx))
		}
	}
}

// indexedOnDisk returns a database on disk with the table of older setups.
func indexedOnDisk(tb testing.TB) *chai.DB {
	db := testdb.Disk(tb)
	testdb.Exec(tb, db, testdb.CreateTable, testdb.CreateIndex)
	return db
}

func benchmarkCommit(b *testing.B, goroutines int, commit commitFunc) {
	data, expiry := bytes.Repeat([]byte("x"), benchDataLen), inAnHour()
	b.ReportAllocs()
	b.ResetTimer()
	testdb.InParallel(goroutines, b.N, func(rng *rand.Rand, i int) {
		if err := commit(benchTokens[rng.IntN(benchSessions)], data, expiry.Add(time.Duration(i)*time.Millisecond)); err != nil {
			b.Error(err)
		}
	})
	b.StopTimer()
}

// benchmarkGroups is benchmarkCommit that also reports the number of commits for each
// fsync.
func benchmarkGroups(b *testing.B, db *chai.DB, goroutines int, commit commitFunc) {
	e := engine.Open(db, slog.Default)
	before := e.Fsyncs()
	benchmarkCommit(b, goroutines, commit)
	b.ReportMetric(float64(b.N)/float64(e.Fsyncs()-before), "ops/group")
}

type commitFunc func(token string, data []byte, expiry time.Time) error

// BenchmarkFind looks for random sessions: in a cache that has them all (warm),
// without a cache (cold), and with a prepared statement of Chai (chai). The
// benchmarks whose names end in 8 run 8 goroutines. The ones called beside-writers
// run beside 8 goroutines that commit. The ones called beside-select run a SELECT of
// the application before each find, which is not measured.
func BenchmarkFind(b *testing.B) {
	warmDB, warm := newBenchStore(b, testdb.Disk)
	coldDB, cold := newBenchStoreWithCache(b, testdb.Disk, -1)
	statement := func(db *chai.DB) *chai.Statement {
		statement, err := db.Prepare("SELECT data, expiry FROM sessions WHERE token = ?")
		if err != nil {
			b.Fatal(err)
		}
		return statement
	}
	find := func(s *chaistore.ChaiStore) findFunc {
		return func(token string) error {
			_, _, err := s.Find(token)
			return err
		}
	}
	findWithChai := func(statement *chai.Statement) findFunc {
		return func(token string) error {
			result, err := statement.Query(token)
			if err != nil {
				return err
			}
			defer result.Close()
			return result.Iterate(func(row *chai.Row) error {
				var data []byte
				var expiry time.Time
				err := row.Scan(&data, &expiry)
				_ = bytes.Clone(data)
				return err
			})
		}
	}
	selectWarm, selectCold := findWithChai(statement(warmDB)), findWithChai(statement(coldDB))
	there := func(i int) string { return benchTokens[i] }
	overLong := strings.Repeat("x", 5000)
	for _, bench := range []struct {
		name       string
		goroutines int
		find       findFunc
		token      func(i int) string
	}{
		{"warm", 1, find(warm), there},
		{"warm/8", 8, find(warm), there},
		{"cold", 1, find(cold), there},
		{"cold/8", 8, find(cold), there},
		{"chai", 1, selectCold, there},
		{"missing", 1, find(warm), func(i int) string { return missingTokens[i] }},
		{"over-long", 1, find(warm), func(int) string { return overLong }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			// The SELECTs of other benchmarks have emptied the cache.
			for i := range benchTokens {
				if err := bench.find(bench.token(i)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			testdb.InParallel(bench.goroutines, b.N, func(_ *rand.Rand, i int) {
				if err := bench.find(bench.token(i * 7919 % benchSessions)); err != nil {
					b.Error(err)
				}
			})
		})
	}
	b.Run("beside-writers/warm", func(b *testing.B) { benchmarkFindBesideWriters(b, warm, find(warm)) })
	b.Run("beside-writers/cold", func(b *testing.B) { benchmarkFindBesideWriters(b, cold, find(cold)) })
	b.Run("beside-writers/chai", func(b *testing.B) { benchmarkFindBesideWriters(b, cold, selectCold) })
	b.Run("beside-select/warm", func(b *testing.B) { benchmarkFindBesideSelect(b, find(warm), selectWarm) })
	b.Run("beside-select/cold", func(b *testing.B) { benchmarkFindBesideSelect(b, find(cold), selectCold) })
}

type findFunc func(token string) error

func benchmarkFindBesideSelect(b *testing.B, find, selectRow findFunc) {
	var took time.Duration
	for i := range b.N {
		if err := selectRow(benchTokens[i*7907%benchSessions]); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := find(benchTokens[i*7919%benchSessions]); err != nil {
			b.Fatal(err)
		}
		took += time.Since(start)
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "find-ns")
}

func benchmarkFindBesideWriters(b *testing.B, s *chaistore.ChaiStore, find findFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(g)))
			for ctx.Err() == nil {
				if err := s.Commit(benchTokens[rng.IntN(benchSessions)], make([]byte, benchDataLen), inAnHour()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	b.ResetTimer()
	times := make([]time.Duration, b.N)
	for i := range times {
		// A reader that never pauses waits once for each commit, and then reads many
		// times until the next one. A reader that comes now and then waits whenever a
		// commit is under way.
		time.Sleep(time.Duration(rand.IntN(int(time.Millisecond))))
		start := time.Now()
		if err := find(benchTokens[i*7919%benchSessions]); err != nil {
			b.Fatal(err)
		}
		times[i] = time.Since(start)
	}
	b.StopTimer()
	cancel()
	wg.Wait()
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds()), "p99-ns")
}

// BenchmarkSweep deletes the expired half of 200,000 sessions while 4 goroutines
// commit. The benchmark called statement uses a single SQL statement.
func BenchmarkSweep(b *testing.B) {
	b.Run("plain", func(b *testing.B) {
		benchmarkSweep(b, testdb.Disk, deleteExpired)
	})
	b.Run("indexed", func(b *testing.B) {
		benchmarkSweep(b, indexedOnDisk, deleteExpired)
	})
	b.Run("statement", func(b *testing.B) {
		benchmarkSweep(b, testdb.Disk, func(db *chai.DB, _ *chaistore.ChaiStore) error {
			lock := chaistore.WriteLock(db)
			lock.Lock()
			defer lock.Unlock()
			return db.Exec("DELETE FROM sessions WHERE expiry < ?", time.Now())
		})
	})
}

func deleteExpired(_ *chai.DB, s *chaistore.ChaiStore) error {
	_, err := s.DeleteExpired(context.Background())
	return err
}

func benchmarkSweep(b *testing.B, open func(testing.TB) *chai.DB, sweep func(db *chai.DB, s *chaistore.ChaiStore) error) {
	const sessions = 200_000
	var times []time.Duration // of commits
	for range b.N {
		b.StopTimer()
		db := open(b)
		s := newStore(b, db)
		token := func(i int) string { return fmt.Sprintf("%043d", i) }
		data := make([]byte, benchDataLen)
		testdb.InParallel(256, sessions, func(_ *rand.Rand, i int) {
			expiry := inAnHour()
			if i%2 == 0 {
				expiry = anHourAgo()
			}
			if err := s.Commit(token(i), data, expiry); err != nil {
				b.Error(err)
			}
		})
		ctx, cancel := context.WithCancel(context.Background())
		var mu sync.Mutex
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				var own []time.Duration
				rng := rand.New(rand.NewPCG(4, uint64(g)))
				for ctx.Err() == nil {
					start := time.Now()
					if err := s.Commit(token(rng.IntN(sessions/2)*2+1), data, inAnHour()); err != nil {
						b.Error(err)
					}
					own = append(own, time.Since(start))
				}
				mu.Lock()
				times = append(times, own...)
				mu.Unlock()
			})
		}
		b.StartTimer()
		if err := sweep(db, s); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cancel()
		wg.Wait()
		if n, err := s.DeleteExpired(context.Background()); n > 0 || err != nil {
			b.Fatalf("the next sweep = %d, %v; want 0, nil", n, err)
		}
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds()), "p99-commit-ns")
	b.ReportMetric(float64(times[len(times)-1].Nanoseconds()), "worst-commit-ns")
}

// BenchmarkSite serves a small site to 32 clients over loopback. Each request loads and
// commits its visitor's session, selects a row, and inserts one in Update. The sessions
// are in the database of the application, or in one of their own.
func BenchmarkSite(b *testing.B) {
	for name, separate := range map[string]bool{"one-database": false, "two-databases": true} {
		b.Run(name, func(b *testing.B) { benchmarkSite(b, separate) })
	}
}

func benchmarkSite(b *testing.B, separate bool) {
	const clients = 32
	app := testdb.Disk(b)
	testdb.Exec(b, app,
		"CREATE TABLE pages (name TEXT PRIMARY KEY, body TEXT NOT NULL)",
		"CREATE TABLE visits (page TEXT NOT NULL, at TIMESTAMP NOT NULL)",
		"INSERT INTO pages (name, body) VALUES ('home', 'Hello')")
	db := app
	if separate {
		db = testdb.Disk(b)
	}
	s := newStoreWith(b, db, chaistore.Config{CreateTable: true})
	manager := scs.New()
	manager.Store = s
	fail := func(w http.ResponseWriter, err error) {
		b.Error(err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	manager.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) { fail(w, err) }
	server := httptest.NewServer(manager.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		manager.Put(r.Context(), "visits", manager.GetInt(r.Context(), "visits")+1)
		row, err := app.QueryRow("SELECT body FROM pages WHERE name = 'home'")
		if err != nil {
			fail(w, err)
			return
		}
		var body string
		if err := row.Scan(&body); err != nil {
			fail(w, err)
			return
		}
		err = chaistore.Update(r.Context(), app, func(tx *chai.Tx) error {
			return tx.Exec("INSERT INTO visits (page, at) VALUES ('home', ?)", time.Now())
		})
		if err != nil {
			fail(w, err)
			return
		}
		fmt.Fprint(w, body)
	})))
	defer server.Close()
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()

	jars := make([]http.CookieJar, clients)
	for i := range jars {
		var err error
		if jars[i], err = cookiejar.New(nil); err != nil {
			b.Fatal(err)
		}
	}
	visit := func(client int) {
		response, err := (&http.Client{Transport: transport, Jar: jars[client]}).Get(server.URL)
		if err != nil {
			b.Error(err)
			return
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			b.Error(err)
		}
	}
	for client := range jars {
		visit(client) // begins its session
	}
	before := s.Stats()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for client := range jars {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				visit(client)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	after := s.Stats()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	b.ReportMetric(float64(after.CacheHits-before.CacheHits)/float64(after.Finds-before.Finds), "hits/find")
}

// newUserData returns the data of an SCS session in which a user is signed in, of
// about benchDataLen bytes.
func newUserData(b *testing.B, user string) []byte {
	b.Helper()
	data, err := scs.GobCodec{}.Encode(inAnHour(), map[string]any{"user": user, "csrf": fmt.Sprintf("%0200d", 1)})
	if err != nil {
		b.Fatal(err)
	}
	return data
}

var userOwner = chaistore.OwnerByKey(scs.GobCodec{}, "user")

// BenchmarkSessionsOf finds the 10 sessions of a user among 200,000. The benchmark
// called all decodes all sessions, as a function for DeleteFunc does.
func BenchmarkSessionsOf(b *testing.B) {
	const sessions, users = 200_000, 20_000
	s := newStoreWith(b, testdb.Disk(b), chaistore.Config{Owner: userOwner})
	data := make([][]byte, users)
	for i := range data {
		data[i] = newUserData(b, fmt.Sprint("user", i))
	}
	testdb.InParallel(256, sessions, func(rng *rand.Rand, i int) {
		token := fmt.Sprintf("%027x%016d", rng.Uint64(), i)
		if err := s.Commit(token, data[i%users], inAnHour()); err != nil {
			b.Error(err)
		}
	})
	for name, find := range map[string]func(user string) (n int, err error){
		"10 of 200000": func(user string) (n int, err error) {
			for _, err = range s.SessionsOf(context.Background(), user) {
				n++
			}
			return n, err
		},
		"all": func(user string) (n int, err error) {
			for session, err := range s.Sessions(context.Background()) {
				if err != nil {
					return n, err
				}
				if owner, _ := userOwner(session.Data); owner == user {
					n++
				}
			}
			return n, nil
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if n, err := find(fmt.Sprint("user", i*7919%users)); n != sessions/users || err != nil {
					b.Fatalf("got %d sessions, %v; want %d, nil", n, err, sessions/users)
				}
			}
		})
	}
}

// BenchmarkCommitWithOwner commits new SCS sessions, and renews random ones with other
// data, from a number of goroutines: without Owner (none), with one that does next to
// nothing (trivial), and with OwnerByKey, which decodes the data (by-key).
func BenchmarkCommitWithOwner(b *testing.B) {
	versions := make([][]byte, 100)
	for i := range versions {
		data, err := scs.GobCodec{}.Encode(inAnHour(), map[string]any{"user": "alice", "csrf": fmt.Sprintf("%0200d", i)})
		if err != nil {
			b.Fatal(err)
		}
		versions[i] = data
	}
	for _, goroutines := range []int{1, 64} {
		for _, what := range []string{"new", "renewed"} {
			for _, bench := range []struct {
				name  string
				owner func([]byte) (string, error)
			}{
				{"none", nil},
				{"trivial", func([]byte) (string, error) { return "alice", nil }},
				{"by-key", userOwner},
			} {
				b.Run(fmt.Sprint(goroutines, "/", what, "/", bench.name), func(b *testing.B) {
					s := newStoreWith(b, testdb.Disk(b), chaistore.Config{Owner: bench.owner})
					commit := func(rng *rand.Rand, token string) {
						if err := s.Commit(token, versions[rng.IntN(len(versions))], inAnHour()); err != nil {
							b.Error(err)
						}
					}
					testdb.InParallel(64, benchSessions, func(rng *rand.Rand, i int) { commit(rng, benchTokens[i]) })
					b.ReportAllocs()
					b.ResetTimer()
					testdb.InParallel(goroutines, b.N, func(rng *rand.Rand, i int) {
						token := benchTokens[rng.IntN(benchSessions)]
						if what == "new" {
							token = fmt.Sprintf("%016x%027d", rng.Uint64(), i)
						}
						commit(rng, token)
					})
				})
			}
		}
	}
}

// BenchmarkOwnerByKey finds the owner of an SCS session.
func BenchmarkOwnerByKey(b *testing.B) {
	data := newUserData(b, "alice")
	for name, owner := range map[string]func([]byte) (string, error){
		"gob":                          userOwner,
		"gob, as the codec decodes it": chaistore.OwnerByKey(struct{ scs.Codec }{scs.GobCodec{}}, "user"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if owner, _ := owner(data); owner != "alice" {
					b.Fatal("got the wrong owner")
				}
			}
		})
	}
}
