// Closing: Close of the database waits for what uses it.

package engine

import (
	"errors"

	"github.com/cockroachdb/pebble"

	"go.elara.ws/chaistore/internal/reach"
)

// enter makes Close of the database wait until leave is called, or returns why the
// database can't be used. Close frees the memory that reads use, and would end the process
// with a fault that can't be recovered.
//
// What Close waits for is Pebble's validation of files that are added from outside, which
// Chai has none of.
func (s *shared) enter(db *pebble.DB) error {
	mu := reach.Mu(db)
	mu.Lock()
	defer mu.Unlock()
	if err := s.state.usable(); err != nil {
		return err
	}
	s.using++
	validating, _ := reach.TableValidation(db)
	*validating = true
	return nil
}

func (s *shared) leave(db *pebble.DB) {
	mu := reach.Mu(db)
	mu.Lock()
	defer mu.Unlock()
	if s.using--; s.using == 0 {
		validating, cond := reach.TableValidation(db)
		*validating = false
		cond.Broadcast()
	}
}

// whileOpen calls f, and returns its error, or that of a panic. Close waits for f.
func (db *DB) whileOpen(f func() error) (err error) {
	if err := db.state.usable(); err != nil { // Pebble's mutex may be locked for good
		return err
	}
	if err := db.enter(db.pebble()); err != nil {
		return err
	}
	defer db.state.rescue(&err, db.state.fault)
	returned := false
	defer func() {
		if returned {
			db.leave(db.pebble())
		} else {
			go db.leave(db.pebble()) // a panic may have left Pebble's mutex locked
		}
	}()
	err = f()
	returned = true
	return err
}

// isClosed reports whether err is what Pebble panics with once Close has begun.
func isClosed(err error) bool { return errors.Is(err, pebble.ErrClosed) }

// closing is deferred around calls of Pebble. Once Close has begun, and waits for a read to
// end, they panic before they do anything. It makes an error of that, so that the read
// closes what it has open.
func closing(err *error) {
	r := recover()
	if cause, ok := r.(error); ok && isClosed(cause) {
		*err = ErrClosed
	} else if r != nil {
		panic(r)
	}
}
