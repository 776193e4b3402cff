// Package sessiontable is the table of sessions in a Chai database: its rows as
// the engine stores them (row.go), its SQL statements, the plans that they rely
// on, and the engine's traps around them.
//
// It knows nothing of SCS, of cleanup goroutines, or of when a session counts as
// expired, other than that its expiry is compared with a time that the caller
// gives.
package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/writer"
)

// MaxKeyLen is how many bytes a token, or the name of a table, may have.
//
// Chai's order of keys is wrong for texts of 128 bytes or more (Compare in its
// internal/encoding reads one key with the length of the other one's length):
// other rows are no longer found, and looking for such a key can panic. A key of
// an index holds the token and a few bytes more; 100 leaves room for those.
const MaxKeyLen = 100

// Chai keeps microseconds in 64 bits from the year 2000 on, and panics for times
// beyond (EncodeTimestamp in its internal/encoding).
var (
	minExpiry = time.Unix(0, 0)
	maxExpiry = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
)

// rangeLen is how many rows a sweep looks at in one transaction.
const rangeLen = 500

// A page ends after pageLen rows, or once its rows hold pageBytes bytes of data.
const (
	pageLen   = 1000
	pageBytes = 1 << 20
)

// A Table is a table of sessions. Its methods may be called from many
// goroutines, also before the table exists.
type Table struct {
	name   string
	engine *chai.DB
	db     *writer.DB
	logger func() *slog.Logger

	checked  atomic.Pointer[layout] // what check has found last
	repair   chan struct{}          // holds an element while somebody repairs the indexes
	repaired atomic.Bool

	// Columns stand on the left of a comparison, because Chai reads `? < expiry`
	// as `expiry < ?` where expiry has an index (operatorCanUseIndex in its
	// internal/planner). A range is BETWEEN, because of `token >= ? AND token <=
	// ?` the planner uses one half.
	create, reindex string
	find, findFrom  string
	update, insert  string
	delete          string
	countExpired    string
	deleteExpired   string
}

// New returns the table of the given name in db. The name must have passed
// [CheckName]. The logger is asked for each time there is something to log.
func New(db *chai.DB, name string, logger func() *slog.Logger) *Table {
	sql := func(text string) string { return strings.ReplaceAll(text, "$table", name) }
	return &Table{
		name:   name,
		engine: db,
		db:     writer.For(db, logger),
		logger: logger,
		repair: make(chan struct{}, 1),

		create:        sql("CREATE TABLE IF NOT EXISTS $table (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)"),
		reindex:       sql("REINDEX $table"),
		find:          sql("SELECT token, data, expiry FROM $table WHERE token = ?"),
		findFrom:      sql("SELECT token, data, expiry FROM $table WHERE token >= ?"),
		update:        sql("UPDATE $table SET data = ?, expiry = ? WHERE token = ?"),
		insert:        sql("INSERT INTO $table (token, data, expiry) VALUES (?, ?, ?)"),
		delete:        sql("DELETE FROM $table WHERE token = ?"),
		countExpired:  sql("SELECT COUNT(*) FROM $table WHERE token BETWEEN ? AND ? AND expiry <= ?"),
		deleteExpired: sql("DELETE FROM $table WHERE token BETWEEN ? AND ? AND expiry <= ?"),
	}
}

// CheckName returns an error unless name can be the name of a table: letters,
// digits and underscores, not starting with a digit, at most [MaxKeyLen] bytes,
// and neither reserved by Chai nor a keyword of its SQL.
//
// A keyword would work in back quotes until the database is opened again, which
// then fails: Chai writes the name to its catalog without the quotes.
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
		return fmt.Errorf("table name is longer than %d bytes", MaxKeyLen)
	case strings.HasPrefix(name, "__chai_"):
		return fmt.Errorf("table name %q is reserved by Chai", name)
	}
	// Of a statement that defines something, Prepare does no more than parse it.
	if _, err := db.Prepare("CREATE TABLE " + name + " (token TEXT)"); err != nil {
		return fmt.Errorf("table name %q is a keyword of SQL", name)
	}
	return nil
}

