// The feed: what each batch changes, whoever commits it.

package engine

import (
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble"
)

// A Change is a row that a batch puts or deletes. With a nil key, any row may have been
// put or deleted, or deleted, in any batch up to End.
type Change struct {
	Key, Row    []byte // valid only during the call; Row is nil if the row is deleted
	Delete      bool
	Own         bool   // whether an operation of this package has made it
	By          any    // which one, according to [Batch.By], or nil
	Undo        bool   // whether it is a part of the rollback of its transaction
	Transaction uint64 // greater than that of earlier transactions; a batch of this package is one
	End         uint64 // the end of the batch: snapshots with this number, or a greater one, have it
}

// A feed tells its followers what is committed, by this package, by SQL, and by Chai when
// it undoes a transaction:
//
//	batch ─ gets its numbers, up to end ─ is written ─ its changes are told ─ visible to snapshots of number end and later
//
// All of that but the last happens under Pebble's commit mutex. So followers are called in
// the order in which batches become visible, by one goroutine at a time. What a snapshot
// shows, they have been told before it was opened. They are not told of batches that are
// refused. What a transaction writes out before its end is told when it is written out, and
// when it is rolled back, the changes that undo it are told, too.
//
// Followers must be quick, and must not take a lock that is held during any call of the
// database.
type feed struct {
	end       atomic.Uint64 // of the last batch that is told
	ended     uint64        // transactions that have ended; Pebble's commit mutex protects it
	mu        sync.Mutex    // held while followers changes
	followers atomic.Pointer[[]func(Change)]
}

// Follow makes f a follower of the feed, for as long as the database is open. f must not
// refer to the database. It is first called with a nil key, for the batches that it is not
// told of. That call alone may come together with another one.
func (db *DB) Follow(f func(Change)) { db.feed.follow(f) }

// Observes reports whether followers are told of all batches that are not in a snapshot
// opened from now on. They are after a write.
func (db *DB) Observes() bool { return db.isObserving() }

// Told returns the end of the last batch that followers are told of, or are about to be.
// Who follows the feed is told of each later one.
func (db *DB) Told() uint64 { return db.feed.end.Load() }

func (fd *feed) follow(f func(Change)) {
	fd.mu.Lock()
	defer fd.mu.Unlock()
	var all []func(Change)
	if former := fd.followers.Load(); former != nil {
		all = append(all, *former...)
	}
	all = append(all, f)
	fd.followers.Store(&all)
	// Either this sees the end of a batch, or who tells the batch sees f: see begin.
	f(Change{End: fd.end.Load()})
}

// begin begins to tell of the batch with the given end, and returns who is told.
func (fd *feed) begin(end uint64) []func(Change) {
	fd.end.Store(end)
	if followers := fd.followers.Load(); followers != nil {
		return *followers
	}
	return nil
}

// start tells that any row may have changed up to the given number.
func (fd *feed) start(end uint64) {
	for _, f := range fd.begin(end) {
		f(Change{End: end})
	}
}

// An ownBatch is the batch that this package commits.
type ownBatch struct {
	batch   *pebble.Batch
	changes []change // as many as the batch has, in the same order
}

// tell tells the changes of a batch, which rolls a transaction back if undo is true.
func (s *shared) tell(b *pebble.Batch, undo bool) {
	end := b.SeqNum() + uint64(b.Count())
	followers := s.feed.begin(end)
	if own := s.own.Load(); own != nil && own.batch == b {
		for _, change := range own.changes {
			c := Change{Key: change.key, Row: change.row, Delete: change.row == nil, Own: true, By: change.by, Transaction: s.feed.ended + 1, End: end}
			for _, f := range followers {
				f(c)
			}
		}
		return
	}
	for r := b.Reader(); ; {
		kind, key, row, ok, err := r.Next()
		if !ok || err != nil { // it has been read once
			return
		}
		c := Change{Undo: undo, Transaction: s.feed.ended + 1, End: end}
		switch kind {
		case pebble.InternalKeyKindSet, pebble.InternalKeyKindDelete:
			c.Key, c.Row, c.Delete = key, row, kind == pebble.InternalKeyKindDelete
		case pebble.InternalKeyKindRangeDelete:
			c.Delete = true
		case pebble.InternalKeyKindLogData:
			continue
		}
		if len(key) > 0 && key[0] == undoTable {
			continue
		}
		for _, f := range followers {
			f(c)
		}
	}
}
