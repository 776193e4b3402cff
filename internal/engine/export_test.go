package engine

import "testing"

// ErrUnknownEngine is what calls return after [ForgetEngine].
var ErrUnknownEngine = errUnknownEngine

// ForgetEngine makes the version of Chai unknown until the test ends.
func ForgetEngine(t testing.TB) { setKnown(t, fields{}) }
