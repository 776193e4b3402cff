// The owners of sessions: a second table with the owner of each session.

package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// A table of owners has a row for each session. A session without an owner has one
// with the owner "": when it is renewed, the row is found in the cache, and need not
// be looked for in the database.
var ownerColumns = []column{{"token", "text", true}, {"owner", "text", true}}

func (t *Table) ownersName() string { return t.Name + "_owners" }

// isByOwner reports whether ix is an index on the owner and then the token, which has
// the sessions of each owner in the order of their tokens.
func isByOwner(ix index) bool {
	return len(ix.columns) == 2 && ix.columns[0] == indexColumn{1, false} && ix.columns[1] == indexColumn{0, false}
}

// CreateOwners creates the table of owners if it does not exist. The owners of sessions
// that were committed without one follow: see [Table.MatchOwners].
func (t *Table) CreateOwners(ctx context.Context) error {
	if _, err := t.relation(t.Name, sessionColumns); err != nil {
		return err
	}
	name := t.ownersName()
	err := t.create(ctx, name,
		"CREATE TABLE IF NOT EXISTS "+name+" (token TEXT PRIMARY KEY, owner TEXT NOT NULL)",
		"CREATE INDEX IF NOT EXISTS "+name+"_by_owner ON "+name+" (owner, token)")
	if err != nil {
		return fmt.Errorf("create table %q: %w", name, err)
	}
	return nil
}

// HasOwners reports whether t has a table of owners.
func (t *Table) HasOwners() bool { return t.OwnerOf != nil }

// ErrOwnerTooLong is returned by [Table.Upsert] for an owner of more than [MaxKeyLen]
// bytes.
var ErrOwnerTooLong = fmt.Errorf("the owner is longer than %d bytes", MaxKeyLen)

// ErrUndecodable is what an owner function panics with if it can't decode the data.
// Such a session can still be committed.
var ErrUndecodable = errors.New("the owner function can't decode the data")

// ReadOwner returns the owner of the session with the given data, "" if it has none.
// If the owner function panics, the owner is unknown, and ReadOwner returns an error.
// The value of a panic may have data of the session, so it becomes part of the error
// only if it is [ErrUndecodable] or comes from the runtime.
func (t *Table) ReadOwner(data []byte) (owner string, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case runtime.Error:
			err = fmt.Errorf("the owner function panicked: %w", r)
		default:
			err = errors.New("the owner function panicked")
			if r == ErrUndecodable {
				err = ErrUndecodable
			}
		}
	}()
	return t.OwnerOf(data), nil
}

// ownerToPut returns the owner to be stored with a session. It is unknown if the owner
// function can't decode the data: the row of an earlier commit then stays, and without
// one, a sweep that can decode the data adds it.
func (t *Table) ownerToPut(data []byte) (owner string, known bool, err error) {
	if !t.HasOwners() {
		return "", false, nil
	}
	owner, err = t.ReadOwner(data)
	switch {
	case err == ErrUndecodable:
		return "", false, nil
	case len(owner) > MaxKeyLen:
		return "", false, ErrOwnerTooLong
	}
	return owner, err == nil, err
}

// putOwner stores the owner of a session.
func (l *layout) putOwner(b *engine.Batch, token, owner string) error {
	key := appendKey(nil, l.owners.namespace, token)
	old, err := b.Get(key)
	if err != nil {
		return err
	}
	row := appendText(appendText(nil, token), owner)
	if bytes.Equal(row, old) {
		return nil
	}
	return l.owners.put(b, key, row)
}

// keepOwner lets a session whose data can't be read keep its owner. It reports whether
// it has none: if it was nobody's, it may be somebody's now, and a match looks again.
func (l *layout) keepOwner(b *engine.Batch, token string) (none bool, err error) {
	key := appendKey(nil, l.owners.namespace, token)
	row, err := b.Get(key)
	if row == nil || err != nil {
		return err == nil, err
	}
	if !bytes.Equal(row, appendText(appendText(nil, token), "")) {
		return false, nil
	}
	return true, l.owners.delete(b, key)
}

