package engine

import (
	"fmt"
	"math"
	"testing"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// Each table and each index has a namespace of its own, whenever the processes that make
// them are killed, and whatever else they do.
func TestNamespacesAreGivenOnce(t *testing.T) {
	// Each life of a program ends with a kill. In one, open opens the engine, and put
	// writes with it; all else is SQL.
	const (
		open, put        = "open", "put"
		begin, commit    = "BEGIN", "COMMIT"
		read, readOther  = "SELECT * FROM notes", "SELECT * FROM other" // in a transaction, write out what it has changed
		notes, other     = "CREATE TABLE notes (a TEXT PRIMARY KEY)", "CREATE TABLE other (a TEXT)"
		index            = "CREATE INDEX notes_a ON notes (a)"
		insert, rollback = "INSERT INTO notes (a) VALUES ('one')", "ROLLBACK"
	)
	for name, lives := range map[string][][]string{
		"made before":                 {{open, notes}, {other, index}},
		"made after":                  {{notes, open}, {index}},
		"made after a kill":           {{notes}, {open, index}},
		"made earlier":                {{open}, {notes}, {index, other}, {"CREATE TABLE later (a TEXT UNIQUE)"}},
		"made while one is made":      {{begin, notes, open, commit, put}, {index}},
		"made while one is not made":  {{notes, begin, other, insert, read, open, rollback, put}, {index}},
		"rolled back":                 {{open, notes, begin, other, insert, read, rollback, index}, {other}},
		"written out":                 {{notes, open, begin, other, insert, read}, {index}, {other}},
		"replaced, undone":            {{open, other, notes, begin, "DROP TABLE notes", readOther, notes, rollback}, {index}},
		"replaced, undone in part":    {{open, notes, other}, {begin, "DROP TABLE notes", readOther, commit, begin, notes, insert, read}, {open, index}},
		"the last of several dropped": {{open, notes, index, "DROP INDEX notes_a"}, {other, index}},
	} {
		t.Run(name, func(t *testing.T) {
			engine := testdb.Disk(t)
			for i, life := range lives {
				if i > 0 {
					engine = testdb.Killed(t, engine)
				}
				for _, step := range life {
					switch step {
					case open:
						Open(engine, discard)
					case put:
						write(t, Open(engine, discard), set("k", 1))
					default:
						testdb.Exec(t, engine, step)
					}
				}
			}
			for namespace, has := range Namespaces(engine) {
				if len(has) > 1 {
					t.Errorf("%q have the namespace %d", has, namespace)
				}
			}
		})
	}
}

// The number that is stored is read by Chai as it was written, whatever its length, and
// written only if it is wrong.
func TestStoredNamespace(t *testing.T) {
	for _, last := range []int64{10, 31, 32, math.MaxUint8, math.MaxUint8 + 1, math.MaxUint16, math.MaxUint16 + 1, math.MaxUint32, math.MaxUint32 + 1} {
		engine := testdb.Disk(t)
		sequence, err := engine.DB.Catalog().GetSequence(storeSequence)
		if err != nil {
			t.Fatal(err)
		}
		sequence.CurrentValue = &last
		Open(engine, discard)
		engine = testdb.Killed(t, engine)
		testdb.Exec(t, engine, "CREATE TABLE t (k INTEGER PRIMARY KEY)")
		if has := Namespaces(engine)[last+1]; fmt.Sprint(has) != `[table "t"]` {
			t.Errorf("the namespace after %d is that of %s, want table t", last, has)
		}
		number := reach.Commit(engine.DB.Store.DB()).LogSeqNum()
		Open(engine, discard)
		if got := reach.Commit(engine.DB.Store.DB()).LogSeqNum(); got != number {
			t.Errorf("opening a database with the last namespace %d wrote %d rows, want none", last+1, got-number)
		}
	}
}

// When the number can't be stored, nothing can be made.
func TestNamespaceIsNotStored(t *testing.T) {
	db := newFaultDB(t)
	defer db.engine.Close()
	sequence, err := db.engine.DB.Catalog().GetSequence(storeSequence)
	if err != nil {
		t.Fatal(err)
	}
	*sequence.CurrentValue = 100
	db.disk.Break(&testdb.Fault{Op: "sync", Err: errNo, Times: 1})
	wantError(t, returns(t, "mendSequence", func() error {
		db.writeLock.Lock()
		defer db.writeLock.Unlock()
		return db.state.watch().mendSequence()
	}), errNo)
	wantError(t, db.Writable(), errNo)
}
