// The disk: each file of a database passes through the file system in this file, so a
// failure is known here first, whatever meets it, and what must not be done after it is
// refused here.

package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/vfs"
)

// Pebble takes its files from an exported variable. It belongs to the process: other
// databases of Pebble pass through here, too, and notice nothing of it.
func init() { vfs.Default = OnDisk(vfs.Default) }

// OnDisk returns a file system that is fs, except for the directories of Chai databases:
//
//   - A read of an sstable that fails, or does not match its checksum, is tried again. If
//     that doesn't help, it returns the error. A compaction would go on without the rows
//     that it could not read (twoLevelCompactionIterator.skipForward in Pebble's sstable
//     clears the error), and then remove the file that has them: so the database becomes
//     read-only before the compaction is installed.
//   - An error of the log, the MANIFEST or the directory makes the database read-only, and is
//     hidden from Pebble, which could not go on: see loggedFile.
//   - Once the database is read-only, nothing is written to the log and the MANIFEST, and no
//     file is created, removed, renamed or reused.
//   - An sstable that can't be written is tried again by Pebble at once; here it waits.
//   - When file descriptors run out, those who write wait for one.
//   - A sync that a signal has interrupted is repeated, as os.File.Sync does.
//   - The directories above are synced.
//   - A backup copies files (backup.go).
func OnDisk(fs vfs.FS) vfs.FS { return disk{fs, new(directories)} }

type disk struct {
	vfs.FS
	states *directories
}

// directories has the *state of each Chai database that is open, by its directory.
type directories struct{ sync.Map }

// opened has those of all disks; other disks than the system's are for tests.
var opened directories

// in returns the state of the database in a directory, or nil if there is none of Chai's.
func (d *directories) in(dir string) *state {
	s, _ := d.Load(dir)
	found, _ := s.(*state)
	return found
}

// stateOf returns the state of the database that has the file with the given name, or nil
// if it is none of Chai's.
func (d disk) stateOf(name string) *state { return d.states.in(filepath.Dir(name)) }

// Lock is the first thing that is done when a database is opened.
func (d disk) Lock(name string) (io.Closer, error) {
	lock, err := d.FS.Lock(name)
	if err != nil || !calledBy("github.com/chaisql/chai/internal/kv.NewEngineWith") {
		return lock, err
	}
	s, dir := new(state), filepath.Dir(name)
	if err := d.syncAbove(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	d.states.Store(dir, s)
	opened.Store(dir, s)
	return unlock(func() error {
		s.watcher.Store(nil)
		opened.CompareAndDelete(dir, s)
		if s.failed() == nil { // else Close goes on to remove files
			d.states.CompareAndDelete(dir, s)
		}
		return lock.Close()
	}), nil
}

// syncAbove syncs the directories above one. Chai may just have made some of them, and
// neither Chai nor Pebble syncs their names: a loss of power would lose the whole database.
// A directory that the process may not read was not made by it.
func (d disk) syncAbove(dir string) error {
	for parent := filepath.Dir(dir); parent != dir; dir, parent = parent, filepath.Dir(parent) {
		f, err := d.FS.OpenDir(parent)
		if err != nil {
			continue
		}
		err = uninterrupted(f.Sync)
		if err := errors.Join(err, f.Close()); err != nil && !cannotSync(err) {
			return fmt.Errorf("sync directory %s: %w", parent, err)
		}
	}
	return nil
}

// cannotSync reports whether err is what file systems return that can't sync a directory.
func cannotSync(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported)
}

type unlock func() error

func (f unlock) Close() error { return f() }

func (d disk) Create(name string) (vfs.File, error) {
	s := d.stateOf(name)
	if s == nil {
		f, err := d.FS.Create(name)
		if c := copyingIn(filepath.Dir(name)); c != nil && err == nil {
			return copyFile{f, c}, nil
		}
		return f, err
	}
	if isLog(name) {
		return s.createLog(func() (vfs.File, error) { return d.FS.Create(name) })
	}
	if isTable(name) {
		return d.createTable(s, name)
	}
	f, err := s.createLogged("MANIFEST", func() (vfs.File, error) { return d.FS.Create(name) })
	if err != nil || f == nil {
		return deadFile{}, err
	}
	return &loggedFile{f, s, "MANIFEST"}, nil
}

func (d disk) ReuseForWrite(oldname, newname string) (vfs.File, error) {
	s := d.stateOf(newname)
	if s == nil {
		return d.FS.ReuseForWrite(oldname, newname)
	}
	reuse := func() (vfs.File, error) { return d.FS.ReuseForWrite(oldname, newname) }
	return s.createLog(func() (vfs.File, error) {
		f, err := reuse()
		if errors.Is(err, os.ErrNotExist) || noDescriptor(err) {
			reuse = func() (vfs.File, error) { return d.FS.Create(newname) } // it may have been renamed
		}
		return f, err
	})
}

