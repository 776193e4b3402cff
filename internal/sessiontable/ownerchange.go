// The owner function may be another one than that which has listed the sessions.

package sessiontable

import (
	"context"

	"go.elara.ws/chaistore/internal/engine"
)

// ownerSample is how many entries are compared with the owner function.
const ownerSample = 64

// compareOwners looks at some entries, once in the life of x. If the owner function has
// another owner for each of their sessions, another function has made the entries: all
// sessions are noted, so that they are listed again. Otherwise an answer would be empty:
// sessions are listed anew once in a process, but not for each store.
//
// A session that is nobody's now, or can't be read, keeps its entry, so it proves nothing.
func (x *ownerIndex) compareOwners(ctx context.Context) error {
	if x.sampled.Load() {
		return nil
	}
	var entries []entry
	err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
		entries = nil
		n := 0
		known := append(appendText(appendInt(nil, l.owners.namespace), ""), 0xff) // after the unknown ones
		return x.scanEntries(s, l, known, func(_ []byte, owner, token string) (bool, error) {
			row, found, err := l.session(s.Get, token)
			if found {
				entries = append(entries, entry{owner: owner, session: row})
			}
			n++
			return n < ownerSample, err
		})
	})
	if err != nil {
		return err
	}
	others := 0
	for _, e := range entries {
		owner, err := x.ownerOf(e.session.Data)
		if err == nil && owner == e.owner {
			others = 0
			break
		}
		if err == nil && owner != "" {
			others++
		}
	}
	if others > 0 {
		x.noteEverything() // before another goroutine sees that they were compared
	}
	if x.sampled.CompareAndSwap(false, true) && others > 0 {
		x.table.Logger().WarnContext(ctx, "chaistore: Config.Owner is not the one that has listed the sessions: listing all of them again", "table", x.table.options.Name)
	}
	return nil
}

// noteEverything notes all sessions.
func (n *ownerNotes) noteEverything() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noteAll(n.end.Load(), true)
	n.all.first = 0
	n.changed.Store(true)
}
