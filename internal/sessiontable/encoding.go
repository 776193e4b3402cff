// The encoding of rows and keys, which is that of Chai's internal/encoding.

package sessiontable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"
)

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
	const maxNamespaceAndLength = 20
	dst = slices.Grow(dst, len(token)+maxNamespaceAndLength)
	return appendText(appendInt(dst, namespace), token)
}

// tokenIn returns the token in a key that has the given beginning, or nil if the key is
// none of a session that can be found.
func tokenIn(key, beginning []byte) []byte {
	key, ok := bytes.CutPrefix(key, beginning)
	if !ok || len(key) == 0 || valueLen(key) != len(key) {
		return nil
	}
	token, ok := decodeBytes(key, textType)
	if !ok || len(token) > MaxKeyLen {
		return nil
	}
	return token
}

// encodeRow returns the encoded columns of a row, in the order of the table.
func encodeRow(row Row) []byte {
	const maxLengthsAndExpiry = 20
	dst := make([]byte, 0, len(row.Token)+len(row.Data)+maxLengthsAndExpiry)
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
