// Package sessiontable is the table of sessions in a Chai database: its columns, its
// rows and the entries of its indexes as the engine stores them, and the sweep that
// deletes expired rows.
//
// The table is in this file, single sessions in row.go, their encoding in encoding.go, the
// indexes in index.go, the owners in owner.go, answer.go, ownernotes.go, ownerchange.go and
// reconcile.go, going through sessions in sessions.go, ended sessions in ended.go, contexts
// that end with them in contexts.go, and the sweep in sweep.go and forget.go. The package
// knows nothing of SCS. It compares expiries with a time that the caller passes; only
// contexts look at the clock.
package sessiontable

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
)

// MaxKeyLen is the maximum length in bytes of a token, an owner, or the name of a
// table.
//
// Chai's order of keys is wrong for texts of 128 bytes or more (Compare in its
// internal/encoding uses the size of one text's length prefix for both texts): other
// rows are no longer found, and looking for such a key can panic. An index key holds
// the token and a few bytes more; 100 leaves room for those.
const MaxKeyLen = 100

// Options configure the Table that [New] returns.
type Options struct {
	Name          string        // has passed [CheckName]
	Memory        int64         // bytes of memory that the database may take for speed
	RememberEnded time.Duration // how long [Table.Upsert] refuses sessions that callers or SQL have deleted

	// OwnerOf returns the owner of the session with the given data, "" if it has none, or an
	// error if it can't read the data. If it is not nil, there is a second table, for the
	// owners.
	OwnerOf func(data []byte) (string, error)

	// Logger is called for each line that is logged.
	Logger func() *slog.Logger
}

// A Table is a table of sessions. Its methods are safe for concurrent use, even
// before the table exists.
type Table struct {
	options  Options
	handle   *chai.DB
	db       *engine.DB
	latest   atomic.Pointer[layout] // from the latest catalog seen
	repaired sync.Map               // namespaces of indexes
	ended    *ended                 // nil if nothing is remembered
	contexts *contexts
	garbage  atomic.Int64 // about how many bytes of deleted sessions are in files
	owners   ownerIndex
	counts   counts

	foundGarbage atomic.Bool  // whether findGarbage was successful
	collected    atomic.Int64 // the namespace for which CollectFew was called
}

// New returns a table of db.
func New(db *chai.DB, options Options) *Table {
	t := &Table{options: options, handle: db, db: engine.Open(db, options.Logger)}
	t.db.UseMemory(options.Memory)
	if options.RememberEnded > 0 {
		t.ended = engine.Shared(t.db, options.Name, func() *ended { return newEnded(options.Name) })
		t.ended.remember(options.RememberEnded)
		t.ended.once.Do(func() {
			t.db.Follow(t.ended.told)
			if info, err := db.DB.Catalog().GetTableInfo(options.Name); err == nil {
				t.ended.follow(int64(info.StoreNamespace))
			}
		})
	}
	t.contexts = engine.Shared(t.db, options.Name, func() *contexts { return newContexts(options.Name) })
	t.contexts.once.Do(func() { t.db.Follow(t.contexts.told) })
	if options.OwnerOf != nil {
		t.owners = ownerIndex{ownerNotes: engine.Shared(t.db, options.Name, newOwnerNotes), table: t, ownerOf: options.OwnerOf, seed: maphash.MakeSeed()}
		t.owners.once.Do(func() { t.db.Follow(t.owners.told) })
	}
	return t
}

