// Everything that reaches into Chai and Pebble past their exported API.

package engine

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"
	"github.com/cockroachdb/pebble/bloom"
	"github.com/cockroachdb/pebble/vfs"
)

// Chai and Pebble don't export what this file uses, so it reads and sets their fields
// by their places in memory. Each field is looked up once, by its name and its type.
//
// If a field of required is not as expected, no database can be used: its calls return
// errUnknownEngine. If another field is not, its feature is off: without observing, there
// is no cache, and each read looks for undo notes and at the catalog; without closing,
// Close of a database and writes of the application can hang after a failure, and Close
// does not wait for reads.
var known = lookUp(reflect.TypeFor[chai.DB](), reflect.TypeFor[pebble.DB](), reflect.TypeFor[pebble.Snapshot]())

var errUnknownEngine = errors.New("this program has another version of Chai or Pebble than chaistore knows: require github.com/chaisql/chai v0.16.1 and github.com/cockroachdb/pebble v1.1.5")

type fields struct {
	required, observing, closing bool

	writeLock uintptr // sync.Mutex in database.Database
	shared    uintptr // *kv.snapshot in kv.SnapshotSession
	snapshot  uintptr // *pebble.Snapshot in kv.snapshot
	opts      uintptr // *pebble.Options in pebble.DB
	mu        uintptr // sync.Mutex in pebble.DB

	sequence  uintptr // uint64 in pebble.Snapshot
	pipeline  uintptr // *pebble.commitPipeline in pebble.DB
	commitMu  uintptr // sync.Mutex in pebble.commitPipeline
	logSeqNum uintptr // *atomic.Uint64 in pebble.commitPipeline
	write     uintptr // writeFunc in pebble.commitPipeline
	isClosed  uintptr // *atomic.Value in pebble.DB
	undo      uintptr // *kv.RollbackSegment in kv.Store
	seen      uintptr // map[string]struct{} in kv.RollbackSegment

	closed     uintptr // chan struct{} in pebble.DB
	validating uintptr // bool in pebble.DB
	validated  uintptr // sync.Cond in pebble.DB
	flushing   uintptr // bool in pebble.DB
	compacting uintptr // int in pebble.DB
	inProgress uintptr // a map in pebble.DB, of type jobs
	jobs       reflect.Type
	cancel     uintptr // atomic.Bool in pebble.compaction
	done       uintptr // sync.Cond in pebble.DB
	logWriter  uintptr // *record.LogWriter in pebble.DB
	blocks     uintptr // a slice in record.LogWriter
	block      uintptr // *record.block in record.LogWriter
	written    uintptr // atomic.Int32 in record.block
	versions   uintptr // *pebble.versionSet in pebble.DB
	mergeBytes uintptr // atomic.Int64 in pebble.versionSet
	headTail   uintptr // atomic.Uint64 in pebble.commitPipeline
	slots      uintptr // [queueLen]atomic.Pointer[pebble.Batch] in pebble.commitPipeline
	places     uintptr // chan struct{} in pebble.commitPipeline
	syncPlaces uintptr // chan struct{} in pebble.commitPipeline

	memory     bool
	largeBatch uintptr // uint64 in pebble.DB
	dir        uintptr // string in pebble.DB
	readers    uintptr // *pebble.tableCacheContainer in pebble.DB
	filters    uintptr // map[string]pebble.FilterPolicy in pebble.tableCacheContainer
}

// A writeFunc is the function of Pebble's commit pipeline that writes a batch to the
// log, and returns the memory table for it, whose type can't be named here.
type writeFunc func(b *pebble.Batch, synced *sync.WaitGroup, err *error) (unsafe.Pointer, error)

