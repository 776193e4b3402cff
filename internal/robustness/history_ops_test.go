// The operations of histories: of the store, of the application, and of the disk.

package robustness

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// An op is an operation of a history. All that is random in it was drawn when it was
// made, so that it stays the same when others are left out.
type op struct {
	text string
	do   func(r *historyRun)
}

// A generator makes operations.
type generator struct {
	*rand.Rand
	number int // of the latest change: no two write the same
}

func newGenerator(kind int, seed uint64) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, uint64(kind)))}
}

func (g *generator) next() int { g.number++; return g.number }

func (g *generator) op(files bool) op {
	n := g.IntN(100)
	switch {
	case n < 22:
		return g.commit()
	case n < 32:
		return g.find()
	case n < 36:
		return g.delete()
	case n < 39:
		return op{"DeleteExpired", (*historyRun).sweep}
	case n < 41:
		return g.sessionsOf()
	case n < 43:
		return g.deleteOf()
	case n < 47:
		return op{"compare", (*historyRun).compare}
	case n < 50:
		return op{"open cursor", (*historyRun).startCursor}
	case n < 52:
		return op{"read and close cursor", (*historyRun).endCursor}
	case n < 53:
		return op{"close and open again", (*historyRun).reopen}
	case n < 56 || files && n < 66:
		return op{"flush", (*historyRun).flush}
	case n < 57 || files && n < 71:
		return op{"merge", (*historyRun).merge}
	case files && n < 79:
		return g.fill()
	default:
		return g.application()
	}
}

// fill returns an operation that fills a memory table, or a part of one.
func (g *generator) fill() op {
	var commits []op
	for range 20 {
		token, s := g.token(), session{number: g.next(), size: 16_000}
		commits = append(commits, op{"", func(r *historyRun) { r.commit(token, s) }})
	}
	return op{fmt.Sprintf("Commit %d times, 16 kB each", len(commits)), func(r *historyRun) {
		for _, o := range commits {
			o.do(r)
		}
	}}
}

const historyTokens, historyOwners = 12, 3

// token returns a token. It says who the owner is.
func (g *generator) token() string { return fmt.Sprintf("s%02d", g.IntN(historyTokens)) }

// size returns the size of something stored. Larger ones fill memory tables.
func (g *generator) size() int {
	switch n := g.IntN(400); {
	case n < 1:
		return 3 << 20
	case n < 80:
		return 16_000
	default:
		return g.IntN(300)
	}
}

func (g *generator) commit() op {
	token, s := g.token(), session{number: g.next(), size: g.size(), expired: g.IntN(6) == 0}
	return op{fmt.Sprintf("Commit(%s, %v)", token, s), func(r *historyRun) { r.commit(token, s) }}
}

func (r *historyRun) commit(token string, s session) {
	expiry := inAnHour()
	if s.expired {
		expiry = anHourAgo()
	}
	r.write("Commit", &r.model.book, []string{token}, s, func() error { return r.store.Commit(token, s.data(token), expiry) })
}

// write runs a call of the store that gives sessions a new state.
func (r *historyRun) write(what string, b *book, tokens []string, s session, f func() error) {
	refused := r.readOnly()
	err := r.call(what, f)
	r.storeError(what, err, !r.struck())
	if err == nil {
		r.result.Acked++
	}
	for _, token := range tokens {
		b.written(token, s, err, refused)
	}
}

// storeError fails if a call of the store has panicked, or returned an error that it may not.
func (r *historyRun) storeError(what string, err error, must bool) {
	if err != nil && (must || errors.As(err, new(panicked))) {
		r.fail("error", "%s: %v", what, err)
	}
}

func (g *generator) find() op {
	token := g.token()
	return op{fmt.Sprintf("Find(%s)", token), func(r *historyRun) { r.find(&r.model.book, token) }}
}

func (r *historyRun) find(b *book, token string) {
	var data []byte
	var found bool
	err := r.call("Find", func() (err error) { data, found, err = r.store.Find(token); return err })
	r.storeError("Find", err, !r.mayNotRead())
	if err != nil {
		return
	}
	got := session{}
	if found {
		got = r.parse(token, data)
	}
	r.judge(b, token, got)
}

