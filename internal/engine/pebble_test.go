package engine

import (
	"context"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"

	"go.elara.ws/chaistore/internal/testdb"
)

func TestKnown(t *testing.T) {
	if !known.required || !known.observing || !known.closing {
		t.Errorf("got %+v, want all fields known", known)
	}
}

// altered returns a struct type like t whose field at the end of a path has another
// type, or is missing if with is nil.
func altered(t reflect.Type, path string, with reflect.Type) reflect.Type {
	name, rest, nested := strings.Cut(path, ".")
	var fields []reflect.StructField
	for i := range t.NumField() {
		field := t.Field(i)
		field.Anonymous = false
		if field.Name == name {
			switch {
			case nested:
				field.Type = altered(field.Type, rest, with)
			case with == nil:
				continue
			default:
				field.Type = with
			}
		}
		fields = append(fields, field)
	}
	return reflect.StructOf(fields)
}

// Each field that another version lacks, or has with another type, turns off what
// needs it, and what needs more.
func TestLookUp(t *testing.T) {
	handle, db, snapshot := reflect.TypeFor[chai.DB](), reflect.TypeFor[pebble.DB](), reflect.TypeFor[pebble.Snapshot]()
	type features struct{ required, observing, closing bool }
	for _, test := range []struct {
		of   *reflect.Type
		path string
		want features
	}{
		{&handle, "ctx", features{true, true, true}}, // not used
		{&handle, "DB", features{}},
		{&db, "opts", features{}},
		{&db, "mu", features{}},
		{&db, "mu.Mutex", features{}},
		{&snapshot, "seqNum", features{required: true}},
		{&db, "commit", features{required: true}},
		{&db, "closedCh", features{true, true, false}},
		{&db, "mu.tableValidation.validating", features{true, true, false}},
		{&db, "mu.tableValidation.cond", features{true, true, false}},
		{&db, "mu.compact", features{true, true, false}},
		{&db, "mu.compact.flushing", features{true, true, false}},
		{&db, "mu.compact.compactingCount", features{true, true, false}},
		{&db, "mu.compact.inProgress", features{true, true, false}},
		{&db, "mu.compact.cond", features{true, true, false}},
		{&db, "mu.log.LogWriter", features{true, true, false}},
	} {
		for _, with := range []reflect.Type{nil, reflect.TypeFor[*strings.Builder](), reflect.TypeFor[struct{ n int }]()} {
			original := *test.of
			*test.of = altered(original, test.path, with)
			f := lookUp(handle, db, snapshot)
			*test.of = original
			if got := (features{f.required, f.observing, f.closing}); got != test.want {
				t.Errorf("%s of type %v in %v: got %+v, want %+v", test.path, with, original, got, test.want)
			}
		}
	}
	// A type that is no struct is not looked into.
	if f := lookUp(reflect.TypeFor[int](), db, snapshot); f.required {
		t.Error("got all required fields in an int")
	}
}

// setKnown sets what is known of Chai and Pebble until the test ends. No database that
// other tests use may be open.
func setKnown(t testing.TB, f fields) {
	former := known
	assignKnown(f)
	t.Cleanup(func() { assignKnown(former) })
}

// assignKnown is hidden from the race detector, because goroutines that other tests have
// left hanging may have read the former value before.
//
//go:norace
func assignKnown(f fields) { known = f }

// The file system in the options that a database was opened with stays as it was: it is
// two words, and Pebble's goroutines use it at any time.
func TestFileSystemStaysWhereItIsUsed(t *testing.T) {
	engine := testdb.Disk(t)
	opened := options(engine.DB.Store.DB())
	files := opened.FS
	db := For(engine, discard)
	db.UseMemory(64 << 20)
	if opened.FS != files {
		t.Error("the file system in the first options was replaced")
	}
	used := options(db.pebble())
	if used == opened || used.FS != (logFS{files}) {
		t.Error("the database does not use another file system")
	}
	if used.MemTableSize == chaiMemTable || used.MemTableSize != opened.MemTableSize || used.L0CompactionThreshold != opened.L0CompactionThreshold {
		t.Errorf("got memory tables of %d bytes and %d files, and %d and %d in the first options, want the same",
			used.MemTableSize, used.L0CompactionThreshold, opened.MemTableSize, opened.L0CompactionThreshold)
	}
}

// Without observing, there is no cache, and reads look for notes.
func TestNotesWithoutObserving(t *testing.T) {
	unobserved := known
	unobserved.observing, unobserved.closing = false, false
	setKnown(t, unobserved)
	e := newCacheDB(t, testdb.Memory(t), 1<<20)
	want := func(key []byte, want string) {
		t.Helper()
		if got := cacheFind(t, e, key); string(got) != want {
			t.Errorf("Find = %q, want %q", got, want)
		}
		wantCached(t, e, key, "")
	}
	want(cacheKey, "one")
	transact(t, e, cacheKey, "two")
	want(cacheKey, "two")
	cachePut(t, e, cacheKey, "three")
	want(cacheKey, "three")

	tx := begin(t, e)
	tx.put(t, cacheKey, "four")
	tx.put(t, cacheOtherKey, "four")
	tx.writeOut(t, cacheKey)
	want(cacheKey, "three")
	closeSession(t, tx) // others see what is to be undone
	want(cacheKey, "three")
	want(cacheOtherKey, "")
	err := e.Read(t.Context(), func(s *Snapshot) error {
		if _, ok := s.Catalog(); ok {
			t.Error("a snapshot is known to have the latest catalog, want unknown")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := e.handle.DB.Store.Rollback(); err != nil {
		t.Fatal(err)
	}
	tx.unlock()
	want(cacheKey, "three")
	cacheDelete(t, e, cacheKey)
	want(cacheKey, "")
	if n := e.cache.check(t); n != 0 {
		t.Errorf("got %d rows in the cache, want none", n)
	}
}

// With a version that is not known, each call returns an error at once, and the
// application can use its database.
func TestUnknownEngine(t *testing.T) {
	testdb.Watchdog(t, 30*time.Second)
	setKnown(t, fields{})
	engine := testdb.Memory(t)
	createTable(t, engine)
	db := For(engine, func() *slog.Logger { return slog.New(slog.DiscardHandler) })
	db.GrowCache(1 << 20)
	for name, call := range map[string]func() error{
		"Read":       func() error { _, err := value(db, "a"); return err },
		"Write":      func() error { return db.Write(t.Context(), 100, set("a", 1)) },
		"Update":     func() error { return Update(t.Context(), engine, insert(1)) },
		"Usable":     db.Usable,
		"WriteError": db.WriteError,
	} {
		t.Run(name, func(t *testing.T) { wantError(t, call(), errUnknownEngine) })
	}
	if row := db.Cached(key("a")); row != nil {
		t.Errorf("Cached = %q, want nil", row)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, db.Write(done, 100, set("a", 1)), context.Canceled)
	lockIsFree(engine)
	testdb.Exec(t, engine, "INSERT INTO t (k) VALUES (1)")
	if got := rows(t, engine); got != 1 {
		t.Errorf("the table has %d rows, want 1", got)
	}
}
