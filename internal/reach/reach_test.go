package reach

import (
	"errors"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/chaisql/chai"
	"github.com/cockroachdb/pebble"
)

func TestErr(t *testing.T) {
	if err := Err(); err != nil {
		t.Errorf("Err = %v, want nil", err)
	}
}

// altered returns a struct type like t whose field at the end of a path has another
// type, or is missing if with is nil.
func altered(t reflect.Type, path string, with reflect.Type) reflect.Type {
	name, rest, nested := strings.Cut(path, ".")
	var fields []reflect.StructField
	for i := range t.NumField() {
		field := t.Field(i)
		field.Anonymous = false
		if field.Name == name {
			switch {
			case nested:
				field.Type = altered(field.Type, rest, with)
			case with == nil:
				continue
			default:
				field.Type = with
			}
		}
		fields = append(fields, field)
	}
	return reflect.StructOf(fields)
}

// If one field is missing, or has another type, nothing is known.
func TestLookUp(t *testing.T) {
	chaiDB, chaiTx, pebbleDB, snapshot := reflect.TypeFor[chai.DB](), reflect.TypeFor[chai.Tx](), reflect.TypeFor[pebble.DB](), reflect.TypeFor[pebble.Snapshot]()
	for _, test := range []struct {
		of   *reflect.Type
		path string
		want bool
	}{
		{&chaiDB, "ctx", true}, // not used
		{&chaiDB, "DB", false},
		{&chaiTx, "tx", false},
		{&snapshot, "seqNum", false},
		{&pebbleDB, "opts", false},
		{&pebbleDB, "mu", false},
		{&pebbleDB, "mu.Mutex", false},
		{&pebbleDB, "mu.tableValidation.validating", false},
		{&pebbleDB, "mu.tableValidation.cond", false},
		{&pebbleDB, "mu.mem.queue", false},
		{&pebbleDB, "mu.compact.manual", false},
		{&pebbleDB, "closedCh", false},
		{&pebbleDB, "commit", false},
		{&pebbleDB, "tableCache", false},
	} {
		for _, with := range []reflect.Type{nil, reflect.TypeFor[*strings.Builder](), reflect.TypeFor[struct{ n int }]()} {
			if test.want && with != nil {
				continue
			}
			original := *test.of
			*test.of = altered(original, test.path, with)
			f := lookUp(chaiDB, chaiTx, pebbleDB, snapshot)
			*test.of = original
			if test.want && f.err != nil || !test.want && !errors.Is(f.err, errUnknown) {
				t.Errorf("%s of type %v in %v: got %v, want that this is known: %v", test.path, with, original, f.err, test.want)
			}
		}
	}
	// A type that is no struct is not looked into.
	if f := lookUp(reflect.TypeFor[int](), chaiTx, pebbleDB, snapshot); f.err == nil {
		t.Error("got all fields in an int")
	}
}

// Only this package reaches past what is exported, and it has few fields to get at.
func TestOnlyHere(t *testing.T) {
	source, err := os.ReadFile("reach.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(regexp.MustCompile(`field\(&f\.`).FindAll(source, -1)); n > 24 {
		t.Errorf("got %d fields, want at most 24", n)
	}
	// A field has the name that Chai or Pebble gives it, with that of the struct that it is
	// in where that does not say what it is.
	for _, match := range regexp.MustCompile(`field\(&f\.(\w+), \w+(?:\(\w+\))?, "([\w.]+)"`).FindAllStringSubmatch(string(source), -1) {
		path := strings.Split(match[2], ".")
		last, name := path[len(path)-1], strings.ToLower(match[1])
		if last == "Mutex" || last == "RWMutex" {
			last = path[len(path)-2]
		}
		if !strings.HasSuffix(name, strings.ToLower(last)) {
			t.Errorf("the field %s is called %s", match[2], match[1])
		}
	}
	for _, dir := range []string{"../..", "../engine", "../sessiontable", "../postgres"} {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
				continue
			}
			source, err := os.ReadFile(dir + "/" + file.Name())
			if err != nil {
				t.Fatal(err)
			}
			ways := `(?m)^//go:linkname|"unsafe"|"reflect"`
			if dir == "../.." && file.Name() == "owner.go" {
				ways = `(?m)^//go:linkname|"unsafe"` // OwnerByKey takes all types of strings and integers
			}
			if match := regexp.MustCompile(ways).Find(source); match != nil {
				t.Errorf("%s/%s has %s", dir, file.Name(), match)
			}
		}
	}
}
