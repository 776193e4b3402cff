// The sweep of the table of owners: removing entries.

package sessiontable

import (
	"bytes"
	"cmp"
	"context"
	"hash/maphash"
	"slices"

	"go.elara.ws/chaistore/internal/engine"
)

// beginSweep returns whether there may be something to forget.
func (x *ownerIndex) beginSweep() (changed bool) { return x.ownerOf != nil && x.changed.Swap(false) }

// sweep lists all sessions, and forgets entries. changed is what beginSweep has returned
// before the sweep went through the sessions. kept has a hash of the token of each that the
// sweep has seen and not deleted, in any order.
func (x *ownerIndex) sweep(ctx context.Context, changed bool, kept []uint64) error {
	if x.ownerOf == nil {
		return nil
	}
	a, err := x.begin("")
	if err == nil {
		_, _, err = x.page(ctx, a, "", "")
	}
	if err != nil || !changed && !x.changed.Load() {
		return err
	}
	return x.forget(ctx, kept)
}

// hash returns the hash of a token for sweep. Looking each session up instead would take
// ten times as long.
func (x *ownerIndex) hash(token string) uint64 { return maphash.String(x.seed, token) }

// forget removes the entries of sessions that are gone, and, where a session has more than
// one entry, those for other owners than its own. Only for these, it asks for the owner. So
// a session that is nobody's now may keep an entry until it is gone.
func (x *ownerIndex) forget(ctx context.Context, kept []uint64) error {
	slices.Sort(kept)
	seen := make([]bool, len(kept))
	several := make(map[uint64]bool) // entries
	err := x.forgetIf(ctx, func(token string) bool {
		hash := x.hash(token)
		i, ok := slices.BinarySearch(kept, hash)
		if ok && seen[i] {
			several[hash] = true
		} else if ok {
			seen[i] = true
		}
		return !ok
	}, nil)
	if err != nil || len(several) == 0 {
		return err
	}
	return x.forgetIf(ctx, func(token string) bool { return several[x.hash(token)] }, x.ownerOf)
}

// An entry is an entry of the table of owners, with its session.
type entry struct {
	owner   string
	session Row
	found   bool
	actual  string // the owner of the session, if it was found
}

// forgetIf removes the entries for whose tokens look returns true, if their sessions are
// gone or, with a function ownerOf, somebody else's.
func (x *ownerIndex) forgetIf(ctx context.Context, look func(token string) bool, ownerOf func(data []byte) (string, error)) error {
	var entries []entry
	for from, more := []byte(nil), true; more; {
		var found []entry
		next := from
		err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
			found, more = nil, false
			scanned := 0
			return x.scanEntries(s, l, from, func(key []byte, owner, token string) (bool, error) {
				if scanned++; scanned > sweepScan {
					next, more = bytes.Clone(key), true
					return false, nil
				}
				if look(token) {
					found = append(found, entry{owner: owner, session: Row{Token: token}})
				}
				return true, nil
			})
		})
		if err != nil {
			return err
		}
		from, entries = next, append(entries, found...)
		const enough = 20_000
		if more && len(entries) < enough {
			continue
		}
		// The engine finds sessions that follow each other faster.
		slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.session.Token, b.session.Token) })
		for len(entries) > 0 {
			n, err := x.remove(ctx, entries, ownerOf)
			if err != nil {
				return err
			}
			entries = entries[n:]
		}
	}
	return nil
}

// remove is the part of forgetIf that removes some of the first entries. It returns how
// many it has looked at.
func (x *ownerIndex) remove(ctx context.Context, entries []entry, ownerOf func(data []byte) (string, error)) (n int, err error) {
	part := entries[:min(len(entries), reconcilePart)]
	n = len(part)
	if ownerOf != nil {
		err = x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
			n = 0
			for size := 0; n < len(part) && size < pageBytes; n++ {
				e := &part[n]
				token := e.session.Token
				if e.session, e.found, err = l.session(s.Get, token); err != nil {
					return err
				}
				e.session.Token = token
				size += len(e.session.Data)
			}
			return nil
		})
		if err != nil {
			return n, err
		}
		wrong := part[:0:0]
		for _, e := range part[:n] {
			var unread error
			if e.found {
				e.actual, unread = ownerOf(e.session.Data)
			}
			if !e.found || e.actual != e.owner && unread == nil {
				e.actual = x.listable(e.actual)
				wrong = append(wrong, e)
			}
		}
		part = wrong
	}
	return n, x.replace(ctx, part)
}

// scanEntries calls each for the entries from a key on, in their order, for as long as each
// asks for more. At first, or when the table was replaced, it begins at its beginning.
func (x *ownerIndex) scanEntries(s *engine.Snapshot, l *layout, from []byte, each func(key []byte, owner, token string) (more bool, err error)) error {
	keys := rangeOf(l.owners.namespace)
	if !bytes.HasPrefix(from, keys[0]) {
		from = keys[0]
	}
	return s.Scan(from, keys[1], func(key, _ []byte) (bool, error) {
		owner, token, err := decodeOwnerKey(key)
		if err != nil {
			return false, err
		}
		if len(owner) > MaxKeyLen || len(token) > MaxKeyLen {
			x.skip("its token or its owner")
			return true, nil
		}
		return each(key, string(owner), string(token))
	})
}

// replace removes entries, unless their sessions have changed since they were looked for. A
// session that is there gets the entry for its owner in the same turn.
func (x *ownerIndex) replace(ctx context.Context, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	return x.table.write(ctx, len(entries)*4*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		x.claim(b, l)
		for _, e := range entries {
			token := e.session.Token
			current, exists, err := l.session(b.Get, token)
			if err == nil && exists {
				if !e.found || !bytes.Equal(current.Data, e.session.Data) {
					continue
				}
				if e.actual != "" {
					err = l.putOwner(b, e.actual, token)
				}
			}
			if err == nil {
				err = l.owners.delete(b, ownerKey(l.owners.namespace, e.owner, token))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
