package rivals

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"time"

	"github.com/cockroachdb/pebble"
)

// Pebble is the engine below Chai, without Chai. It shows what the engine can do.
var Pebble = Rival{
	Name:     "pebble",
	Kind:     Yardstick,
	Settings: "Pebble without a database on it, with its default options: Set with Sync, and Get from a snapshot",
	Open:     openPebble,
}

// A plainPebble stores each session under its token: 8 bytes of expiry, then the data.
type plainPebble struct {
	db *pebble.DB
}

type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}

func (silent) Fatalf(format string, args ...any) {
	pebble.DefaultLogger.Fatalf(format, args...)
}

func openPebble(dir string) (Store, error) {
	db, err := pebble.Open(dir, &pebble.Options{Logger: silent{}})
	if err != nil {
		return nil, err
	}
	return plainPebble{db}, nil
}

func pebbleValue(b []byte, expiry time.Time) []byte {
	value := make([]byte, 0, 8+len(b))
	value = binary.BigEndian.AppendUint64(value, uint64(expiry.UnixNano()))
	return append(value, b...)
}

func (s plainPebble) Find(token string) (b []byte, exists bool, err error) {
	snapshot := s.db.NewSnapshot()
	defer snapshot.Close()
	value, closer, err := snapshot.Get([]byte(token))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer closer.Close()
	if time.Now().UnixNano() >= int64(binary.BigEndian.Uint64(value)) {
		return nil, false, nil
	}
	return bytes.Clone(value[8:]), true, nil
}

func (s plainPebble) Commit(token string, b []byte, expiry time.Time) error {
	return s.db.Set([]byte(token), pebbleValue(b, expiry), pebble.Sync)
}

func (s plainPebble) Delete(token string) error {
	return s.db.Delete([]byte(token), pebble.Sync)
}

func (s plainPebble) Load(sessions iter.Seq[Session]) error {
	for group := range batches(sessions, 256) {
		batch := s.db.NewBatch()
		for _, session := range group {
			err := batch.Set([]byte(session.Token), pebbleValue(session.Data, session.Expiry), nil)
			if err != nil {
				return err
			}
		}
		if err := batch.Commit(pebble.Sync); err != nil {
			return err
		}
	}
	return nil
}

func (s plainPebble) Sweep() error {
	return errNoSweep
}

func (s plainPebble) Close() error {
	return s.db.Close()
}
