// Copying sessions from one side to the other, without knowledge of Chai or PostgreSQL.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"go.elara.ws/chaistore"
)

// A side is the source or the destination of sessions.
type side interface {
	fmt.Stringer

	// sessions returns a sequence of the active sessions, ordered by the bytes of their
	// tokens. The body of a loop over it may write sessions that the loop has passed.
	sessions(ctx context.Context) iter.Seq2[chaistore.Session, error]

	// accepts returns an error if the session can't be written as it is. The error
	// says why, without the token.
	accepts(session chaistore.Session) error

	// write adds or overwrites the sessions. When it returns nil, they are on the disk.
	write(ctx context.Context, sessions []chaistore.Session) error

	// rehearse returns an error if write would fail, as far as it can tell without
	// leaving a change behind.
	rehearse(ctx context.Context, sessions []chaistore.Session) error
}

// A copier copies the sessions that are missing or differ at the destination. It deletes
// nothing on either side. After an interruption, another run copies only the rest, since
// the copied sessions are then the same on both sides.
type copier struct {
	from, to  side
	batch     int  // number of sessions to write at a time
	overwrite bool // whether to overwrite sessions that differ
	progress  *progress
}

// A tally counts the active sessions of the source by their state at the destination,
// and the sessions that only the destination has.
type tally struct {
	missing, different, same int
	others                   int

	// Of the sessions that are missing or differ:
	unfit  int                 // how many the destination does not accept
	reason error               // why it does not accept the first of these
	first  []chaistore.Session // the first of them, no more than a batch
}

// source returns the number of active sessions at the source.
func (t *tally) source() int {
	return t.missing + t.different + t.same
}

// compare counts the sessions, and those that can't be copied.
func (c *copier) compare(ctx context.Context) (tally, error) {
	defer c.progress.end()
	var t tally
	size := 0
	err := c.walk(ctx, func(session chaistore.Session, there state) error {
		switch there {
		case missing:
			t.missing++
		case different:
			t.different++
		case same:
			t.same++
		case other:
			t.others++
		}
		if there == missing || there == different {
			if err := c.to.accepts(session); err != nil {
				if t.unfit == 0 {
					t.reason = err
				}
				t.unfit++
			}
			if len(t.first) < c.batch && size < batchBytes {
				t.first = append(t.first, session)
				size += len(session.Data)
			}
		}
		c.progress.show("%d sessions compared", t.source())
		return nil
	})
	return t, err
}

// batchBytes is the size of the data at which a batch ends early.
const batchBytes = 4 << 20

// copy copies the sessions, and returns the number copied. When ctx ends, it finishes the
// batch that is being written. The progress is shown as a part of todo.
func (c *copier) copy(ctx context.Context, todo int) (copied int, err error) {
	defer c.progress.end()
	var batch []chaistore.Session
	size := 0
	flush := func() error {
		if err := c.to.write(context.WithoutCancel(ctx), batch); err != nil {
			return err
		}
		copied += len(batch)
		batch, size = batch[:0], 0
		c.progress.show("%d of %d sessions copied", copied, todo)
		return nil
	}
	err = c.walk(ctx, func(session chaistore.Session, there state) error {
		if there != missing && !(there == different && c.overwrite) {
			return nil
		}
		batch = append(batch, session)
		size += len(session.Data)
		if len(batch) == c.batch || size >= batchBytes {
			return flush()
		}
		return nil
	})
	if err == nil && len(batch) > 0 {
		err = flush()
	}
	return copied, err
}

// A state is the state of a session at the destination.
type state int

const (
	missing   state = iota // not there, or expired
	different              // there with other data or another expiry
	same                   // there as at the source
	other                  // there, but missing at the source
)

var errInterrupted = errors.New("interrupted")

// walk calls visit for each active session of either side, in the order of their tokens.
func (c *copier) walk(ctx context.Context, visit func(session chaistore.Session, there state) error) (err error) {
	defer func() {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = errInterrupted
		}
	}()
	source, destination := newReader(c.from.sessions(ctx)), newReader(c.to.sessions(ctx))
	defer source.stop()
	defer destination.stop()
	for source.ok || destination.ok {
		if err := errors.Join(ctx.Err(), source.err, destination.err); err != nil {
			return err
		}
		a, b := source.session, destination.session
		atSource := source.ok && (!destination.ok || a.Token <= b.Token)
		atDestination := destination.ok && (!source.ok || b.Token <= a.Token)
		session, there := a, same
		switch {
		case !atDestination:
			there = missing
		case !atSource:
			session, there = b, other
		case !bytes.Equal(a.Data, b.Data) || !a.Expiry.Equal(b.Expiry):
			there = different
		}
		// A session that one side lacks may have expired before that side was read.
		if atSource && atDestination || session.Expiry.After(time.Now()) {
			if err := visit(session, there); err != nil {
				return err
			}
		}
		if atSource {
			source.advance()
		}
		if atDestination {
			destination.advance()
		}
	}
	return nil
}

// A reader is positioned at a session of a sequence, or at its end.
type reader struct {
	next func() (chaistore.Session, error, bool)
	stop func()

	session chaistore.Session
	err     error
	ok      bool // false at the end
}

func newReader(sessions iter.Seq2[chaistore.Session, error]) *reader {
	var r reader
	r.next, r.stop = iter.Pull2(sessions)
	r.advance()
	return &r
}

func (r *reader) advance() {
	r.session, r.err, r.ok = r.next()
}
