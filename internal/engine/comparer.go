// A bug of Chai that loses rows, and the workaround.

package engine

import (
	"reflect"
	"unsafe"

	"github.com/chaisql/chai"
)

// Chai tells Pebble how to separate the keys of two adjacent blocks in a file
// (Separator in its internal/encoding). If these are two versions of the same key,
// both of which Pebble keeps while a snapshot is open, Chai returns the end of the
// key without the namespace. That is greater than all keys that follow, so the file's
// index leads to the wrong block: rows behind it are not found until the file is
// merged with another one.
//
// A key itself separates it from any greater one, and Pebble uses it where Chai's
// separator is longer, as for most keys. Chai has one comparer for all databases. It
// is changed here, before any database can be open.
func init() {
	db, _ := reflect.TypeFor[chai.DB]().FieldByName("DB")
	store, _ := db.Type.Elem().FieldByName("Store")
	method, _ := store.Type.MethodByName("DB")
	options, _ := method.Type.Out(0).Elem().FieldByName("opts")
	comparer, _ := options.Type.Elem().FieldByName("Comparer")
	separator := reflect.NewAt(comparer.Type.Elem(), defaultComparer).Elem().FieldByName("Separator")
	separator.Set(reflect.ValueOf(func(dst, a, _ []byte) []byte { return append(dst, a...) }).Convert(separator.Type()))
}

//go:linkname defaultComparer github.com/chaisql/chai/internal/kv.DefaultComparer
var defaultComparer unsafe.Pointer // *pebble.Comparer
