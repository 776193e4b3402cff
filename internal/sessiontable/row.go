// The rows of sessions as Chai stores them: their encoding (Chai's
// internal/encoding), and operations on single rows.

package sessiontable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	"go.elara.ws/chaistore/internal/engine"
)

// A Row is one session of the table.
type Row struct {
	Token  string
	Data   []byte
	Expiry time.Time
}

// Chai stores microseconds since the year 2000 in 64 bits, and panics for times
// beyond (EncodeTimestamp in its internal/encoding).
var (
	minExpiry = time.Unix(0, 0)
	maxExpiry = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
)

// A page ends after pageLen rows, or once its rows hold pageBytes bytes of data.
const (
	pageLen   = 1000
	pageBytes = 1 << 20
)

// Find returns the data and the expiry of the session with the given token. The data
// belongs to the caller.
func (t *Table) Find(ctx context.Context, token string) (data []byte, expiry time.Time, found bool, err error) {
	l, err := t.layout()
	if err != nil {
		return nil, time.Time{}, false, err
	}
	t.counts.finds.Add(1)
	var room [MaxKeyLen + 20]byte // on the stack: see appendKey
	key := appendKey(room[:0], l.sessions.namespace, token)
	row := t.db.Cached(key)
	known := row != nil || t.db.Absent(key)
	if known && l.isOf(t.db.Catalog()) { // the table had not been replaced when that was known
		t.counts.cacheHits.Add(1)
	} else {
		err = t.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
			row, err = s.Find(appendKey(nil, l.sessions.namespace, token))
			return err
		})
		if row == nil && err == nil {
			t.collectFew(ctx)
		}
	}
	if row == nil || err != nil {
		return nil, time.Time{}, false, err
	}
	_, data, expiry, err = decodeRow(row)
	return bytes.Clone(data), expiry, err == nil, err
}