func (g *generator) delete() op {
	token := g.token()
	return op{fmt.Sprintf("Delete(%s)", token), func(r *historyRun) {
		r.write("Delete", &r.model.book, []string{token}, session{}, func() error { return r.store.Delete(token) })
	}}
}

func (r *historyRun) sweep() {
	n := 0
	err := r.call("DeleteExpired", func() (err error) { n, err = r.store.DeleteExpired(background); return err })
	r.storeError("DeleteExpired", err, !r.struck())
	if want := r.model.sweep(err == nil); n != want && !r.struck() {
		r.fail("error", "DeleteExpired = %d, want %d", n, want)
	}
}

func (g *generator) sessionsOf() op {
	owner := fmt.Sprint("o", g.IntN(historyOwners))
	return op{fmt.Sprintf("SessionsOf(%s)", owner), func(r *historyRun) {
		if r.owners {
			r.compareOwner(r.store, owner, r.model.visible())
		}
	}}
}

func (g *generator) deleteOf() op {
	owner := fmt.Sprint("o", g.IntN(historyOwners))
	return op{fmt.Sprintf("DeleteOf(%s)", owner), func(r *historyRun) {
		if !r.owners {
			return
		}
		var tokens []string
		n, want := 0, 0
		for token, s := range r.model.acked {
			if s.number != 0 && ownerOfToken(token) == owner {
				tokens = append(tokens, token)
				if !s.expired {
					want++
				}
			}
		}
		r.write("DeleteOf", &r.model.book, tokens, session{}, func() (err error) {
			n, err = r.store.DeleteOf(background, owner)
			return err
		})
		if n != want && !r.struck() {
			r.fail("error", "DeleteOf = %d, want %d", n, want)
		}
	}}
}

// A cursor is a result of the application that is not closed.
type cursor struct {
	result *chai.Result
	want   int // rows; -1 if that is not known
}

func (r *historyRun) startCursor() {
	want := -1
	if !r.struck() {
		want = len(r.model.states[0].tables["users"].rows)
	}
	err := r.call("Query", func() error {
		result, err := r.db.Query("SELECT id FROM users")
		if err == nil {
			r.cursors = append(r.cursors, cursor{result, want})
		}
		return err
	})
	if err != nil && !r.struck() {
		r.fail("error", "Query: %v", err)
	}
}

func (r *historyRun) endCursor() {
	if len(r.cursors) == 0 {
		return
	}
	c := r.cursors[0]
	r.cursors = r.cursors[1:]
	n := 0
	err := r.call("Iterate", func() error {
		defer c.result.Close()
		return c.result.Iterate(func(*chai.Row) error { n++; return nil })
	})
	if !r.struck() && (err != nil || c.want >= 0 && n != c.want) {
		r.fail("stale", "a cursor has %d rows and error %v, want %d", n, err, c.want)
	}
}

// reopen closes and opens the database as long as it works.
func (r *historyRun) reopen() {
	if r.fault.Load() != nil {
		return
	}
	r.crowd.stop()
	for len(r.cursors) > 0 {
		r.endCursor()
	}
	r.close()
	r.openOn(r.disk)
	r.compare()
	r.crowd = r.crowd.again(r)
}

// flush writes the memory table into a file.
func (r *historyRun) flush() {
	db := r.db.DB.Store.DB()
	r.force("flush", func() error {
		done, err := db.AsyncFlush()
		if err == nil {
			<-done
		}
		return err
	})
}

// merge merges all files.
func (r *historyRun) merge() {
	db := r.db.DB.Store.DB()
	r.force("merge", func() error {
		keys, err := db.NewIter(nil)
		if err != nil {
			return err
		}
		var first, last []byte
		if keys.First() {
			first = append(first, keys.Key()...)
		}
		if keys.Last() {
			last = append(last, keys.Key()...)
		}
		if err := keys.Close(); err != nil || first == nil || last == nil {
			return err
		}
		return db.Compact(first, last, false)
	})
}

