// Package rivals has the stores that are compared: chaistore, the stores that come
// with SCS, two yardsticks, and variants of chaistore. There is one file for each of them, which says
// how it is set up.
package rivals

import (
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

// ErrNotInstalled is the error of opening a store that needs something that this
// machine does not have.
var ErrNotInstalled = errors.New("not installed")

// A Kind says what a rival can be compared with.
type Kind int

const (
	Durable   Kind = iota // a store whose commits have reached the disk when they return
	Volatile              // a store whose sessions are lost with the process
	Yardstick             // a store that nobody would use, for comparison
)

// A Rival is a store to compare.
type Rival struct {
	Name     string
	Kind     Kind
	Settings string // how it is set up, in a sentence
	Sweeps   bool   // whether Sweep does something

	// Engine returns the name and the version of an engine that is not a module.
	// It is nil if there is none.
	Engine func() (string, error)

	// Open opens the store in an empty directory. If the machine lacks something
	// that it needs, the error is [ErrNotInstalled].
	Open func(dir string) (Store, error)
}

// A Store is a store that is open.
type Store interface {
	scs.Store

	// Load adds sessions in the fastest way that leaves the store as commits of the
	// same sessions would.
	Load(sessions iter.Seq[Session]) error

	// Sweep deletes the sessions that have expired, in the store's own way.
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

// All returns the rivals, with chaistore first and the yardsticks last.
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

// Variants returns chaistore in other circumstances than it is compared in.
func Variants() []Rival {
	return []Rival{ChaistoreIndexed, ChaistoreShared}
}

// errNoSweep is the error of Sweep where [Rival.Sweeps] is false.
var errNoSweep = errors.New("a sweep can't be started")

// batches returns the sessions in groups of n, for a transaction each.
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

// sweepByCleanup has the cleanup goroutine of a store sweep. The stores of SCS
// sweep there alone, at each tick, and stop between two sweeps.
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

// byToken sorts sessions by their tokens, the order in which a B+ tree takes
// them fastest.
func byToken(sessions iter.Seq[Session]) []Session {
	return slices.SortedFunc(sessions, func(a, b Session) int { return strings.Compare(a.Token, b.Token) })
}
