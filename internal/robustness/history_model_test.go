// The model of sessions and of transactions: what is acknowledged, refused, or not known.

package robustness

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
)

// A session is a state of a session. The zero state is that it does not exist.
type session struct {
	number, size int
	expired      bool
}

func (s session) String() string {
	text := fmt.Sprintf("number %d, %d bytes", s.number, s.size)
	if s.expired {
		text += ", expired"
	}
	return text
}

// data returns the data of a session: its owner, token, number and size, and bytes that
// don't compress.
func (s session) data(token string) []byte {
	data := fmt.Appendf(nil, "%s|%s|%d|%d|", ownerOfToken(token), token, s.number, s.size)
	head := len(data)
	data = append(data, make([]byte, s.size)...)
	rand.NewChaCha8([32]byte{byte(s.number), byte(s.number >> 8)}).Read(data[head:])
	return data
}

// ownerOfToken returns the owner of a session, which does not change. All sessions of a
// crowd belong to somebody else.
func ownerOfToken(token string) string {
	if token[0] != 's' {
		return "other"
	}
	n, _ := strconv.Atoi(token[1:])
	return fmt.Sprint("o", n%historyOwners)
}

// parse returns the session with the given data.
func (r *historyRun) parse(token string, data []byte) (s session) {
	parts := bytes.SplitN(data, []byte("|"), 5)
	if len(parts) == 5 {
		s.number, _ = strconv.Atoi(string(parts[2]))
		s.size, _ = strconv.Atoi(string(parts[3]))
	}
	if !bytes.Equal(data, s.data(token)) {
		r.fail("stale", "the data of %s are not those of any session: %.40q", token, data)
	}
	return s
}

// A book says what is known of sessions.
type book struct {
	acked   map[string]session   // the latest acknowledged state
	maybe   map[string][]session // refused after that, but may be on the disk
	refused map[string][]session // all that was refused
}

func newBook() book {
	return book{map[string]session{}, map[string][]session{}, map[string][]session{}}
}

func (b *book) clone() book {
	c := book{maps.Clone(b.acked), maps.Clone(b.maybe), maps.Clone(b.refused)}
	for token, states := range c.maybe {
		c.maybe[token] = slices.Clone(states)
	}
	return c
}

// written records the end of a call that changes a session. It can't be on disk if it was
// refused because of an earlier failure.
func (b *book) written(token string, s session, err error, refused bool) {
	switch {
	case err == nil:
		b.acked[token] = s
		delete(b.maybe, token)
	case refused:
		b.refused[token] = append(b.refused[token], s)
	default:
		b.refused[token] = append(b.refused[token], s)
		b.maybe[token] = append(b.maybe[token], s)
	}
}

// visible returns the sessions that are found.
func (b *book) visible() map[string]session {
	found := make(map[string]session)
	for token, s := range b.acked {
		if s.number != 0 && !s.expired {
			found[token] = s
		}
	}
	return found
}

// judge fails unless a session may be as it was found, while the database is open.
func (r *historyRun) judge(b *book, token string, got session) {
	want := b.visible()[token]
	if got == want {
		return
	}
	class := "stale"
	switch {
	case slices.Contains(b.refused[token], got):
		class = "refused seen"
	case got.number == 0:
		class = "lost"
	}
	r.fail(class, "%s is found as %v, want %v; refused: %v", token, got, want, b.refused[token])
}

// judgeOpened is judge for a database that was opened again.
func (r *historyRun) judgeOpened(b *book, token string, got session) {
	for _, s := range b.maybe[token] {
		if s.expired {
			s = session{}
		}
		if s == got {
			return
		}
	}
	class := "lost"
	if want := b.visible()[token]; got == want {
		return
	} else if slices.Contains(b.refused[token], got) && got.number != 0 {
		class = "refused seen"
	}
	r.fail(class, "opened again: %s is found as %v, want %v, or one of %v", token, got, b.visible()[token], b.maybe[token])
}

// A model has what the database should have.
type model struct {
	book
	states   []*appState // the application's tables: one state, or all that are possible after statements that have failed
	unjudged bool        // there were too many, so the tables are not compared any more
}

func newModel() *model {
	s := &appState{tables: make(map[string]*appTable)}
	for _, table := range permanentTables {
		s.tables[table.name] = &appTable{unique: table.name == "users", rows: make(map[int]appRow)}
	}
	return &model{book: newBook(), states: []*appState{s}}
}

// sweep returns how many sessions a sweep deletes, and deletes them.
func (m *model) sweep(deleted bool) (n int) {
	for token, s := range m.acked {
		if s.expired {
			n++
			if deleted {
				m.acked[token] = session{}
			}
		}
	}
	return n
}

// predicted returns the error of a transaction, when there is one possible state.
func (m *model) predicted(stmts []stmt) error {
	_, err := m.states[0].steps(stmts)
	return err
}

// withoutUnknown leaves out statements on sessions whose state is not known.
func (m *model) withoutUnknown(stmts []stmt) (kept []stmt) {
	for _, s := range stmts {
		if s.apply != nil || len(m.maybe[s.token]) == 0 {
			kept = append(kept, s)
		}
	}
	return kept
}

// done records an acknowledged transaction.
func (m *model) done(stmts []stmt) {
	var after []*appState
	for _, s := range m.states {
		if steps, err := s.steps(stmts); err == nil {
			after = append(after, steps[len(steps)-1])
		}
	}
	m.set(after)
	for token, s := range m.sessionsAfter(stmts) {
		m.written(token, s, nil, false)
	}
}

// partlyDone records statements, each in its own transaction, of which one has failed.
func (m *model) partlyDone(stmts []stmt) {
	steps, _ := m.states[0].steps(stmts)
	m.set(steps[len(steps)-1:])
}

// unknown records a transaction that may be on the disk. Without one, that is true for each
// of its beginnings.
func (m *model) unknown(stmts []stmt, partly bool) {
	var after []*appState
	for _, s := range m.states {
		steps, err := s.steps(stmts)
		if partly {
			after = append(after, steps...)
			continue
		}
		after = append(after, s)
		if err == nil && len(steps) > 1 {
			after = append(after, steps[len(steps)-1])
		}
	}
	m.set(after)
	for token, s := range m.sessionsAfter(stmts) {
		m.written(token, s, errUndo, false)
	}
}

func (m *model) set(states []*appState) {
	if len(states) == 0 || len(states) > 64 {
		m.unjudged = true
		return
	}
	m.states = states
}

// sessionsAfter returns the sessions that statements change.
func (m *model) sessionsAfter(stmts []stmt) map[string]session {
	after := make(map[string]session)
	for _, s := range stmts {
		if s.apply == nil {
			former, ok := after[s.token]
			if !ok {
				former = m.acked[s.token]
			}
			after[s.token] = s.to(former)
		}
	}
	return after
}
