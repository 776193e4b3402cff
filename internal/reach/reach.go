// Package reach gets at the fields of Chai v0.16.1 and Pebble v1.1.5 that these don't
// export. It is the only package of the module that imports unsafe. It says what a field is
// called and where it is; what it is used for is the business of package engine. Functions
// and fields have the names that Chai and Pebble give them.
//
// Each field is looked up once, by its name and its type. If one of them is not as
// expected, [Err] says so, and nothing else here may be called.
package reach

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"
)

// Err returns nil if the program has the versions of Chai and Pebble that this package
// knows, or else an error that says which to require.
func Err() error { return offsets.err }

var offsets = lookUp(reflect.TypeFor[chai.DB](), reflect.TypeFor[chai.Tx](), reflect.TypeFor[pebble.DB](), reflect.TypeFor[pebble.Snapshot]())

// fields has the offset of each field in its struct.
type fields struct {
	err error

	// Chai
	writetxmu       uintptr // database.Database
	tx              uintptr // chai.Tx
	sharedSnapshot  uintptr // kv.Store
	rollbackSegment uintptr // kv.Store
	seen            uintptr // kv.RollbackSegment
	snapshot        uintptr // kv.snapshot

	// Pebble
	seqNum          uintptr // Snapshot
	opts            uintptr // DB
	mu              uintptr // DB
	closedCh        uintptr // DB
	validating      uintptr // DB.mu.tableValidation
	validationCond  uintptr // DB.mu.tableValidation
	queue           uintptr // DB.mu.mem
	flushed         uintptr // flushableEntry
	manual          uintptr // DB.mu.compact
	done            uintptr // manualCompaction
	tableCache      uintptr // DB
	filters         uintptr // tableCacheContainer
	commit          uintptr // DB
	commitMu        uintptr // commitPipeline
	logSyncQSem     uintptr // commitPipeline
	commitLogSeqNum uintptr // commitPipeline.env
	commitWrite     uintptr // commitPipeline.env
	commitApply     uintptr // commitPipeline.env
}

func lookUp(chaiDB, chaiTx, pebbleDB, pebbleSnapshot reflect.Type) (f fields) {
	var unknown []string
	// field stores the offset of the field at the end of a path of embedded structs, and
	// returns what it points to, or its own type if it is no pointer.
	field := func(offset *uintptr, t reflect.Type, path, typ string) reflect.Type {
		*offset = 0
		for name := range strings.SplitSeq(path, ".") {
			var field reflect.StructField
			found := t.Kind() == reflect.Struct
			if found {
				field, found = t.FieldByName(name)
			}
			if !found || len(field.Index) != 1 {
				unknown = append(unknown, fmt.Sprintf("%v.%s", t, path))
				return t
			}
			*offset, t = *offset+field.Offset, field.Type
		}
		if t.String() != typ {
			unknown = append(unknown, fmt.Sprintf("%s is a %v", path, t))
		}
		if t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			return t.Elem()
		}
		return t
	}
	var exported uintptr // these need not be looked up, but lead to what they point to

	database := field(&exported, chaiDB, "DB", "*database.Database")
	field(&f.writetxmu, database, "writetxmu", "sync.Mutex")
	transaction := field(&f.tx, chaiTx, "tx", "*database.Transaction")
	field(&exported, transaction, "Session", "kv.Session")
	field(&exported, transaction, "Writable", "bool")
	field(&exported, transaction, "OnCommitHooks", "[]func()")
	field(&exported, transaction, "OnRollbackHooks", "[]func()")
	store := field(&exported, database, "Store", "*kv.Store")
	field(&f.sharedSnapshot, store, "sharedSnapshot.RWMutex", "sync.RWMutex")
	segment := field(&f.rollbackSegment, store, "rollbackSegment", "*kv.RollbackSegment")
	field(&f.seen, segment, "seen", "map[string]struct {}")
	if method, ok := reflect.PointerTo(store).MethodByName("NewSnapshotSession"); ok {
		snapshot := field(&exported, method.Type.Out(0).Elem(), "Snapshot", "*kv.snapshot")
		field(&f.snapshot, snapshot, "snapshot", "*pebble.Snapshot")
	} else {
		unknown = append(unknown, "NewSnapshotSession")
	}

	field(&f.seqNum, pebbleSnapshot, "seqNum", "uint64")
	field(&f.opts, pebbleDB, "opts", "*pebble.Options")
	field(&f.mu, pebbleDB, "mu.Mutex", "sync.Mutex")
	field(&f.closedCh, pebbleDB, "closedCh", "chan struct {}")
	field(&f.validating, pebbleDB, "mu.tableValidation.validating", "bool")
	field(&f.validationCond, pebbleDB, "mu.tableValidation.cond", "sync.Cond")
	queued := field(&f.queue, pebbleDB, "mu.mem.queue", "pebble.flushableList")
	field(&f.flushed, elem(queued), "flushed", "chan struct {}")
	manual := field(&f.manual, pebbleDB, "mu.compact.manual", "[]*pebble.manualCompaction")
	field(&f.done, elem(manual), "done", "chan error")
	cache := field(&f.tableCache, pebbleDB, "tableCache", "*pebble.tableCacheContainer")
	field(&f.filters, cache, "dbOpts.opts.Filters", "map[string]base.FilterPolicy")
	pipeline := field(&f.commit, pebbleDB, "commit", "*pebble.commitPipeline")
	field(&f.commitMu, pipeline, "mu", "sync.Mutex")
	field(&f.logSyncQSem, pipeline, "logSyncQSem", "chan struct {}")
	field(&f.commitLogSeqNum, pipeline, "env.logSeqNum", "*atomic.Uint64")
	field(&f.commitWrite, pipeline, "env.write", "func(*pebble.Batch, *sync.WaitGroup, *error) (*pebble.memTable, error)")
	field(&f.commitApply, pipeline, "env.apply", "func(*pebble.Batch, *pebble.memTable) error")
	if defaultComparer == nil {
		unknown = append(unknown, "kv.DefaultComparer")
	}
	if unknown != nil {
		f.err = fmt.Errorf("%w (unknown: %s)", errUnknown, strings.Join(unknown, ", "))
	}
	return f
}