func lookUp(handle, db, snapshot reflect.Type) (f fields) {
	ok := true
	// place returns where the field at the end of a path of embedded structs is.
	place := func(t reflect.Type, path, typ string) (offset uintptr, _ reflect.Type) {
		for name := range strings.SplitSeq(path, ".") {
			if t.Kind() != reflect.Struct {
				ok = false
				return 0, t
			}
			field, found := t.FieldByName(name)
			if !found || len(field.Index) != 1 {
				ok = false
				return 0, t
			}
			offset, t = offset+field.Offset, field.Type
		}
		ok = ok && t.String() == typ
		return offset, t
	}
	elem := func(t reflect.Type) reflect.Type {
		if t.Kind() != reflect.Pointer {
			return t
		}
		return t.Elem()
	}

	_, database := place(handle, "DB", "*database.Database")
	f.writeLock, _ = place(elem(database), "writetxmu", "sync.Mutex")
	_, store := place(elem(database), "Store", "*kv.Store")
	if method, found := store.MethodByName("NewSnapshotSession"); found {
		var t reflect.Type
		f.shared, t = place(elem(method.Type.Out(0)), "Snapshot", "*kv.snapshot")
		f.snapshot, _ = place(elem(t), "snapshot", "*pebble.Snapshot")
	} else {
		ok = false
	}
	f.opts, _ = place(db, "opts", "*pebble.Options")
	f.mu, _ = place(db, "mu.Mutex", "sync.Mutex")
	f.required = ok

	f.sequence, _ = place(snapshot, "seqNum", "uint64")
	var t reflect.Type
	f.pipeline, t = place(db, "commit", "*pebble.commitPipeline")
	pipeline := elem(t)
	f.commitMu, _ = place(pipeline, "mu", "sync.Mutex")
	f.logSeqNum, _ = place(pipeline, "env.logSeqNum", "*atomic.Uint64")
	f.write, _ = place(pipeline, "env.write", "func(*pebble.Batch, *sync.WaitGroup, *error) (*pebble.memTable, error)")
	f.isClosed, _ = place(db, "closed", "*atomic.Value")
	f.undo, t = place(elem(store), "rollbackSegment", "*kv.RollbackSegment")
	f.seen, _ = place(elem(t), "seen", "map[string]struct {}")
	f.observing = ok

	f.closed, _ = place(db, "closedCh", "chan struct {}")
	f.validating, _ = place(db, "mu.tableValidation.validating", "bool")
	f.validated, _ = place(db, "mu.tableValidation.cond", "sync.Cond")
	f.flushing, _ = place(db, "mu.compact.flushing", "bool")
	f.compacting, _ = place(db, "mu.compact.compactingCount", "int")
	f.inProgress, f.jobs = place(db, "mu.compact.inProgress", "map[*pebble.compaction]struct {}")
	if f.jobs.Kind() == reflect.Map {
		f.cancel, _ = place(elem(f.jobs.Key()), "cancel", "atomic.Bool")
	}
	f.done, _ = place(db, "mu.compact.cond", "sync.Cond")
	f.logWriter, t = place(db, "mu.log.LogWriter", "*record.LogWriter")
	log := elem(t)
	f.blocks, _ = place(log, "free.blocks", "[]*record.block")
	f.block, t = place(log, "block", "*record.block")
	f.written, _ = place(elem(t), "written", "atomic.Int32")
	f.versions, t = place(db, "mu.versions", "*pebble.versionSet")
	f.mergeBytes, _ = place(elem(t), "atomicInProgressBytes", "atomic.Int64")
	f.headTail, _ = place(pipeline, "pending.headTail", "atomic.Uint64")
	f.slots, _ = place(pipeline, "pending.slots", fmt.Sprintf("[%d]atomic.Pointer[github.com/cockroachdb/pebble.Batch]", queueLen))
	f.places, _ = place(pipeline, "commitQueueSem", "chan struct {}")
	f.syncPlaces, _ = place(pipeline, "logSyncQSem", "chan struct {}")
	f.closing = ok

	f.largeBatch, _ = place(db, "largeBatchThreshold", "uint64")
	f.dir, _ = place(db, "dirname", "string")
	f.readers, t = place(db, "tableCache", "*pebble.tableCacheContainer")
	f.filters, _ = place(elem(t), "dbOpts.opts.Filters", "map[string]base.FilterPolicy")
	f.memory = ok
	return f
}

// at returns the field at the given place of a struct.
func at[Field, Struct any](s *Struct, place uintptr) *Field {
	return (*Field)(unsafe.Add(unsafe.Pointer(s), place))
}

// writeLock returns the lock that a transaction of Chai holds while it writes.
//
// Only such a transaction exports a reference to the lock, and beginning one just for
// that could deadlock the application: BeginTx would wait for an open transaction,
// while holding a lock that this one needs to commit.
func writeLock(db *chai.DB) *sync.Mutex {
	if !known.required {
		return new(sync.Mutex)
	}
	return at[sync.Mutex](db.DB, known.writeLock)
}