// Create creates the table if it does not exist.
func (t *Table) Create(ctx context.Context) error {
	if _, err := t.engine.DB.Catalog().GetTableInfo(t.name); err == nil {
		return nil
	}
	return t.db.WriteAlone(ctx, func(tx *chai.Tx) error {
		return tx.Exec(t.create)
	})
}

// A layout is what there is to know of a table before its rows are used.
type layout struct {
	info   any    // the engine's *TableInfo that this was made from
	number uint64 // the engine's number of the table, with which keys begin
	simple bool   // whether it is the table that Create creates, or like it
}

// Check returns an error unless the table exists, with the columns and the
// primary key that a table of sessions has.
func (t *Table) Check() error {
	_, err := t.check()
	return err
}

func (t *Table) check() (*layout, error) {
	info, err := t.engine.DB.Catalog().GetTableInfo(t.name)
	if err != nil {
		return nil, fmt.Errorf("table %q does not exist", t.name)
	}
	if l := t.checked.Load(); l != nil && l.info == any(info) {
		return l, nil
	}
	columns := []struct{ name, typ string }{{"token", "text"}, {"data", "blob"}, {"expiry", "timestamp"}}
	simple := len(info.TableConstraints) == 1 && len(info.FieldConstraints.Ordered) == len(columns) &&
		!info.FieldConstraints.AllowExtraFields
	for i, column := range columns {
		found, ok := info.FieldConstraints.ByField[column.name]
		if !ok {
			return nil, fmt.Errorf("table %q has no column %q", t.name, column.name)
		}
		if got := found.Type.String(); got != column.typ {
			return nil, fmt.Errorf("column %q of table %q is of type %s, not %s", column.name, t.name, got, column.typ)
		}
		simple = simple && found.Position == i
	}
	key := info.PrimaryKey
	if key == nil || len(key.Paths) != 1 || key.Paths[0].String() != "token" || key.SortOrder.IsDesc(0) {
		return nil, fmt.Errorf("the primary key of table %q is not its column \"token\", ascending", t.name)
	}
	l := &layout{info: info, number: uint64(info.StoreNamespace), simple: simple}
	t.checked.Store(l)
	return l, nil
}

// A Row is one session of the table.
type Row struct {
	Token  string
	Data   []byte
	Expiry time.Time
}

// Find returns the session with the given token. It is the caller's.
func (t *Table) Find(token string) (row Row, found bool, err error) {
	l, err := t.check()
	if err != nil {
		return Row{}, false, err
	}
	if l.simple {
		encoded, err := t.db.Get(appendKey(nil, l.number, token))
		if encoded == nil || err != nil {
			return Row{}, false, err
		}
		row, err := decodeRow(encoded)
		return row, err == nil, err
	}
	err = t.db.Query(t.find, func(r *chai.Row) error {
		found = true
		row, err = scanRow(r)
		row.Data = append([]byte{}, row.Data...)
		return err
	}, token)
	return row, found, err
}

func scanRow(r *chai.Row) (row Row, err error) {
	err = r.Scan(&row.Token, &row.Data, &row.Expiry)
	return row, err
}

// scan calls each for the sessions that follow from, that included, in the order
// of their tokens, until it returns an error, or ctx ends. The data is valid
// during that call only.
func (t *Table) scan(ctx context.Context, from string, each func(row Row) error) error {
	l, err := t.check()
	if err != nil {
		return err
	}
	visit := func(row Row, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		return each(row)
	}
	if l.simple {
		return t.db.Scan(appendKey(nil, l.number, from), appendInt(nil, int64(l.number)+1), func(_, encoded []byte) error {
			return visit(decodeRow(encoded))
		})
	}
	return t.db.Query(t.findFrom, func(r *chai.Row) error {
		return visit(scanRow(r))
	}, from)
}

// errStop ends a scan that has seen enough.
var errStop = errors.New("stop")

