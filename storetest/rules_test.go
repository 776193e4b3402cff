package storetest

import (
	"go/build"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The rules quote SCS's doc comments word for word.
func TestRulesAreQuotations(t *testing.T) {
	pkg, err := build.Import("github.com/alexedwards/scs/v2", ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	var comments strings.Builder
	for _, name := range []string{"store.go", "session.go", "data.go", "memstore/memstore.go"} {
		source, err := os.ReadFile(filepath.Join(pkg.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(source)) {
			if comment, ok := strings.CutPrefix(strings.TrimSpace(line), "//"); ok {
				comments.WriteString(strings.TrimSpace(comment) + " ")
			}
		}
	}
	for _, g := range groups {
		for _, tc := range g.cases {
			if !g.advice && !strings.Contains(comments.String(), tc.rule) {
				t.Errorf("%s/%s: SCS does not say %q", g.name, tc.name, tc.rule)
			}
		}
	}
}
