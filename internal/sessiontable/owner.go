// The owners of sessions: a second table that says whose session each is.

package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"

	"go.elara.ws/chaistore/internal/engine"
)

// A table of owners has a row for each session, also for those of nobody, whose
// owner is "": the row of a session that is renewed is then in the cache, and need
// not be looked up to see that it is right.
var ownerColumns = []column{{"token", "text", true}, {"owner", "text", true}}

func (t *Table) ownersName() string { return t.Name + "_owners" }

// isByOwner reports whether ix is an index on the owner and then the token, so that
// it has the sessions of each owner in the order of their tokens.
func isByOwner(ix index) bool {
	return len(ix.columns) == 2 && ix.columns[0] == indexColumn{1, false} && ix.columns[1] == indexColumn{0, false}
}

// CreateOwners creates the table of owners if it does not exist, and enters the
// owners of sessions that it lacks.
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
	return t.MatchOwners(ctx)
}

// HasOwners reports whether t has a table of owners.
func (t *Table) HasOwners() bool { return t.OwnerOf != nil }

// ErrOwnerTooLong is the error of [Table.Upsert] when an owner has more than
// [MaxKeyLen] bytes.
var ErrOwnerTooLong = fmt.Errorf("the owner is longer than %d bytes", MaxKeyLen)

// ownerOf returns whose session it is that has the given data. What a panic says may
// be data of the session, unless it comes from the runtime.
func (t *Table) ownerOf(data []byte) (owner string, err error) {
	if !t.HasOwners() {
		return "", nil
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case runtime.Error:
			err = fmt.Errorf("the function that tells the owner panicked: %w", r)
		default:
			err = errors.New("the function that tells the owner panicked")
		}
	}()
	if owner = t.OwnerOf(data); len(owner) > MaxKeyLen {
		return "", ErrOwnerTooLong
	}
	return owner, nil
}

// putOwner notes the owner of a session, if there is a table for it.
func (l *layout) putOwner(b *engine.Batch, token, owner string) error {
	if l.owners == nil {
		return nil
	}
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

// PageOf is [Table.Page] for the sessions of one owner.
func (t *Table) PageOf(ctx context.Context, owner, from string) (rows []Row, next string, err error) {
	err = t.read(ctx, func(s *engine.Snapshot, l *layout) (bool, error) {
		rows, next = nil, ""
		if owner == "" || len(owner) > MaxKeyLen {
			return true, nil
		}
		size, last := 0, ""
		err := l.scanOwner(s, owner, from, func(token string) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if len(rows) == pageLen || size >= pageBytes {
				next = after(last)
				return errStop
			}
			last = token
			row, err := s.Get(appendKey(nil, l.sessions.namespace, token))
			if row == nil || err != nil {
				return err
			}
			_, data, expiry, err := decodeRow(row)
			if err != nil {
				return err
			}
			// The row counts: it may have been changed by who knows of no owners.
			if actual, err := t.ownerOf(data); err != nil || actual != owner {
				return nil
			}
			size += len(data)
			rows = append(rows, Row{token, data, expiry})
			return nil
		})
		return next != "", err
	})
	if err != nil {
		return nil, "", err
	}
	return rows, next, nil
}

// scanOwner calls each for the tokens of an owner's sessions that follow from, that
// included, in their order, until it returns an error.
func (l *layout) scanOwner(s *engine.Snapshot, owner, from string, each func(token string) error) error {
	var ix index
	for _, ix = range l.owners.indexes {
		if isByOwner(ix) {
			break
		}
	}
	prefix := appendText(appendInt(nil, ix.namespace), owner)
	end := append(bytes.Clone(prefix), 0xff) // greater than the type of any value
	err := s.Scan(appendText(bytes.Clone(prefix), from), end, func(entry, _ []byte) error {
		n := valueLen(entry[len(prefix):])
		if n == 0 {
			return errBadRow
		}
		token, ok := decodeBytes(entry[len(prefix):len(prefix)+n], textType)
		if !ok {
			return errBadRow
		}
		return each(string(token))
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// MatchOwners enters the owners of sessions that the table of owners lacks, because
// they were committed without it, and removes those of sessions that are gone. It
// does nothing if t has no owners. It reads both tables in pages, side by side.
func (t *Table) MatchOwners(ctx context.Context) error {
	if !t.HasOwners() {
		return nil
	}
	for from, more := "", true; more; {
		var mismatch ownerMismatch
		err := t.read(ctx, func(s *engine.Snapshot, l *layout) (_ bool, err error) {
			mismatch, err = l.compareOwners(ctx, s, from)
			return true, err
		})
		if err != nil {
			return err
		}
		if err := t.correctOwners(ctx, mismatch); err != nil {
			return err
		}
		from, more = mismatch.next, mismatch.next != ""
	}
	return nil
}

// An ownerMismatch is where sessions and owners differ in a part of the tables.
type ownerMismatch struct {
	without []Row    // sessions without an owner
	gone    []string // owners without a session, by its token
	next    string   // where to go on, "" at the end of both tables
}

// compareOwners compares sessions and owners that follow from, that included.
func (l *layout) compareOwners(ctx context.Context, s *engine.Snapshot, from string) (m ownerMismatch, err error) {
	var owners []string // the next tokens that have one, in their order
	var last string     // where this part ends
	err = s.Scan(appendKey(nil, l.owners.namespace, from), appendInt(nil, l.owners.namespace+1), func(_, row []byte) error {
		values, err := split(row, len(ownerColumns))
		if err != nil {
			return err
		}
		token, ok := decodeBytes(values[0], textType)
		if !ok {
			return errBadRow
		}
		if len(owners) == sweepWrite {
			last = string(token)
			return errStop
		}
		owners = append(owners, string(token))
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return m, err
	}
	size := 0
	err = scan(ctx, s, l, from, func(_ []byte, row Row) error {
		for len(owners) > 0 && owners[0] < row.Token {
			m.gone, owners = append(m.gone, owners[0]), owners[1:]
		}
		if last != "" && row.Token >= last {
			m.next = last
			return errStop
		}
		if len(m.without) == sweepWrite || size >= pageBytes {
			m.next = row.Token
			return errStop
		}
		if len(owners) > 0 && owners[0] == row.Token {
			owners = owners[1:]
			return nil
		}
		row.Data = bytes.Clone(row.Data)
		size += len(row.Data)
		m.without = append(m.without, row)
		return nil
	})
	if err != nil {
		return m, err
	}
	if m.next == "" { // no session follows
		m.gone, m.next = append(m.gone, owners...), last
	}
	return m, nil
}

// correctOwners enters and removes owners, unless that has been done or the sessions
// have changed meanwhile.
func (t *Table) correctOwners(ctx context.Context, m ownerMismatch) error {
	if len(m.without)+len(m.gone) == 0 {
		return nil
	}
	owners := make([]string, len(m.without))
	for i, row := range m.without {
		owners[i], _ = t.ownerOf(row.Data) // nobody's if it can't be told
	}
	return t.write(ctx, (len(m.without)+len(m.gone))*4*MaxKeyLen, func(b *engine.Batch, l *layout) error {
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
				continue
			}
			if err := l.putOwner(b, row.Token, owners[i]); err != nil {
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
}