// snapshotOf returns the snapshot of a reading session of Chai, and its sequence
// number, or 0 if numbers are not known.
func snapshotOf[Session any](session *Session) (*pebble.Snapshot, uint64) {
	shared := *at[*byte](session, known.shared)
	snapshot := *at[*pebble.Snapshot](shared, known.snapshot)
	if !known.observing {
		return snapshot, 0
	}
	return snapshot, *at[uint64](snapshot, known.sequence)
}

func options(db *pebble.DB) *pebble.Options { return *at[*pebble.Options](db, known.opts) }

// Chai tells Pebble how to separate the keys of two adjacent blocks in a file
// (Separator in its internal/encoding). If these are two versions of the same key,
// both of which Pebble keeps while a snapshot is open, Chai returns the end of the
// key without the namespace. That is greater than all keys that follow, so the file's
// index leads to the wrong block: rows behind it are not found until the file is
// merged with another one.
//
// A key itself separates it from any greater one, and Pebble uses it where Chai's
// separator is longer, as for most keys. Chai has one comparer for all databases.
func init() {
	setSeparator(defaultComparer, func(dst, a, _ []byte) []byte { return append(dst, a...) })
}

//go:linkname defaultComparer github.com/chaisql/chai/internal/kv.DefaultComparer
var defaultComparer *pebble.Comparer

// setSeparator sets a function that a database may be using already, if the init of
// another package has opened one. Its goroutines use either function: the field is one
// word. So the race detector does not look at it.
//
//go:norace
func setSeparator(c *pebble.Comparer, separator pebble.Separator) { c.Separator = separator }

// A watcher hears of what Pebble fails to do. Pebble refers to it. It must not be
// referred to by anything that outlives the database.
type watcher struct {
	pebble.Logger
	db        *pebble.DB
	opened    *pebble.Options      // with which the database was opened
	writeLock *sync.Mutex          // Chai's
	seen      *map[string]struct{} // see forgetSeen
	*shared
	write   writeFunc             // Pebble's own
	rotated atomic.Pointer[error] // why the log could not be rotated
	failure atomic.Pointer[error] // why nothing can be written any more
	dead    int                   // jobs ended by endJob; Pebble's mutex protects it
}

// watch makes a database report its failures to s, and show it each batch.
func watch(db *chai.DB, s *shared) {
	if !known.required {
		_ = s.failures.failAll(errUnknownEngine)
		return
	}
	o := options(db.DB.Store.DB())
	w := &watcher{Logger: o.Logger, db: db.DB.Store.DB(), writeLock: writeLock(db), shared: s}
	if known.observing {
		w.seen = at[map[string]struct{}](*at[*byte](db.DB.Store, known.undo), known.seen)
		if w.writeLock.TryLock() {
			w.forgetSeen()
			w.writeLock.Unlock()
		}
	}
	// Whoever calls w has locked this mutex since. A failure may have left it locked, so
	// nobody waits for it for long.
	mu := at[sync.Mutex](w.db, known.mu)
	for range 10_000 {
		if mu.TryLock() {
			defer mu.Unlock()
			break
		}
		runtime.Gosched()
	}
	w.listen(o)
}

// forgetSeen makes Chai note again how to undo changes of the rows that earlier
// transactions have changed. It notes the first change of each row, but remembers the
// rows until the database is closed (seen in its internal/kv): what a later transaction
// has written out would be undone neither by its rollback nor after a crash.
//
// The caller must hold Chai's write lock, with no transaction open, or be the commit or
// the rollback of one.
func (w *watcher) forgetSeen() { *w.seen = make(map[string]struct{}) }

// listen sets the options of an open database. Goroutines of Pebble may read them
// meanwhile: they get the former or the new function, since each is one word. The
// logger is two words, but they only copy it, and call it after a failure. So the race
// detector does not look at it.
//
// The file system is two words, too, and they call it at any time. So the database gets
// other options with another one. Some parts of it go on with those that it was opened
// with.
//
//go:norace
func (w *watcher) listen(o *pebble.Options) {
	o.EventListener.WALCreated = w.walCreated
	o.EventListener.FlushEnd = w.flushEnd
	o.EventListener.CompactionEnd = w.compactionEnd
	o.Logger = w
	w.opened = o
	other := new(pebble.Options)
	*other = *o
	other.FS = logFS{o.FS}
	barrier.Add(1) // nobody sees other before what is in it
	*at[*pebble.Options](w.db, known.opts) = other
}

