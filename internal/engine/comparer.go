// A fault of Chai's that loses rows, and its remedy.

package engine

import (
	"reflect"
	"unsafe"

	"github.com/chaisql/chai"
)

// Chai tells Pebble how to separate the keys of two blocks in a file (Separator in
// its internal/encoding). For two versions of the same key, which Pebble keeps apart
// while somebody reads a snapshot, it returns the end of the key without the
// namespace, which is greater than all keys that follow. The index of that file then
// leads to the wrong block: rows behind it, that are there, are not found until the
// file is merged with another one.
//
// The key itself separates any two keys, and Pebble uses it where Chai's is longer, as
// it is for most. Chai has one comparer for all databases, which is set before any of
// them can be open.
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
