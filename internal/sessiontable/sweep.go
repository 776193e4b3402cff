// The sweep: how expired rows are found and deleted.

package sessiontable

import (
	"context"
	"errors"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// A sweep reads up to sweepScan rows in one snapshot. It changes up to sweepWrite of
// them in one turn, after looking them up again. Other writes wait for one such turn
// at most.
const (
	sweepScan  = 5000
	sweepWrite = 100
)

// A Sweep is the result of [Table.DeleteExpired].
type Sweep struct {
	Scanned int // sessions read
	Deleted int // sessions deleted
	Active  int // sessions that had not expired when they were read
}

// DeleteExpired deletes the sessions whose expiry is not after now. It returns what it
// has done, even on error. The first call also repairs the indexes of the table, and
// looks for space that earlier processes have left to be freed. Each call makes a filter of
// the tokens that there are, lists the sessions that are not listed for their owners, and
// removes what is listed too much.
//
// It searches without blocking writes, and deletes a few sessions in each turn. A
// session that is committed meanwhile with an expiry after now stays.
func (t *Table) DeleteExpired(ctx context.Context, now time.Time) (sweep Sweep, err error) {
	changed := t.owners.beginSweep()
	err = errUnfinished
	defer func() {
		if changed && err != nil {
			t.owners.changed.Store(true) // the next sweep forgets it
		}
		t.counts.swept.Add(uint64(sweep.Deleted))
		t.counts.lastSweep.Store(&sweepEnd{time.Now(), err})
		if err == nil {
			t.counts.active.Store(int64(sweep.Active))
		}
	}()
	err = t.sweep(ctx, now, changed, &sweep)
	return sweep, err
}

// errUnfinished is why a sweep has failed whose owner function panics, or ends its goroutine.
var errUnfinished = errors.New("Config.Owner has not returned")

// sweep is DeleteExpired, after beginSweep has returned changed.
func (t *Table) sweep(ctx context.Context, now time.Time, changed bool, sweep *Sweep) error {
	c, err := t.collect()
	if err != nil {
		return err
	}
	defer c.Close()
	left := int64(0)
	var kept []uint64 // see [ownerIndex.sweep]
	for from, more := "", true; more; {
		page, err := t.scanExpired(ctx, from, now, c)
		if err != nil {
			return err
		}
		sweep.Scanned += page.scanned
		deleted, err := t.deleteIfExpired(ctx, page.tokens, now)
		if err != nil {
			return err
		}
		sweep.Deleted += deleted
		sweep.Active += page.scanned - len(page.tokens)
		from, more = page.next, page.next != ""
		if len(page.tokens) > 0 {
			t.garbage.Add(page.expired * int64(deleted) / int64(len(page.tokens)))
		}
		left += page.left
		kept = append(kept, page.kept...)
	}
	c.Done()
	if !t.foundGarbage.Load() {
		if err := t.findGarbage(left); err != nil {
			return err
		}
	}
	if err := t.repairIndexes(ctx); err != nil {
		return err
	}
	if err := t.owners.sweep(ctx, changed, kept); err != nil {
		return err
	}
	if t.garbage.Load() < max(compactAfter, left/4) {
		return nil
	}
	garbage := t.garbage.Swap(0)
	done, err := t.compact(ctx)
	if !done {
		t.garbage.Add(garbage) // the next sweep tries again
	}
	return err
}

// findGarbage estimates what was deleted before t was made and still takes space: what
// the files of sessions have more than the given number of bytes, which the sessions
// have. Files are compressed, so this may be less than what is there.
func (t *Table) findGarbage(left int64) error {
	l, err := t.layout()
	if err != nil {
		return err
	}
	r := rangeOf(l.sessions.namespace)
	size, err := t.db.SizeOfFiles(r[0], r[1])
	if err == nil {
		t.garbage.Add(max(0, size-left-t.garbage.Load()))
		t.foundGarbage.Store(true)
	}
	return err
}

// A sweep compacts the tables when at least compactAfter bytes were deleted, and a
// quarter of what is left.
const compactAfter = 16 << 20

// compact frees the space of deleted rows. It reports whether it is done: it stops where
// the engine can't do it now.
func (t *Table) compact(ctx context.Context) (done bool, err error) {
	l, err := t.layout()
	if err != nil {
		return false, err
	}
	ranges := [][2][]byte{rangeOf(l.sessions.namespace)}
	relations := []*relation{&l.sessions}
	if l.owners != nil {
		relations = append(relations, l.owners)
		ranges = append(ranges, rangeOf(l.owners.namespace))
	}
	for _, r := range relations {
		for _, ix := range r.indexes {
			ranges = append(ranges, rangeOf(ix.namespace))
		}
	}
	for _, r := range ranges {
		if done, err := t.db.Compact(ctx, r[0], r[1]); !done || err != nil {
			return false, err
		}
	}
	return true, nil
}

// rangeOf returns the first key of a namespace, and that of the next one.
func rangeOf(namespace int64) [2][]byte {
	return [2][]byte{appendInt(nil, namespace), appendInt(nil, namespace+1)}
}

// An expiredPage holds the expired sessions in a part of the table.
type expiredPage struct {
	tokens        []string
	scanned       int      // sessions read to find them
	expired, left int64    // bytes of the expired sessions, and of the others
	kept          []uint64 // hashes of the tokens of the others
	next          string   // where the next page begins, "" at the end of the table
}

// scanExpired looks for expired sessions with tokens from the given one on, and collects
// the others.
func (t *Table) scanExpired(ctx context.Context, from string, now time.Time, c *collection) (page expiredPage, err error) {
	err = t.read(ctx, func(s *engine.Snapshot, l *layout) error {
		page = expiredPage{}
		c.in(s, l)
		return scan(s, l, from, func(key, encoded []byte, row Row) (more bool, err error) {
			if page.scanned == sweepScan || len(page.tokens) == sweepWrite || page.expired >= pageBytes {
				page.next = row.Token
				return false, nil
			}
			page.scanned++
			if row.Expiry.After(now) {
				c.Add(key)
				page.left += int64(len(encoded))
				if t.options.OwnerOf != nil {
					page.kept = append(page.kept, t.owners.hash(row.Token))
				}
				return true, nil
			}
			page.tokens = append(page.tokens, row.Token)
			page.expired += int64(len(encoded))
			return true, nil
		})
	})
	return page, err
}

// deleteIfExpired deletes the sessions that are still expired in its turn, and returns
// their number.
func (t *Table) deleteIfExpired(ctx context.Context, tokens []string, now time.Time) (int, error) {
	if len(tokens) == 0 {
		return 0, nil
	}
	var deleted int
	err := t.write(ctx, len(tokens)*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		var expired []string
		for _, token := range tokens {
			encoded, err := b.Get(appendKey(nil, l.sessions.namespace, token))
			if err != nil {
				return err
			}
			if encoded == nil {
				continue
			}
			_, _, expiry, err := decodeRow(encoded)
			if err != nil {
				return err
			}
			if !expiry.After(now) {
				expired = append(expired, token)
			}
		}
		deleted = len(expired)
		return l.delete(b, expired)
	})
	if err != nil {
		return 0, err
	}
	return deleted, nil
}

