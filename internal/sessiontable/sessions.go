// Going through sessions, and deleting many of them.

package sessiontable

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// Sessions returns a sequence of all sessions that have not expired at the given time, in
// the order of their tokens. An error is its last element.
func (t *Table) Sessions(ctx context.Context, now time.Time) iter.Seq2[Row, error] {
	return active(pages(ctx, func(from string) ([]Row, string, error) { return t.Page(ctx, from) }), now)
}

// SessionsOf returns a sequence of the sessions of an owner that have not expired at the
// given time, in the order of their tokens. Its last element is an error unless all are
// known, but it has those that are.
func (t *Table) SessionsOf(ctx context.Context, owner string, now time.Time) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		a, err := t.owners.begin(owner)
		if err != nil {
			yield(Row{}, err)
			return
		}
		for row, err := range active(t.owners.listed(ctx, a, owner), now) {
			if err == nil {
				actual, unread := t.options.OwnerOf(row.Data)
				if unread != nil {
					a.unread[row.Token] = unread
				}
				if unread != nil || actual != owner {
					continue
				}
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
		if err := a.err(); err != nil {
			yield(Row{}, err)
		}
	}
}

// DeleteOf deletes the sessions of an owner, and those listed for the owner whose data
// can't be read. It returns the number of those that have not expired at the given time,
// even on error.
func (t *Table) DeleteOf(ctx context.Context, owner string, now time.Time) (int, error) {
	d := deletion{table: t, owner: owner, now: now}
	for begun := time.Now(); ; {
		a, err := t.owners.begin(owner)
		if err != nil {
			return 0, err
		}
		d.answer, d.tokens, d.active = a, nil, 0
		n, err := d.run(ctx, t.owners.listed(ctx, a, owner), func(row Row) bool {
			actual, unread := t.options.OwnerOf(row.Data)
			if unread == nil && actual != owner {
				return false
			}
			if _, ok := a.unread[row.Token]; ok || unread != nil {
				a.unread[row.Token] = nil
			}
			return true
		})
		if err == nil {
			err = a.err()
		}
		if !errors.Is(err, errReplaced) || time.Since(begun) > engine.HangLimit {
			return n, err
		}
	}
}

// DeleteFunc deletes the sessions that have not expired at the given time and for which del
// returns true. It returns their number, even on error.
func (t *Table) DeleteFunc(ctx context.Context, now time.Time, del func(Row) bool) (int, error) {
	d := deletion{table: t, now: now}
	return d.run(ctx, t.Sessions(ctx, now), del)
}

// deleteBatch is the number of sessions deleted in one batch, which takes about as long as
// a commit.
const deleteBatch = 100

// A deletion deletes sessions many at a time.
type deletion struct {
	table  *Table
	owner  string  // for which they are listed, or ""
	answer *answer // that lists them
	now    time.Time

	tokens  []string // to be deleted
	active  int      // how many of them are to be counted
	deleted int
}

// run deletes each session of a sequence for which del returns true. If the sequence ends
// with an error, it still deletes those before.
func (d *deletion) run(ctx context.Context, sessions iter.Seq2[Row, error], del func(Row) bool) (int, error) {
	ctx = context.WithoutCancel(ctx) // deletions go on
	for row, err := range sessions {
		if err != nil {
			return d.flushed(ctx, err)
		}
		if del(row) {
			d.tokens = append(d.tokens, row.Token)
			if row.Expiry.After(d.now) {
				d.active++
			}
		}
		if len(d.tokens) == deleteBatch {
			if n, err := d.flushed(ctx, nil); err != nil {
				return n, err
			}
		}
	}
	return d.flushed(ctx, nil)
}

// flushed deletes the chosen sessions, and returns the number of all so far.
func (d *deletion) flushed(ctx context.Context, reason error) (int, error) {
	if len(d.tokens) == 0 {
		return d.deleted, reason
	}
	if err := d.table.deleteListed(ctx, d.answer, d.owner, d.tokens); err != nil {
		return d.deleted, errors.Join(reason, fmt.Errorf("delete sessions: %w", err))
	}
	d.deleted += d.active
	d.tokens, d.active = d.tokens[:0], 0
	return d.deleted, reason
}

// active returns the sessions of a sequence that have not expired.
func active(sessions iter.Seq2[Row, error], now time.Time) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for row, err := range sessions {
			if (err != nil || row.Expiry.After(now)) && !yield(row, err) {
				return
			}
		}
	}
}

// pages returns a sequence of the sessions that page reads.
func pages(ctx context.Context, page func(from string) (rows []Row, next string, err error)) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for from, more := "", true; more; more = from != "" {
			rows, next, err := page(from)
			for _, row := range rows {
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					break
				}
				if !yield(row, nil) {
					return
				}
			}
			if err != nil {
				yield(Row{}, err)
				return
			}
			from = next
		}
	}
}
