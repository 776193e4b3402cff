// Package rivals has the stores that are compared: chaistore and its variants, the
// stores that come with SCS, and two yardsticks. Each has a file, which says how it is
// set up.
package rivals

import (
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

// ErrNotInstalled is the error of [Rival.Open] if this machine lacks something that the
// store needs.
var ErrNotInstalled = errors.New("not installed")

// A Kind says what a rival can be compared with.
type Kind int

const (
	Durable   Kind = iota // a store whose commits are on the disk when they return
	Volatile              // a store whose sessions are lost with the process
	Yardstick             // not for use, only for comparison
)

// A Rival is a store to compare.
type Rival struct {
	Name     string
	Kind     Kind
	Settings string // how it is set up, in a sentence
	Sweeps   bool   // whether Sweep does something

	// Engine returns the name and the version of an engine that is not a Go module. It
	// is nil if there is no such engine.
	Engine func() (string, error)

	// Open opens the store in an empty directory. If this machine lacks something that
	// the store needs, the error is [ErrNotInstalled].
	Open func(dir string) (Store, error)
}

// A Store is an open store.
type Store interface {
	scs.Store

	// Load adds sessions as fast as possible, and leaves the store as if they had been
	// committed one by one.
	Load(sessions iter.Seq[Session]) error

	// Sweep deletes expired sessions in the store's own way.
	Sweep() error

	// Close closes the store and its database.
	Close() error
}

// A Session is a session to load. Its data belongs to the store.
type Session struct {
	Token  string
	Data   []byte
	Expiry time.Time
}

// All returns the rivals: chaistore first, and the yardsticks last.
func All() []Rival {
	return []Rival{
		Chaistore,
		Boltstore,
		Badgerstore,
		SQLite3store,
		Pgxstore,
		Gormstore,
		Memstore,
		Pebble,
		Chai,
	}
}

// Variants returns chaistore in circumstances that the other stores are not measured in.
func Variants() []Rival {
	return []Rival{ChaistoreIndexed, ChaistoreShared}
}

// errNoSweep is the error of Sweep if [Rival.Sweeps] is false.
var errNoSweep = errors.New("a sweep can't be started")

// batches returns the sessions in groups of n, one for each transaction.
func batches(sessions iter.Seq[Session], n int) iter.Seq[[]Session] {
	return func(yield func([]Session) bool) {
		batch := make([]Session, 0, n)
		for session := range sessions {
			batch = append(batch, session)
			if len(batch) == n {
				if !yield(batch) {
					return
				}
				batch = batch[:0]
			}
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

// sweepByCleanup has a store's cleanup goroutine sweep until no expired session is left.
// SCS's stores sweep only there, at each tick, and stop only between sweeps.
func sweepByCleanup(start func(interval time.Duration) (stop func()), expired func() (int, error)) error {
	for {
		stop := start(time.Millisecond)
		time.Sleep(20 * time.Millisecond) // for the first tick
		stop()
		left, err := expired()
		if err != nil || left == 0 {
			return err
		}
	}
}

// byToken sorts sessions by their tokens, the fastest order for inserts into a B+ tree.
func byToken(sessions iter.Seq[Session]) []Session {
	return slices.SortedFunc(sessions, func(a, b Session) int { return strings.Compare(a.Token, b.Token) })
}