// Page returns the sessions beginning at the token from, in the order of their
// tokens, up to the limits of a page. next is where the next page begins, or "" after
// the last page. The first page begins at "". The sessions belong to the caller.
func (t *Table) Page(ctx context.Context, from string) (rows []Row, next string, err error) {
	err = t.read(ctx, func(s *engine.Snapshot, l *layout) (err error) {
		rows, next, err = l.page(s, from, pageLen)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return rows, next, nil
}

// page is [Table.Page] in a snapshot, with another limit.
func (l *layout) page(s *engine.Snapshot, from string, most int) (rows []Row, next string, err error) {
	size := 0
	err = scan(s, l, from, func(_, _ []byte, row Row) (more bool, err error) {
		if len(rows) == most || size >= pageBytes {
			next = after(rows[len(rows)-1].Token)
			return false, nil
		}
		row.Data = bytes.Clone(row.Data)
		size += len(row.Data)
		rows = append(rows, row)
		return true, nil
	})
	return rows, next, err
}

// scan calls each for the sessions beginning at the token from, in the order of their
// tokens, for as long as each asks for more. The key, the encoded row and the data are valid
// only during the call. It passes over rows whose token is too long for a session, which SQL can
// add.
func scan(s *engine.Snapshot, l *layout, from string, each func(key, encoded []byte, row Row) (more bool, err error)) error {
	end := appendInt(nil, l.sessions.namespace+1)
	return s.Scan(appendKey(nil, l.sessions.namespace, from), end, func(key, encoded []byte) (more bool, err error) {
		token, data, expiry, err := decodeRow(encoded)
		if err != nil {
			return false, err
		}
		if len(token) > MaxKeyLen {
			return true, nil
		}
		return each(key, encoded, Row{string(token), data, expiry})
	})
}

// after returns the least token greater than token.
func after(token string) string { return token + "\x00" }

// Upsert adds the session, or overwrites its data and expiry. An expiry before 1970
// or after 9999 is moved to that limit. The token must not be longer than
// [MaxKeyLen]. If the table remembers that the session was deleted, Upsert returns
// [ErrEnded].
func (t *Table) Upsert(ctx context.Context, token string, data []byte, expiry time.Time) error {
	if expiry.Before(minExpiry) {
		expiry = minExpiry
	} else if expiry.After(maxExpiry) {
		expiry = maxExpiry
	}
	listing, err := t.owners.prepare(token, data)
	if err != nil {
		return err
	}
	// After the owner function, which may use the table.
	size := len(token) + len(data)
	if err := t.db.Reserve(ctx, size); err != nil {
		return err
	}
	defer t.db.Release(size)
	// The caller encodes the row: other callers need not wait for that, and the
	// operation does not use the caller's data if it runs after an early return.
	row := encodeRow(Row{token, data, expiry})
	err = t.write(ctx, len(row)+2*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		if t.ended.has(token) {
			return ErrEnded
		}
		if err := t.owners.commit(b, l, listing); err != nil {
			return err
		}
		return l.sessions.put(b, appendKey(nil, l.sessions.namespace, token), row)
	})
	if err == nil {
		t.counts.upserts.Add(1)
	}
	return err
}

// Delete deletes the sessions with the given tokens in one batch, and remembers that
// they have ended. Missing sessions are ignored, but remembered, too. The tokens must
// not be longer than [MaxKeyLen]. If all are known to be missing, Delete waits for nobody.
func (t *Table) Delete(ctx context.Context, tokens ...string) error {
	if t.ended == nil && ctx.Err() == nil && t.absent(tokens) {
		t.counts.deletes.Add(uint64(len(tokens)))
		return nil
	}
	return t.deleteListed(ctx, nil, "", tokens)
}

// absent reports whether all sessions with the given tokens are known to be missing.
func (t *Table) absent(tokens []string) bool {
	l, err := t.layout()
	if err != nil {
		return false
	}
	var room [MaxKeyLen + 20]byte
	for _, token := range tokens {
		if !t.db.AbsentOnDisk(appendKey(room[:0], l.sessions.namespace, token)) {
			return false
		}
	}
	return l.isOf(t.db.Catalog())
}

// deleteListed is Delete for sessions that an answer lists for an owner, if it is not nil.
func (t *Table) deleteListed(ctx context.Context, a *answer, owner string, tokens []string) error {
	err := t.write(ctx, len(tokens)*2*MaxKeyLen, func(b *engine.Batch, l *layout) error {
		if a != nil {
			if l.tables() != a.at {
				return errReplaced
			}
			t.owners.claim(b, l)
		}
		if err := l.delete(b, tokens); err != nil {
			return err
		}
		for _, token := range tokens {
			t.ended.add(token, t.RememberEnded)
			if a == nil {
				continue
			}
			if err := l.owners.delete(b, ownerKey(l.owners.namespace, owner, token)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		t.counts.deletes.Add(uint64(len(tokens)))
	}
	return err
}

// delete deletes the sessions with the given tokens. Their owners go with a sweep.
func (l *layout) delete(b *engine.Batch, tokens []string) error {
	for _, token := range tokens {
		key := appendKey(nil, l.sessions.namespace, token)
		if b.Absent(key) {
			continue
		}
		if err := l.sessions.delete(b, key); err != nil {
			return err
		}
	}
	return nil
}

// The first byte of an encoded value is its type, or a small integer.
const (
	nullType   = 2
	int64Type  = 12 // 13 is int32, 14 is int16
	int8Type   = 15
	smallInt   = 48 // the integer 0; 16 to 79 are -32 to 31
	uint8Type  = 80
	uint16Type = 81
	uint32Type = 82
	uint64Type = 83
	textType   = 98
	blobType   = 103
)

// timestampEpoch is the time from which Chai counts the microseconds of a timestamp.
var timestampEpoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// appendKey appends the key of a row: the table's namespace and the primary key.
func appendKey(dst []byte, namespace int64, token string) []byte {
	const mostForNamespaceAndLength = 20
	dst = slices.Grow(dst, len(token)+mostForNamespaceAndLength)
	return appendText(appendInt(dst, namespace), token)
}

// encodeRow returns the encoded columns of a row, in the order of the table.
func encodeRow(row Row) []byte {
	const mostForLengthsAndExpiry = 20
	dst := make([]byte, 0, len(row.Token)+len(row.Data)+mostForLengthsAndExpiry)
	dst = appendText(dst, row.Token)
	dst = appendBlob(dst, row.Data)
	return appendInt(dst, row.Expiry.UnixMicro()-timestampEpoch)
}

func appendText(dst []byte, s string) []byte {
	dst = append(dst, textType)
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendBlob(dst, b []byte) []byte {
	dst = append(dst, blobType)
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendInt(dst []byte, n int64) []byte {
	switch {
	case -32 <= n && n <= 31:
		return append(dst, byte(n+smallInt))
	case n > math.MaxUint32:
		return binary.BigEndian.AppendUint64(append(dst, uint64Type), uint64(n))
	case n > math.MaxUint16:
		return binary.BigEndian.AppendUint32(append(dst, uint32Type), uint32(n))
	case n > math.MaxUint8:
		return binary.BigEndian.AppendUint16(append(dst, uint16Type), uint16(n))
	case n > 0:
		return append(dst, uint8Type, byte(n))
	// A negative integer is stored as its distance from the least one of its width.
	case n >= math.MinInt8:
		return append(dst, int8Type, byte(n-math.MinInt8))
	case n >= math.MinInt16:
		return binary.BigEndian.AppendUint16(append(dst, int8Type-1), uint16(n-math.MinInt16))
	case n >= math.MinInt32:
		return binary.BigEndian.AppendUint32(append(dst, int8Type-2), uint32(n-math.MinInt32))
	default:
		return binary.BigEndian.AppendUint64(append(dst, int64Type), uint64(n)-(1<<63))
	}
}

var errBadRow = errors.New("a row does not have the form of a session")

// decodeRow returns the columns of an encoded row. The token and the data are slices
// of it. They are empty for a NULL column, which older tables allow, and the expiry
// is the zero time.
func decodeRow(encoded []byte) (token, data []byte, expiry time.Time, err error) {
	values, err := split(encoded, 3)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	token, ok1 := decodeBytes(values[0], textType)
	data, ok2 := decodeBytes(values[1], blobType)
	expiry, ok3 := decodeTime(values[2])
	if !ok1 || !ok2 || !ok3 {
		return nil, nil, time.Time{}, errBadRow
	}
	return token, data, expiry, nil
}

// split returns the first n columns of an encoded row, as slices of it.
func split(encoded []byte, n int) ([3][]byte, error) {
	var values [3][]byte
	for i := range n {
		length := valueLen(encoded)
		if length == 0 {
			return values, errBadRow
		}
		values[i], encoded = encoded[:length:length], encoded[length:]
	}
	return values, nil
}

// valueLen returns the length of the encoded value at the start of b. It returns 0 if
// the value is incomplete, or of a type that neither a row of sessions nor an entry
// can have. The type of a value in descending order in an index is inverted.
func valueLen(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	typ := min(b[0], 255-b[0])
	n := 0
	switch {
	case typ == nullType, smallInt-32 <= typ && typ < uint8Type:
		n = 1
	case uint8Type <= typ && typ <= uint64Type:
		n = 1 + 1<<(typ-uint8Type)
	case int64Type <= typ && typ <= int8Type:
		n = 1 + 1<<(int8Type-typ)
	case typ == textType, typ == blobType:
		length, m := binary.Uvarint(b[1:])
		if m <= 0 || length > uint64(len(b)-1-m) {
			return 0
		}
		n = 1 + m + int(length)
	}
	if n > len(b) {
		return 0
	}
	return n
}

// decodeBytes returns the bytes of an encoded text or blob; they are empty for NULL.
func decodeBytes(value []byte, typ byte) (b []byte, ok bool) {
	if value[0] == nullType {
		return []byte{}, true
	}
	if value[0] != typ {
		return nil, false
	}
	_, n := binary.Uvarint(value[1:])
	return value[1+n:], true
}

// decodeTime returns the time of an encoded timestamp, or the zero time for NULL.
func decodeTime(value []byte) (t time.Time, ok bool) {
	if value[0] == nullType {
		return time.Time{}, true
	}
	n, ok := decodeInt(value)
	return time.UnixMicro(n + timestampEpoch).UTC(), ok
}

func decodeInt(value []byte) (n int64, ok bool) {
	switch typ := value[0]; {
	case smallInt-32 <= typ && typ < uint8Type:
		return int64(typ) - smallInt, true
	case uint8Type <= typ && typ <= uint64Type:
	case int64Type <= typ && typ <= int8Type:
		n = -1 << (8*(len(value)-1) - 1)
	default:
		return 0, false
	}
	var u uint64
	for _, c := range value[1:] {
		u = u<<8 | uint64(c)
	}
	return n + int64(u), true
}

// catalogNamespace is the namespace of Chai's table of tables.
const catalogNamespace = 1

// decodeCatalogRow returns the namespace of a table from its row in the catalog:
// its name, its type, its namespace, and more.
func decodeCatalogRow(encoded []byte) (namespace int64, err error) {
	values, err := split(encoded, 3)
	if err != nil {
		return 0, err
	}
	namespace, ok := decodeInt(values[2])
	if !ok {
		return 0, errBadRow
	}
	return namespace, nil
}