// Page returns the sessions that follow from, that included, in the order of
// their tokens, up to a limit of its own, and where the next page begins, which
// is "" after the last one. The first page begins at "". The sessions are the
// caller's.
func (t *Table) Page(ctx context.Context, from string) (rows []Row, next string, err error) {
	size := 0
	err = t.scan(ctx, from, func(row Row) error {
		if len(rows) == pageLen || size >= pageBytes {
			next = after(rows[len(rows)-1].Token)
			return errStop
		}
		row.Data = bytes.Clone(row.Data)
		size += len(row.Data)
		rows = append(rows, row)
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return nil, "", err
	}
	return rows, next, nil
}

// after returns the least token that is greater than token.
func after(token string) string {
	return token + "\x00"
}

// Upsert adds the session, or overwrites its data and its expiry. An expiry
// before 1970 or after 9999 is moved there. The token must not be longer than
// [MaxKeyLen].
func (t *Table) Upsert(ctx context.Context, token string, data []byte, expiry time.Time) error {
	if expiry.Before(minExpiry) {
		expiry = minExpiry
	} else if expiry.After(maxExpiry) {
		expiry = maxExpiry
	}
	// Encoded by the caller, so that other callers need not wait for it, and that
	// the data is its own when it returns early.
	encoded := appendRow(nil, Row{token, data, expiry})
	return t.write(ctx,
		func(b *writer.Batch, l *layout) error {
			return b.Put(appendKey(nil, l.number, token), encoded)
		},
		func(tx *chai.Tx) error {
			row, err := decodeRow(encoded)
			if err != nil {
				return err
			}
			// ON CONFLICT REPLACE does not maintain indexes (internal/stream,
			// on_conflict.go): a renewed session would be swept away at its old expiry,
			// or make every sweep fail. ON CONFLICT DO NOTHING would also ignore the
			// conflict with another session in an index that is UNIQUE.
			exists := false
			err = query(tx, t.find, func(*chai.Row) error {
				exists = true
				return nil
			}, token)
			switch {
			case err != nil:
				return err
			case exists:
				return tx.Exec(t.update, row.Data, row.Expiry, token)
			default:
				return tx.Exec(t.insert, token, row.Data, row.Expiry)
			}
		})
}

// Delete deletes the sessions with the given tokens, as far as they exist, in one
// transaction. The tokens must not be longer than [MaxKeyLen].
func (t *Table) Delete(ctx context.Context, tokens ...string) error {
	return t.write(ctx,
		func(b *writer.Batch, l *layout) error {
			for _, token := range tokens {
				if err := b.Delete(appendKey(nil, l.number, token)); err != nil {
					return err
				}
			}
			return nil
		},
		func(tx *chai.Tx) error {
			for _, token := range tokens {
				if err := tx.Exec(t.delete, token); err != nil {
					return err
				}
			}
			return nil
		})
}

// A Sweep says what [Table.DeleteExpired] has done.
type Sweep struct {
	Scanned int // sessions looked at
	Deleted int // sessions deleted
}

// DeleteExpired deletes the sessions whose expiry is not after now. It returns
// what it has done also when it ends with an error.
//
// It looks for them without keeping anyone from writing, and deletes them by
// short ranges of tokens, between which other writers have their turn. A session
// that is committed meanwhile with an expiry after now stays.
func (t *Table) DeleteExpired(ctx context.Context, now time.Time) (Sweep, error) {
	var sweep Sweep
	from := ""
	for {
		expired, err := t.scanExpired(ctx, from, now)
		if err != nil {
			return sweep, err
		}
		sweep.Scanned += expired.scanned
		if expired.found {
			deleted, err := t.deleteExpiredIn(ctx, expired, now)
			if err != nil {
				return sweep, err
			}
			sweep.Deleted += deleted
		}
		if expired.next == "" {
			return sweep, nil
		}
		from = expired.next
	}
}

// An expiredRange is a range of tokens, with both its ends, in which sessions
// have expired.
type expiredRange struct {
	first, last string
	found       bool   // whether there is an expired session at all
	scanned     int    // sessions looked at to find it
	next        string // where to go on, "" at the end of the table
}

// scanExpired looks for expired sessions among the next rangeLen ones.
func (t *Table) scanExpired(ctx context.Context, from string, now time.Time) (expiredRange, error) {
	var r expiredRange
	var last string
	err := t.scan(ctx, from, func(row Row) error {
		if r.scanned == rangeLen {
			r.next = after(last)
			return errStop
		}
		r.scanned++
		last = row.Token
		if row.Expiry.After(now) {
			return nil
		}
		if !r.found {
			r.first, r.found = row.Token, true
		}
		r.last = row.Token
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return expiredRange{}, err
	}
	return r, nil
}

func (t *Table) deleteExpiredIn(ctx context.Context, r expiredRange, now time.Time) (int, error) {
	var deleted int
	err := t.writeAlone(ctx, func(tx *chai.Tx) error {
		err := query(tx, t.countExpired, func(row *chai.Row) error {
			return row.Scan(&deleted)
		}, r.first, r.last, now)
		if err != nil || deleted == 0 {
			return err
		}
		return tx.Exec(t.deleteExpired, r.first, r.last, now)
	})
	if err != nil {
		return 0, err
	}
	return deleted, nil
}

func query(tx *chai.Tx, sql string, each func(row *chai.Row) error, args ...any) error {
	result, err := tx.Query(sql, args...)
	if err != nil {
		return err
	}
	return result.Iterate(each)
}

// errNotSimple is the error of an operation on the rows of a table for which
// statements are needed.
var errNotSimple = errors.New("the table has an index or constraints")

// write changes sessions: by their rows, or, in a table that has an index or
// constraints, by statements, which maintain and check those.
func (t *Table) write(ctx context.Context, op func(b *writer.Batch, l *layout) error, statements writer.Statements) error {
	l, err := t.check()
	if err != nil {
		return err
	}
	if l.simple && !t.indexed() {
		err := t.db.Write(ctx, func(b *writer.Batch) error {
			// It may be another table by now.
			l, err := t.check()
			if err != nil {
				return err
			}
			if !l.simple || t.indexed() {
				return errNotSimple
			}
			return op(b, l)
		})
		if !errors.Is(err, errNotSimple) {
			return err
		}
	}
	return t.writeAlone(ctx, statements)
}

// writeAlone runs statements in a transaction of their own.
func (t *Table) writeAlone(ctx context.Context, statements writer.Statements) error {
	if err := t.Check(); err != nil {
		return err
	}
	if t.indexed() && !t.repaired.Load() {
		if err := t.repairIndexes(ctx); err != nil {
			return err
		}
	}
	return t.db.WriteAlone(ctx, func(tx *chai.Tx) error {
		if err := statements(tx); err != nil {
			return t.cause(err)
		}
		return nil
	})
}

// cause returns the innermost cause of an error of a statement that writes. The
// messages around it quote the key of the row, which is a token
// (internal/database, table.go), and so does the one about a row that is not
// found.
func (t *Table) cause(err error) error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	if !chai.IsNotFoundError(err) {
		return err
	}
	if missing := t.Check(); missing != nil {
		return missing
	}
	return fmt.Errorf("table %q and its indexes disagree", t.name)
}

// indexed reports whether the table has an index besides its primary key.
func (t *Table) indexed() bool {
	return len(t.engine.DB.Catalog().ListIndexes(t.name)) > 0
}

// repairIndexes builds the table's indexes anew, once in the life of t.
//
// Writes with ON CONFLICT REPLACE, by whatever wrote to the table earlier, have
// left entries of former expiries in the index, and none of the present ones. On
// such a row DELETE and UPDATE fail with "key not found".
func (t *Table) repairIndexes(ctx context.Context) error {
	select {
	case t.repair <- struct{}{}:
		defer func() { <-t.repair }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.repaired.Load() {
		return nil
	}
	t.logger().WarnContext(ctx, "chaistore: the table of sessions has an index, which makes the store slower and leaves memory behind at each renewal; drop it",
		"table", t.name, "indexes", t.engine.DB.Catalog().ListIndexes(t.name))
	// Through DB.Exec it would fail: REINDEX truncates the index while it is
	// prepared, outside a transaction that may write (internal/query/statement,
	// reindex.go).
	err := t.db.WriteAlone(ctx, func(tx *chai.Tx) error {
		if err := tx.Exec(t.reindex); err != nil {
			return err
		}
		t.repaired.Store(true)
		return nil
	})
	if err == nil {
		return nil
	}
	// A large table takes longer than a writer waits. Then it is repaired when the
	// next one gets its turn.
	if !errors.Is(err, writer.ErrStalled) {
		t.repaired.Store(false)
	}
	return fmt.Errorf("repair indexes: %w", err)
}
