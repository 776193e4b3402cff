// The order of keys. It replaces Chai's, which is not an order if texts are long.

package engine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/cockroachdb/pebble"

	"go.elara.ws/chaistore/internal/reach"
)

// Chai has one comparer for all databases. The names of its functions and the faults
// that are mended here (in its internal/encoding):
//
//   - Compare uses the length of one text, or blob, for both. With texts of 128 bytes
//     and more beside shorter ones, it is not an order: rows are not found, and a compaction
//     ends the process, again after each restart. It panics on some keys.
//   - Separator tells Pebble how to separate the keys of two adjacent blocks in a file.
//     If these are two versions of the same key, both of which Pebble keeps while a
//     snapshot is open, it returns the end of the key without the namespace. That is
//     greater than all keys that follow, so the file's index leads to the wrong block:
//     rows behind it are not found until the file is compacted. A key
//     itself separates it from any greater one, and Pebble uses it where Chai's
//     separator is longer, as for most keys.
//   - Successor panics on keys that don't begin with an integer.
//   - AbbreviatedKey panics on some keys, and is greater for the namespace 65,535 than for
//     65,536. Only a batch with an index calls it. Chai has such batches only for the
//     transient namespaces, whose keys all have the same abbreviation there, too.
//
// Equal, which is bytes.Equal, is right. Chai sets neither Split nor ImmediateSuccessor.
func init() {
	if reach.Err() == nil {
		chaiComparer = *reach.DefaultComparer()
		setComparer(pebble.Comparer{
			Compare:        compare,
			Separator:      func(dst, a, _ []byte) []byte { return append(dst, a...) },
			Successor:      func(dst, a []byte) []byte { return append(dst, a...) },
			AbbreviatedKey: func([]byte) uint64 { return 0 },
		})
	}
}

// chaiComparer has Chai's own functions.
var chaiComparer pebble.Comparer

// setComparer sets functions that a database may be using already, if the init of
// another package has opened one. Its goroutines use either function: each field is one
// word. So the race detector does not look at it.
//
//go:norace
func setComparer(c pebble.Comparer) {
	all := reach.DefaultComparer()
	all.Compare = c.Compare
	all.Separator = c.Separator
	all.Successor = c.Successor
	all.AbbreviatedKey = c.AbbreviatedKey
}

// compare is a total order of all byte strings, and 0 only for equal ones. It is the
// order of Chai's Compare wherever that is an order.
//
// A key is a sequence of values, each of which is a type byte and a payload. Keys are
// compared value by value, and a key that ends comes first. Values are compared by their
// type bytes, then by their places, then by their payloads. The places among values of
// one type:
//
//  1. A type byte at the end of the key, without its payload. Chai's bounds of ranges end so.
//  2. Values with a whole payload: numbers, texts and blobs by their bytes. Arrays and
//     objects by their elements, a missing one first, then by the number of elements. The
//     types above 128 are descending: their order is the opposite.
//  3. All else: a payload that is cut short, a length that is malformed, an unknown type,
//     an array in maxDepth others. The payload is the rest of the key, by its
//     bytes. Separators that Chai has written into files end so (a type byte and 0xFF);
//     they belong behind the values of the type, even in a descending array.
//
// It is an order because the keys are the paths of a tree from its root: the steps are
// type bytes, places, payloads and ends, and the order of the steps from a node depends
// on nothing but the path to it. Two keys have the same path only if they are equal: a
// length in more bytes than it needs is malformed.
func compare(a, b []byte) int {
	same := sharedPrefix(a, b)
	if same == len(a) && same == len(b) {
		return 0
	}
	// What follows is only a faster way to what compareKeys returns: it skips the values
	// that both keys have, and looks at one byte if the first other value is whole and
	// equally long in both.
	start := 0
	for start < same {
		size := int(payloadSizes[a[start]])
		if size == textSize {
			size = textBytes(a[start+1 : same])
		}
		end := start + 1 + size
		if size < 0 || end > same && end > min(len(a), len(b)) {
			break
		}
		if end > same {
			return direction(a[start]) * (int(a[same]) - int(b[same]))
		}
		start = end
	}
	return compareKeys(a[start:], b[start:])
}

// textBytes returns the size of a text that payload begins, or -1 if it does not have
// the whole length of the text.
func textBytes(payload []byte) int {
	if len(payload) > 0 && payload[0] < 0x80 {
		return 1 + int(payload[0])
	}
	n, width := number(payload)
	if width == 0 || n > math.MaxInt32 {
		return -1
	}
	return width + int(n)
}