// PageOf is [Table.Page] for the sessions that the table of owners lists for one owner.
// The data of a session may name another owner, if a writer without owners has changed
// it. PageOf does not look: the owner function must not run while a snapshot is open,
// because it could use the table, or end its goroutine.
//
// The first call matches the owners with the sessions, unless a sweep has done that. So
// does a first page while the owner of a session is not known, in up to a tenth of the
// time: it may be known by now, or the session may be gone. If not, the last page comes
// with an error.
func (t *Table) PageOf(ctx context.Context, owner, from string) (rows []Row, next string, err error) {
	if m := t.matched.Load(); from == "" && m != nil && t.doubts(m) && time.Since(m.ended) >= 9*m.took {
		_ = t.MatchOwners(ctx) // if that fails, the doubts remain
	}
	for {
		var matched *match
		err := t.read(ctx, func(s *engine.Snapshot, l *layout) error {
			rows, next = nil, ""
			if owner == "" || len(owner) > MaxKeyLen {
				return nil
			}
			if matched = t.matched.Load(); matched == nil || matched.tables != l.tables() {
				return errNotMatched
			}
			size := 0
			return l.scanOwner(s, owner, from, func(token string) (more bool, err error) {
				if len(rows) == pageLen || size >= pageBytes {
					next = after(rows[len(rows)-1].Token)
					return false, nil
				}
				row, err := s.Get(appendKey(nil, l.sessions.namespace, token))
				if row == nil || err != nil {
					return true, err
				}
				_, data, expiry, err := decodeRow(row)
				if err != nil {
					return false, err
				}
				size += len(data)
				rows = append(rows, Row{token, data, expiry})
				return true, nil
			})
		})
		switch {
		case errors.Is(err, errNotMatched):
			if err := t.awaitOwners(ctx, matched); err != nil {
				return nil, "", err
			}
		case err != nil:
			return nil, "", err
		case next == "" && matched != nil && t.doubts(matched):
			return rows, "", errUnknownOwner
		default:
			return rows, next, nil
		}
	}
}

// scanOwner calls each for the tokens of an owner's sessions, beginning at from, in
// their order, for as long as each asks for more.
func (l *layout) scanOwner(s *engine.Snapshot, owner, from string, each func(token string) (more bool, err error)) error {
	prefix := appendText(appendInt(nil, l.byOwner.namespace), owner)
	end := append(bytes.Clone(prefix), 0xff) // greater than the type of any value
	return s.Scan(appendText(bytes.Clone(prefix), from), end, func(entry, _ []byte) (more bool, err error) {
		n := valueLen(entry[len(prefix):])
		if n == 0 {
			return false, errBadRow
		}
		token, ok := decodeBytes(entry[len(prefix):len(prefix)+n], textType)
		if !ok {
			return false, errBadRow
		}
		return each(string(token))
	})
}

// MatchOwners adds the missing owners of sessions that were committed without one,
// and removes the owners of sessions that are gone. It reads both tables in pages,
// side by side. If t has no owners, or another goroutine is at it, it does nothing.
//
// For 200,000 sessions in gob without an owner, that takes about 15 seconds. So a store
// is used meanwhile: only what asks for the sessions of an owner waits, the first time.
func (t *Table) MatchOwners(ctx context.Context) error {
	if !t.HasOwners() {
		return nil
	}
	select {
	case t.matching <- struct{}{}:
		defer func() { <-t.matching }()
		return t.matchOwners(ctx)
	default:
		return nil
	}
}

// A match says in which tables owners and sessions were matched.
type match struct {
	tables  [2]int64 // namespaces
	unknown bool     // whether the owner function could not read some session
	unread  uint64   // Table.unread when it began
	ended   time.Time
	took    time.Duration
}

// doubts reports whether there may be a session whose owner is not known.
func (t *Table) doubts(m *match) bool { return m.unknown || m.unread != t.unread.Load() }

// tables returns the namespaces of both tables.
func (l *layout) tables() [2]int64 { return [2]int64{l.sessions.namespace, l.owners.namespace} }

var (
	errNotMatched = errors.New("owners and sessions have not been matched")
	// Rather than some of an owner's sessions, its readers get these.
	errMatching     = errors.New("the owners of earlier sessions are still being determined")
	errUnknownOwner = errors.New("the owner function could not read a session, which may be this owner's")
)

// awaitOwners returns when the owners have been matched after the given match. If nobody
// does that, it does. It waits for another goroutine for no longer than a write waits:
// that goroutine may be its own, which called the owner function.
func (t *Table) awaitOwners(ctx context.Context, last *match) error {
	limit := time.NewTimer(engine.HangLimit)
	defer limit.Stop()
	select {
	case t.matching <- struct{}{}:
	case <-limit.C:
		return errMatching
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.matching }()
	if t.matched.Load() != last {
		return nil
	}
	return t.matchOwners(ctx)
}

// matchOwners is MatchOwners. t.matching must be taken. When a table is replaced
// meanwhile, it begins again.
func (t *Table) matchOwners(ctx context.Context) error {
	start := time.Now()
	done := match{unread: t.unread.Load()}
	for from, more := "", true; more; {
		var m ownerMismatch
		err := t.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
			m, err = l.compareOwners(s, from)
			return err
		})
		if err != nil {
			return err
		}
		if m.tables != done.tables && from != "" {
			from, done = "", match{unread: done.unread}
			continue
		}
		unknown, changed, err := t.correctOwners(ctx, m)
		if err != nil {
			return err
		}
		if changed {
			continue // compare this part again
		}
		done.tables, done.unknown = m.tables, done.unknown || unknown
		from, more = m.next, m.next != ""
	}
	done.ended, done.took = time.Now(), time.Since(start)
	t.matched.Store(&done)
	return nil
}

