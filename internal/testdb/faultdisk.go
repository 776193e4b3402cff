// A disk that fails.

package testdb

import (
	"bytes"
	"cmp"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/vfs"
)

// A FaultDisk is a file system in memory on which operations can fail, and which can
// lose its power. Pebble works on one copy of the files. The other copy
// has only what was synced: the bytes of files, and the entries of directories.
type FaultDisk struct {
	vfs.FS                       // the copy that Pebble works on
	synced *vfs.MemFS            // the copy that a loss of power leaves; its entries are those of strict mode
	fault  atomic.Pointer[Fault] // nil while the disk works
	files  []*diskFile           // all that were opened for writing

	// mu is held for reading during each change, and while files is read, and for
	// writing when nothing may change.
	mu   sync.RWMutex
	add  sync.Mutex // protects files from other appends
	off  bool       // after Cut: synced does not change any more
	halt bool       // after Stop: operations that change something don't return
}

// NewFaultDisk returns an empty disk with a directory.
func NewFaultDisk(dir string) *FaultDisk {
	d := &FaultDisk{FS: vfs.NewMem(), synced: vfs.NewStrictMem()}
	for _, fs := range []*vfs.MemFS{d.FS.(*vfs.MemFS), d.synced} {
		must(fs.MkdirAll(dir, 0o700))
		for parent := dir; ; parent = fs.PathDir(parent) {
			f, err := fs.OpenDir(parent)
			must(err)
			must(f.Sync())
			if parent == fs.PathDir(parent) {
				break
			}
		}
	}
	return d
}

// Break makes operations fail from now on.
func (d *FaultDisk) Break(f *Fault) { d.fault.Store(f) }

// Mend makes all operations succeed from now on.
func (d *FaultDisk) Mend() { d.fault.Store(nil) }

// A Fault makes operations of one kind fail on files of one kind.
type Fault struct {
	// Op is "create", "reuse", "open", "read", "write", "sync", "remove" or "rename". A
	// file that is reused is also created, and one that is renamed has its former name.
	Op    string
	File  string // a part of the names of the files; "directory" is one of any name
	Err   error
	After int           // operations that succeed first
	Times int           // operations that fail then
	Lasts time.Duration // if not 0, all operations in this time fail
	Flip  bool          // reads succeed, with one flipped bit
	Block bool          // after the first read that fails, only those of the same byte of the same file do

	mu      sync.Mutex
	struck  time.Time // when the first operation failed
	failed  int       // operations
	badName string    // with Block, the file and the place
	badByte int64
}

// hits returns the error for an operation, or nil if it may go on.
func (f *Fault) hits(op, name string) error {
	if f == nil || op != f.Op || !strings.Contains(path.Base(name), f.File) || !f.hitsNext() {
		return nil
	}
	time.Sleep(time.Millisecond) // Pebble tries some operations again at once
	return f.Err
}

func (f *Fault) hitsNext() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.After > 0 {
		f.After--
		return false
	}
	if f.struck.IsZero() {
		f.struck = time.Now()
	}
	fails := f.failed < f.Times
	if f.Lasts != 0 {
		fails = time.Since(f.struck) < f.Lasts
	}
	if fails {
		f.failed++
	}
	return fails
}

// Failed returns the number of operations that have failed.
func (f *Fault) Failed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// hitsRead is hits for a read that has filled p from a place in a file. It may change p.
func (f *Fault) hitsRead(name string, p []byte, off int64) error {
	if f == nil || f.Op != "read" || len(p) == 0 || !strings.Contains(path.Base(name), f.File) {
		return nil
	}
	f.mu.Lock()
	bad, found := f.badByte, f.badName != ""
	elsewhere := found && (name != f.badName || bad < off || bad >= off+int64(len(p)))
	f.mu.Unlock()
	if elsewhere || !f.hitsNext() {
		return nil
	}
	if !found {
		bad = off + rand.Int64N(int64(len(p)))
	}
	if f.Block && !found {
		f.mu.Lock()
		f.badName, f.badByte = name, bad
		f.mu.Unlock()
	}
	if f.Flip {
		p[bad-off] ^= 1 << (bad % 8)
		return nil
	}
	return f.Err
}

// HasStruck reports whether an operation has failed.
func (f *Fault) HasStruck() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.struck.IsZero()
}

// change runs the two halves of a change, and the second one only while there is
// power.
func (d *FaultDisk) change(working, synced func() error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.halt {
		d.mu.RUnlock()
		select {}
	}
	if err := working(); err != nil || d.off {
		return err
	}
	return synced()
}

// Stop lets nothing change any more, so that an engine that tries something over and
// over again ends.
func (d *FaultDisk) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt = true
}

// What a Cut leaves of what was not synced.
const (
	KeepNothing = iota
	KeepParts   // the beginning of each file's bytes, but no entries of directories
	KeepAll     // as when the process is killed
)

// Cut returns the files that are left after a loss of power. Pebble can go on working
// on d, but that does not change them.
func (d *FaultDisk) Cut(keep int) *vfs.MemFS {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	for _, f := range d.files {
		f.mu.Lock()
		n := 0
		switch {
		case keep == KeepAll:
			n = len(f.unsynced)
		case keep == KeepParts && !f.lost:
			n = rand.IntN(len(f.unsynced) + 1)
		}
		_, err := f.synced.Write(f.unsynced[:n])
		must(err)
		must(f.synced.Sync())
		f.mu.Unlock()
	}
	if keep != KeepAll {
		d.synced.ResetToSyncedState()
	}
	return d.synced
}

