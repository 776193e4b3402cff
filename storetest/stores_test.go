package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/alexedwards/scs/v2"
)

// memory is a correct store. The faulty ones embed it.
type memory struct {
	mu       sync.Mutex
	sessions map[string]session

	stop     chan struct{}
	stopOnce sync.Once
	done     chan struct{}
}

type session struct {
	data   []byte
	expiry time.Time
}

func newMemory(t *testing.T) *memory {
	m := startMemory()
	t.Cleanup(m.StopCleanup)
	return m
}

func startMemory() *memory {
	m := &memory{sessions: make(map[string]session), stop: make(chan struct{}), done: make(chan struct{})}
	go m.cleanup()
	return m
}

func (m *memory) cleanup() {
	defer close(m.done)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			m.mu.Lock()
			maps.DeleteFunc(m.sessions, func(_ string, s session) bool { return !s.expiry.After(time.Now()) })
			m.mu.Unlock()
		case <-m.stop:
			return
		}
	}
}

func (m *memory) StopCleanup() {
	m.stopOnce.Do(func() { close(m.stop) })
	<-m.done
}

// get returns an active session, without a copy of its data.
func (m *memory) get(token string) (session, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sessions[token]
	if !ok || !s.expiry.After(time.Now()) {
		return session{}, false
	}
	return s, true
}

func (m *memory) Find(token string) ([]byte, bool, error) {
	s, ok := m.get(token)
	return bytes.Clone(s.data), ok, nil
}

func (m *memory) Commit(token string, b []byte, expiry time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[token] = session{bytes.Clone(b), expiry}
	return nil
}

func (m *memory) Delete(token string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, token)
	return nil
}

func (m *memory) All() (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string][]byte)
	for token, s := range m.sessions {
		if s.expiry.After(time.Now()) {
			all[token] = bytes.Clone(s.data)
		}
	}
	return all, nil
}

// withCtx is a correct store with contexts.
type withCtx struct{ *memory }

func (s withCtx) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	return s.Find(token)
}

func (s withCtx) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.Commit(token, b, expiry)
}

func (s withCtx) DeleteCtx(ctx context.Context, token string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.Delete(token)
}

func (s withCtx) AllCtx(ctx context.Context) (map[string][]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.All()
}

// someCtx is a correct store with a single method that takes a context, and ignores it.
type someCtx struct{ *memory }

func (s someCtx) CommitCtx(_ context.Context, token string, b []byte, expiry time.Time) error {
	return s.Commit(token, b, expiry)
}

// ctxOnly is a store whose plain methods panic.
type ctxOnly struct{ withCtx }

func (ctxOnly) Find(string) ([]byte, bool, error)      { panic("missing context") }
func (ctxOnly) Commit(string, []byte, time.Time) error { panic("missing context") }
func (ctxOnly) Delete(string) error                    { panic("missing context") }
func (ctxOnly) All() (map[string][]byte, error)        { panic("missing context") }

// edits are what an editedStore does differently.
type edits struct {
	memory *memory // a new one if nil

	token  func(token string) string
	data   func(b []byte) []byte
	expiry func(expiry time.Time) time.Time

	found  func(token string, s session, ok bool) (session, bool, error)
	commit func(token string) error
	delete func(token string) error
}

// editedStore is a memory with some edits and without StopCleanup.
type editedStore struct {
	memory *memory
	edits  edits
}

// newRefusesEnded returns a store that refuses to commit a deleted session again.
func newRefusesEnded(t *testing.T) editedStore {
	var ended sync.Map
	return edited(t, edits{
		delete: func(token string) error { ended.Store(token, true); return nil },
		commit: func(token string) error {
			if _, ok := ended.Load(token); ok {
				return errors.New("the session has been ended")
			}
			return nil
		},
	})
}

func edited(t *testing.T, e edits) editedStore {
	if e.memory == nil {
		e.memory = newMemory(t)
	}
	e.memory.StopCleanup() // so that the edits see expired sessions
	return editedStore{e.memory, e}
}

func (s editedStore) key(token string) string {
	if s.edits.token != nil {
		return s.edits.token(token)
	}
	return token
}