// allOptions returns the options that the database and its parts use.
func allOptions(db *pebble.DB) []*pebble.Options {
	o := options(db)
	if w, ok := o.Logger.(*watcher); ok {
		return []*pebble.Options{o, w.opened}
	}
	return []*pebble.Options{o}
}

var barrier atomic.Int32

// Pebble passes errors after which it must not go on to its logger, which is to end
// the process. Chai's logger does nothing, and so Pebble goes on: it acknowledges
// what it could not write to its log, and after an error while it writes its list of
// files (MANIFEST) it deletes files that are in the list, so that the database can't
// be opened any more.
//
// Fatalf ends writing. A commit that failed panics in the goroutine of its caller, who
// would otherwise be told that it succeeded. A goroutine that could not write the list
// goes no further. After other errors, Pebble returns an error itself.
func (w *watcher) Fatalf(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	err := errors.New(message)
	for _, arg := range args {
		if cause, ok := arg.(error); ok {
			err = fmt.Errorf("%s%w", strings.TrimSuffix(message, cause.Error()), cause)
		}
	}
	err = w.fail(err)
	switch {
	case strings.HasPrefix(message, "MANIFEST"):
		w.endJob()
	case strings.HasPrefix(message, "pebble: fatal commit error"):
		calls := callers()
		if calls("internal/database.(*Database).closeDatabase") {
			return // to close Pebble, too
		}
		// Chai does not unlock its write lock when these panic, and nobody else can.
		if calls("internal/database.(*Transaction).Rollback") || calls("internal/query/statement.(*Result).Close") {
			w.writeLock.Unlock()
		}
		panic(commitFailure{err})
	}
}

// fail ends writing, and returns the first reason.
func (w *watcher) fail(err error) error {
	err = w.failures.failWrites(err)
	w.failure.CompareAndSwap(nil, &err)
	return *w.failure.Load()
}

// A commitFailure is what Pebble panics with, in the goroutine of a caller, when a
// commit fails. No lock of Pebble is locked.
type commitFailure struct{ error }

func (f commitFailure) Unwrap() error { return f.error }

// callers returns a function that reports whether a function of Chai with the given
// name is one of the callers.
func callers() (calls func(name string) bool) {
	counters := make([]uintptr, 64)
	frames := runtime.CallersFrames(counters[:runtime.Callers(2, counters)])
	names := make(map[string]bool)
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		names[frame.Function] = true
	}
	return func(name string) bool { return names["github.com/chaisql/chai/"+name] }
}

// endJob ends the goroutine that could not write the list of files. It has Pebble's
// mutex, and the right to write the list, which Goexit gives back. Nothing is flushed
// or merged any more: a merge that is running is canceled, since it must not write the
// list after a change that is neither in it nor surely not. Writers that wait for a
// flush go on, since what they write is in the log.
func (w *watcher) endJob() {
	if !known.closing {
		runtime.Goexit() // Close waits for the job for ever
	}
	w.waitForJobs(false)
	*at[bool](w.db, known.flushing), *at[int](w.db, known.compacting) = true, 1<<30
	for _, job := range w.jobs() {
		at[atomic.Bool]((*byte)(job.UnsafePointer()), known.cancel).Store(true)
	}
	if w.dead++; w.dead == 1 {
		go w.letClose()
	}
	runtime.Goexit()
}

// waitForJobs sets whether writes wait for flushes and merges when there is too much to
// flush or to merge. Pebble's mutex must be locked.
func (w *watcher) waitForJobs(wait bool) {
	const tables = 2 // Pebble's default
	for _, o := range allOptions(w.db) {
		if wait {
			o.MemTableStopWritesThreshold, o.L0StopWritesThreshold = tables, max(chaiStopFiles, 2*o.L0CompactionThreshold)
		} else {
			o.MemTableStopWritesThreshold, o.L0StopWritesThreshold = 1<<30, 1<<30
		}
	}
	if !wait {
		at[sync.Cond](w.db, known.done).Broadcast()
	}
}