var errUnknown = errors.New("this program has other versions of Chai and Pebble than chaistore knows: require github.com/chaisql/chai v0.16.1 and github.com/cockroachdb/pebble v1.1.5")

func elem(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

// at returns a field of the struct that p points to.
func at[Field, Struct any](p *Struct, offset uintptr) *Field {
	return (*Field)(unsafe.Add(unsafe.Pointer(p), offset))
}

// Writetxmu returns the lock that a transaction of Chai holds while it writes.
func Writetxmu(db *chai.DB) *sync.Mutex { return at[sync.Mutex](db.DB, offsets.writetxmu) }

// SharedSnapshot returns the lock of the snapshot that reading sessions share while a
// transaction is open that writes.
func SharedSnapshot(db *chai.DB) *sync.RWMutex {
	return at[sync.RWMutex](db.DB.Store, offsets.sharedSnapshot)
}

// Seen returns the keys of the rows that Chai has written to its rollback segment.
func Seen(db *chai.DB) *map[string]struct{} {
	return at[map[string]struct{}](*at[*byte](db.DB.Store, offsets.rollbackSegment), offsets.seen)
}

// Snapshot returns what a *kv.snapshot contains.
func Snapshot[T any](snapshot *T) *pebble.Snapshot {
	return *at[*pebble.Snapshot](snapshot, offsets.snapshot)
}

// Batch returns the field for the batch of a transaction that writes, or nil if tx reads.
func Batch(tx *chai.Tx) **pebble.Batch {
	session := reflect.ValueOf(tx).Elem().FieldByName("tx").Elem().FieldByName("Session").Elem()
	batch := session.Elem().FieldByName("Batch")
	if !batch.IsValid() {
		return nil
	}
	return (**pebble.Batch)(batch.Addr().UnsafePointer())
}

// Writable returns whether tx may write. Chai also asks before it changes the catalog.
func Writable(tx *chai.Tx) *bool { return ofTransaction[bool](tx, "Writable") }

// OnCommitHooks returns the functions that are called when tx was committed.
func OnCommitHooks(tx *chai.Tx) *[]func() { return ofTransaction[[]func()](tx, "OnCommitHooks") }

// OnRollbackHooks returns the functions that are called when tx was rolled back.
func OnRollbackHooks(tx *chai.Tx) *[]func() { return ofTransaction[[]func()](tx, "OnRollbackHooks") }

// ofTransaction returns an exported field of the transaction in tx.
func ofTransaction[Field any](tx *chai.Tx, name string) *Field {
	return (*Field)(reflect.ValueOf(tx).Elem().FieldByName("tx").Elem().FieldByName(name).Addr().UnsafePointer())
}

// SeqNum returns the sequence number of a snapshot, which has all batches that end before
// it.
func SeqNum(s *pebble.Snapshot) uint64 { return *at[uint64](s, offsets.seqNum) }

// Opts returns the options that a database uses. They must not be changed, except where
// they are no pointer, and no goroutine but those of the tests may have changed them.
func Opts(db *pebble.DB) *pebble.Options { return *at[*pebble.Options](db, offsets.opts) }

// SetOpts makes a database use other options. Goroutines of Pebble that read them at the
// same time get the former or the new ones.
func SetOpts(db *pebble.DB, opts *pebble.Options) {
	publish(at[*pebble.Options](db, offsets.opts), hidden(opts))
}

// Mu returns Pebble's mutex.
func Mu(db *pebble.DB) *sync.Mutex { return at[sync.Mutex](db, offsets.mu) }

// ClosedCh returns a channel that is closed when Close of the database has begun.
func ClosedCh(db *pebble.DB) <-chan struct{} { return *at[chan struct{}](db, offsets.closedCh) }

// TableValidation returns whether files are being validated, which Close waits for, and
// the condition that says that it has changed. [Mu] protects both.
func TableValidation(db *pebble.DB) (validating *bool, cond *sync.Cond) {
	return at[bool](db, offsets.validating), at[sync.Cond](db, offsets.validationCond)
}

// Flushed returns the channel of each memtable that has not been flushed, for those who
// wait until it is. [Mu] must be locked.
func Flushed(db *pebble.DB) (flushed []chan struct{}) {
	for _, entry := range *at[[]*byte](db, offsets.queue) {
		flushed = append(flushed, *at[chan struct{}](entry, offsets.flushed))
	}
	return flushed
}

// ManualDone returns the channel of each manual compaction that has not begun, for the
// error that it ends with. [Mu] must be locked.
func ManualDone(db *pebble.DB) (done []chan error) {
	for _, manual := range *at[[]*byte](db, offsets.manual) {
		done = append(done, *at[chan error](manual, offsets.done))
	}
	return done
}

// SetFilters sets the filters that are looked at in files that have them.
func SetFilters(db *pebble.DB, filters map[string]pebble.FilterPolicy) {
	publish(at[map[string]pebble.FilterPolicy](*at[*byte](db, offsets.tableCache), offsets.filters), filters)
}

// A CommitPipeline is Pebble's, which commits batches in the order of their numbers.
type CommitPipeline struct{ p *byte }

// Commit returns the commit pipeline of a database.
func Commit(db *pebble.DB) CommitPipeline { return CommitPipeline{*at[*byte](db, offsets.commit)} }

// Mu returns the mutex that is locked while a batch gets its numbers and is written.
func (c CommitPipeline) Mu() *sync.Mutex { return at[sync.Mutex](c.p, offsets.commitMu) }

// LogSyncQSem returns the semaphore that each batch holds until it is synced.
func (c CommitPipeline) LogSyncQSem() chan struct{} {
	return *at[chan struct{}](c.p, offsets.logSyncQSem)
}

// LogSeqNum returns the number that the next batch will get.
func (c CommitPipeline) LogSeqNum() uint64 {
	return (*at[*atomic.Uint64](c.p, offsets.commitLogSeqNum)).Load()
}

// A MemTable points to a memtable of Pebble, whose type can't be named here.
type MemTable = unsafe.Pointer

// A Write function writes a batch to the log, and returns the memtable for it.
type Write = func(b *pebble.Batch, syncWG *sync.WaitGroup, syncErr *error) (MemTable, error)

// An Apply function adds a batch to a memtable.
type Apply = func(b *pebble.Batch, mem MemTable) error

// SetEnv replaces the functions with which batches are written and applied, and returns
// the former ones. [CommitPipeline.Mu] must be locked.
func (c CommitPipeline) SetEnv(write Write, apply Apply) (formerWrite Write, formerApply Apply) {
	w, a := at[Write](c.p, offsets.commitWrite), at[Apply](c.p, offsets.commitApply)
	formerWrite, formerApply = *w, *a
	publish(w, write)
	publish(a, apply)
	return formerWrite, formerApply
}

// Forget makes the versions of Chai and Pebble unknown, until the function that it returns
// is called. It is for tests. No other database may be open.
func Forget() (remember func()) {
	former := offsets
	assign(fields{err: errUnknown})
	return func() { assign(former) }
}

// assign is hidden from the race detector, because goroutines that other tests have left
// hanging may have read the former value before.
//
//go:norace
func assign(f fields) { offsets = f }

// DefaultComparer returns the comparer of all databases of Chai, or nil if this program has
// another version.
func DefaultComparer() *pebble.Comparer { return defaultComparer }

//go:linkname defaultComparer github.com/chaisql/chai/internal/kv.DefaultComparer
var defaultComparer *pebble.Comparer
