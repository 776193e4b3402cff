//go:build race

package reach

import "github.com/cockroachdb/pebble"

// publish sets a field. The race detector does not look at it: it would report that
// Pebble reads the field without a lock, though each read gets one value or the other.
//
//go:norace
func publish[Word any](field *Word, value Word) { *field = value }

// hidden returns a copy of options, which the race detector has not seen being written.
//
//go:norace
func hidden(opts *pebble.Options) *pebble.Options {
	c := new(pebble.Options)
	*c = *opts
	c.Levels = make([]pebble.LevelOptions, len(opts.Levels))
	for i := range c.Levels {
		c.Levels[i] = opts.Levels[i]
	}
	return c
}
