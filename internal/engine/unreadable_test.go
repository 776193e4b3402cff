package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// A badDisk is a disk whose sstables can't be read rightly.
type badDisk struct {
	vfs.FS
	mu   sync.Mutex
	read func(name string, p []byte, off int64) error // changes what was read, or fails
}

func (d *badDisk) setRead(read func(name string, p []byte, off int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read = read
}

func (d *badDisk) Open(name string, options ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.Open(name, options...)
	if err != nil || !isTable(name) {
		return f, err
	}
	return &badFile{f, d, name}, nil
}

type badFile struct {
	vfs.File
	disk *badDisk
	name string
}

func (f *badFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.read != nil && err == nil {
		if err := f.disk.read(f.name, p, off); err != nil {
			return 0, err
		}
	}
	return n, err
}

const badRows = 2000

func badKey(i int) []byte { return key(fmt.Sprintf("%05d", i)) }

// newBadDB returns a database with badRows rows of 1 KB, in files with two levels of index,
// of which some rows were written twice.
func newBadDB(t *testing.T) (*badDisk, *chai.DB, *DB) {
	t.Helper()
	dir := t.TempDir()
	disk := &badDisk{FS: vfs.NewMem()}
	if err := disk.MkdirAll(dir+"/pebble", 0o700); err != nil {
		t.Fatal(err)
	}
	f := &faultDB{dir: dir}
	f.reopen(t, disk)
	rng := rand.New(rand.NewPCG(1, 1))
	put := func(from, to, step int) {
		t.Helper()
		err := f.Write(t.Context(), 0, func(b *Batch) error {
			for i := from; i < to; i += step {
				row := make([]byte, 1000)
				for j := range row {
					row[j] = byte(rng.Uint32())
				}
				b.Put(badKey(i), row)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < badRows; i += 500 {
		put(i, i+500, 1)
	}
	flush := func() {
		t.Helper()
		if err := f.pebble().Flush(); err != nil {
			t.Fatal(err)
		}
	}
	flush()
	if err := f.pebble().Compact(firstKey, lastKey, false); err != nil {
		t.Fatal(err)
	}
	put(0, badRows, 7)
	flush()
	return disk, f.engine, f.DB
}

// missing returns how many rows are not found, and how many finds return errors.
func missingRows(t *testing.T, db *DB) (missing, failed int) {
	t.Helper()
	for i := range badRows {
		var row []byte
		err := db.Read(t.Context(), func(s *Snapshot) (err error) { row, err = s.Get(badKey(i)); return err })
		switch {
		case err != nil:
			failed++
		case row == nil:
			missing++
		}
	}
	return missing, failed
}

// A block of an sstable can't be read while files are compacted, or does not have what was
// written. Pebble would go on without the rows there, and remove the file that has them.
func TestUnreadableBlockInCompaction(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	for i, bad := range []struct {
		name   string
		damage func(p []byte) error
	}{
		{"error", func([]byte) error { return &os.PathError{Op: "read", Path: "x.sst", Err: syscall.EIO} }},
		{"bit", func(p []byte) error { p[len(p)/2] ^= 4; return nil }},
		{"checksum", func(p []byte) error { p[len(p)-1] ^= 1; return nil }},
	} {
		for j, times := range []int{1, readTries, math.MaxInt} {
			for k, at := range []int{0, 1, 3, 10, 100, 300} {
				if !testdb.Sampled(6, i, j, k) {
					continue
				}
				t.Run(fmt.Sprint(bad.name, "/", times, "/", at), func(t *testing.T) {
					t.Parallel()
					testdb.Watchdog(t, 2*time.Minute)
					disk, engine, db := newBadDB(t)
					n, place := 0, int64(-1)
					disk.setRead(func(name string, p []byte, off int64) error {
						if n++; n-1 == at {
							place = off
						}
						if off != place || times == 0 {
							return nil
						}
						times--
						return bad.damage(p)
					})
					_ = db.pebble().Compact(firstKey, lastKey, false)
					disk.setRead(nil)
					if missing, failed := missingRows(t, db); missing+failed > 0 {
						t.Errorf("got %d missing rows, and %d finds that fail", missing, failed)
					}
					if err := returns(t, "Close", engine.Close); err != nil && strings.Contains(err.Error(), "panic") {
						t.Error(err)
					}
					again := &faultDB{dir: filepath.Dir(dirOf(db.pebble()))}
					again.reopen(t, disk)
					defer again.engine.Close()
					if missing, failed := missingRows(t, again.DB); missing+failed > 0 {
						t.Errorf("opened again: got %d missing rows, and %d finds that fail", missing, failed)
					}
				})
			}
		}
	}
}

// Each bit of each kind of block is looked at: a compaction that meets a wrong one makes the
// database read-only, and says which file it is.
func TestFlippedBits(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	testdb.Watchdog(t, 3*time.Minute)
	disk, engine, db := newBadDB(t)
	var reads []int64 // of one compaction
	seen := make(map[string]bool)
	disk.setRead(func(name string, p []byte, off int64) error {
		if k := fmt.Sprint(name, off); !seen[k] {
			seen[k] = true
			reads = append(reads, int64(len(p)))
		}
		return nil
	})
	if err := db.pebble().Compact(firstKey, lastKey, false); err != nil {
		t.Fatal(err)
	}
	disk.setRead(nil)
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	if len(reads) < 100 {
		t.Fatalf("the compaction has read %d blocks, want more", len(reads))
	}
	rng := rand.New(rand.NewPCG(2, 2))
	for range testdb.Rounds(2, 12) {
		disk, engine, db := newBadDB(t)
		target, n := rng.IntN(len(reads)), 0
		var place string
		var damaged bool
		disk.setRead(func(name string, p []byte, off int64) error {
			k := fmt.Sprint(name, off)
			if n++; n-1 == target {
				place = k
			}
			if k == place {
				damaged = true
				p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
			}
			return nil
		})
		_ = db.pebble().Compact(firstKey, lastKey, false)
		disk.setRead(nil)
		if err := db.WriteError(); damaged && err == nil {
			t.Errorf("writes work after a compaction that has met a flipped bit at %s", place)
		} else if damaged && !strings.Contains(err.Error(), ".sst") {
			t.Errorf("WriteError = %v, want one that names the file", err)
		}
		if missing, failed := missingRows(t, db); missing+failed > 0 {
			t.Errorf("got %d missing rows, and %d finds that fail", missing, failed)
		}
		_ = returns(t, "Close", engine.Close)
	}
}

// A find that meets a block that can't be read returns an error, and nothing else changes. A
// read that fails once is tried again.
func TestUnreadableBlockInFind(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	disk, engine, db := newBadDB(t)
	defer engine.Close()
	get := func(i int) (row []byte, err error) {
		err = db.Read(t.Context(), func(s *Snapshot) error { row, err = s.Get(badKey(i)); return err })
		return row, err
	}
	fails := 0
	disk.setRead(func(string, []byte, int64) error {
		if fails == 0 {
			return nil
		}
		fails--
		return syscall.EIO
	})
	fails = readTries - 1
	if row, err := get(1); len(row) != 1000 || err != nil {
		t.Errorf("Get = %d bytes, %v after reads that fail %d times; want 1000, nil", len(row), err, readTries-1)
	}
	fails = math.MaxInt
	if row, err := get(1501); row != nil || !errors.Is(err, syscall.EIO) {
		t.Errorf("Get = %d bytes, %v; want %v", len(row), err, syscall.EIO)
	}
	if err := db.Read(t.Context(), func(s *Snapshot) error {
		return s.Scan(firstKey, lastKey, func(_, _ []byte) (bool, error) { return true, nil })
	}); !errors.Is(err, syscall.EIO) {
		t.Errorf("Scan = %v, want %v", err, syscall.EIO)
	}
	fails = 0
	if err := db.WriteError(); err != nil {
		t.Errorf("WriteError = %v, want nil", err)
	}
	write(t, db, set("x", 1))
	if missing, failed := missingRows(t, db); missing+failed > 0 {
		t.Errorf("got %d missing rows, and %d finds that fail", missing, failed)
	}
}

// Chai ignores that a read fails in a transaction: it would leave changes that it has not
// noted, or not undo them all. The database becomes read-only instead, with what was there
// before, and has the same when it is opened again.
func TestReadsThatFailInATransaction(t *testing.T) {
	testdb.Slow(t)
	testdb.WithoutRace(t)
	writes := map[string]func(tx *chai.Tx) error{
		"insert": func(tx *chai.Tx) error { return tx.Exec("INSERT INTO t (k, v) VALUES (100000, 1), (100001, 1)") },
		"update": func(tx *chai.Tx) error { return tx.Exec("UPDATE t SET v = -1 WHERE k > 10 AND k < 500") },
		"delete": func(tx *chai.Tx) error { return tx.Exec("DELETE FROM t WHERE k > 200") },
	}
	sum := func(t *testing.T, engine *chai.DB) (n, sum int) {
		testdb.Query(t, engine, "SELECT k, v FROM t", func(row *chai.Row) error {
			var k, v int
			err := row.Scan(&k, &v)
			n, sum = n+1, sum+v
			return err
		})
		return n, sum
	}
	for n, name := range slices.Sorted(maps.Keys(writes)) {
		change := writes[name]
		for j, ending := range []string{"commit", "rollback"} {
			for k, faultIn := range []string{"change", "end"} {
				for i := range 16 {
					if !testdb.Sampled(6, n, j, k, i/2, i%2) {
						continue
					}
					after := []int{0, 1, 2, 3, 10, 40, 200, 700}[i/2] // reads that succeed first
					times := []int{readTries, math.MaxInt}[i%2]       // once for Chai, or for good
					t.Run(fmt.Sprint(name, "/", ending, "/", faultIn, "/", after, "/", times), func(t *testing.T) {
						t.Parallel()
						testdb.Watchdog(t, time.Minute)
						dir := t.TempDir()
						disk := &badDisk{FS: vfs.NewMem()}
						if err := disk.MkdirAll(dir+"/pebble", 0o700); err != nil {
							t.Fatal(err)
						}
						db := &faultDB{dir: dir}
						db.reopen(t, disk)
						createTable(t, db.engine)
						if err := db.Update(t.Context(), func(tx *chai.Tx) error {
							for i := range 500 {
								if err := tx.Exec("INSERT INTO t (k, v) VALUES (?, ?)", i, i); err != nil {
									return err
								}
							}
							return nil
						}); err != nil {
							t.Fatal(err)
						}
						write(t, db.DB, set("a", 1))
						if err := db.pebble().Flush(); err != nil {
							t.Fatal(err)
						}
						defer reach.Opts(db.pebble()).Cache.Reserve(64 << 20)() // so that no block is cached
						n0, sum0 := sum(t, db.engine)

						left, armed := after, false
						disk.setRead(func(string, []byte, int64) error {
							if !armed {
								return nil
							}
							if left > 0 {
								left--
								return nil
							}
							if times--; times < 0 {
								return nil
							}
							return syscall.EIO
						})
						err := returns(t, "Update", func() error {
							return db.Update(t.Context(), func(tx *chai.Tx) error {
								armed = faultIn == "change"
								_ = change(tx)
								armed = true
								if ending == "rollback" {
									return errNo
								}
								return nil
							})
						})
						disk.setRead(nil)
						n1, sum1 := sum(t, db.engine)
						changed := n1 != n0 || sum1 != sum0
						writeErr := db.WriteError()
						if ending == "rollback" && changed && writeErr == nil {
							t.Errorf("a transaction that was rolled back has changed %d, %d to %d, %d rows", n0, sum0, n1, sum1)
						}
						if err := db.Write(t.Context(), 10, set("b", 2)); (err == nil) != (writeErr == nil) {
							t.Errorf("Write = %v, WriteError = %v", err, writeErr)
						}
						wantValue(t, db.DB, "a", 1)
						_ = returns(t, "Close", db.engine.Close)
						db.reopen(t, disk)
						defer db.engine.Close()
						n2, sum2 := sum(t, db.engine)
						switch {
						case ending == "rollback" || err != nil:
							if n2 != n0 || sum2 != sum0 {
								t.Errorf("opened again: %d rows, sum %d; want %d, %d as before the transaction", n2, sum2, n0, sum0)
							}
						case n2 != n1 || sum2 != sum1:
							t.Errorf("opened again: %d rows, sum %d; want %d, %d as committed", n2, sum2, n1, sum1)
						}
						wantValue(t, db.DB, "a", 1)
						if writeErr == nil {
							wantValue(t, db.DB, "b", 2)
						}
						if !noNotes(db.pebble()) {
							t.Error("there are notes after reopening")
						}
					})
				}
			}
		}
	}
}

// What a block's checksum is made of.
func TestMatches(t *testing.T) {
	dir := t.TempDir()
	engine := testdb.Open(t, dir)
	db := Open(engine, discard)
	write(t, db, set("a", 1))
	if err := db.pebble().Flush(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "pebble", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("got %d sstables, %v", len(tables), err)
	}
	f, err := vfs.Default.Open(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := f.(*tableReader)
	footer := make([]byte, 53)
	info, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.File.ReadAt(footer, info.Size()-53); err != nil {
		t.Fatal(err)
	}
	if !r.matches(footer, info.Size()-53) {
		t.Error("a footer does not match")
	}
	// The footer has the places of two blocks.
	place := bytes.NewReader(footer[1:])
	for range 2 {
		off, _ := binary.ReadUvarint(place)
		size, _ := binary.ReadUvarint(place)
		block := make([]byte, size+5)
		if _, err := r.File.ReadAt(block, int64(off)); err != nil {
			t.Fatal(err)
		}
		if !r.matches(block, int64(off)) {
			t.Errorf("the block at %d does not match", off)
		}
		for i := range block {
			block[i] ^= 1
			if r.matches(block, int64(off)) {
				t.Errorf("the block at %d matches with byte %d of %d changed", off, i, len(block))
			}
			block[i] ^= 1
		}
	}
}