// force calls a method of Pebble, which is done only so that there are files. After a
// failure, it may wait without end, or panic with Pebble's locks locked: then only what is
// on the disk is compared.
func (r *historyRun) force(what string, f func() error) {
	if r.open != nil || r.readOnly() {
		return
	}
	done := make(chan error, 1)
	r.forced.Add(1)
	go func() {
		err := recovered(f)
		r.forced.Add(-1)
		done <- err
	}()
	for began := time.Now(); ; {
		select {
		case err := <-done:
			if err != nil && !r.struck() {
				r.fail("error", "%s: %v", what, err)
			}
			if errors.As(err, new(panicked)) {
				r.db, r.cursors, r.crowd = nil, nil, nil
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
		if r.struck() {
			return
		}
		if time.Since(began) > r.limit {
			r.fail("hang", "%s has not returned for %v\n%s", what, r.limit, stacksOf("robustness.recovered"))
		}
	}
}

// breakDisk lets the disk fail from now on, or only from when the database is opened.
func (g *generator) breakDisk(f historyFault, opening bool) op {
	err, after, times := pick(g, f.errs), g.IntN(f.within), pick(g, f.times)
	how := fmt.Sprint(times, " times")
	if times == math.MaxInt {
		how = "for good"
	}
	return op{
		fmt.Sprintf("break the disk: %s of %q returns %v after %d, %s", f.op, f.file, cmp.Or(err, errors.New("a wrong bit")), after, how),
		func(r *historyRun) {
			r.fault.Store(&testdb.Fault{
				Op: f.op, File: f.file, Err: err, After: after, Times: times,
				Flip: err == nil, Block: f.op == "read" && times == math.MaxInt,
			})
			if opening {
				r.openBroken()
				return
			}
			r.disk.Break(r.fault.Load())
		},
	}
}

// openBroken closes the database and opens it on a disk that fails. That may fail.
func (r *historyRun) openBroken() {
	r.crowd.stop()
	for len(r.cursors) > 0 {
		r.endCursor()
	}
	r.close()
	r.disk.Break(r.fault.Load())
	db := r.db
	r.db = nil
	if r.call("Open", func() (err error) { db, err = openChai(r.dir, r.disk); return err }) != nil {
		return
	}
	var s *chaistore.ChaiStore
	err := r.call("NewWithConfig", func() (err error) { s, err = r.newStore(db); return err })
	r.storeError("NewWithConfig", err, !r.struck())
	if err != nil {
		_ = r.call("Close", db.Close)
		return
	}
	r.db, r.store = db, s
}

// storeInTransaction returns an operation that makes the first store of a database while a
// transaction of the application is open, which is committed. If it were rolled back, Chai
// would not undo what it has written out of rows that an earlier one has changed.
func (g *generator) storeInTransaction() op {
	set := func(n int) string { return fmt.Sprint("UPDATE users SET n = ", n) }
	insert, former, latter := g.insert("users", 200), g.next(), g.next()
	return op{"the first store is made in a transaction", func(r *historyRun) {
		r.crowd.stop()
		r.close()
		db, err := openChai(r.dir, r.disk)
		must(err)
		must(db.Exec(insert.sql, insert.args...))
		must(db.Update(func(tx *chai.Tx) error { return tx.Exec(set(former)) }))
		tx, err := db.Begin(true)
		must(err)
		must(tx.Exec(set(latter)))
		r.db = db
		r.store, err = r.newStore(db)
		r.storeError("NewWithConfig", err, true)
		must(tx.Commit())
		r.model.done([]stmt{insert, {sql: set(latter), apply: func(s *appState) error {
			t, err := s.table("users")
			for id, row := range t.rows {
				row.n = latter
				t.rows[id] = row
			}
			return err
		}}})
		r.compare()
		r.crowd = r.crowd.again(r)
	}}
}

// neverEnded returns operations at the end of a history: a transaction that is begun,
// and ended only before Close, or when Close waits for it.
func (g *generator) neverEnded() []op {
	stmts, late := g.stmts(1+g.IntN(3), true), g.IntN(2) == 0
	return []op{
		{fmt.Sprintf("Begin, never ended (late: %v): %v", late, stmts), func(r *historyRun) {
			r.crowd.stop()
			var tx *chai.Tx
			err := r.call("Begin", func() (err error) {
				if tx, err = r.db.Begin(true); err != nil {
					return err
				}
				for _, s := range stmts {
					if err := tx.Exec(s.sql, s.args...); err != nil {
						break
					}
				}
				return nil
			})
			if err == nil {
				r.open, r.late = tx, late
			} else if !r.struck() {
				r.fail("error", "Begin: %v", err)
			}
		}},
		g.find(), g.find(), // the first SessionsOf may write, and wait for the transaction
	}
}

// An execer is a *chai.DB or a *chai.Tx.
type execer interface {
	Exec(sql string, args ...any) error
}

var errUndo = errors.New("undo")

// The ways to run statements of the application. Those with a comma leave nothing.
var applicationWays = []string{
	"Exec", "Exec", "Exec", "Exec", "one Exec", "Update", "Update", "Update, error", "Update, panic",
	"db.Update", "db.Update, error", "Begin", "Begin, Rollback", "SQL", "SQL, ROLLBACK",
}

func (g *generator) application() op {
	way := pick(g, applicationWays)
	var stmts []stmt
	switch way {
	case "Exec":
		stmts = g.stmts(1, false)
	case "one Exec":
		// Chai prepares all statements before it runs the first, and their arguments are one list.
		for range 2 + g.IntN(2) {
			stmts = append(stmts, g.change(pick(g, permanentTables).name))
		}
	default:
		stmts = g.stmts(1+g.IntN(3), true)
	}
	return op{fmt.Sprintf("%s: %v", way, stmts), func(r *historyRun) {
		if r.open == nil {
			r.application(way, stmts)
		}
	}}
}

// application runs statements, and tells the model.
func (r *historyRun) application(way string, stmts []stmt) {
	stmts = r.model.withoutUnknown(stmts)
	if len(stmts) == 0 {
		return
	}
	refused, undone := r.readOnly(), strings.Contains(way, ",")
	err := r.call(way, func() error {
		return transact(r.db, way, func(to execer) error {
			for _, s := range stmts {
				if err := to.Exec(s.sql, s.args...); err != nil {
					return fmt.Errorf("%s: %w", s, err)
				}
			}
			return nil
		})
	})
	if !r.struck() {
		predicted := r.model.predicted(stmts)
		switch {
		case undone && predicted == nil && !errors.Is(err, errUndo):
			r.fail("error", "%s = %v, want it undone", way, err)
		case !undone && (err == nil) != (predicted == nil), undone && predicted != nil && (err == nil || errors.Is(err, errUndo)):
			r.fail("index", "%s = %v, want %v", way, err, predicted)
		}
	}
	if undone || refused && err == nil { // in Chai's memory, there may be nothing to change
		return
	}
	if err == nil {
		r.result.Acked++
	}
	switch {
	case err == nil:
		r.model.done(stmts)
	case !r.struck() && way == "one Exec":
		r.model.partlyDone(stmts)
	case !r.struck():
	case refused:
		for token, s := range r.model.sessionsAfter(stmts) {
			r.model.written(token, s, err, true)
		}
	default:
		r.model.unknown(stmts, way == "one Exec")
	}
}

// transact calls f in a transaction, as an application does.
func transact(db *chai.DB, way string, f func(execer) error) error {
	undo := func(tx *chai.Tx) error { return cmp.Or(f(tx), errUndo) }
	do := func(tx *chai.Tx) error { return f(tx) }
	switch way {
	case "Exec":
		return f(db)
	case "one Exec":
		var one joined
		_ = f(&one)
		return db.Exec(strings.Join(one.sql, "; "), one.args...)
	case "Update":
		return chaistore.Update(background, db, do)
	case "Update, error":
		return chaistore.Update(background, db, undo)
	case "Update, panic":
		return chaistore.Update(background, db, func(tx *chai.Tx) error { panic(undo(tx)) })
	case "db.Update":
		return db.Update(do)
	case "db.Update, error":
		return db.Update(undo)
	case "Begin", "Begin, Rollback":
		return begin(db, f, way == "Begin")
	case "SQL", "SQL, ROLLBACK":
		return beginSQL(db, f, way == "SQL")
	}
	panic(way)
}

// A joined collects statements.
type joined struct {
	sql  []string
	args []any
}

func (j *joined) Exec(sql string, args ...any) error {
	j.sql, j.args = append(j.sql, sql), append(j.args, args...)
	return nil
}

func begin(db *chai.DB, f func(execer) error, commit bool) error {
	tx, err := db.Begin(true)
	if err != nil {
		return err
	}
	if !commit {
		err := f(tx)
		return cmp.Or(tx.Rollback(), err, errUndo)
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func beginSQL(db *chai.DB, f func(execer) error, commit bool) error {
	if err := db.Exec("BEGIN"); err != nil {
		return err
	}
	ended := false
	defer func() {
		if !ended {
			_ = db.Exec("ROLLBACK")
		}
	}()
	if err := f(db); err != nil {
		return err
	}
	if !commit {
		ended = true
		return cmp.Or(db.Exec("ROLLBACK"), errUndo)
	}
	err := db.Exec("COMMIT")
	ended = err == nil
	return err
}

// A crowd is goroutines that commit and find sessions of their own.
type crowd struct {
	mu    sync.Mutex // held while a book is used; no change begins or ends meanwhile
	books []book     // one for each goroutine
	end   chan struct{}
	done  sync.WaitGroup
	fail  any // the panic that ended one
}

func startCrowd(r *historyRun, books []book) *crowd {
	c := &crowd{books: books, end: make(chan struct{})}
	for i := range books {
		mine := *r // the same database, and a result of its own
		c.done.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					c.mu.Lock()
					defer c.mu.Unlock()
					c.fail = v
				}
			}()
			c.commit(&mine, i)
		})
	}
	return c
}

