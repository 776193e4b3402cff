package measure

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/bench/internal/rivals"
)

// A Size says how many sessions there are, and how many bytes each has.
type Size struct {
	Sessions, Bytes int
}

func (s Size) String() string {
	return fmt.Sprintf("%dx%d", s.Sessions, s.Bytes)
}

const lifetime = 24 * time.Hour

// Sessions are the sessions that a store is loaded with: tokens and data like
// those that SCS makes, of random bytes that no engine can compress. They are the
// same each time.
type Sessions struct {
	size    Size
	tokens  []string
	unknown []string // tokens of no session
	data    [][]byte // what sessions are renewed with

	template      []byte // a session's data
	payload       int    // where the random bytes begin in template
	payloadLength int
	expiry        time.Time
}

// NewSessions returns sessions of a size.
func NewSessions(size Size) (*Sessions, error) {
	s := &Sessions{size: size, expiry: time.Now().Add(lifetime)}
	if err := s.makeTemplate(); err != nil {
		return nil, err
	}
	random := rand.NewChaCha8([32]byte{})
	for range size.Sessions {
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

func (s *Sessions) makeTemplate() error {
	const mark = 'x'
	s.payloadLength = s.size.Bytes
	// What the encoding adds depends on the length, so that it takes a few tries.
	for range 10 {
		payload := strings.Repeat(string(mark), max(s.payloadLength, 1))
		encoded, err := scs.GobCodec{}.Encode(s.expiry, map[string]any{"payload": payload})
		if err != nil {
			return fmt.Errorf("encode session: %w", err)
		}
		if len(encoded) == s.size.Bytes {
			s.template, s.payload = encoded, bytes.Index(encoded, []byte(payload))
			return nil
		}
		s.payloadLength += s.size.Bytes - len(encoded)
	}
	return fmt.Errorf("a session can't have %d bytes", s.size.Bytes)
}

func (s *Sessions) randomData(random *rand.ChaCha8) []byte {
	data := bytes.Clone(s.template)
	random.Read(data[s.payload : s.payload+s.payloadLength])
	return data
}

// all yields every session, of which each second one has expired if so desired.
func (s *Sessions) all(halfExpired bool) iter.Seq[rivals.Session] {
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

// renew commits a random session anew.
func (s *Sessions) renew(store rivals.Store, random *rand.Rand) error {
	return store.Commit(pick(s.tokens, random), pick(s.data, random), time.Now().Add(lifetime))
}

// renewActive is renew for sessions of which each second one has expired.
func (s *Sessions) renewActive(store rivals.Store, random *rand.Rand) error {
	token := s.tokens[random.IntN((len(s.tokens)+1)/2)*2]
	return store.Commit(token, pick(s.data, random), time.Now().Add(lifetime))
}

// find finds a random session.
func (s *Sessions) find(store rivals.Store, random *rand.Rand) error {
	b, exists, err := store.Find(pick(s.tokens, random))
	switch {
	case err != nil:
		return err
	case !exists:
		return fmt.Errorf("a session is missing")
	case len(b) != s.size.Bytes:
		return fmt.Errorf("a session has %d bytes, not %d", len(b), s.size.Bytes)
	}
	return nil
}

// miss looks for a session that does not exist.
func (s *Sessions) miss(store rivals.Store, random *rand.Rand) error {
	_, exists, err := store.Find(pick(s.unknown, random))
	if err == nil && exists {
		return fmt.Errorf("a session is there that was never committed")
	}
	return err
}

func pick[T any](from []T, random *rand.Rand) T {
	return from[random.IntN(len(from))]
}