// CheckName returns an error unless name can be the name of a table: letters, digits
// and underscores, not starting with a digit, at most [MaxKeyLen] bytes, and neither
// reserved by Chai nor a keyword of its SQL.
//
// A keyword would work in back quotes until the database is reopened, which then
// fails: Chai writes the name to its catalog without the quotes.
func CheckName(db *chai.DB, name string) error {
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
		case '0' <= c && c <= '9' && i > 0:
		default:
			return fmt.Errorf("table name %q is not a plain identifier: letters, digits and underscores, not starting with a digit", name)
		}
	}
	switch {
	case name == "":
		return errors.New("table name is empty")
	case len(name) > MaxKeyLen:
		return fmt.Errorf("table name is longer than %d bytes: set Config.TableName to a shorter one", MaxKeyLen)
	case strings.HasPrefix(name, "__chai_"):
		return fmt.Errorf("table name %q is reserved by Chai: set Config.TableName to another", name)
	}
	// For a CREATE TABLE statement, Prepare does nothing but parse it, and look at the
	// handle's context.
	db = &chai.DB{DB: db.DB}
	if _, err := db.Prepare("CREATE TABLE " + name + " (token TEXT)"); err != nil {
		return fmt.Errorf("table name %q is a keyword of SQL: set Config.TableName to another", name)
	}
	return nil
}

// Create creates the table if it does not exist. It waits for the application's
// transactions no longer than a write does.
func (t *Table) Create(ctx context.Context) error {
	if t.exists(t.options.Name) {
		return nil
	}
	return t.db.Update(ctx, func(tx *chai.Tx) error {
		return tx.Exec("CREATE TABLE IF NOT EXISTS " + t.options.Name + " (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)")
	})
}

// CreateOwners creates the table of owners if it does not exist, or has the form that it
// had before chaistore was released.
func (t *Table) CreateOwners(ctx context.Context) error {
	if _, err := t.sessionsRelation(); err != nil {
		return err
	}
	name := t.ownersName()
	if t.exists(name) && !t.hasFormerOwners() {
		return nil
	}
	err := t.db.Update(ctx, func(tx *chai.Tx) error {
		if t.hasFormerOwners() {
			if err := tx.Exec("DROP TABLE " + name); err != nil {
				return err
			}
		}
		return tx.Exec("CREATE TABLE IF NOT EXISTS " + name + " (owner TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (owner, token))")
	})
	if err != nil {
		return fmt.Errorf("create table %q: %w", name, err)
	}
	return nil
}

func (t *Table) exists(name string) bool {
	_, err := t.handle.DB.Catalog().GetTableInfo(name)
	return err == nil
}

func (t *Table) ownersName() string { return t.options.Name + "_owners" }

// hasFormerOwners reports whether the table of owners is surely one that an earlier version
// has made, with the primary key token and one index.
func (t *Table) hasFormerOwners() bool {
	name := t.ownersName()
	r, err := t.relation(name, []column{{"token", "text", true}, {"owner", "text", true}}, "token")
	if err != nil || len(r.indexes) != 1 || r.indexes[0].name != name+"_by_owner" {
		return false
	}
	info, err := t.handle.DB.Catalog().GetTableInfo(name)
	return err == nil && info.FieldConstraints.Ordered[1].IsNotNull &&
		slices.Equal(r.indexes[0].columns, []indexColumn{{1, false}, {0, false}})
}

// counts holds the counters of a Table.
type counts struct {
	finds, cacheHits, upserts, deletes, swept atomic.Uint64
	active                                    atomic.Int64
	lastSweep                                 atomic.Pointer[sweepEnd]
}

// A sweepEnd is when a sweep ended, and its error.
type sweepEnd struct {
	at  time.Time
	err error
}

// Stats holds the counters of a Table, and the state of its database.
type Stats struct {
	Finds, CacheHits uint64
	Upserts, Deletes uint64 // acknowledged sessions
	Swept            uint64
	Active           int64     // sessions that the last sweep has seen; 0 before the first
	FilterBytes      int64     // memory of the filter of what does not exist
	LastSweep        time.Time // when it ended; the zero time before the first
	LastSweepErr     error
	Fsyncs           uint64    // of all tables in the database
	WriteErr         error     // what a write would return now
	BusySince        time.Time // since when writes return [engine.ErrBusy], or the zero time
	BackgroundErr    error     // why the engine can't write its files in the background
}

