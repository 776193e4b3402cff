// This file is the row of a session as Chai stores it, for reading and writing it
// without SQL. It knows Chai's encoding (its internal/encoding), and nothing of
// tables that have more than what a table of sessions needs.

package sessiontable

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// The first byte of an encoded value is its type, or a small integer.
const (
	nullType   = 2
	int64Type  = 12 // down to a type for each width: 13, 14, 15
	int8Type   = 15
	smallInt   = 48 // the integer 0; 16 to 79 are -32 to 31
	uint8Type  = 80
	uint16Type = 81
	uint32Type = 82
	uint64Type = 83
	textType   = 98
	blobType   = 103
)

// timestampEpoch is from where Chai counts the microseconds of a timestamp.
var timestampEpoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// appendKey appends the key of a row: the number of the table and the primary
// key.
func appendKey(dst []byte, table uint64, token string) []byte {
	return appendText(appendInt(dst, int64(table)), token)
}

// appendRow appends the columns of a row in the order of the table.
func appendRow(dst []byte, row Row) []byte {
	dst = appendText(dst, row.Token)
	dst = append(dst, blobType)
	dst = binary.AppendUvarint(dst, uint64(len(row.Data)))
	dst = append(dst, row.Data...)
	return appendInt(dst, row.Expiry.UnixMicro()-timestampEpoch)
}

func appendText(dst []byte, s string) []byte {
	dst = append(dst, textType)
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
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
	// A negative integer is stored as its distance from the least of its width.
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

var errBadRow = errors.New("a row is not stored as that of a session")

// decodeRow returns what an encoded row holds. The data is a part of it. Of a
// column that is NULL, which older tables allow, it is empty, or the zero time.
func decodeRow(encoded []byte) (Row, error) {
	token, rest, ok := cutBytes(encoded, textType)
	if !ok {
		return Row{}, errBadRow
	}
	data, rest, ok := cutBytes(rest, blobType)
	if !ok || len(rest) == 0 {
		return Row{}, errBadRow
	}
	row := Row{Token: string(token), Data: data}
	if rest[0] == nullType {
		return row, nil
	}
	n, ok := decodeInt(rest)
	if !ok {
		return Row{}, errBadRow
	}
	row.Expiry = time.UnixMicro(n + timestampEpoch).UTC()
	return row, nil
}

// cutBytes returns the text or blob at the beginning of b, and what follows it.
func cutBytes(b []byte, typ byte) (value, rest []byte, ok bool) {
	if len(b) > 0 && b[0] == nullType {
		return []byte{}, b[1:], true
	}
	if len(b) == 0 || b[0] != typ {
		return nil, nil, false
	}
	length, n := binary.Uvarint(b[1:])
	if n <= 0 || length > uint64(len(b)-1-n) {
		return nil, nil, false
	}
	b = b[1+n:]
	return b[:length:length], b[length:], true
}

func decodeInt(b []byte) (n int64, ok bool) {
	typ := b[0]
	width := 0
	switch {
	case smallInt-32 <= typ && typ < uint8Type:
		return int64(typ) - smallInt, true
	case uint8Type <= typ && typ <= uint64Type:
		width = 1 << (typ - uint8Type)
	case int64Type <= typ && typ <= int8Type:
		width = 1 << (int8Type - typ)
		n = -1 << (8*width - 1)
	}
	if width == 0 || len(b) < 1+width {
		return 0, false
	}
	var u uint64
	for _, c := range b[1 : 1+width] {
		u = u<<8 | uint64(c)
	}
	return n + int64(u), true
}
