// The contexts of sessions, which end with them.

package sessiontable

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// contexts are those of the sessions of a table. All stores on the table share them. While
// there are none, a change of a session costs one look at a counter.
//
// What is told may still be undone, and nobody can see it yet. So:
//
//   - A change of a session that has contexts makes it a suspect. A change of the table in
//     the catalog makes suspects of all.
//   - Suspects are looked at in a snapshot (settle): after each write of a store, and by a
//     goroutine, which waits until a snapshot has what was told (run). A session that is not
//     there ends, and so does one whose expiry has come. One that is there gets the expiry
//     that it has there. It stays a suspect until a snapshot has all changes that were told.
//   - A session that was deleted ends even if it is there again when it is looked at. Whether
//     a transaction has put it back before its end is known from what was told (lastDeletion).
//     What a transaction deletes before it replaces the table is not known to have ended: the
//     session may be in the new table.
//   - Each context has the number of the snapshot in which its session was found. A deletion
//     ends the contexts from before it, not those of a session that was put afterwards.
//   - A session is watched before it is looked for, so each change that its snapshot does not
//     have is told here, or was told before. Then the session is a suspect at once: its
//     deletion may be about to be committed.
//
// One timer is set for the next expiry of all. One goroutine waits for suspects, and for the
// database to be closed. There are none without contexts.
type contexts struct {
	once      sync.Once    // done when the feed is followed
	watched   atomic.Int64 // the number of sessions
	suspected atomic.Bool  // whether there may be suspects, or contexts that settle is about to cancel
	followed  atomic.Pointer[followedKeys]
	catalog   []byte     // the key of the table in the catalog
	settling  sync.Mutex // held while suspects are looked at, and what has ended is canceled

	mu       sync.Mutex // not held during calls of the database: told locks it
	sessions map[string]*watchedSession
	byExpiry expiryHeap
	suspects map[*watchedSession]struct{}
	all      uint64       // the end of the last change that made suspects of all, or 0
	dropped  lastDeletion // of the table

	count int // contexts
	table *Table
	stop  context.CancelFunc // of the goroutine
	wake  chan struct{}      // wakes the goroutine
	timer *time.Timer
	fires time.Time // when the timer fires
}

// followedKeys says which keys are those of the sessions, since the batch that ends at a
// number.
type followedKeys struct {
	number    uint64
	beginning []byte // nil if there is no table
}

// A watchedSession has contexts, or is looked for to get one.
type watchedSession struct {
	token    string
	contexts map[*sessionContext]struct{}
	finding  int // calls that look for it

	number  uint64 // of the last snapshot that it was looked for in
	expiry  time.Time
	place   int    // in byExpiry, or -1 without contexts
	told    uint64 // the end of the last change that was told, or may have been
	deleted lastDeletion
	ended   uint64 // contexts from snapshots before this number have ended
}

// A sessionContext is a context until it is done.
type sessionContext struct {
	session *watchedSession
	number  uint64 // of the snapshot in which the session was found
	cancel  context.CancelCauseFunc
	release func() bool // stops waiting for the end of the parent
}

// A lastDeletion is the last deletion of a session, or of a table.
type lastDeletion struct {
	end         uint64 // of its batch, or 0
	open        uint64 // the same, for one that its transaction may take back
	transaction uint64
}

// told notes a change of what may be deleted.
func (d *lastDeletion) told(c engine.Change) {
	if d.open != 0 && d.transaction != c.Transaction {
		d.end, d.open = d.open, 0 // it has not been taken back
	}
	switch {
	case c.Delete && c.Own:
		d.end = c.End
	case c.Delete:
		d.open, d.transaction = c.End, c.Transaction
	case d.transaction == c.Transaction:
		d.open = 0
	}
}

// in returns the end of the last deletion if the snapshot with the given number has it, or
// else 0. A snapshot has all of a transaction, or nothing.
func (d *lastDeletion) in(number uint64) uint64 {
	if d.open != 0 && d.open <= number {
		d.end, d.open = d.open, 0
	}
	if d.end > number {
		return 0
	}
	return d.end
}

func newContexts(name string) *contexts {
	return &contexts{catalog: appendKey(nil, catalogNamespace, name)}
}