// number returns a number that b begins with, and in how many bytes, or 0 if it is
// malformed.
func number(b []byte) (n uint64, width int) {
	n, width = binary.Uvarint(b)
	if width <= 0 || width > 1 && b[width-1] == 0 {
		return 0, 0
	}
	return n, width
}

// sharedPrefix returns the number of equal bytes that both begin with.
func sharedPrefix(a, b []byte) (n int) {
	shorter := min(len(a), len(b))
	for ; n+8 <= shorter; n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	for n < shorter && a[n] == b[n] {
		n++
	}
	return n
}

// direction returns -1 for a descending type.
func direction(typ byte) int {
	if typ > 128 {
		return -1
	}
	return 1
}

func compareKeys(a, b []byte) (c int) {
	for c == 0 && (len(a) > 0 || len(b) > 0) {
		c, a, b = compareValues(a, b, 0, 1)
	}
	return c
}

// compareValues compares the first values of two keys, and returns what follows them if
// they are equal. Depth is the number of arrays and objects that they are in. Sign is -1
// if those order their elements descendingly.
func compareValues(a, b []byte, depth, sign int) (c int, restA, restB []byte) {
	if len(a) == 0 || len(b) == 0 || a[0] != b[0] {
		return sign * bytes.Compare(a[:min(len(a), 1)], b[:min(len(b), 1)]), a, b
	}
	v, w := parseValue(a, depth), parseValue(b, depth)
	if c := cmp.Compare(v.place, w.place); c != 0 {
		return c, nil, nil
	}
	if v.place == isWhole {
		sign *= direction(a[0])
	}
	if c := bytes.Compare(v.payload, w.payload); c != 0 {
		return sign * c, nil, nil
	}
	return compareElements(v, w, depth+1, sign)
}

func compareElements(v, w keyValue, depth, sign int) (c int, restA, restB []byte) {
	a, b := v.rest, w.rest
	for range min(v.elements, w.elements) {
		if len(a) == 0 && len(b) == 0 {
			break // the number may be anything
		}
		if c, a, b = compareValues(a, b, depth, sign); c != 0 {
			return c, a, b
		}
	}
	return sign * cmp.Compare(v.elements, w.elements), a, b
}

const maxDepth = 100

// A keyValue is the first value of a key.
type keyValue struct {
	place    int
	payload  []byte // not of an array or object
	elements uint64 // of an array or object: values at the beginning of rest
	rest     []byte // what follows it, or its elements
}

const (
	isBare = iota
	isWhole
	isMalformed
)

func parseValue(key []byte, depth int) keyValue {
	size, rest := int(payloadSizes[key[0]]), key[1:]
	switch {
	case size >= 0 && size <= len(rest):
		return keyValue{place: isWhole, payload: rest[:size], rest: rest[size:]}
	case len(rest) == 0:
		return keyValue{place: isBare}
	case size == textSize || (size == arraySize || size == objectSize) && depth < maxDepth:
		n, width := number(rest)
		if width == 0 {
			break
		}
		rest := rest[width:]
		switch {
		case size == arraySize:
			return keyValue{place: isWhole, elements: n, rest: rest}
		case size == objectSize && n < 1<<63:
			return keyValue{place: isWhole, elements: 2 * n, rest: rest}
		case size == textSize && n <= uint64(len(rest)):
			return keyValue{place: isWhole, payload: rest[:n], rest: rest[n:]}
		}
	}
	return keyValue{place: isMalformed, payload: rest}
}

// payloadSizes has the size of the payload for each type byte, or what kind of payload it is.
// The types are those of Chai's internal/encoding/types.go. The descending type of t is
// 255-t, with the same payload.
var payloadSizes = func() (sizes [256]int8) {
	for t := range sizes {
		sizes[t] = unknownSize
	}
	set := func(size int8, types ...int) {
		for _, t := range types {
			sizes[t] = size
			if t != 0 { // a tombstone; 255 ends bounds
				sizes[255-t] = size
			}
		}
	}
	set(0, 0, 2, 5, 6) // null, false, true
	for t := 16; t < 80; t++ {
		set(0, t) // integers from -32 to 31
	}
	set(1, 15, 80)
	set(2, 14, 81)
	set(4, 13, 82)
	set(8, 12, 83, 90)     // integers and floating-point numbers
	set(textSize, 98, 103) // a blob is compared like a text
	set(arraySize, 110)
	set(objectSize, 120)
	return sizes
}()

// A text begins with its length, an array or object with the number of its elements.
const (
	textSize    = -1
	arraySize   = -2
	objectSize  = -3
	unknownSize = -4
)