// crowdToken returns a token of goroutine i.
func crowdToken(i, n int) string { return fmt.Sprintf("z%02d-%02d", i, n) }

// commit commits and finds sessions until the end.
func (c *crowd) commit(r *historyRun, i int) {
	g := newGenerator(r.kind, r.seed+uint64(i+1)<<32)
	b := &c.books[i]
	g.number = 1<<20 + len(b.acked)<<20 // other numbers than those of a former goroutine
	for {
		select {
		case <-c.end:
			return
		default:
		}
		token, s := crowdToken(i, g.IntN(historyTokens)), session{number: g.next(), size: g.IntN(4000)}
		c.mu.Lock()
		b.maybe[token] = append(b.maybe[token], s)
		c.mu.Unlock()
		refused := r.readOnly()
		err := r.call("Commit beside", func() error { return r.store.Commit(token, s.data(token), inAnHour()) })
		c.mu.Lock()
		b.maybe[token] = b.maybe[token][:len(b.maybe[token])-1]
		b.written(token, s, err, refused)
		c.mu.Unlock()
		r.storeError("Commit beside", err, !r.struck())
		r.find(b, crowdToken(i, g.IntN(historyTokens)))
	}
}

// stop ends the goroutines, and fails if one has.
func (c *crowd) stop() {
	if c == nil {
		return
	}
	select {
	case <-c.end:
	default:
		close(c.end)
	}
	c.done.Wait() // each of their calls has a limit
	if c.fail != nil {
		panic(c.fail)
	}
}

// again starts goroutines after those that were stopped.
func (c *crowd) again(r *historyRun) *crowd {
	if c == nil {
		return nil
	}
	return startCrowd(r, c.books)
}

// cut cuts the power while the goroutines work. Their books are then those of that moment.
func (c *crowd) cut(r *historyRun) *vfs.MemFS {
	if c == nil {
		return r.disk.Cut(r.keep)
	}
	c.mu.Lock()
	var books []book
	for _, b := range c.books {
		books = append(books, b.clone())
	}
	disk := r.disk.Cut(r.keep)
	c.mu.Unlock()
	c.stop()
	c.books = books
	return disk
}