func (d disk) Open(name string, options ...vfs.OpenOption) (vfs.File, error) {
	s := d.stateOf(name)
	if s == nil || !isTable(name) {
		return d.FS.Open(name, options...)
	}
	f, err := d.FS.Open(name, options...)
	if noDescriptor(err) && calledBy(needFiles...) {
		f, err = s.awaitDescriptor(func() (vfs.File, error) { return d.FS.Open(name, options...) })
	}
	if err != nil {
		if !noDescriptor(err) {
			s.unreadable(fmt.Errorf("open sstable: %w", err))
		}
		return nil, err
	}
	return &tableReader{f, s, name}, nil
}

func (d disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &directory{f, d.states, name}, nil
}

func (d disk) Remove(name string) error {
	if err := d.stateOf(name).failed(); err != nil {
		return err
	}
	return d.FS.Remove(name)
}

func (d disk) Rename(oldname, newname string) error {
	if err := d.stateOf(newname).failed(); err != nil {
		return err
	}
	return d.FS.Rename(oldname, newname)
}

func isLog(name string) bool   { return strings.HasSuffix(name, ".log") }
func isTable(name string) bool { return strings.HasSuffix(name, ".sst") }

func noDescriptor(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// uninterrupted repeats a sync that signals interrupt.
func uninterrupted(sync func() error) (err error) {
	for range 100 {
		if err = sync(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
	return err
}

// needFiles are the functions that can't go on without a file, in which a compaction, a
// commit or a transaction that is undone would be left half done.
var needFiles = []string{
	"github.com/cockroachdb/pebble.(*DB).runCompaction",
	"github.com/chaisql/chai/internal/kv.(*BatchSession)",
	"github.com/chaisql/chai/internal/kv.(*RollbackSegment)",
	"go.elara.ws/chaistore/internal/engine.(*DB).commit",
	"go.elara.ws/chaistore/internal/engine.(*watcher).writeBatch",
}

// descriptorLimit is how long those who write wait for a file descriptor.
const descriptorLimit = HangLimit

// awaitDescriptor opens a file once a file descriptor is free.
func (s *state) awaitDescriptor(open func() (vfs.File, error)) (vfs.File, error) {
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		f, err := open()
		if !noDescriptor(err) || time.Since(start) > descriptorLimit || s.isClosed() {
			return f, err
		}
	}
}

// createLog returns a new log.
func (s *state) createLog(create func() (vfs.File, error)) (vfs.File, error) {
	f, err := s.createLogged("log", create)
	if err != nil || f == nil {
		return deadFile{}, err
	}
	return &logFile{loggedFile{f, s, "log"}}, nil
}

// createLogged creates a file whose errors make the database read-only. If they are hidden
// from Pebble, it returns neither a file nor an error.
func (s *state) createLogged(name string, create func() (vfs.File, error)) (f vfs.File, err error) {
	if err = s.failed(); err == nil {
		if f, err = s.awaitDescriptor(create); err == nil {
			return f, nil
		}
		if s.watcher.Load() == nil {
			return nil, err // the database is not opened
		}
		err = s.fail(fmt.Errorf("create %s: %w", name, err))
	}
	if s.hides() {
		return nil, nil
	}
	return nil, err
}

// A logFile is a log.
type logFile struct{ loggedFile }

// Stat of a log whose size can't be told says that it is new.
func (f *logFile) Stat() (info os.FileInfo, err error) {
	err = f.do("stat", func() (err error) { info, err = f.File.Stat(); return err })
	if info == nil {
		info = noSize{}
	}
	return info, err
}

// A loggedFile is a log, a MANIFEST, or a file that names one. It takes nothing any more once
// the database is read-only: after a failed fsync, the next one succeeds without having
// written anything (fsync in Linux), and if the directory could not be synced, the file
// may not be there.
//
// It hides its errors from Pebble, once there is a watcher. Pebble panics, with its locks
// locked, when it closes a log that has failed, and after a change of the MANIFEST that has
// failed, it has mixed up what it knows of files that are being compacted: the process dies
// (InitCompactingFileInfo in its l0_sublevels.go). Who commits asks afterwards whether the
// database still works (untilSynced in watch.go). What Pebble takes to be in the MANIFEST is
// right in memory, and no file that the MANIFEST on disk names, and no log, is removed.
type loggedFile struct {
	vfs.File
	s    *state
	name string // for errors
}

func (f *loggedFile) do(what string, op func() error) error {
	err := f.s.failed()
	if err == nil {
		if err = op(); err != nil {
			err = f.s.fail(fmt.Errorf("%s %s: %w", what, f.name, err))
		}
	}
	if f.s.hides() {
		return nil
	}
	return err
}

// hides reports whether errors are hidden from Pebble. They are not from a compaction that
// has not read all rows: it must not be installed.
func (s *state) hides() bool {
	return s.watcher.Load() != nil && !(s.lossy.Load() && calledBy("github.com/cockroachdb/pebble.(*DB).compact1"))
}

func (f *loggedFile) Write(p []byte) (int, error) {
	return len(p), f.do("write", func() error { _, err := f.File.Write(p); return err })
}

func (f *loggedFile) Sync() error {
	return f.do("sync", func() error { return uninterrupted(f.File.Sync) })
}

func (f *loggedFile) SyncData() error {
	return f.do("sync", func() error { return uninterrupted(f.File.SyncData) })
}

func (f *loggedFile) SyncTo(length int64) (full bool, err error) {
	err = f.do("sync", func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, err
}

func (f *loggedFile) Close() error {
	closed := f.File.Close()
	return f.do("close", func() error { return closed })
}

// A deadFile is a file that could not be created. What is written to it is dropped.
type deadFile struct{ vfs.File }

func (deadFile) Write(p []byte) (int, error)    { return len(p), nil }
func (deadFile) Sync() error                    { return nil }
func (deadFile) SyncData() error                { return nil }
func (deadFile) SyncTo(int64) (bool, error)     { return true, nil }
func (deadFile) Preallocate(int64, int64) error { return nil }
func (deadFile) Close() error                   { return nil }
func (deadFile) Fd() uintptr                    { return vfs.InvalidFd }
func (deadFile) Stat() (os.FileInfo, error)     { return noSize{}, nil }

type noSize struct{ os.FileInfo }

func (noSize) Size() int64 { return 0 }

// A directory that could not be synced may lose the names of files. Whoever syncs it
// while a log is begun would panic with Pebble's locks locked.
type directory struct {
	vfs.File
	states *directories
	name   string
}

func (d *directory) Sync() error {
	err := uninterrupted(d.File.Sync)
	if c := copyingIn(d.name); c != nil {
		c.synced(err)
		return nil
	}
	s := d.states.in(d.name)
	if err == nil || s == nil || s.watcher.Load() == nil {
		return err
	}
	_ = s.fail(fmt.Errorf("sync directory: %w", err))
	return nil
}

// createTable creates an sstable. If the last one of the same kind of job could not be
// written, it waits first.
func (d disk) createTable(s *state, name string) (vfs.File, error) {
	job := &s.jobs.compaction
	if calledBy("github.com/cockroachdb/pebble.(*DB).flush1") {
		job = &s.jobs.flush
	}
	s.awaitTurn(job)
	if err := s.failed(); err != nil {
		s.jobEnded(job, err)
		return nil, err
	}
	f, err := d.FS.Create(name)
	if err != nil {
		s.jobEnded(job, fmt.Errorf("create sstable: %w", err))
		return nil, err
	}
	return &tableWriter{File: f, s: s, job: job}, nil
}

// A tableWriter is an sstable that is being written.
type tableWriter struct {
	vfs.File
	s      *state
	job    *job
	failed bool // Pebble syncs the file all the same when it gives it up
}

func (w *tableWriter) fail(what string, err error) error {
	if err != nil {
		w.failed = true
		w.s.jobEnded(w.job, fmt.Errorf("%s sstable: %w", what, err))
	}
	return err
}

func (w *tableWriter) Write(p []byte) (int, error) {
	n, err := w.File.Write(p)
	return n, w.fail("write", err)
}

func (w *tableWriter) sync(sync func() error) error {
	err := w.fail("sync", uninterrupted(sync))
	if !w.failed {
		w.s.jobEnded(w.job, nil)
	}
	return err
}

func (w *tableWriter) Sync() error     { return w.sync(w.File.Sync) }
func (w *tableWriter) SyncData() error { return w.sync(w.File.SyncData) }

// A tableReader is an sstable that is read.
type tableReader struct {
	vfs.File
	s    *state
	name string
}

// readTries is how often a read that fails is tried.
const readTries = 4

func (r *tableReader) ReadAt(p []byte, off int64) (n int, err error) {
	for try := range readTries {
		if try > 0 {
			time.Sleep(time.Millisecond)
		}
		n, err = r.File.ReadAt(p, off)
		if err == nil && r.matches(p, off) {
			return n, nil
		}
	}
	cause := err
	if cause == nil {
		cause = fmt.Errorf("%d bytes at %d don't match their checksum", len(p), off)
	}
	r.s.unreadable(fmt.Errorf("read sstable %s: %w", filepath.Base(r.name), cause))
	return n, err // Pebble, too, looks at the checksum
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// matches reports whether a block, with the checksum at its end, was read rightly. What
// lies at the end of the file is no block (the footer).
func (r *tableReader) matches(block []byte, off int64) bool {
	end := len(block) - 4
	if end < 1 {
		return true
	}
	sum := bits.RotateLeft32(crc32.Checksum(block[:end], castagnoli), 17) + 0xa282ead8 // as LevelDB masks it
	if sum == binary.LittleEndian.Uint32(block[end:]) {
		return true
	}
	info, err := r.File.Stat()
	return err == nil && off+int64(len(block)) >= info.Size()
}
