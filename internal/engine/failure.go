// Failures of the engine: later calls return the same error.

package engine

import (
	"fmt"
	"sync/atomic"
)

// failures records why the engine can't be called any more. The zero value records no
// failure.
type failures struct {
	read, write atomic.Pointer[error]
}

// reading returns why nothing can be read any more, or nil.
func (f *failures) reading() error { return load(&f.read) }

// writing returns why nothing can be written any more, or nil.
func (f *failures) writing() error { return load(&f.write) }

// failWrites records why nothing can be written any more, and returns the first such
// failure.
func (f *failures) failWrites(err error) error {
	f.write.CompareAndSwap(nil, &err)
	return f.writing()
}

// failAll records why nothing can be written or read any more, and returns the first
// failure of reading.
func (f *failures) failAll(err error) error {
	f.failWrites(err)
	f.read.CompareAndSwap(nil, &err)
	return f.reading()
}

// rescue is deferred around calls of the engine. It turns a panic into an error, and
// records it with fail.
func (f *failures) rescue(err *error, fail func(error) error) {
	switch r := recover().(type) {
	case nil:
	case error:
		*err = fail(fmt.Errorf("chai panicked: %w", r))
	default:
		*err = fail(fmt.Errorf("chai panicked: %v", r))
	}
}

func load(failure *atomic.Pointer[error]) error {
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}
