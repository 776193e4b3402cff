// Reconciling: listing the sessions that may not be listed for their owners.

package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// reconcile lists the sessions that are noted. It waits for another goroutine that does so
// for no longer than a write waits: that may be its own, which called the owner function.
func (x *ownerIndex) reconcile(ctx context.Context) error {
	limit := time.NewTimer(engine.HangLimit)
	defer limit.Stop()
	select {
	case x.reconciling <- struct{}{}:
		defer func() { <-x.reconciling }()
	case <-limit.C:
		return errReconciling
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := x.observe(ctx); err != nil {
		return err
	}
	var begun uint64
	all := false
	err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
		begun = s.Number()
		all = x.follow(l.tables(), begun)
		return nil
	})
	if all && err == nil {
		err = x.listAll(ctx)
	}
	for more := true; more && err == nil; {
		more, err = x.listNoted(ctx, begun)
	}
	return err
}

// listAll lists all sessions. It gives up when a table is replaced meanwhile.
func (x *ownerIndex) listAll(ctx context.Context) error {
	present, err := x.entries(ctx)
	if err != nil {
		return err
	}
	var followed tables
	least := uint64(math.MaxUint64)
	for from := ""; ; {
		var rows []Row
		var next string
		var current tables
		err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
			current, least = l.tables(), min(least, s.Number())
			rows, next, err = l.page(s, from, reconcilePart)
			return err
		})
		if from == "" {
			followed = current
		}
		if err != nil || current != followed || current != present.tables {
			return err
		}
		if err := x.list(ctx, rows, nil, present); err != nil {
			return err
		}
		if from = next; from == "" {
			x.compared(followed, least)
			return nil
		}
	}
}

// entrySet has hashes of entries. Looking each entry up instead would take ten times as
// long. Nobody but sweeps removes entries that are in it without a note, and these only wrong ones. With 128
// bits, two entries have the same hash less often than memory fails.
type entrySet struct {
	tables tables
	seeds  [2]maphash.Seed
	hashes map[[2]uint64]struct{}
}

func (e *entrySet) hash(owner, token string) [2]uint64 {
	var room [2*MaxKeyLen + 20]byte
	entry := appendText(appendText(room[:0], owner), token)
	return [2]uint64{maphash.Bytes(e.seeds[0], entry), maphash.Bytes(e.seeds[1], entry)}
}

func (e *entrySet) has(owner, token string) bool {
	if e == nil {
		return false
	}
	_, ok := e.hashes[e.hash(owner, token)]
	return ok
}

// entries returns all entries.
func (x *ownerIndex) entries(ctx context.Context) (*entrySet, error) {
	set := &entrySet{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, hashes: make(map[[2]uint64]struct{})}
	for from, more := []byte(nil), true; more; {
		next := from
		var current tables
		err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
			current, more = l.tables(), false
			n := 0
			return x.scanEntries(s, l, from, func(key []byte, owner, token string) (bool, error) {
				if n++; n > sweepScan {
					next, more = bytes.Clone(key), true
					return false, nil
				}
				set.hashes[set.hash(owner, token)] = struct{}{}
				return true, nil
			})
		})
		if from == nil {
			set.tables = current
		}
		if err != nil || current != set.tables {
			set.tables = tables{} // listAll gives up
			return set, err
		}
		from = next
	}
	return set, nil
}

// listNoted lists some of the sessions that were noted up to a number.
func (x *ownerIndex) listNoted(ctx context.Context, number uint64) (more bool, err error) {
	var tokens []string
	var rows []Row
	err = x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
		number = min(number, s.Number())
		tokens, rows = x.noted(number, reconcilePart), nil
		size := 0
		for i, token := range tokens {
			row, found, err := l.session(s.Get, token)
			if err != nil {
				return err
			}
			if found {
				rows = append(rows, row)
			}
			if size += len(row.Data); size >= pageBytes {
				tokens = tokens[:i+1]
				break
			}
		}
		return nil
	})
	if err == nil {
		err = x.list(ctx, rows, nil, nil)
	}
	if err == nil {
		x.settled(tokens, number)
	}
	return len(tokens) > 0, err
}

// list puts the missing entries of sessions. With a map unread, the sessions were unknown:
// the entries for that are removed, and what is still unknown is added to the map. Entries
// in present are not missing.
func (x *ownerIndex) list(ctx context.Context, rows []Row, unread map[string]error, present *entrySet) error {
	owners, errs, err := x.ownersOf(ctx, rows)
	if err != nil {
		return err
	}
	listed := make([]bool, len(rows))
	for i, row := range rows {
		switch owner := owners[i]; {
		case errs[i] != nil && unread != nil:
			unread[row.Token] = errs[i]
			listed[i] = true
		case errs[i] != nil:
			owners[i] = ""
		case len(owner) > MaxKeyLen:
			x.skip("its owner")
			listed[i] = true
		default:
			listed[i] = owner == "" || present.has(owner, row.Token)
		}
	}
	size := 0
	err = x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
		size = 0
		for i, row := range rows {
			if !listed[i] {
				entry, err := s.Get(ownerKey(l.owners.namespace, owners[i], row.Token))
				if err != nil {
					return err
				}
				listed[i] = entry != nil
			}
			_, unknown := unread[row.Token]
			if !listed[i] || unread != nil && !unknown {
				size += 4 * MaxKeyLen
			}
		}
		return nil
	})
	if size == 0 || err != nil {
		return err
	}
	return x.table.write(ctx, size, func(b *engine.Batch, l *layout) error {
		for i, row := range rows {
			if !listed[i] {
				if err := l.putOwner(b, owners[i], row.Token); err != nil {
					return err
				}
			}
			if _, unknown := unread[row.Token]; unread == nil || unknown {
				continue
			}
			if err := l.removeOwner(b, "", row, true); err != nil {
				return err
			}
		}
		return nil
	})
}

// ownersOf asks for the owners of sessions. Where there are many, all processors do it, as
// it takes longer than all else.
func (x *ownerIndex) ownersOf(ctx context.Context, rows []Row) (owners []string, errs []error, err error) {
	owners, errs = make([]string, len(rows)), make([]error, len(rows))
	ask := func(i int) { owners[i], errs[i] = x.ownerOf(rows[i].Data) }
	const few = 16
	if len(rows) <= few {
		for i := range rows {
			ask(i)
		}
		return owners, errs, ctx.Err()
	}
	var next, asked atomic.Int64
	var panicked atomic.Pointer[any]
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					panicked.Store(&r)
				}
			}()
			for i := next.Add(1) - 1; i < int64(len(rows)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				ask(int(i))
				asked.Add(1)
			}
		})
	}
	wg.Wait()
	if r := panicked.Load(); r != nil {
		panic(*r) // in the goroutine of the caller
	}
	if err := ctx.Err(); err == nil && asked.Load() < int64(len(rows)) {
		return nil, nil, errors.New("the owner function has ended its goroutine")
	}
	return owners, errs, ctx.Err()
}
