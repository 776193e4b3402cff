// What the tables of owners and sessions have got from others: notes of sessions that may
// not be listed.

package sessiontable

import (
	"bytes"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"go.elara.ws/chaistore/internal/engine"
)

// ownerNotes notes sessions that may not be listed for their owners. All stores on a table
// share them.
//
// Each note is on changes in batches with certain ends. A change is noted before anyone can
// see it, since ownerNotes follows the feed of the engine. When a session has been read in a
// snapshot and listed, the note goes, unless it is on a batch that the snapshot does not
// have. From then on, only snapshots are current that have what was listed. So who opens a
// snapshot and then looks at the notes finds one on each session that may not be listed in
// the snapshot, or finds that the snapshot is not current.
type ownerNotes struct {
	once        sync.Once                // done when the feed is followed
	end         atomic.Uint64            // of the last batch that was told
	followed    atomic.Pointer[followed] // nil at first
	changed     atomic.Bool              // whether there may be entries to be removed
	reconciling chan struct{}            // has an element while a goroutine reconciles

	mu     sync.Mutex
	tokens map[string]noteSpan
	least  uint64   // not greater than any first of tokens
	hidden uint64   // not greater than any first of tokens with a deleted entry
	all    noteSpan // the note on all sessions, or noNote
	listed uint64   // the number of a snapshot that has all that was listed when a note went
}

// A noteSpan is the first and the last end of the batches that a note is on.
type noteSpan struct {
	first, last uint64
	deleted     bool // whether an entry was deleted
}

var noNote = noteSpan{first: math.MaxUint64}

// maxNoted is the number of sessions that are noted. If there are more, all are.
const maxNoted = 10_000

// tables are the namespaces of a table of sessions and its table of owners.
type tables struct{ sessions, owners int64 }

func (l *layout) tables() tables { return tables{l.sessions.namespace, l.owners.namespace} }

// followed are the tables whose changes are noted, and the beginnings of their keys. A turn
// that lists what it puts into these tables names it: see claim.
type followed struct {
	tables
	sessions, owners []byte
}

func newOwnerNotes() *ownerNotes {
	n := &ownerNotes{reconciling: make(chan struct{}, 1), all: noNote, least: math.MaxUint64, hidden: math.MaxUint64}
	n.changed.Store(true)
	return n
}

// told notes a change. It is called with Pebble's commit mutex locked.
func (n *ownerNotes) told(c engine.Change) {
	n.end.Store(c.End) // before n.followed is looked at: see follow
	f := n.followed.Load()
	if f == nil {
		return
	}
	if c.Key == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.noteAll(c.End, true)
		return
	}
	var token []byte
	own := c.By == any(f)
	switch {
	case bytes.HasPrefix(c.Key, f.sessions):
		if !n.changed.Load() {
			n.changed.Store(true)
		}
		if own || c.Delete {
			return
		}
		if key := c.Key[len(f.sessions):]; len(key) > 0 && valueLen(key) == len(key) {
			token, _ = decodeBytes(key, textType)
		}
	case bytes.HasPrefix(c.Key, f.owners) && !own:
		n.changed.Store(true)
		if c.Delete {
			_, token, _ = decodeOwnerKey(c.Key)
		}
	}
	if token != nil && len(token) <= MaxKeyLen { // others can't be found
		n.note(string(token), c.End, c.Delete)
	}
}

func (n *ownerNotes) note(token string, end uint64, deleted bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	span, ok := n.tokens[token]
	if !ok && len(n.tokens) >= maxNoted {
		n.noteAll(end, deleted)
		return
	}
	if !ok {
		span.first = end
		n.least = min(n.least, end)
	}
	if deleted {
		span.deleted = true
		n.hidden = min(n.hidden, span.first)
	}
	span.last = end
	if n.tokens == nil {
		n.tokens = make(map[string]noteSpan)
	}
	n.tokens[token] = span
}

// noteAll notes all sessions. n.mu must be locked.
func (n *ownerNotes) noteAll(end uint64, deleted bool) {
	n.all = noteSpan{min(n.all.first, n.least, end), end, n.all.deleted || deleted || n.hidden < math.MaxUint64}
	n.drop()
}

// drop removes the notes on single sessions. n.mu must be locked.
func (n *ownerNotes) drop() { n.tokens, n.least, n.hidden = nil, math.MaxUint64, math.MaxUint64 }

// follow makes n note the changes of the given tables. It reports whether all sessions are
// noted for the snapshot with the given number.
func (n *ownerNotes) follow(t tables, number uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.follows(t) {
		n.drop()
		n.followed.Store(&followed{t, appendInt(nil, t.sessions), appendInt(nil, t.owners)})
		// Either told has seen that, or this sees the end of its batch.
		n.all = noteSpan{0, n.end.Load(), true}
		n.changed.Store(true)
	}
	return n.all.first <= number
}

// follows reports whether the changes of the given tables are noted.
func (n *ownerNotes) follows(t tables) bool {
	f := n.followed.Load()
	return f != nil && f.tables == t
}

// current reports whether a snapshot of the given tables and with the given number lists
// all sessions that were there in the snapshot with the number begun. There is no note on
// what that one has, nor on entries that were there then and are not any more.
func (n *ownerNotes) current(t tables, begun, number uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.follows(t) && number >= n.listed && n.least > begun && n.hidden > number &&
		n.all.first > begun && (!n.all.deleted || n.all.first > number)
}

// noted returns sessions of the given tables that are noted for the snapshot with the given
// number. It reports false if the notes are on other tables.
func (n *ownerNotes) noted(t tables, number uint64, limit int) (tokens []string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.follows(t) {
		return nil, false
	}
	n.least, n.hidden = math.MaxUint64, math.MaxUint64
	for token, span := range n.tokens {
		if span.first <= number && len(tokens) < limit {
			tokens = append(tokens, token)
		}
		n.least = min(n.least, span.first)
		if span.deleted {
			n.hidden = min(n.hidden, span.first)
		}
	}
	slices.Sort(tokens) // the engine finds rows that follow each other faster
	return tokens, true
}

// settled removes the notes on sessions of the given tables that were read in the snapshot
// with the given number. They are listed in the snapshot with the number listed.
func (n *ownerNotes) settled(t tables, tokens []string, number, listed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.follows(t) {
		return
	}
	n.listed = max(n.listed, listed)
	for _, token := range tokens {
		if span, ok := n.tokens[token]; ok && span.last <= number {
			delete(n.tokens, token)
		} else if ok {
			span.first = max(span.first, number+1)
			n.tokens[token] = span
		}
	}
}

// compared removes the note on all sessions, after they were read in snapshots with at
// least the given number. They are listed in the snapshot with the number listed.
func (n *ownerNotes) compared(t tables, number, listed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.follows(t) {
		return
	}
	n.listed = max(n.listed, listed)
	switch {
	case n.all.last <= number:
		n.all = noNote
	default:
		n.all.first = max(n.all.first, number+1)
	}
}