// A diskFile is a file that is open for writing, or a directory.
type diskFile struct {
	vfs.File
	disk   *FaultDisk
	name   string // "directory" for directories
	synced vfs.File

	mu       sync.Mutex
	unsynced []byte // written since the last sync
	lost     bool   // a sync has failed
}

func (d *FaultDisk) Create(name string) (vfs.File, error) {
	if err := d.fault.Load().hits("create", name); err != nil {
		return nil, err
	}
	return d.open(name,
		func() (vfs.File, error) { return d.FS.Create(name) },
		func() (vfs.File, error) { return d.synced.Create(name) })
}

// ReuseForWrite renames a file before it can fail to open it, as on a real disk.
func (d *FaultDisk) ReuseForWrite(oldname, newname string) (vfs.File, error) {
	if err := d.fault.Load().hits("rename", oldname); err != nil {
		return nil, err
	}
	if err := cmp.Or(d.fault.Load().hits("create", newname), d.fault.Load().hits("reuse", newname)); err != nil {
		return nil, cmp.Or(d.Rename(oldname, newname), err)
	}
	return d.open(newname,
		func() (vfs.File, error) { return d.FS.ReuseForWrite(oldname, newname) },
		func() (vfs.File, error) { return d.synced.ReuseForWrite(oldname, newname) })
}

func (d *FaultDisk) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := d.fault.Load().hits("open", name); err != nil {
		return nil, err
	}
	f, err := d.FS.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	return &readFile{File: f, disk: d, name: name}, nil
}

// A readFile is a file that is open for reading.
type readFile struct {
	vfs.File
	disk *FaultDisk
	name string
	off  int64 // where Read reads
}

func (f *readFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	err = cmp.Or(err, f.disk.fault.Load().hitsRead(f.name, p[:n], f.off))
	f.off += int64(n)
	return n, err
}

func (f *readFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	return n, cmp.Or(err, f.disk.fault.Load().hitsRead(f.name, p[:n], off))
}

func (d *FaultDisk) OpenDir(name string) (vfs.File, error) {
	return d.open("directory",
		func() (vfs.File, error) { return d.FS.OpenDir(name) },
		func() (vfs.File, error) { return d.synced.OpenDir(name) })
}

func (d *FaultDisk) open(name string, working, synced func() (vfs.File, error)) (vfs.File, error) {
	f := &diskFile{disk: d, name: name}
	err := d.change(
		func() (err error) { f.File, err = working(); return err },
		func() (err error) {
			if f.synced, err = synced(); err == nil && name != "directory" {
				d.add.Lock()
				d.files = append(d.files, f)
				d.add.Unlock()
			}
			return err
		})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *FaultDisk) Link(oldname, newname string) error {
	return d.change(
		func() error { return d.FS.Link(oldname, newname) },
		func() error { return d.synced.Link(oldname, newname) })
}

func (d *FaultDisk) Remove(name string) error {
	if err := d.fault.Load().hits("remove", name); err != nil {
		return err
	}
	return d.change(
		func() error { return d.FS.Remove(name) },
		func() error { return d.synced.Remove(name) })
}

func (d *FaultDisk) RemoveAll(name string) error {
	return d.change(
		func() error { return d.FS.RemoveAll(name) },
		func() error { return d.synced.RemoveAll(name) })
}

func (d *FaultDisk) Rename(oldname, newname string) error {
	if err := d.fault.Load().hits("rename", oldname); err != nil {
		return err
	}
	return d.change(
		func() error { return d.FS.Rename(oldname, newname) },
		func() error { return d.synced.Rename(oldname, newname) })
}

func (d *FaultDisk) MkdirAll(name string, perm os.FileMode) error {
	return d.change(
		func() error { return d.FS.MkdirAll(name, perm) },
		func() error { return d.synced.MkdirAll(name, perm) })
}

// Lock also makes an entry, but a loss of power frees the lock.
func (d *FaultDisk) Lock(name string) (io.Closer, error) {
	lock, err := d.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	f, err := d.synced.Create(name)
	if err != nil {
		return nil, err
	}
	return lock, f.Close()
}

// Write writes a part of p when it fails.
func (f *diskFile) Write(p []byte) (int, error) {
	fails := f.disk.fault.Load().hits("write", f.name)
	if fails != nil && len(p) > 0 {
		p = p[:rand.IntN(len(p))]
	}
	err := f.disk.change(
		func() error { _, err := f.File.Write(bytes.Clone(p)); return err }, // under the race detector, it changes what it gets
		func() error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.unsynced = append(f.unsynced, p...)
			return nil
		})
	return len(p), cmp.Or(err, fails)
}

// Sync fails once, and does nothing after that, as on Linux: what could not be
// written is taken for written. One that was interrupted can be repeated.
func (f *diskFile) Sync() error {
	fails := f.disk.fault.Load().hits("sync", f.name)
	if f.name == "directory" {
		if fails != nil {
			return fails
		}
		return f.disk.change(f.File.Sync, func() error { return f.synced.Sync() })
	}
	if fails == syscall.EINTR {
		return fails
	}
	err := f.disk.change(f.File.Sync, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.lost = f.lost || fails != nil; f.lost {
			return nil
		}
		_, err := f.synced.Write(f.unsynced)
		f.unsynced = f.unsynced[:0]
		return err
	})
	return cmp.Or(err, fails)
}

func (f *diskFile) SyncData() error            { return f.Sync() }
func (f *diskFile) SyncTo(int64) (bool, error) { return false, nil }

func must(err error) {
	if err != nil {
		panic(err)
	}
}