func (s editedStore) Find(token string) ([]byte, bool, error) {
	got, ok := s.memory.get(s.key(token))
	var err error
	if s.edits.found != nil {
		got, ok, err = s.edits.found(token, got, ok)
	}
	return bytes.Clone(got.data), ok, err
}

func (s editedStore) Commit(token string, b []byte, expiry time.Time) error {
	if s.edits.commit != nil {
		if err := s.edits.commit(token); err != nil {
			return err
		}
	}
	if s.edits.data != nil {
		b = s.edits.data(b)
	}
	if s.edits.expiry != nil {
		expiry = s.edits.expiry(expiry)
	}
	return s.memory.Commit(s.key(token), b, expiry)
}

func (s editedStore) Delete(token string) error {
	if s.edits.delete != nil {
		if err := s.edits.delete(token); err != nil {
			return err
		}
	}
	return s.memory.Delete(s.key(token))
}

func (s editedStore) All() (map[string][]byte, error) { return s.memory.All() }

func refuseEmpty(token string) error {
	if token == "" {
		return errors.New("key cannot be empty")
	}
	return nil
}

func refuseBinary(token string) error {
	if !utf8.ValidString(token) || strings.Contains(token, "\x00") {
		return errors.New("invalid byte sequence for encoding UTF8")
	}
	return nil
}

// Faulty stores that edits can't make.
type (
	givesSlice      struct{ *memory }
	givesSlices     struct{ *memory }
	keepsSlice      struct{ *memory }
	forgets         struct{ *memory }
	deletesNothing  struct{ *memory }
	deletesExisting struct{ *memory }
	allExpired      struct{ *memory }
	nilAll          struct{ *memory }
	iteratorBuffers struct{ *memory }
	findsByPattern  struct{ *memory }
	findingRenews   struct{ *memory }
	gap             struct{ *memory }
	twoWrites       struct{ *memory }
	doesNotStop     struct{ *memory }
	leavesGoroutine struct{ *memory }

	brokenCtx         struct{ withCtx }
	canceledIsMissing struct{ withCtx }
	canceledIsNotDone struct{ withCtx }
	lateIsMissing     struct{ withCtx }
	canceledMeanwhile struct{ withCtx }
	writesLate        struct{ withCtx }
	rollsBack         struct{ withCtx }
)

func (s givesSlice) Find(token string) ([]byte, bool, error) {
	got, ok := s.get(token)
	return got.data, ok, nil
}

func (s givesSlices) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	for token := range all {
		if got, ok := s.get(token); ok {
			all[token] = got.data
		}
	}
	return all, err
}

func (s keepsSlice) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[token] = session{b, expiry}
	return nil
}

func (s forgets) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	for other := range s.sessions {
		if len(s.sessions) >= 30 {
			delete(s.sessions, other)
		}
	}
	s.mu.Unlock()
	return s.memory.Commit(token, b, expiry)
}

func (deletesNothing) Delete(string) error { return nil }

func (s deletesExisting) Delete(token string) error {
	if _, ok := s.get(token); !ok {
		return errors.New("no rows affected")
	}
	return s.memory.Delete(token)
}

func (s allExpired) Commit(token string, b []byte, expiry time.Time) error {
	s.StopCleanup() // so that expired sessions stay
	return s.memory.Commit(token, b, expiry)
}

func (s allExpired) All() (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string][]byte)
	for token, session := range s.sessions {
		all[token] = bytes.Clone(session.data)
	}
	return all, nil
}

func (s nilAll) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	if len(all) == 0 {
		return nil, err
	}
	return all, err
}

func (doesNotStop) StopCleanup() {}

func (s brokenCtx) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if b == nil {
		return errors.New("data must not be NULL")
	}
	return s.withCtx.CommitCtx(ctx, token, b, expiry)
}

func (s canceledIsMissing) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, found, err := s.withCtx.FindCtx(ctx, token)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return b, found, err
}

func (s canceledIsNotDone) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if err := s.withCtx.CommitCtx(ctx, token, b, expiry); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// reusesBuffers overwrites the data that it has returned. It does so only for one
// token, which no two goroutines use, to be free of data races.
type reusesBuffers struct {
	*memory
	lent [][]byte
}