// Context returns a copy of parent that is canceled when the session with the given token
// ends, with the cause [ErrEnded], or when the database is closed. If the session can't be
// found, it is canceled already.
func (t *Table) Context(parent context.Context, token string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	done := func() { cancel(nil) }
	if ctx.Err() != nil {
		return ctx, done
	}
	if token == "" || len(token) > MaxKeyLen {
		cancel(ErrEnded)
		return ctx, done
	}
	if _, err := t.layout(); err != nil {
		cancel(watchError(err))
		return ctx, done
	}
	x := t.contexts
	l := &look{session: x.find(token)}
	told, observed := t.db.Told(), t.db.Observes()
	number, err := x.read(ctx, t, []*look{l})
	if err != nil {
		x.found(l.session)
		cancel(watchError(err))
		return ctx, done
	}
	if !observed {
		told = max(told, number) // it is looked at again when batches are observed
	} else if told <= number {
		told = 0
	}
	c := &sessionContext{session: l.session, number: number, cancel: cancel}
	if !x.add(ctx, t, c, l, told) {
		cancel(ErrEnded)
		return ctx, done
	}
	return ctx, func() {
		x.remove(c)
		cancel(nil)
	}
}

func watchError(err error) error { return fmt.Errorf("chaistore: watch session: %w", err) }

// A look finds a session in a snapshot.
type look struct {
	session *watchedSession
	exists  bool
	expiry  time.Time
}

// read looks for sessions in a snapshot, and returns its number. They are those of the table
// that the snapshot has, which may not be the one that Chai has: it changes its catalog a
// moment later.
func (x *contexts) read(ctx context.Context, t *Table, looks []*look) (number uint64, err error) {
	err = t.db.Read(ctx, func(s *engine.Snapshot) error {
		number = s.Number()
		row, err := s.Get(x.catalog)
		if row == nil || err != nil {
			return err
		}
		namespace, err := decodeCatalogRow(row)
		if err != nil {
			return err
		}
		x.follow(t, namespace, number)
		for _, l := range looks {
			row, err := s.Find(appendKey(nil, namespace, l.session.token))
			if err != nil {
				return err
			}
			if row != nil {
				_, _, l.expiry, err = decodeRow(row)
				l.exists = err == nil
			}
		}
		return nil
	})
	return number, err
}

// follow notes which keys are those of the sessions in the snapshot with the given number,
// unless a later change of that was told. At first, and if the table was replaced before the
// feed was followed, this was not told, and nor were changes of sessions. So all are suspects.
func (x *contexts) follow(t *Table, namespace int64, number uint64) {
	beginning := appendInt(nil, namespace)
	if f := x.followed.Load(); f != nil && bytes.Equal(f.beginning, beginning) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if f := x.followed.Load(); f != nil && (f.number > number || bytes.Equal(f.beginning, beginning)) {
		return
	}
	x.followed.Store(&followedKeys{number, beginning})
	// Either told has seen that, or this sees the end of its batch.
	x.suspectAll(max(number, t.db.Told()))
}

// told notes a change. It is called with Pebble's commit mutex locked.
func (x *contexts) told(c engine.Change) {
	if bytes.Equal(c.Key, x.catalog) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.suspectAll(c.End)
		f := &followedKeys{number: c.End}
		if namespace, err := decodeCatalogRow(c.Row); err == nil {
			f.beginning = appendInt(nil, namespace)
		}
		x.followed.Store(f)
		x.dropped.told(c)
		for _, s := range x.sessions {
			if s.deleted.transaction == c.Transaction {
				s.deleted.open = 0
			}
		}
		return
	}
	if x.watched.Load() == 0 {
		return
	}
	if c.Key == nil {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.suspectAll(c.End)
		return
	}
	f := x.followed.Load()
	if f == nil || f.beginning == nil {
		return
	}
	token := tokenIn(c.Key, f.beginning)
	if token == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.sessions[string(token)]
	if s == nil {
		return
	}
	s.deleted.told(c)
	x.suspect(s, c.End)
}

// suspect makes a session a suspect, for changes in batches up to the given end. x.mu must
// be locked, here and below.
func (x *contexts) suspect(s *watchedSession, end uint64) {
	s.told = max(s.told, end)
	if x.suspects == nil {
		x.suspects = make(map[*watchedSession]struct{})
	}
	x.suspects[s] = struct{}{}
	x.wakeUp()
}

func (x *contexts) suspectAll(end uint64) {
	if len(x.sessions) > 0 {
		x.all = max(x.all, end)
		x.wakeUp()
	}
}

func (x *contexts) wakeUp() {
	x.suspected.Store(true)
	select {
	case x.wake <- struct{}{}:
	default: // it is awake, or there is none
	}
}

// settled forgets suspects that were looked at in the snapshot with the given number, unless
// it does not have all changes that were told. Others have become suspects since.
func (x *contexts) settled(looks []*look, all, number uint64) {
	for _, l := range looks {
		if l.session.told <= number {
			delete(x.suspects, l.session)
		}
	}
	if x.all == all && all <= number {
		x.all = 0
	}
}