// Stats returns the counters of the table since it was made, and the state of its
// database.
func (t *Table) Stats() Stats {
	stats := Stats{
		Finds:     t.counts.finds.Load(),
		CacheHits: t.counts.cacheHits.Load(),
		Upserts:   t.counts.upserts.Load(),
		Deletes:   t.counts.deletes.Load(),
		Swept:     t.counts.swept.Load(),
		Active:    t.counts.active.Load(),
		Fsyncs:    t.db.Fsyncs(),
		WriteErr:  t.db.WriteError(),

		BusySince:     t.db.BusySince(),
		BackgroundErr: t.db.BackgroundError(),
		FilterBytes:   t.db.FilterSize(t.options.Name),
	}
	if last := t.counts.lastSweep.Load(); last != nil {
		stats.LastSweep, stats.LastSweepErr = last.at, last.err
	}
	return stats
}

// A layout is the description of the table, and of its table of owners, in the
// engine's catalog.
type layout struct {
	catalog   any   // the catalog itself, which is replaced when a table changes
	err       error // why the table can't be used
	sessions  relation
	owners    *relation     // nil without OwnerOf
	described atomic.Uint64 // 1 more than the number of the catalog that it is known to describe
}

// A relation is a table as the engine stores it.
type relation struct {
	name      string
	namespace int64 // the beginning of the keys of its rows
	cached    bool  // whether its rows enter the cache when they are put
	indexes   []index
}

type column struct {
	name, typ string
	indexable bool
}

// The columns of a table of sessions. Chai's order of keys is wrong for blobs of 128
// bytes or more, so data can't be indexed.
var sessionColumns = []column{{"token", "text", true}, {"data", "blob", false}, {"expiry", "timestamp", true}}

// Logger returns the logger of the table.
func (t *Table) Logger() *slog.Logger { return t.options.Logger() }

// CheckDatabase returns an error unless the database can be read.
func (t *Table) CheckDatabase() error { return t.db.Usable() }

// Err returns the error that a write would return now, or nil.
func (t *Table) Err() error {
	if err := t.db.WriteError(); err != nil {
		return err
	}
	t.db.Probe()
	return t.Check()
}

// Check returns an error unless the table exists and is a table of sessions.
func (t *Table) Check() error {
	_, err := t.layout()
	return err
}

func (t *Table) layout() (*layout, error) {
	catalog := t.handle.DB.Catalog()
	l := t.latest.Load()
	if l == nil || l.catalog != any(catalog) {
		l = &layout{catalog: catalog}
		l.sessions, l.err = t.sessionsRelation()
		l.sessions.cached = true
		if t.options.OwnerOf != nil && l.err == nil {
			owners, err := t.relation(t.ownersName(), ownerColumns, "owner", "token")
			if err != nil && t.exists(t.ownersName()) && !errors.Is(err, errShared) {
				err = fmt.Errorf("%w: rename the table, or set Config.TableName to another name", err)
			} else if err != nil {
				err = fmt.Errorf("%w: make the store anew, which creates it", err)
			}
			l.owners, l.err = &owners, err
		}
		if any(t.handle.DB.Catalog()) == l.catalog { // then all of l is from one catalog
			t.latest.Store(l)
		}
	}
	if l.err != nil {
		return l, cmp.Or(t.db.Usable(), l.err)
	}
	return l, nil
}

// sessionsRelation looks the table of sessions up.
func (t *Table) sessionsRelation() (relation, error) {
	r, err := t.relation(t.options.Name, sessionColumns, "token")
	if err != nil && !t.exists(t.options.Name) {
		err = fmt.Errorf("%w: create it, for example with Config.CreateTable", err)
	} else if err != nil {
		err = fmt.Errorf("%w: set Config.TableName to another name, or change the table", err)
	}
	return r, err
}