// jobs returns the flushes and merges that have not ended.
func (w *watcher) jobs() []reflect.Value {
	return reflect.NewAt(known.jobs, unsafe.Pointer(at[byte](w.db, known.inProgress))).Elem().MapKeys()
}

// letClose waits until the database is closed, and lets Close go on once all jobs have
// ended but those that never will.
func (w *watcher) letClose() {
	<-*at[chan struct{}](w.db, known.closed)
	mu, done := at[sync.Mutex](w.db, known.mu), at[sync.Cond](w.db, known.done)
	mu.Lock()
	defer mu.Unlock()
	for len(w.jobs()) > w.dead {
		done.Wait()
	}
	*at[bool](w.db, known.flushing), *at[int](w.db, known.compacting) = false, 0
	at[atomic.Int64](*at[*byte](w.db, known.versions), known.mergeBytes).Store(0) // in a program built with -race, Close panics otherwise
	done.Broadcast()
}

// enter panics if the database is closed. Otherwise Close waits until leave is called.
// It frees the memory that reads use, and would end the process with a fault that can't
// be recovered.
//
// What Close waits for is Pebble's validation of files that are added from outside, which
// Chai has none of.
func (db *DB) enter() {
	if !known.closing {
		db.panicIfClosed()
		return
	}
	mu := at[sync.Mutex](db.pebble(), known.mu)
	mu.Lock()
	defer mu.Unlock()
	db.panicIfClosed()
	db.using++
	*at[bool](db.pebble(), known.validating) = true
}

func (db *DB) leave() {
	if !known.closing {
		return
	}
	mu := at[sync.Mutex](db.pebble(), known.mu)
	mu.Lock()
	defer mu.Unlock()
	if db.using--; db.using == 0 {
		*at[bool](db.pebble(), known.validating) = false
		at[sync.Cond](db.pebble(), known.validated).Broadcast()
	}
}

// spend makes tx, which has ended, panic when it is used again. Its batch is in
// Pebble's pool, so what is written to it would be committed with a batch of somebody
// else, even to another database.
func (db *DB) spend(tx *chai.Tx) {
	v := reflect.ValueOf(tx)
	for _, name := range []string{"tx", "Session", "Batch"} {
		for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			return
		}
		v = v.FieldByName(name)
	}
	if !v.IsValid() || v.Type() != reflect.TypeFor[*pebble.Batch]() || db.Usable() != nil {
		return
	}
	spent := db.pebble().NewBatch()
	_ = db.pebble().Apply(spent, pebble.NoSync) // writes nothing, but must not be used after it
	*(**pebble.Batch)(v.Addr().UnsafePointer()) = spent
}

// maxUnflushed is how many bytes memory tables may have while they can't be flushed.
// Tests change it.
var maxUnflushed uint64 = 256 << 20

// flushEnd and compactionEnd are called with Pebble's mutex locked when files were
// written or merged. After a failure Pebble tries again at once; they make it wait.
func (w *watcher) flushEnd(info pebble.FlushInfo) {
	if info.Err != nil && info.InputBytes > maxUnflushed {
		_ = w.fail(fmt.Errorf("flush: %w", info.Err))
	}
	w.backoff(&w.background.flush, info.Err)
}

func (w *watcher) compactionEnd(info pebble.CompactionInfo) {
	w.backoff(&w.background.merge, info.Err)
}

// backoff records the end of a job. After a failure it waits, and lets those go on who
// wait for the job in a write: what they write is in the log. A job that goes on
// failing until there are more than maxUnflushed bytes ends writing.
func (w *watcher) backoff(job *job, err error) {
	if err != nil && (err.Error() == "pebble: empty table" || errors.Is(err, pebble.ErrCancelledCompaction)) {
		err = nil
	}
	wait := w.background.ended(job, err)
	if !known.closing {
		return
	}
	w.waitForJobs(w.background.failing() == nil && w.failure.Load() == nil)
	if err == nil {
		return
	}
	mu := at[sync.Mutex](w.db, known.mu)
	mu.Unlock()
	defer mu.Lock()
	select {
	case <-time.After(wait):
	case <-*at[chan struct{}](w.db, known.closed):
	}
}