// An ownerMismatch lists the differences between sessions and owners in a part of the
// tables.
type ownerMismatch struct {
	without []Row    // sessions without an owner
	gone    []string // tokens of owners without a session
	next    string   // where to go on, "" at the end of both tables
	tables  [2]int64
}

// compareOwners compares sessions and owners in the order of tokens, beginning at
// from, until it has seen sweepWrite owners or differences.
func (l *layout) compareOwners(s *engine.Snapshot, from string) (m ownerMismatch, err error) {
	m.tables = l.tables()
	var owners []string // the next tokens with an owner, in order
	var last string     // where this part ends
	err = s.Scan(appendKey(nil, l.owners.namespace, from), appendInt(nil, l.owners.namespace+1), func(_, row []byte) (more bool, err error) {
		values, err := split(row, len(ownerColumns))
		if err != nil {
			return false, err
		}
		token, ok := decodeBytes(values[0], textType)
		if !ok {
			return false, errBadRow
		}
		if len(owners) == sweepWrite {
			last = string(token)
			return false, nil
		}
		owners = append(owners, string(token))
		return true, nil
	})
	if err != nil {
		return m, err
	}
	size := 0
	err = scan(s, l, from, func(_ []byte, row Row) (more bool, err error) {
		for len(owners) > 0 && owners[0] < row.Token {
			m.gone, owners = append(m.gone, owners[0]), owners[1:]
		}
		if last != "" && row.Token >= last {
			m.next = last
			return false, nil
		}
		if len(m.without) == sweepWrite || size >= pageBytes {
			m.next = row.Token
			return false, nil
		}
		if len(owners) > 0 && owners[0] == row.Token {
			owners = owners[1:]
			return true, nil
		}
		row.Data = bytes.Clone(row.Data)
		size += len(row.Data)
		m.without = append(m.without, row)
		return true, nil
	})
	if err != nil {
		return m, err
	}
	if m.next == "" { // no session follows
		m.gone, m.next = append(m.gone, owners...), last
	}
	return m, nil
}

// correctOwners adds and removes owners, except where a session, or a table, has changed
// since the tables were compared: then it returns changed. A session whose owner is
// unknown gets none, so the next sweep asks for it again. An owner that is too long is
// stored as "".
func (t *Table) correctOwners(ctx context.Context, m ownerMismatch) (unknown, changed bool, err error) {
	// Decoding takes longer than writing, so all processors do it.
	all, known := make([]string, len(m.without)), make([]bool, len(m.without))
	var wg sync.WaitGroup
	processors := runtime.GOMAXPROCS(0)
	returned := make([]bool, processors)
	for p := range processors {
		wg.Go(func() {
			for i := p; i < len(all) && ctx.Err() == nil; i += processors {
				var err error
				all[i], known[i], err = t.ownerToPut(m.without[i].Data)
				known[i] = known[i] || err == ErrOwnerTooLong
			}
			returned[p] = true
		})
	}
	wg.Wait()
	if slices.Contains(returned, false) {
		runtime.Goexit() // as the owner function did
	}
	if err := ctx.Err(); err != nil {
		return false, false, err
	}
	unknown = slices.Contains(known, false)
	if len(m.gone) == 0 && !slices.Contains(known, true) {
		return unknown, false, nil // nothing to write
	}
	err = t.write(ctx, (len(m.without)+len(m.gone))*4*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		if l.tables() != m.tables {
			changed = true
			return nil
		}
		for i, row := range m.without {
			current, err := b.Get(appendKey(nil, l.sessions.namespace, row.Token))
			if err != nil {
				return err
			}
			if current == nil {
				continue
			}
			_, data, _, err := decodeRow(current)
			if err != nil {
				return err
			}
			if !bytes.Equal(data, row.Data) {
				changed = true
				continue
			}
			if !known[i] {
				continue
			}
			if err := l.putOwner(b, row.Token, all[i]); err != nil {
				return err
			}
		}
		for _, token := range m.gone {
			current, err := b.Get(appendKey(nil, l.sessions.namespace, token))
			if err != nil {
				return err
			}
			if current != nil {
				continue
			}
			if err := l.owners.delete(b, appendKey(nil, l.owners.namespace, token)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return false, false, err // after a hang, op may still run, and set changed
	}
	return unknown, changed, nil
}