// first returns the end of the first batch that a look must have, or 0 if there are no
// suspects.
func (x *contexts) first() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	first := x.all
	for s := range x.suspects {
		if first == 0 || s.told < first {
			first = s.told
		}
	}
	return first
}

// find begins to watch a session, which the caller looks for.
func (x *contexts) find(token string) *watchedSession {
	x.mu.Lock()
	defer x.mu.Unlock()
	s, ok := x.sessions[token]
	if !ok {
		s = &watchedSession{token: token, place: -1}
		if x.sessions == nil {
			x.sessions = make(map[string]*watchedSession)
		}
		x.sessions[token] = s
		x.watched.Add(1)
	}
	s.finding++
	return s
}

// found ends find, if the session gets no context.
func (x *contexts) found(s *watchedSession) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s.finding--
	x.tidy(s)
}

// add ends find, and adds a context of the session, unless that has ended. l is what was
// found. If told is not 0, the session is a suspect for changes up to that end.
func (x *contexts) add(ctx context.Context, t *Table, c *sessionContext, l *look, told uint64) (ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := c.session
	s.finding--
	if !l.exists || !l.expiry.After(time.Now()) || c.number < s.ended {
		x.tidy(s)
		return false
	}
	if s.contexts == nil {
		s.contexts = make(map[*sessionContext]struct{})
	}
	s.contexts[c] = struct{}{}
	c.release = context.AfterFunc(ctx, func() { x.remove(c) })
	x.saw(l, c.number) // unless more is known already
	if s.place < 0 {
		heap.Push(&x.byExpiry, s)
	}
	if x.count++; x.count == 1 {
		ctx, stop := context.WithCancel(context.Background())
		x.table, x.stop, x.wake = t, stop, make(chan struct{}, 1)
		go x.run(ctx, t, x.wake)
	}
	if told != 0 {
		x.suspect(s, told)
	} else if x.suspected.Load() {
		x.wakeUp() // there was no goroutine when it became one
	}
	x.setTimer()
	return true
}

// saw notes what a session is in the snapshot with the given number, unless a later one is
// known.
func (x *contexts) saw(l *look, number uint64) {
	s := l.session
	if number < s.number {
		return
	}
	s.number = number
	if !l.exists {
		s.ended = max(s.ended, number)
		return
	}
	s.expiry = l.expiry
	if s.place >= 0 {
		heap.Fix(&x.byExpiry, s.place)
	}
}

// remove removes a context that its caller, or the end of its parent, has canceled.
func (x *contexts) remove(c *sessionContext) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := c.session.contexts[c]; ok {
		x.drop(c)
		x.tidy(c.session)
	}
}

func (x *contexts) drop(c *sessionContext) {
	c.release()
	delete(c.session.contexts, c)
	x.count--
}

// tidy forgets a session that needs not be watched any more, and stops what watches when
// there are no contexts.
func (x *contexts) tidy(s *watchedSession) {
	if len(s.contexts) == 0 {
		s.contexts = nil
		if s.place >= 0 {
			heap.Remove(&x.byExpiry, s.place)
		}
		if s.finding == 0 && x.sessions[s.token] == s {
			delete(x.sessions, s.token)
			delete(x.suspects, s)
			x.watched.Add(-1)
		}
	}
	if len(x.sessions) == 0 { // a map does not shrink by itself
		x.sessions, x.byExpiry, x.suspects, x.all = nil, nil, nil, 0
	}
	if x.count == 0 && x.stop != nil {
		x.stop()
		if x.timer != nil {
			x.timer.Stop()
		}
		x.table, x.stop, x.wake, x.timer = nil, nil, nil, nil
	}
}

// end ends the contexts of a session that are from snapshots before the given number. It
// returns what cancels them, which is called when x.mu is not locked.
func (x *contexts) end(s *watchedSession, number uint64) (ended []context.CancelCauseFunc) {
	for c := range s.contexts {
		if c.number < number {
			x.drop(c)
			ended = append(ended, c.cancel)
		}
	}
	if len(s.contexts) == 0 {
		x.tidy(s)
	}
	return ended
}

func cancelAll(ended []context.CancelCauseFunc, cause error) {
	for _, cancel := range ended {
		cancel(cause)
	}
}

