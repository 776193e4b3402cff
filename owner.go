// The owner of a session, from its data.

package chaistore

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/internal/sessiontable"
)

// OwnerByKey returns a function for [Config.Owner] that decodes a session with the
// session manager's codec, and returns the value that the application has put under
// key: a string as it is, and an integer in decimal. Without such a value, the session has
// no owner.
//
//	Owner: chaistore.OwnerByKey(sessionManager.Codec, "userID")
//
// Some codecs decode integers as float64. These count as integers if they are below 2^53:
// from there on, they may have been rounded. A [json.Number] may be an integer in any
// notation. For all other values, the function returns an error: see [ErrOwnerUnreadable].
//
// If the codec returns an error, the function returns one that wraps it, for [errors.Unwrap].
// Its text has only the type of the codec's error, whose own text may quote the session.
//
// Pass the same text to [ChaiStore.SessionsOf] and [ChaiStore.DeleteOf]. For a float64 from
// the session manager's Get, it is that of strconv.FormatInt(int64(id), 10): GetInt returns
// 0, and fmt.Sprint a text such as 1e+06.
//
// OwnerByKey panics if codec is nil.
func OwnerByKey(codec scs.Codec, key string) func(data []byte) (owner string, err error) {
	if codec == nil {
		panic("chaistore: the codec is nil: pass the Codec of a session manager from scs.New")
	}
	decode := func(data []byte) (any, error) {
		_, values, err := codec.Decode(data)
		return values[key], err
	}
	if _, ok := codec.(scs.GobCodec); ok {
		decode = (&gobDecoders{key: key}).value
	}
	return func(data []byte) (string, error) {
		decoded, err := decode(data)
		if err != nil {
			return "", &sessiontable.OwnerError{Text: fmt.Sprintf("the codec has returned a %T", err), Err: err}
		}
		value := reflect.ValueOf(decoded)
		switch value.Kind() {
		case reflect.Invalid:
			return "", nil
		case reflect.String:
			n, ok := decoded.(json.Number)
			if !ok {
				return value.String(), nil
			}
			if decimal, ok := integerOf(n); ok {
				return decimal, nil
			}
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			return strconv.FormatInt(value.Int(), 10), nil
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			return strconv.FormatUint(value.Uint(), 10), nil
		case reflect.Float64:
			if f := value.Float(); f == math.Trunc(f) && math.Abs(f) < 1<<53 {
				return strconv.FormatInt(int64(f), 10), nil
			}
			return "", &sessiontable.OwnerError{Text: "the owner is a float64 that is no integer, or is 2^53 or more, so that it may have been another: store it as a string"}
		}
		return "", &sessiontable.OwnerError{Text: fmt.Sprintf("the owner is neither a string nor an integer, but a %T: store it as a string", decoded)}
	}
}

// integerOf returns an integer in decimal, which may have been written as 1e+21.
func integerOf(n json.Number) (decimal string, ok bool) {
	text := string(n)
	const maxDigits = sessiontable.MaxKeyLen // more would also take long to read
	if len(text) > maxDigits || !json.Valid([]byte(text)) || strings.Trim(text, "+-.0123456789Ee") != "" {
		return "", false
	}
	if _, exponent, ok := strings.Cut(strings.ToLower(text), "e"); ok {
		if size, err := strconv.Atoi(exponent); err != nil || size < -maxDigits || size > maxDigits {
			return "", false
		}
	}
	number, ok := new(big.Rat).SetString(text)
	if !ok || !number.IsInt() {
		return "", false
	}
	return number.Num().String(), true
}

// gobDecoders decode the value of a key as [scs.GobCodec] does. Each session begins with the
// definitions of the types that it has. Reading these takes most of the time, about 90 %
// in the benchmark OwnerByKey. They are nearly always the same, so a decoder that has read
// them goes on to decode other sessions.
type gobDecoders struct {
	key   string
	mu    sync.Mutex
	types map[string]*gobTypes // by their definitions
}

// gobTypes are the types of some sessions.
type gobTypes struct {
	idle []*gobDecoder
	more bool // whether such sessions define types further on, too, which a decoder takes once
}

type gobDecoder struct {
	decoder *gob.Decoder
	in      bytes.Reader
	session struct { // as in scs.GobCodec
		Deadline time.Time
		Values   map[string]any
	}
}

const (
	maxGobTypes = 16
	maxGobIdle  = 16
)

// value returns the value of the key in a session.
func (d *gobDecoders) value(data []byte) (value any, err error) {
	types := data[:definitions(data)]
	decoder, used := d.get(types)
	if decoder != nil {
		if err := decoder.decode(data[len(types):]); err == nil {
			value = decoder.session.Values[d.key]
			clear(decoder.session.Values)
			d.put(types, decoder, false)
			return value, nil
		}
	}
	_, values, err := scs.GobCodec{}.Decode(data)
	if err != nil || !used {
		return values[d.key], err
	}
	if decoder != nil {
		d.put(types, nil, true)
		return values[d.key], nil
	}
	first := new(gobDecoder)
	first.decoder = gob.NewDecoder(&first.in)
	if err := first.decode(data); err == nil && maps.EqualFunc(first.session.Values, values, reflect.DeepEqual) {
		clear(first.session.Values)
		d.put(types, first, false)
	}
	return values[d.key], nil
}

// decode decodes a session into the map of the one before, which has been cleared.
func (d *gobDecoder) decode(data []byte) error {
	d.in.Reset(data)
	return d.decoder.Decode(&d.session)
}

// get returns an idle decoder that has read the given definitions, or nil, and whether
// decoders are used for these.
func (d *gobDecoders) get(definitions []byte) (decoder *gobDecoder, used bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.types[string(definitions)]
	if t == nil {
		return nil, len(d.types) < maxGobTypes
	}
	if n := len(t.idle); n > 0 {
		decoder, t.idle = t.idle[n-1], t.idle[:n-1]
	}
	return decoder, !t.more
}

func (d *gobDecoders) put(definitions []byte, decoder *gobDecoder, more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.types[string(definitions)]
	if t == nil {
		if len(d.types) == maxGobTypes {
			return
		}
		if d.types == nil {
			d.types = make(map[string]*gobTypes)
		}
		t = new(gobTypes)
		d.types[string(definitions)] = t
	}
	if t.more = t.more || more; t.more {
		t.idle = nil
	} else if len(t.idle) < maxGobIdle {
		t.idle = append(t.idle, decoder)
	}
}

// definitions returns the number of bytes with which data begins that are definitions of
// types: messages with a negative number of a type. Each message has its length before it.
func definitions(data []byte) (n int) {
	for {
		length, begin := gobUint(data[n:])
		if begin == 0 || length > uint64(len(data)-n-begin) {
			return n
		}
		message := data[n+begin : n+begin+int(length)]
		if number, size := gobUint(message); size == 0 || number&1 == 0 { // the sign is the last bit
			return n
		}
		n += begin + int(length)
	}
}

// gobUint returns the unsigned integer that data begins with, and its size, 0 if there is
// none: a byte of less than 128, or the negated number of bytes that follow.
func gobUint(data []byte) (value uint64, size int) {
	switch {
	case len(data) == 0:
		return 0, 0
	case data[0] < 128:
		return uint64(data[0]), 1
	}
	size = 1 + -int(int8(data[0]))
	if size > 9 || size > len(data) {
		return 0, 0
	}
	var number [8]byte
	copy(number[9-size:], data[1:size])
	return binary.BigEndian.Uint64(number[:]), size
}