// A collection collects the keys of sessions for the filter of the table.
type collection struct {
	*engine.Collection
	namespace int64
}

// collect begins a collection.
func (t *Table) collect() (*collection, error) {
	l, err := t.layout()
	if err != nil {
		return nil, err
	}
	const session = 300 // bytes, more or less; the next filter is made for as many as there are
	keys := rangeOf(l.sessions.namespace)
	size, _ := t.db.SizeOfFiles(keys[0], keys[1])
	return &collection{t.db.Collect(t.options.Name, keys[0], size/session), l.sessions.namespace}, nil
}

// in is called for each snapshot in which sessions are read. If the table was replaced, they
// are others than those that the filter would be for.
func (c *collection) in(s *engine.Snapshot, l *layout) {
	if l.sessions.namespace != c.namespace {
		c.Close()
	}
	c.In(s)
}

// CollectFew makes the filter of a table that is so small that it can be read at once, such
// as a new one, whose filter then grows with it. It tries that one time, when no transaction
// has written out changes. Finds of what does not exist call it.
func (t *Table) CollectFew(ctx context.Context) {
	l, err := t.layout()
	if err != nil || !t.db.Observes() || t.collected.Swap(l.sessions.namespace) == l.sessions.namespace {
		return
	}
	c, err := t.collect()
	if err != nil || !c.Collects() {
		return
	}
	defer c.Close()
	n := 0
	err = t.read(ctx, func(s *engine.Snapshot, l *layout) error {
		c.in(s, l)
		n = 0
		if !c.Collects() { // a transaction is open
			t.collected.Store(0)
			return nil
		}
		return scan(s, l, "", func(key, _ []byte, _ Row) (more bool, err error) {
			c.Add(key)
			n++
			return n <= sweepScan, nil
		})
	})
	if n <= sweepScan && err == nil {
		c.Done()
	}
}