func (w *watcher) walCreated(info pebble.WALCreateInfo) {
	if info.Err != nil {
		w.rotated.Store(&info.Err)
	}
}

// A logFS makes Pebble wait for a free file descriptor when it begins a new log. It
// would panic, with its locks locked, although nothing is lost yet.
type logFS struct{ vfs.FS }

func (fs logFS) Create(name string) (vfs.File, error) {
	for {
		f, err := fs.FS.Create(name)
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
			return f, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (fs logFS) ReuseForWrite(oldname, newname string) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(oldname, newname)
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return fs.Create(newname) // it may have been renamed
	}
	return f, err
}

// Chai opens Pebble with memory tables of 4 MB, and a cache for blocks of files of 8 MB,
// in which Pebble reserves what the memory tables take: nothing is left for blocks. It
// merges flushed files once a row can be in 4 of them, and writes wait at 12.
const (
	chaiMemTable  = 4 << 20
	chaiBlocks    = 8 << 20
	chaiStopFiles = 12
	maxMemTable   = 64 << 20
)

// mergeFiles is in how many flushed files a row can be when the engine merges them. With
// 12 instead of 4, and 4 KiB in each session, commits by 64 goroutines take 0.7 of the
// time. Finds skip most of these files by their filters.
const mergeFiles = 12

// filter makes Bloom filters with 10 bits for each key.
const filter = bloom.FilterPolicy(10)

// UseMemory lets the engine take up to the given number of bytes for speed, if it was
// less before: a quarter for copies of rows, three eighths for blocks of files, and
// three eighths for the memory tables, of which up to three exist at a time. It takes
// them when they are used: the first memory table has 256 KB, and each one twice the
// size of the last. Close gives all back. If there is any memory, files to come get
// filters, and are merged later.
func (db *DB) UseMemory(bytes int64) {
	db.GrowCache(bytes / 4)
	db.growing.Lock()
	defer db.growing.Unlock()
	if bytes <= db.memory || !known.memory {
		return
	}
	_ = db.whileOpen(func() error { db.useMemory(bytes); return nil })
}

func (db *DB) useMemory(bytes int64) {
	if db.memory == 0 {
		setFiles(db.pebble())
	}
	tables := func(bytes int64) int64 { return min(bytes/8, maxMemTable) }
	if tables(bytes) > chaiMemTable {
		setMemTables(db.pebble(), uint64(tables(bytes)))
	}
	room := func(bytes int64) int64 { return max(bytes*3/8+3*tables(bytes), chaiBlocks) }
	_ = options(db.pebble()).Cache.Reserve(int(room(db.memory) - room(bytes)))
	db.memory = bytes
}

// filters is for all databases, and made before any of their goroutines.
var filters = map[string]pebble.FilterPolicy{filter.Name(): filter}

// setFiles makes the engine write files with filters, look at them, and merge files
// later. Goroutines of Pebble use the former or the new settings: each is one word, as
// the slice keeps its length. So the race detector does not look at them.
//
// A filter says of most keys that are not in a file that they are not. Pebble's Get looks
// at it, except in the last level, and iterators don't. A file that Pebble has opened
// before is used without its filter until it is opened again.
//
//go:norace
func setFiles(db *pebble.DB) {
	*at[map[string]pebble.FilterPolicy](*at[*byte](db, known.readers), known.filters) = filters
	for _, o := range allOptions(db) {
		o.L0CompactionThreshold = mergeFiles
		o.L0StopWritesThreshold = max(o.L0StopWritesThreshold, 2*mergeFiles)
		levels := make([]pebble.LevelOptions, len(o.Levels))
		for i := range levels {
			levels[i] = o.Levels[i]
			levels[i].FilterPolicy = filter
		}
		barrier.Add(1) // nobody sees the new slice before what is in it
		o.Levels = levels
	}
}

// setMemTables sets the size of the memory tables to come, which the race detector does
// not look at either.
//
//go:norace
func setMemTables(db *pebble.DB, size uint64) {
	for _, o := range allOptions(db) {
		o.MemTableSize = size
	}
	*at[uint64](db, known.largeBatch) = size / 2
}