// run settles suspects, and ends all contexts when the database is closed.
func (x *contexts) run(ctx context.Context, t *Table, wake <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.db.Closed():
			x.endAll(watchError(engine.ErrClosed))
			return
		case <-wake:
		}
		for first := x.first(); first != 0; first = x.first() {
			err := t.db.Await(ctx, first)
			if ctx.Err() != nil || errors.Is(err, engine.ErrClosed) {
				break
			}
			x.settle(t)
			if err != nil { // the database is read-only, and what was told will not be seen
				x.mu.Lock()
				x.suspects, x.all = nil, 0
				x.mu.Unlock()
			}
		}
	}
}

func (x *contexts) endAll(cause error) {
	x.mu.Lock()
	var ended []context.CancelCauseFunc
	for _, s := range slices.Collect(maps.Values(x.sessions)) {
		ended = append(ended, x.end(s, math.MaxUint64)...)
	}
	x.mu.Unlock()
	cancelAll(ended, cause)
}

// settle looks at the suspects in a snapshot. It ends the sessions that have ended there,
// and, if they can't be read, all of them.
func (x *contexts) settle(t *Table) {
	if !x.suspected.Load() {
		return
	}
	x.settling.Lock()
	defer x.settling.Unlock()
	x.mu.Lock()
	var looks []*look
	all := x.all
	if all != 0 {
		for _, s := range x.sessions {
			looks = append(looks, &look{session: s})
		}
	} else {
		for s := range x.suspects {
			looks = append(looks, &look{session: s})
		}
	}
	x.suspected.Store(len(looks) > 0)
	x.mu.Unlock()
	if len(looks) == 0 {
		return
	}
	now, observed := time.Now(), t.db.Observes()
	number, err := x.read(context.Background(), t, looks)
	x.mu.Lock()
	var ended, unknown []context.CancelCauseFunc
	for _, l := range looks {
		s := l.session
		if err != nil {
			unknown = append(unknown, x.end(s, math.MaxUint64)...)
			continue
		}
		x.saw(l, number)
		s.ended = max(s.ended, s.deleted.in(number), x.dropped.in(number))
		ended = append(ended, x.end(s, s.ended)...)
	}
	ended = append(ended, x.expire(now)...)
	if observed && err == nil {
		x.settled(looks, all, number)
	}
	x.setTimer()
	x.mu.Unlock()
	cancelAll(ended, ErrEnded)
	cancelAll(unknown, watchError(err))
	x.mu.Lock()
	defer x.mu.Unlock()
	x.suspected.Store(x.all != 0 || len(x.suspects) > 0)
}

// expire ends the sessions that have expired at the given time, and have not been renewed
// since.
func (x *contexts) expire(now time.Time) (ended []context.CancelCauseFunc) {
	for len(x.byExpiry) > 0 && !x.byExpiry[0].expiry.After(now) {
		s := x.byExpiry[0]
		s.ended = max(s.ended, s.number+1)
		ended = append(ended, x.end(s, math.MaxUint64)...)
	}
	return ended
}

// setTimer sets the timer for the next expiry, or an earlier time. The clock may be set, or
// the machine may sleep, so it fires every minute.
func (x *contexts) setTimer() {
	if x.count == 0 || len(x.byExpiry) == 0 {
		return
	}
	wait := min(max(0, time.Until(x.byExpiry[0].expiry)), time.Minute)
	switch fires := time.Now().Add(wait); {
	case x.timer == nil:
		x.fires = fires
		x.timer = time.AfterFunc(wait, x.fired)
	case fires.Before(x.fires):
		x.fires = fires
		x.timer.Reset(wait)
	}
}

// fired is called when the timer fires. What was committed before is seen: it may have
// renewed a session.
func (x *contexts) fired() {
	now := time.Now()
	x.mu.Lock()
	t := x.table
	x.mu.Unlock()
	if t != nil {
		x.settle(t)
	}
	x.settling.Lock()
	defer x.settling.Unlock()
	x.mu.Lock()
	ended := x.expire(now)
	x.fires = now.Add(time.Hour) // it is not set
	x.setTimer()
	x.mu.Unlock()
	cancelAll(ended, ErrEnded)
}

// expiryHeap is a heap of watched sessions.
type expiryHeap []*watchedSession

func (e expiryHeap) Len() int           { return len(e) }
func (e expiryHeap) Less(i, j int) bool { return e[i].expiry.Before(e[j].expiry) }
func (e expiryHeap) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].place, e[j].place = i, j
}

func (e *expiryHeap) Push(s any) {
	s.(*watchedSession).place = len(*e)
	*e = append(*e, s.(*watchedSession))
}

func (e *expiryHeap) Pop() any {
	last := len(*e) - 1
	s := (*e)[last]
	(*e)[last], *e = nil, (*e)[:last]
	s.place = -1
	return s
}