// relation looks a table up in the catalog. It returns an error unless the table has
// the given columns and primary key, no other constraints, only non-unique indexes on
// columns that can be indexed, and rows that it shares with no other table or index.
func (t *Table) relation(name string, columns []column, primary ...string) (r relation, err error) {
	catalog := t.handle.DB.Catalog()
	info, err := catalog.GetTableInfo(name)
	if err != nil {
		return r, fmt.Errorf("table %q does not exist", name)
	}
	if err := t.checkShared(name); err != nil {
		return r, err
	}
	fields := info.FieldConstraints.Ordered
	for i, column := range columns {
		if i >= len(fields) || fields[i].Field != column.name {
			return r, fmt.Errorf("column %d of table %q is not %q", i+1, name, column.name)
		}
		if got := fields[i].Type.String(); got != column.typ {
			return r, fmt.Errorf("column %q of table %q is of type %s, not %s", column.name, name, got, column.typ)
		}
	}
	if len(fields) > len(columns) || info.FieldConstraints.AllowExtraFields {
		names := make([]string, len(columns))
		for i, column := range columns {
			names[i] = column.name
		}
		return r, fmt.Errorf("table %q has columns other than %s", name, strings.Join(names, ", "))
	}
	var key []string
	if info.PrimaryKey != nil {
		for i, path := range info.PrimaryKey.Paths {
			if !info.PrimaryKey.SortOrder.IsDesc(i) {
				key = append(key, path.String())
			}
		}
	}
	if !slices.Equal(key, primary) {
		return r, fmt.Errorf("the primary key of table %q is not its column %q, ascending", name, strings.Join(primary, ", "))
	}
	if len(info.TableConstraints) > 1 {
		return r, fmt.Errorf("table %q has a constraint besides its primary key", name)
	}
	r = relation{name: name, namespace: int64(info.StoreNamespace)}
	for _, indexName := range catalog.ListIndexes(name) {
		info, err := catalog.GetIndexInfo(indexName)
		if err != nil {
			return r, fmt.Errorf("index %q of table %q does not exist", indexName, name)
		}
		if info.Unique {
			return r, fmt.Errorf("index %q of table %q is unique", indexName, name)
		}
		ix := index{name: indexName, namespace: int64(info.StoreNamespace), width: len(columns)}
		for i, path := range info.Paths {
			position := slices.IndexFunc(columns, func(c column) bool { return c.indexable && c.name == path.String() })
			if position < 0 {
				return r, fmt.Errorf("index %q of table %q is on a column that can't be indexed: %s", indexName, name, path)
			}
			ix.columns = append(ix.columns, indexColumn{position, info.KeySortOrder.IsDesc(i)})
		}
		r.indexes = append(r.indexes, ix)
	}
	return r, nil
}

// errShared is returned when a table has the namespace of another table or index, so that
// what deletes the rows of one deletes those of the other: see namespaces.go in the engine.
var errShared = errors.New("share their rows")

// checkShared returns an error if the table or one of its indexes has the namespace of
// another table or index.
func (t *Table) checkShared(name string) error {
	catalog := t.handle.DB.Catalog()
	info, err := catalog.GetTableInfo(name)
	if err != nil {
		return nil
	}
	namespaces := []int64{int64(info.StoreNamespace)}
	for _, index := range catalog.ListIndexes(name) {
		if info, err := catalog.GetIndexInfo(index); err == nil {
			namespaces = append(namespaces, int64(info.StoreNamespace))
		}
	}
	all := engine.Namespaces(t.handle)
	for _, namespace := range namespaces {
		if sharing := all[namespace]; len(sharing) > 1 {
			return fmt.Errorf("%s %w, because Chai has given them the same namespace, %d: delete nothing from them, and drop neither. "+
				"In one call of Update, run ALTER TABLE %[4]s RENAME TO %[4]s_shared; %[5]v; INSERT INTO %[4]s SELECT * FROM %[4]s_shared; "+
				"leave out the last one if it fails. Then copy what is the other's", strings.Join(sharing, " and "), errShared, namespace, name, info)
		}
	}
	return nil
}

