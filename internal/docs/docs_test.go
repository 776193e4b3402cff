package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

func TestCommands(t *testing.T) { Run(t, "") }

// TestEachCommandIsTested compares the commands in the documents with the tested ones.
func TestEachCommandIsTested(t *testing.T) {
	shown := make(map[string][]string)
	for name, text := range files(t, ".md") {
		if lines := commandsIn(text); lines != nil {
			shown[name] = lines
		}
	}
	for _, document := range documents {
		var tested []string
		for _, c := range document.commands {
			tested = append(tested, c.line)
			checkCommand(t, c)
		}
		for _, line := range tested {
			if !slices.Contains(shown[document.path], line) {
				t.Errorf("%s does not show %q", document.path, line)
			}
		}
		for _, line := range shown[document.path] {
			if !slices.Contains(tested, line) {
				t.Errorf("%s shows %q, which no test runs", document.path, line)
			}
		}
		delete(shown, document.path)
	}
	for name, lines := range shown {
		t.Errorf("%s shows %q, which no test runs", name, lines)
	}
}

// checkCommand checks that a command is tested where its entry says.
func checkCommand(t *testing.T, c command) {
	t.Helper()
	for i := 0; i < len(c.with); i += 2 {
		if !strings.Contains(c.line, c.with[i]) {
			t.Errorf("there is no %q in %q", c.with[i], c.line)
		}
	}
	file, test, _ := strings.Cut(c.tested, " ")
	switch {
	case c.in != "":
		contains(t, c.in+"/docs_test.go", `docs\.Run\(t, "`+c.in+`"\)`)
	case c.tested == "":
	case file == "make":
		contains(t, ".ci/run", `\tmake .*\b`+test+`\b|\nmake .*\b`+test+`\b`)
		recipe := `\n` + test + `:.*\n`
		if short := c.short(); !strings.HasPrefix(short, "make ") {
			recipe += `(\t.*\n)*\t` + regexp.QuoteMeta(short) + `( .*)?\n`
		}
		contains(t, "Makefile", recipe)
	default:
		contains(t, file, `\nfunc `+test+`\(t \*testing\.T\)`)
		if _, program, ok := strings.Cut(c.line, "go run ./"); ok {
			program, _, _ = strings.Cut(program, " ")
			if !strings.Contains(file, program+"/") {
				t.Errorf("%s can't test %q", file, c.line)
			}
		}
	}
}

// contains checks that a file matches a pattern.
func contains(t *testing.T, name, pattern string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), name))
	if err != nil {
		t.Error(err)
	} else if !regexp.MustCompile(pattern).MatchString(strings.ReplaceAll(string(text), "\r\n", "\n")) {
		t.Errorf("%s does not have %q", name, pattern)
	}
}

// TestEachFragmentIsTested checks that the Go in the documents is in a Go file, and so
// compiles, and that other tests look at the rest.
func TestEachFragmentIsTested(t *testing.T) {
	var compiled strings.Builder
	for _, text := range files(t, ".go") {
		compiled.WriteString("\n" + unindented(text))
	}
	known := map[string][]string{
		"sql":  {"README.md", "examples/topostgres/README.md"}, // TestSQL, and TestREADMEsCommands there
		"diff": {"examples/topostgres/README.md"},              // TestREADMEShowsTheChanges
	}
	for name, text := range files(t, ".md") {
		for _, fence := range fences.FindAllStringSubmatch(text, -1) {
			switch language, code := fence[1], fence[2]; language {
			case "go":
				if !strings.Contains(compiled.String(), "\n"+unindented(code)) {
					t.Errorf("this fragment of %s is not in any Go file:\n%s", name, code)
				}
			case "sh", "console", "": // commands and what they print
			default:
				if !slices.Contains(known[language], name) {
					t.Errorf("no test looks at this %q in %s:\n%s", language, name, code)
				}
			}
		}
	}
}

// TestSQL checks that a store can use the table in the README.
func TestSQL(t *testing.T) {
	db := testdb.Memory(t)
	for _, fence := range fences.FindAllStringSubmatch(files(t, ".md")["README.md"], -1) {
		if fence[1] == "sql" {
			testdb.Exec(t, db, fence[2])
		}
	}
	if _, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1}); err != nil {
		t.Error(err)
	}
}

var (
	fences  = regexp.MustCompile("(?ms)^ *```(.*?)\n(.*?)^ *```$")
	comment = regexp.MustCompile(`(^| +)# .*`)
	spans   = regexp.MustCompile("`((?:[A-Z]+=\\S+ )*(?:go [a-z]+|make|cd|curl|\\./[^\\s`]+)\\s[^`]+)`")
)

// commandsIn returns the commands in a document, in its blocks and in its text.
func commandsIn(text string) []string {
	var lines []string
	for _, fence := range fences.FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(fence[2]) {
			line = comment.ReplaceAllString(strings.TrimSpace(line), "")
			if fence[1] == "console" {
				prompt := false
				if line, prompt = strings.CutPrefix(line, "$ "); !prompt {
					continue
				}
			} else if fence[1] != "sh" {
				continue
			}
			if line != "" {
				lines = append(lines, line)
			}
		}
	}
	for _, span := range spans.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
		lines = append(lines, strings.Join(strings.Fields(span[1]), " "))
	}
	return lines
}

// files returns the files in the repository whose names have an ending, without the
// results of measurements.
func files(t *testing.T, ending string) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	repository := os.DirFS(root(t))
	err := fs.WalkDir(repository, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != "." && entry.Name()[0] == '.' || entry.Name() == "results":
			if entry.IsDir() {
				return fs.SkipDir
			}
		case strings.HasSuffix(name, ending) && !entry.IsDir():
			text, err := fs.ReadFile(repository, name)
			texts[name] = strings.ReplaceAll(string(text), "\r\n", "\n")
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// unindented returns text without the blanks around its lines.
func unindented(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return strings.Join(lines, "\n")
}
