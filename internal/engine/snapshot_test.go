package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

func TestScan(t *testing.T) {
	engine, db := newDB(t)
	for i := 9; i >= 0; i-- {
		write(t, db, set(fmt.Sprint(i), i))
	}
	scan := func(from, to []byte, stop int) (got []int, err error) {
		err = db.Read(t.Context(), func(s *Snapshot) error {
			return s.Scan(from, to, func(k, row []byte) (bool, error) {
				v, err := strconv.Atoi(string(row))
				if err != nil || !bytes.Equal(k, key(string(row))) {
					t.Errorf("Scan found %q, %q", k, row)
				}
				if v == stop {
					return false, errNo
				}
				got = append(got, v)
				return v != 8, nil
			})
		})
		return got, err
	}
	for _, test := range []struct {
		from, to []byte
		stop     int
		want     []int
	}{
		{firstKey, lastKey, -1, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{key("3"), key("6"), -1, []int{3, 4, 5}},
		{key("7"), lastKey, -1, []int{7, 8}},
		{key("6"), key("6"), -1, nil},
		{firstKey, lastKey, 3, []int{0, 1, 2}},
		{key("5"), lastKey, 5, nil},
	} {
		got, err := scan(test.from, test.to, test.stop)
		if !slices.Equal(got, test.want) || errors.Is(err, errNo) != (test.stop >= 0) || err != nil && test.stop < 0 {
			t.Errorf("Scan(%q, %q) = %v, %v; want %v", test.from, test.to, got, err, test.want)
		}
	}
	wantError(t, db.Read(t.Context(), func(*Snapshot) error { return errNo }), errNo)
	if err := engine.Close(); err != nil { // reports open snapshots and iterators
		t.Errorf("Close: %v", err)
	}
}

// A snapshot has the latest catalog unless a table was created or dropped after it.
func TestCatalog(t *testing.T) {
	engine, db := newDB(t)
	var last uint64
	for i := range 3 {
		testdb.Exec(t, engine, fmt.Sprint("CREATE TABLE other", i, " (k INTEGER PRIMARY KEY)"))
		err := db.Read(t.Context(), func(s *Snapshot) error {
			number, ok := s.Catalog()
			if !ok || number <= last {
				t.Errorf("Catalog = %d, %v after a table was created; want more than %d, true", number, ok, last)
			}
			last = number
			testdb.Exec(t, engine, fmt.Sprint("DROP TABLE other", i))
			if number, ok := s.Catalog(); ok || number <= last {
				t.Errorf("Catalog = %d, %v after a table was dropped; want more than %d, false", number, ok, last)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		write(t, db, set("a", i+1))
		last = db.Catalog()
	}
}

func TestSnapshotDoesNotChange(t *testing.T) {
	_, db := newDB(t)
	write(t, db, set("a", 1))
	if err := db.Read(t.Context(), func(s *Snapshot) error {
		write(t, db, set("a", 2))
		write(t, db, set("b", 2))
		for k, want := range map[string]string{"a": "1", "b": ""} {
			if got, err := s.Get(key(k)); string(got) != want || err != nil {
				t.Errorf("Get(%s) = %q, %v; want %q", k, got, err, want)
			}
		}
		return s.Scan(firstKey, lastKey, func(k, row []byte) (bool, error) {
			if string(row) != "1" {
				t.Errorf("Scan found %q, %q", k, row)
			}
			return true, nil
		})
	}); err != nil {
		t.Error(err)
	}
	wantValue(t, db, "a", 2)
}

// A file of the database is damaged. Its rows are errors, not missing.
func TestDamagedFile(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	dir := t.TempDir()
	engine, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	db := Open(engine, discard)
	const n = 90
	rng := rand.NewChaCha8([32]byte{})
	write(t, db, func(b *Batch) error {
		for i := range n {
			row := make([]byte, 4<<10)
			rng.Read(row)
			b.Put(key(fmt.Sprintf("%02d", i)), row)
		}
		return nil
	})
	if err := engine.DB.Store.DB().Flush(); err != nil {
		t.Fatal(err)
	}
	damage(t, dir)

	const isDamaged = "checksum mismatch"
	get := func(k string) (row []byte, err error) {
		err = db.Read(t.Context(), func(s *Snapshot) error { row, err = s.Get(key(k)); return err })
		return row, err
	}
	if row, err := get("10"); row != nil || err == nil || !bytes.Contains([]byte(err.Error()), []byte(isDamaged)) {
		t.Errorf("Get = %d bytes, %v; want an error", len(row), err)
	}
	if row, err := get("x"); row != nil || err != nil {
		t.Errorf("Get of a missing row = %d bytes, %v; want none, nil", len(row), err)
	}
	if row, err := get("85"); len(row) != 4<<10 || err != nil {
		t.Errorf("Get of an undamaged row = %d bytes, %v; want %d, nil", len(row), err, 4<<10)
	}
	found := 0
	err = db.Read(t.Context(), func(s *Snapshot) error {
		return s.Scan(firstKey, lastKey, func(k, row []byte) (bool, error) { found++; return true, nil })
	})
	if found == n || err == nil || !bytes.Contains([]byte(err.Error()), []byte(isDamaged)) {
		t.Errorf("Scan found %d of %d rows and returned %v, want fewer and an error", found, n, err)
	}
	err = db.Write(t.Context(), 100, func(b *Batch) error {
		_, err := b.Get(key("10"))
		return errors.Join(set("10", 1)(b), err)
	})
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte(isDamaged)) {
		t.Errorf("Write = %v, want an error", err)
	}
	write(t, db, set("x", 1)) // the engine itself has not failed
	wantValue(t, db, "x", 1)
}

// damage overwrites a part of the largest table in the database in dir.
func damage(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "pebble", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	var largest string
	var size int64
	for _, name := range files {
		if info, err := os.Stat(name); err == nil && info.Size() > size {
			largest, size = name, info.Size()
		}
	}
	f, err := os.OpenFile(largest, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, size/4), size/16)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A reader that comes during a commit reads the state before it, at once. In Chai
// alone, it would wait.
func TestReadersDoNotWaitForCommits(t *testing.T) {
	testdb.Slow(t)
	large := make([]byte, 4<<20) // takes long to commit, and is not written earlier
	batch := func(db *DB, began func()) error {
		return db.Write(context.Background(), len(large), func(b *Batch) error {
			defer began()
			b.Put(key("large"), large)
			return nil
		})
	}
	transaction := func(db *DB, began func()) error {
		return Open(db.handle, discard).Update(context.Background(), func(tx *chai.Tx) error {
			defer began()
			return tx.Exec("INSERT INTO large (v) VALUES (?)", large)
		})
	}
	byStore := func(t *testing.T, db *DB) {
		wantValue(t, db, "a", 1)
		wantValue(t, db, "missing", 0)
	}
	bySQL := func(t *testing.T, db *DB) {
		if got := rows(t, db.handle); got != 1 {
			t.Errorf("the table has %d rows, want 1", got)
		}
	}
	for name, test := range map[string]struct {
		commit func(db *DB, began func()) error
		read   func(t *testing.T, db *DB)
	}{
		"batch":              {batch, byStore},
		"batch, read by SQL": {batch, bySQL},
		"transaction":        {transaction, byStore},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			// If readers do not wait, dozens of reads succeed during each commit.
			const enough = 10
			reads := 0
			for range 20 {
				if reads += readsWhile(t, test.commit, test.read); reads >= enough {
					return
				}
			}
			t.Errorf("got %d reads during 20 commits, want at least %d", reads, enough)
		})
	}
}

// readsWhile returns the number of reads that begin and end in the middle half of a
// commit.
func readsWhile(t *testing.T, commit func(db *DB, began func()) error, readOne func(t *testing.T, db *DB)) int {
	engine := testdb.Disk(t)
	createTable(t, engine)
	testdb.Exec(t, engine, "CREATE TABLE large (v BLOB)", "INSERT INTO t (k) VALUES (1)")
	db := Open(engine, discard)
	write(t, db, set("a", 1))
	var began, ended time.Time
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := commit(db, func() { began = time.Now() }); err != nil {
			t.Error(err)
		}
		ended = time.Now()
	}()
	type read struct{ began, ended time.Time }
	var reads []read
	for committing := true; committing; {
		start := time.Now()
		readOne(t, db)
		reads = append(reads, read{start, time.Now()})
		select {
		case <-done:
			committing = false
		default:
		}
	}
	n, quarter := 0, ended.Sub(began)/4
	for _, r := range reads {
		if r.began.After(began.Add(quarter)) && r.ended.Before(ended.Add(-quarter)) {
			n++
		}
	}
	return n
}