func (s *reusesBuffers) lend(token string, b []byte) {
	if strings.HasPrefix(token, "other1-") {
		s.lent = append(s.lent, b)
	}
}

func (s *reusesBuffers) Find(token string) ([]byte, bool, error) {
	b, found, err := s.memory.Find(token)
	s.lend(token, b)
	return b, found, err
}

func (s *reusesBuffers) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	for token, b := range all {
		s.lend(token, b)
	}
	return all, err
}

func (s *reusesBuffers) Commit(token string, b []byte, expiry time.Time) error {
	if strings.HasPrefix(token, "other1-") {
		for _, buffer := range s.lent {
			copy(buffer, b)
		}
	}
	return s.memory.Commit(token, b, expiry)
}

// keepsFirst keeps the data of a session, or its expiry while the session is active.
type keepsFirst struct {
	*memory
	data, expiry bool
}

func (s keepsFirst) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	before, ok := s.sessions[token]
	s.mu.Unlock()
	if ok && s.data {
		b = before.data
	}
	if ok && s.expiry && before.expiry.After(time.Now()) {
		expiry = before.expiry
	}
	return s.memory.Commit(token, b, expiry)
}

// staleIndex sweeps before each Find, by an index that renewals don't update.
type staleIndex struct {
	*memory
	index map[string]time.Time
}

func (s staleIndex) Find(token string) ([]byte, bool, error) {
	s.mu.Lock()
	for token, expiry := range s.index {
		if !expiry.After(time.Now()) {
			delete(s.sessions, token)
			delete(s.index, token)
		}
	}
	s.mu.Unlock()
	return s.memory.Find(token)
}

func (s staleIndex) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	if _, ok := s.index[token]; !ok {
		s.index[token] = expiry
	}
	s.mu.Unlock()
	return s.memory.Commit(token, b, expiry)
}

// twoStores keeps the sessions of its Ctx methods apart from the others.
type twoStores struct {
	*memory
	ctx withCtx
}

func (s twoStores) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	return s.ctx.FindCtx(ctx, token)
}

func (s twoStores) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	return s.ctx.CommitCtx(ctx, token, b, expiry)
}

func (s twoStores) DeleteCtx(ctx context.Context, token string) error {
	return s.ctx.DeleteCtx(ctx, token)
}

func (s twoStores) AllCtx(ctx context.Context) (map[string][]byte, error) {
	return s.ctx.AllCtx(ctx)
}

func (s twoStores) StopCleanup() {
	s.memory.StopCleanup()
	s.ctx.StopCleanup()
}

// losesUpdates rewrites all sessions at each commit, even if others do so at the same
// time.
type losesUpdates struct{ *memory }

func (s *losesUpdates) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	sessions := maps.Clone(s.sessions)
	s.mu.Unlock()
	sessions[token] = session{bytes.Clone(b), expiry}
	runtime.Gosched()
	s.mu.Lock()
	s.sessions = sessions
	s.mu.Unlock()
	return nil
}

// deadlocks has two locks, which its methods take in different orders.
type deadlocks struct {
	*memory
	mu1, mu2 sync.Mutex
}

func (s *deadlocks) Commit(token string, b []byte, expiry time.Time) error {
	s.mu1.Lock()
	defer s.mu1.Unlock()
	runtime.Gosched()
	s.mu2.Lock()
	defer s.mu2.Unlock()
	return s.memory.Commit(token, b, expiry)
}

func (s *deadlocks) Delete(token string) error {
	s.mu2.Lock()
	defer s.mu2.Unlock()
	runtime.Gosched()
	s.mu1.Lock()
	defer s.mu1.Unlock()
	return s.memory.Delete(token)
}

// stopsOnce is stopped by a message, like SCS's own stores.
type stopsOnce struct {
	*memory
	stop chan struct{}
}

func newStopsOnce() stopsOnce {
	s := stopsOnce{startMemory(), make(chan struct{})}
	go func() { <-s.stop }()
	return s
}

func (s stopsOnce) StopCleanup() {
	s.memory.StopCleanup()
	s.stop <- struct{}{}
}

