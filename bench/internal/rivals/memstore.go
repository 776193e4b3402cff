package rivals

import (
	"iter"

	"github.com/alexedwards/scs/v2/memstore"
)

// Memstore is SCS's default store, a map. It has no sweep that can be started or waited
// for: it sweeps only when its ticker fires.
var Memstore = Rival{
	Name:     "memstore",
	Kind:     Volatile,
	Settings: "a map in memory: nothing is written to the disk",
	Open:     openMemstore,
}

type memStore struct {
	*memstore.MemStore
}

func openMemstore(string) (Store, error) {
	return memStore{memstore.NewWithCleanupInterval(0)}, nil
}

func (s memStore) Load(sessions iter.Seq[Session]) error {
	for session := range sessions {
		if err := s.Commit(session.Token, session.Data, session.Expiry); err != nil {
			return err
		}
	}
	return nil
}

func (s memStore) Sweep() error {
	return errNoSweep
}

func (s memStore) Close() error {
	return nil
}
