package report

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestInclude(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "README.md")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "results"), 0o777); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "results", "a.md"), "one $1\ntwo\n")
	write(filepath.Join(dir, "b.md"), "three")
	write(path, "before\n<!-- include results/a.md -->\n<!-- end -->\nbetween\n<!-- include b.md -->\nold\n<!-- end -->\nafter\n")
	const want = "before\n<!-- include results/a.md -->\n\none $1\ntwo\n\n<!-- end -->\nbetween\n" +
		"<!-- include b.md -->\n\nthree\n\n<!-- end -->\nafter\n"
	for range 2 {
		if err := Include(path); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Fatalf("the file is\n%s\nwant\n%s", got, want)
		}
	}

	if err := os.Remove(filepath.Join(dir, "b.md")); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "results", "a.md"), "new")
	if err := Include(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the error is %v, want fs.ErrNotExist", err)
	}
	if got, err := os.ReadFile(path); string(got) != want {
		t.Errorf("an error changed the file to\n%s\n(%v)", got, err)
	}
}

// TestReadmes checks that the READMEs show the committed results.
func TestReadmes(t *testing.T) {
	for _, path := range []string{"../../README.md", "../../../storetest/README.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !included.Match(text) {
			t.Errorf("%s includes nothing", path)
		}
		for _, parts := range included.FindAllStringSubmatch(string(text), -1) {
			content, err := os.ReadFile(filepath.Join(filepath.Dir(path), filepath.FromSlash(parts[2])))
			if err != nil {
				t.Fatal(err)
			}
			if want := block(string(content)); parts[3] != want {
				t.Errorf("%s includes %s as\n%s\nwant\n%s", path, parts[2], parts[3], want)
			}
		}
	}
}