// relations returns the tables that are read.
func (l *layout) relations() []relation {
	relations := []relation{l.sessions}
	if l.owners != nil {
		relations = append(relations, *l.owners)
	}
	return relations
}

// read calls f with a snapshot and the layout of the table in it, and returns f's
// error.
func (t *Table) read(ctx context.Context, f func(s *engine.Snapshot, l *layout) error) error {
	for tries := 1; ; tries++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		l, err := t.layout()
		if err != nil {
			return err
		}
		same := false
		err = t.db.Read(ctx, func(s *engine.Snapshot) (err error) {
			if same, err = t.describes(l, s); same && err == nil {
				err = f(s, l)
			}
			return err
		})
		if err != nil || same {
			return err
		}
		if tries < maxTries {
			runtime.Gosched() // Chai is about to make the new catalog known
			continue
		}
		// It is about to do so, or it never will.
		if err := t.write(ctx, 0, func(*engine.Batch, *layout) error { return nil }); err != nil {
			return err
		}
	}
}

const maxTries = 100

// errOtherCatalog is returned when the database has another table than Chai, outside
// of any transaction. That is so when a transaction that replaced the table was open
// while the first store was made, and then rolled back: Chai does not undo its changes
// of rows that earlier transactions have changed (see forgetSeen in the engine). Chai
// goes on with its own catalog until the database is reopened: what would be committed
// until then would be lost.
var errOtherCatalog = errors.New("the database has another catalog than Chai, which has not undone a transaction that changed a table: reopen the database")

// describes reports whether l has the tables that s has under their names. Chai makes the
// rows of a transaction visible a moment before its changes to the catalog.
func (t *Table) describes(l *layout, s *engine.Snapshot) (bool, error) {
	catalog, ok := s.Catalog()
	if ok && l.isOf(catalog) {
		return true, nil
	}
	same, err := l.isIn(s.Get)
	// Tables may have been swapped and swapped back since l was made. Who still uses l may
	// have seen a copy of a row between that, when it was another table's. So l describes no
	// catalog that came after the next layout.
	if same && ok && l.catalog == any(t.handle.DB.Catalog()) {
		l.described.Store(catalog + 1)
	}
	return same, err
}

// isIn reports whether l has the tables that the catalog in the database has.
func (l *layout) isIn(get func(key []byte) ([]byte, error)) (bool, error) {
	for _, r := range l.relations() {
		row, err := get(appendKey(nil, catalogNamespace, r.name))
		if row == nil || err != nil {
			return false, err
		}
		if namespace, err := decodeCatalogRow(row); namespace != r.namespace || err != nil {
			return false, err
		}
	}
	return true, nil
}

// isOf reports whether l is known to describe the catalog with the given number.
func (l *layout) isOf(catalog uint64) bool { return l.described.Load() == catalog+1 }

// write runs op in a turn, with the layout that the table has then. size is the
// approximate number of bytes that op writes to the table. When it returns nil, the contexts
// of the sessions that op has deleted are done.
func (t *Table) write(ctx context.Context, size int, op func(b *engine.Batch, l *layout) error) error {
	if _, err := t.layout(); err != nil {
		return err
	}
	err := t.db.Write(ctx, size, func(b *engine.Batch) error {
		l, err := t.layout()
		if err != nil {
			return err
		}
		if catalog := t.db.Catalog(); !l.isOf(catalog) { // nobody changes it in this turn
			same, err := l.isIn(b.Get)
			if err != nil {
				return err
			}
			if !same {
				return errOtherCatalog
			}
			l.described.Store(catalog + 1)
		}
		return op(b, l)
	})
	if err == nil {
		t.contexts.settle(t)
	}
	return err
}