// free returns how many bytes are free on the disk of the database, or a great number
// if that is not known.
func (db *DB) free() uint64 {
	if !known.memory {
		return math.MaxUint64
	}
	usage, err := options(db.pebble()).FS.GetDiskUsage(*at[string](db.pebble(), known.dir))
	if err != nil {
		return math.MaxUint64 // a database in memory
	}
	return usage.AvailBytes
}

// observe puts w.writeBatch before Pebble's own function, so that the cache sees each
// batch from then on. It does nothing if that is done already, or if a batch is being
// written just now.
func (db *DB) observe() {
	if db.cache.observing.Load() || !known.observing {
		return
	}
	w, ok := options(db.pebble()).Logger.(*watcher)
	if !ok {
		return
	}
	pipeline := *at[*byte](w.db, known.pipeline)
	mu := at[sync.Mutex](pipeline, known.commitMu)
	if !mu.TryLock() {
		return
	}
	defer mu.Unlock()
	if w.write != nil {
		return
	}
	db.cache.start((*at[*atomic.Uint64](pipeline, known.logSeqNum)).Load())
	field := at[writeFunc](pipeline, known.write)
	w.write, *field = *field, w.writeBatch
	db.cache.observing.Store(true)
}

// writeBatch shows a batch to the cache, and writes it to the log. It is called with
// commitMu locked, when b has its sequence numbers, and before anybody can see it. It
// refuses b after a failure, and returns an error where Pebble panics with its locks
// locked.
func (w *watcher) writeBatch(b *pebble.Batch, synced *sync.WaitGroup, syncErr *error) (table unsafe.Pointer, err error) {
	if failure := w.failure.Load(); failure != nil {
		w.refuse(synced != nil)
		return nil, *failure
	}
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if err = w.logNotReplaced(r); err != nil {
			return
		}
		cause, ok := r.(error)
		if !ok {
			cause = fmt.Errorf("%v", r)
		}
		err = w.fail(fmt.Errorf("write to the log: %w", cause))
	}()
	if w.cache.observe(b) {
		w.forgetSeen()
	}
	return w.write(b, synced, syncErr)
}

// logNotReplaced returns an error that ends writing if r is the panic of Pebble that could
// not begin a new log. It has closed the former one, and its mutex is locked.
func (w *watcher) logNotReplaced(r any) error {
	cause := w.rotated.Load()
	if cause == nil || r != any(*cause) {
		return nil
	}
	err := w.fail(fmt.Errorf("write to the log: %w", *cause))
	if known.closing {
		// Close closes the log again: it would free its blocks twice, and panic if the last
		// one had no room for a second end.
		log := *at[*byte](w.db, known.logWriter)
		*at[[]*byte](log, known.blocks) = nil
		at[atomic.Int32](*at[*byte](log, known.block), known.written).Store(0)
	}
	at[sync.Mutex](w.db, known.mu).Unlock()
	return err
}

// merge is Pebble's Compact, which may begin a new log.
func (db *DB) merge(from, to []byte) (err error) {
	db.panicIfClosed()
	if w, ok := options(db.pebble()).Logger.(*watcher); ok {
		defer func() {
			if r := recover(); r != nil {
				if err = w.logNotReplaced(r); err == nil {
					panic(r)
				}
			}
		}()
	}
	return db.pebble().Compact(from, to, false)
}

// queueLen is the length of the queue of batches that are not visible yet.
const queueLen = 4096

// refuse takes the batch that Pebble has just put into the queue of batches out of it
// again, and gives its places back. Pebble does neither when a batch can't be written:
// when the queue is full, the next one would wait for ever, with Chai's locks locked.
func (w *watcher) refuse(sync bool) {
	if !known.closing {
		return
	}
	pipeline := *at[*byte](w.db, known.pipeline)
	headTail := at[atomic.Uint64](pipeline, known.headTail)
	last := (headTail.Load()>>32 - 1) % queueLen // only changed here and by Pebble, with commitMu locked
	at[[queueLen]atomic.Pointer[pebble.Batch]](pipeline, known.slots)[last].Store(nil)
	headTail.Add(^uint64(1<<32 - 1))
	<-*at[chan struct{}](pipeline, known.places)
	if sync {
		<-*at[chan struct{}](pipeline, known.syncPlaces)
	}
}
