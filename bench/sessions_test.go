package bench_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/bench/internal/rivals"
)

const (
	lifetime   = 24 * time.Hour
	workingSet = 1000 // number of sessions in the working set
)

// Sessions are a store and the sessions that it is loaded with. Their tokens and data
// have SCS's formats, and random bytes that no engine can compress. The random bytes are
// the same in each run.
type sessions struct {
	store      rivals.Store
	dir        string
	heapBefore float64 // in use before the store was opened

	size    size
	tokens  []string
	unknown []string // tokens of no session
	data    [][]byte // data for renewals

	template []byte // a session's data, with a payload in it
	payload  []byte // the part of template that is random
	expiry   time.Time
}

func newSessions(size size) (*sessions, error) {
	s := &sessions{size: size, expiry: time.Now().Add(lifetime)}
	// The overhead of the encoding depends on the length, so it takes a few tries.
	for length := size.bytes; len(s.template) != size.bytes; length += size.bytes - len(s.template) {
		if length <= 0 {
			return nil, fmt.Errorf("a session can't have %d bytes", size.bytes)
		}
		payload := strings.Repeat("x", length)
		var err error
		s.template, err = scs.GobCodec{}.Encode(s.expiry, map[string]any{"payload": payload})
		if err != nil {
			return nil, fmt.Errorf("encode session: %w", err)
		}
		start := bytes.Index(s.template, []byte(payload))
		s.payload = s.template[start : start+length]
	}
	random := rand.NewChaCha8([32]byte{})
	for range size.sessions {
		s.tokens = append(s.tokens, token(random))
	}
	for range 4096 {
		s.unknown = append(s.unknown, token(random))
	}
	for range 64 {
		s.data = append(s.data, s.randomData(random))
	}
	return s, nil
}

// token makes a token as SCS does.
func token(random *rand.ChaCha8) string {
	b := make([]byte, 32)
	random.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func (s *sessions) randomData(random *rand.ChaCha8) []byte {
	random.Read(s.payload)
	return bytes.Clone(s.template)
}

// all yields every session. If halfExpired is set, every second session has expired.
func (s *sessions) all(halfExpired bool) iter.Seq[rivals.Session] {
	return func(yield func(rivals.Session) bool) {
		random := rand.NewChaCha8([32]byte{1})
		for i, token := range s.tokens {
			expiry := s.expiry
			if halfExpired && i%2 == 1 {
				expiry = time.Now().Add(-time.Hour)
			}
			if !yield(rivals.Session{Token: token, Data: s.randomData(random), Expiry: expiry}) {
				return
			}
		}
	}
}

// renew commits a random session again.
func (s *sessions) renew(random *rand.Rand) error {
	return s.store.Commit(pick(s.tokens, random), pick(s.data, random), time.Now().Add(lifetime))
}

// renewActive is like renew if every second session has expired.
func (s *sessions) renewActive(random *rand.Rand) error {
	token := s.tokens[random.IntN((len(s.tokens)+1)/2)*2]
	return s.store.Commit(token, pick(s.data, random), time.Now().Add(lifetime))
}

// find finds a random session.
func (s *sessions) find(random *rand.Rand) error {
	return s.findToken(pick(s.tokens, random))
}

// findWarm finds a random session of the working set.
func (s *sessions) findWarm(random *rand.Rand) error {
	return s.findToken(pick(s.tokens[:min(workingSet, len(s.tokens))], random))
}

func (s *sessions) findToken(token string) error {
	b, exists, err := s.store.Find(token)
	switch {
	case err != nil:
		return err
	case !exists:
		return errors.New("a session is missing")
	case len(b) != s.size.bytes:
		return fmt.Errorf("a session has %d bytes, not %d", len(b), s.size.bytes)
	}
	return nil
}

// miss looks for a session that does not exist.
func (s *sessions) miss(random *rand.Rand) error {
	_, exists, err := s.store.Find(pick(s.unknown, random))
	if err == nil && exists {
		return errors.New("a session is there that was never committed")
	}
	return err
}

func pick[T any](from []T, random *rand.Rand) T {
	return from[random.IntN(len(from))]
}

func TestSessions(t *testing.T) {
	for _, size := range []size{{10, 300}, {10, 4096}} {
		s, err := newSessions(size)
		if err != nil {
			t.Fatal(err)
		}
		tokens, contents := make(map[string]bool), make(map[string]bool)
		for session := range s.all(false) {
			tokens[session.Token], contents[string(session.Data)] = true, true
			if len(session.Data) != size.bytes {
				t.Errorf("%v: a session has %d bytes", size, len(session.Data))
			}
			if len(session.Token) != 43 {
				t.Errorf("a token has %d bytes, want 43", len(session.Token))
			}
			if _, _, err := (scs.GobCodec{}).Decode(session.Data); err != nil {
				t.Error(err)
			}
		}
		if len(tokens) != size.sessions || len(contents) != size.sessions {
			t.Errorf("%d tokens and %d contents, want %d", len(tokens), len(contents), size.sessions)
		}
	}
	if _, err := newSessions(size{10, 20}); err == nil {
		t.Error("no error for sessions that are smaller than an empty one")
	}
}
