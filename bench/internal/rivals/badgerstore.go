package rivals

import (
	"iter"
	"time"

	"github.com/alexedwards/scs/badgerstore"
	"github.com/dgraph-io/badger"
)

// Badgerstore is SCS's store on Badger, an LSM tree with a separate log of values. It
// has no sweep: Badger drops expired sessions when it merges files.
var Badgerstore = Rival{
	Name:     "badgerstore",
	Kind:     Durable,
	Settings: "Badger's default options, with SyncWrites",
	Open:     openBadgerstore,
}

type badgerStore struct {
	*badgerstore.BadgerStore
	db *badger.DB
}

func openBadgerstore(dir string) (Store, error) {
	db, err := badger.Open(badger.DefaultOptions(dir).WithSyncWrites(true).WithLogger(nil))
	if err != nil {
		return nil, err
	}
	return badgerStore{badgerstore.New(db), db}, nil
}

func (s badgerStore) Load(sessions iter.Seq[Session]) error {
	batch := s.db.NewWriteBatch()
	defer batch.Cancel()
	for session := range sessions {
		// badgerstore.New uses the same prefix.
		entry := badger.NewEntry([]byte("scs:session:"+session.Token), session.Data)
		if err := batch.SetEntry(entry.WithTTL(time.Until(session.Expiry))); err != nil {
			return err
		}
	}
	return batch.Flush()
}

func (s badgerStore) Sweep() error {
	return errNoSweep
}

func (s badgerStore) Close() error {
	return s.db.Close()
}