// A read that begins after a write was acknowledged returns it, or a later one,
// during any commits. Stores and the application both write and read, the application
// with or without the lock.
func TestAcknowledgedWritesAreRead(t *testing.T) {
	testdb.Slow(t)
	for name, open := range map[string]func(t testing.TB) *chai.DB{"memory": testdb.Memory, "disk": testdb.Disk} {
		for _, locked := range []bool{false, true} {
			t.Run(fmt.Sprint(name, "/", locked), func(t *testing.T) {
				testdb.Watchdog(t, time.Minute)
				testAcknowledgedWritesAreRead(t, open(t), locked)
			})
		}
	}
}

func testAcknowledgedWritesAreRead(t *testing.T, engine *chai.DB, locked bool) {
	// put writes as an application does.
	put := func(k string, v int) error {
		if locked {
			lock := Open(engine, discard).Lock()
			lock.Lock()
			defer lock.Unlock()
		}
		tx, err := engine.DB.Begin(true)
		if err != nil {
			return err
		}
		return errors.Join(tx.Session.Put(key(k), []byte(strconv.Itoa(v))), tx.Commit())
	}
	get := func(k string) (int, error) {
		tx, err := engine.DB.Begin(false)
		if err != nil {
			return 0, err
		}
		defer tx.Rollback()
		row, err := tx.Session.Get(key(k))
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(string(row))
	}
	const keys = 4
	var acknowledged [keys]atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var writers, readers sync.WaitGroup
	for k := range keys {
		db := Open(engine, discard)
		writers.Go(func() {
			for i := 1; i <= 60; i++ {
				if k == 0 && i%3 == 0 {
					if err := put(fmt.Sprint(k), i); err != nil {
						t.Error(err)
					}
				} else {
					write(t, db, set(fmt.Sprint(k), i))
				}
				acknowledged[k].Store(int64(i))
			}
		})
	}
	for r := range 4 {
		db := Open(engine, discard)
		readers.Go(func() {
			for i := r; ctx.Err() == nil; i++ {
				k := i % keys
				want := acknowledged[k].Load()
				got, err := value(db, fmt.Sprint(k))
				if r == 0 && want > 0 {
					got, err = get(fmt.Sprint(k))
				}
				if err != nil || int64(got) < want {
					t.Errorf("got value %d, %v; want at least the acknowledged %d", got, err, want)
					return
				}
				runtime.Gosched()
			}
		})
	}
	writers.Wait()
	cancel()
	readers.Wait()
}