// closesTwice closes its channel each time it is stopped.
type closesTwice struct {
	*memory
	stop chan struct{}
}

func (s *closesTwice) StopCleanup() {
	close(s.stop)
	s.memory.StopCleanup()
}

// endsWhenStopped can't be used after StopCleanup.
type endsWhenStopped struct {
	*memory
	mu    sync.Mutex
	ended bool
}

func (s *endsWhenStopped) StopCleanup() {
	s.memory.StopCleanup()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
}

func (s *endsWhenStopped) Commit(token string, b []byte, expiry time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return fmt.Errorf("the store is closed")
	}
	return s.memory.Commit(token, b, expiry)
}

// like reports whether a token matches an SQL pattern.
func like(token, pattern string) bool {
	quoted := regexp.QuoteMeta(pattern)
	return regexp.MustCompile("(?s)^" + strings.NewReplacer("_", ".", "%", ".*").Replace(quoted) + "$").MatchString(token)
}

func (s findsByPattern) Find(token string) ([]byte, bool, error) {
	all, err := s.All()
	for other, data := range all {
		if like(other, token) {
			return data, true, nil
		}
	}
	return nil, false, err
}

// deletesMatching deletes all sessions whose tokens match.
type deletesMatching struct {
	*memory
	match func(token, pattern string) bool
}

func (s deletesMatching) Delete(token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.sessions, func(other string, _ session) bool { return token != "" && s.match(other, token) })
	return nil
}

// firstPage returns only as many sessions as fit.
type firstPage struct {
	*memory
	fits func(sessions, bytes int) bool
}

func (s firstPage) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	n, size := 0, 0
	for token, data := range all {
		n++
		size += len(data)
		if !s.fits(n, size) {
			delete(all, token)
		}
	}
	return all, err
}

// All copies the data of a hundred sessions. The others share a buffer.
func (s iteratorBuffers) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	n := 0
	buffer := make([]byte, 1<<20)
	for token, data := range all {
		if n++; n > 100 {
			all[token] = buffer[:copy(buffer, data)]
		}
	}
	return all, err
}

// leavesOut leaves some sessions out of All.
type leavesOut struct {
	*memory
	data func(data []byte) bool
}

func (s leavesOut) All() (map[string][]byte, error) {
	all, err := s.memory.All()
	maps.DeleteFunc(all, func(_ string, data []byte) bool { return s.data(data) })
	return all, err
}

// refuses does not accept some data.
type refuses struct {
	*memory
	data func(data []byte) bool
}

func (s refuses) Commit(token string, b []byte, expiry time.Time) error {
	if s.data(b) {
		return errors.New("data too long for column")
	}
	return s.memory.Commit(token, b, expiry)
}

// sharesData loses data when the first of the sessions that share it is deleted.
type sharesData struct {
	*memory
	deleted map[string]int
}

func (s sharesData) Delete(token string) error {
	if got, ok := s.get(token); ok {
		s.mu.Lock()
		s.deleted[string(got.data)]++
		s.mu.Unlock()
	}
	return s.memory.Delete(token)
}

func (s sharesData) Find(token string) ([]byte, bool, error) {
	data, found, err := s.memory.Find(token)
	s.mu.Lock()
	defer s.mu.Unlock()
	return data, found && s.deleted[string(data)] == 0, err
}

func (s findingRenews) Find(token string) ([]byte, bool, error) {
	got, ok := s.get(token)
	if ok {
		got.expiry = got.expiry.Add(10 * time.Millisecond)
		if err := s.Commit(token, got.data, got.expiry); err != nil {
			return nil, false, err
		}
	}
	return bytes.Clone(got.data), ok, nil
}

// slow makes a request take longer than the shortest idle timeout of the suite.
type slow struct{ scs.Store }

func (s slow) Find(token string) ([]byte, bool, error) {
	time.Sleep(150 * time.Millisecond)
	return s.Store.Find(token)
}

func (s slow) Commit(token string, b []byte, expiry time.Time) error {
	time.Sleep(150 * time.Millisecond)
	return s.Store.Commit(token, b, expiry)
}

