package rivals

import (
	"encoding/binary"
	"iter"
	"path/filepath"
	"time"

	"github.com/alexedwards/scs/boltstore"
	"go.etcd.io/bbolt"
)

// Boltstore is SCS's store on bbolt, a B+ tree in a file.
var Boltstore = Rival{
	Name:     "boltstore",
	Kind:     Durable,
	Settings: "bbolt's default options, which sync at each commit; 4 GiB mapped from the start",
	Sweeps:   true,
	Open:     openBoltstore,
}

type boltStore struct {
	*boltstore.BoltStore
	db *bbolt.DB
}

func openBoltstore(dir string) (Store, error) {
	db, err := bbolt.Open(filepath.Join(dir, "sessions.db"), 0o600, &bbolt.Options{
		// The store returns memory of the mapped file. When the file outgrows the
		// mapping, bbolt maps it elsewhere, and reading data that the store returned
		// earlier ends the process.
		InitialMmapSize: 4 << 30,
	})
	if err != nil {
		return nil, err
	}
	return boltStore{boltstore.NewWithCleanupInterval(db, 0), db}, nil
}

// The bucket and the format of its values are defined in boltstore.go of package
// boltstore.
var boltBucket = []byte("scs:session")

func (s boltStore) Load(sessions iter.Seq[Session]) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(boltBucket)
		for _, session := range byToken(sessions) {
			value := binary.BigEndian.AppendUint64(nil, uint64(session.Expiry.UnixNano()))
			value = append(value, session.Data...)
			if err := bucket.Put([]byte(session.Token), value); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s boltStore) Sweep() error {
	start := func(interval time.Duration) (stop func()) {
		return boltstore.NewWithCleanupInterval(s.db, interval).StopCleanup
	}
	return sweepByCleanup(start, func() (expired int, err error) {
		now := uint64(time.Now().UnixNano())
		err = s.db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(boltBucket).ForEach(func(_, value []byte) error {
				if now > binary.BigEndian.Uint64(value) {
					expired++
				}
				return nil
			})
		})
		return expired, err
	})
}

func (s boltStore) Close() error {
	return s.db.Close()
}
