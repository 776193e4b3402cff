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

// reconcile lists the sessions that are noted. If a table is replaced meanwhile, it returns
// errReplaced. It waits for another goroutine that reconciles no longer than a write waits:
// that may be its own, which called the owner function.
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
	var at tables
	var begun uint64
	all := false
	err := x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
		at, begun = l.tables(), s.Number()
		all = x.follow(at, begun)
		return nil
	})
	if all && err == nil {
		var present *entrySet
		if present, err = x.entries(ctx, at); err == nil {
			err = x.listAll(ctx, at, present)
		}
	}
	for more := true; more && err == nil; {
		more, err = x.listNoted(ctx, at, begun)
	}
	return err
}

// readAt calls f with a snapshot in which the tables are the given ones, or returns
// errReplaced.
func (x *ownerIndex) readAt(ctx context.Context, at tables, f func(s *engine.Snapshot, l *layout) error) error {
	return x.table.read(ctx, func(s *engine.Snapshot, l *layout) error {
		if l.tables() != at {
			return errReplaced
		}
		return f(s, l)
	})
}

// listAll lists all sessions, but for those whose entries are present.
func (x *ownerIndex) listAll(ctx context.Context, at tables, present *entrySet) error {
	least := present.number // an entry may be gone since then
	for from, more := "", true; more; more = from != "" {
		var rows []Row
		err := x.readAt(ctx, at, func(s *engine.Snapshot, l *layout) (err error) {
			least = min(least, s.Number())
			rows, from, err = l.page(s, from, reconcilePart)
			return err
		})
		if err == nil {
			err = x.list(ctx, at, rows, present)
		}
		if err != nil {
			return err
		}
	}
	return x.readAt(ctx, at, func(s *engine.Snapshot, _ *layout) error {
		x.compared(at, least, s.Number())
		return nil
	})
}

// entrySet has hashes of entries. Looking each entry up instead would take ten times as
// long. If one is removed later, its session is noted, or listed in the same turn. With 128
// bits, two entries have the same hash less often than memory fails.
type entrySet struct {
	number uint64 // of the first snapshot that it is from
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
func (x *ownerIndex) entries(ctx context.Context, at tables) (*entrySet, error) {
	set := &entrySet{math.MaxUint64, [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, make(map[[2]uint64]struct{})}
	for from, more := []byte(nil), true; more; {
		next := from
		err := x.readAt(ctx, at, func(s *engine.Snapshot, l *layout) error {
			set.number, more = min(set.number, s.Number()), false
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
		if err != nil {
			return nil, err
		}
		from = next
	}
	return set, nil
}

// listNoted lists some of the sessions that were noted up to a number.
func (x *ownerIndex) listNoted(ctx context.Context, at tables, number uint64) (more bool, err error) {
	var tokens []string
	var rows []Row
	err = x.readAt(ctx, at, func(s *engine.Snapshot, l *layout) error {
		number = min(number, s.Number())
		var ok bool
		if tokens, ok = x.noted(at, number, reconcilePart); !ok {
			return errReplaced
		}
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
	if len(tokens) == 0 || err != nil {
		return false, err
	}
	if err := x.list(ctx, at, rows, nil); err != nil {
		return false, err
	}
	return true, x.readAt(ctx, at, func(s *engine.Snapshot, _ *layout) error {
		x.settled(at, tokens, number, s.Number())
		return nil
	})
}

// list puts the missing entries of sessions in the tables that they were read from. Entries
// in present are not missing.
func (x *ownerIndex) list(ctx context.Context, at tables, rows []Row, present *entrySet) error {
	owners, errs, err := x.ownersOf(ctx, rows)
	if err != nil {
		return err
	}
	var missing []int
	err = x.readAt(ctx, at, func(s *engine.Snapshot, l *layout) error {
		missing = nil
		for i, row := range rows {
			if errs[i] != nil {
				owners[i] = ""
			} else if owners[i] = x.listable(owners[i]); owners[i] == "" || present.has(owners[i], row.Token) {
				continue
			}
			entry, err := s.Get(ownerKey(l.owners.namespace, owners[i], row.Token))
			if err != nil {
				return err
			}
			if entry == nil {
				missing = append(missing, i)
			}
		}
		return nil
	})
	if len(missing) == 0 || err != nil {
		return err
	}
	return x.table.write(ctx, len(missing)*4*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		if l.tables() != at {
			return errReplaced
		}
		x.claim(b, l)
		for _, i := range missing {
			if err := l.putOwner(b, owners[i], rows[i].Token); err != nil {
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
