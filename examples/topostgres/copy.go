// Copying sessions from one side to the other. The code here knows neither Chai
// nor PostgreSQL.

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

// A side is where sessions come from, or go to.
type side interface {
	fmt.Stringer

	// sessions returns a sequence of the active sessions, in the order of the bytes
	// of their tokens. While the loop runs, sessions that it has passed may be
	// written.
	sessions(ctx context.Context) iter.Seq2[chaistore.Session, error]

	// accepts returns an error if the session can't be written as it is. The error
	// says why, without the token.
	accepts(session chaistore.Session) error

	// write adds the sessions, or overwrites them. When it returns nil, they are on
	// the disk.
	write(ctx context.Context, sessions []chaistore.Session) error

	// rehearse returns an error if write would fail, as far as that can be seen
	// without leaving a change behind.
	rehearse(ctx context.Context, sessions []chaistore.Session) error
}

// A copier copies the sessions that are missing or differ on one side from the
// other one. It deletes nothing, on neither side. As what has been copied is the
// same on both sides, copying goes on from there after an interruption.
type copier struct {
	from, to  side
	batch     int  // how many sessions are written at a time
	overwrite bool // whether sessions that differ are overwritten
	progress  *progress
}

// A tally counts the active sessions of the source by what the destination has,
// and those that only the destination has.
type tally struct {
	missing, different, same int
	others                   int

	// Of the sessions that are missing or differ:
	unfit  int                 // how many the destination does not accept
	reason error               // why it does not accept the first of these
	first  []chaistore.Session // the first of them: a batch at most
}

// source returns how many active sessions the source has.
func (t *tally) source() int {
	return t.missing + t.different + t.same
}

// compare counts the sessions, and how many of them can't be copied.
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

// batchBytes ends a batch whose sessions are large.
const batchBytes = 4 << 20

// copy copies, and returns how many sessions the destination has got. When ctx
// ends, it finishes the batch that is being written. The progress is told in
// relation to todo.
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

// A state is what the destination has of a session.
type state int

const (
	missing   state = iota // nothing, or one that has expired
	different              // other data, or another expiry
	same                   // the session as it is at the source
	other                  // a session that is missing at the source
)

var errInterrupted = errors.New("interrupted")

// walk calls visit for each active session that one side has, or both, in the
// order of their tokens.
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
		// What one side lacks may have expired when that side was read.
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

// A reader is at a session of a sequence, or at its end.
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