func (s gap) Commit(token string, b []byte, expiry time.Time) error {
	if err := s.Delete(token); err != nil {
		return err
	}
	runtime.Gosched()
	return s.memory.Commit(token, b, expiry)
}

func (s twoWrites) Commit(token string, b []byte, expiry time.Time) error {
	if before, ok := s.get(token); ok {
		if err := s.memory.Commit(token, b, before.expiry); err != nil {
			return err
		}
		runtime.Gosched()
	}
	return s.memory.Commit(token, b, expiry)
}

// staleCache keeps the sessions that it finds for some milliseconds.
type staleCache struct {
	*memory
	cacheMu sync.Mutex
	copies  map[string]session
}

func (s *staleCache) Find(token string) ([]byte, bool, error) {
	s.cacheMu.Lock()
	defer s.cacheMu.Unlock()
	if copied, ok := s.copies[token]; ok && time.Now().Before(copied.expiry) {
		return bytes.Clone(copied.data), true, nil
	}
	data, found, err := s.memory.Find(token)
	if found {
		s.copies[token] = session{bytes.Clone(data), time.Now().Add(10 * time.Millisecond)}
	}
	return data, found, err
}

// newTwoSteps returns a store that first looks for expired sessions, and later deletes
// them.
func newTwoSteps(t *testing.T) *memory {
	m := newMemory(t)
	m.StopCleanup()
	startSweeps(t, func() {
		var expired []string
		m.mu.Lock()
		for token, s := range m.sessions {
			if !s.expiry.After(time.Now()) {
				expired = append(expired, token)
			}
		}
		m.mu.Unlock()
		time.Sleep(time.Millisecond)
		m.mu.Lock()
		for _, token := range expired {
			delete(m.sessions, token)
		}
		m.mu.Unlock()
	})
	return m
}

// startSweeps calls sweep every 20 milliseconds, until the test ends or stop is called.
// The function stop does not wait for a sweep.
func startSweeps(t *testing.T, sweep func()) (stop func()) {
	done := make(chan struct{})
	stop = sync.OnceFunc(func() { close(done) })
	go func() {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				sweep()
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(stop)
	return stop
}

// slowSweep has a StopCleanup that does not wait for a sweep to end.
type slowSweep struct {
	*memory
	stop func()
}

func newSlowSweep(t *testing.T) slowSweep {
	m := newMemory(t)
	m.StopCleanup()
	return slowSweep{m, startSweeps(t, func() {
		m.mu.Lock()
		expired := len(m.sessions)
		clear(m.sessions)
		m.mu.Unlock()
		if expired > 0 {
			time.Sleep(300 * time.Millisecond)
		}
	})}
}

func (s slowSweep) StopCleanup() { s.stop() }

func (s leavesGoroutine) Commit(token string, b []byte, expiry time.Time) error {
	go func() { time.Sleep(time.Until(expiry)) }()
	return s.memory.Commit(token, b, expiry)
}

func (s lateIsMissing) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, found, err := s.withCtx.FindCtx(ctx, token)
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	return b, found, err
}

func (s canceledMeanwhile) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	time.Sleep(time.Millisecond)
	if ctx.Err() != nil {
		return nil, false, nil
	}
	return s.Find(token)
}

// CommitCtx returns when the context ends, but still writes later.
func (s writesLate) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	done := make(chan error, 1)
	go func() {
		time.Sleep(time.Millisecond)
		done <- s.Commit(token, b, expiry)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CommitCtx undoes its write when the context ends.
func (s rollsBack) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	context.AfterFunc(ctx, func() { s.Delete(token) })
	return s.withCtx.CommitCtx(ctx, token, b, expiry)
}

// forgetsAfter finds no sessions after a point in time.
type forgetsAfter struct {
	*memory
	end time.Time
}

func (s forgetsAfter) Find(token string) ([]byte, bool, error) {
	if time.Now().After(s.end) {
		return nil, false, nil
	}
	return s.memory.Find(token)
}

// countRows counts the sessions in a memory.
func countRows(store scs.Store) (int, error) {
	m := store.(*memory)
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sessions), nil
}
