//go:build race

package reach

// publish sets a field. The race detector does not look at it: it would report that
// Pebble reads the field without a lock, though each read gets one value or the other.
//
//go:norace
func publish[Word any](field *Word, value Word) { *field = value }
