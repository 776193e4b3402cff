// This file is what remains of a database once the engine has failed: errors.

package writer

import "fmt"

// rescue is deferred around calls of the engine: it turns a panic into an error
// and remembers it with fail.
func (s *shared) rescue(err *error, fail func(error) error) {
	switch r := recover().(type) {
	case nil:
	case error:
		*err = fail(fmt.Errorf("chai panicked: %w", r))
	default:
		*err = fail(fmt.Errorf("chai panicked: %v", r))
	}
}

// failWrites remembers why nothing can be written any more, and returns the
// first such failure.
func (s *shared) failWrites(err error) error {
	s.writeFailure.CompareAndSwap(nil, &err)
	return *s.writeFailure.Load()
}

// failAll remembers why nothing can be written or read any more, and returns
// the first such failure.
func (s *shared) failAll(err error) error {
	s.failWrites(err)
	s.readFailure.CompareAndSwap(nil, &err)
	return *s.readFailure.Load()
}
