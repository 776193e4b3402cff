// Package docs tests what the documents show: that their Go compiles, and that their
// commands name programs, tests and flags that there are.
package docs

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

const root = "../.."

var (
	fences   = regexp.MustCompile("(?ms)^ *```(.*?)\n(.*?)^ *```$")
	spans    = regexp.MustCompile("`((?:[A-Z]+=\\S+ )*(?:go|make|cd) [^`]+)`")
	comments = regexp.MustCompile(`(^| +)# .*`)
	words    = regexp.MustCompile(`'[^']*'|[^\s']+`)
)

// The Go in a document is in a Go file, too, and so compiles.
func TestGo(t *testing.T) {
	var compiled strings.Builder
	for _, text := range files(t, ".go") {
		compiled.WriteString("\n" + unindented(text))
	}
	eachFence(t, "go", func(document, code string) {
		if !strings.Contains(compiled.String(), "\n"+unindented(code)) {
			t.Errorf("this Go in %s is not in any Go file:\n%s", document, code)
		}
	})
}

// A store can use the table in the README.
func TestSQL(t *testing.T) {
	db := testdb.Memory(t)
	eachFence(t, "sql", func(document, code string) {
		if document == "README.md" {
			testdb.Exec(t, db, code)
		}
	})
	if _, err := chaistore.NewWithConfig(db, chaistore.Config{CleanupInterval: -1}); err != nil {
		t.Error(err)
	}
}

// The go and make commands in the documents find what they name: a program, tests,
// benchmarks, flags, a target.
func TestCommands(t *testing.T) {
	sources, makefile := files(t, ".go"), files(t, "Makefile")["Makefile"]
	checked := 0
	for document, text := range files(t, ".md") {
		for _, line := range commandsIn(text) {
			dir, command := path.Dir(document), line
			if in, rest, ok := strings.Cut(line, " && "); ok {
				command = rest
				if in, ok := strings.CutPrefix(in, "cd "); ok {
					dir = in
				}
			}
			args := words.FindAllString(command, -1)
			var want []string // patterns
			switch {
			case args[0] == "make":
				want, text = []string{`(?m)^` + args[1] + `:`}, makefile
			case args[0] == "go" && (args[1] == "test" || args[1] == "run"):
				if args[2] == "-C" {
					dir = path.Join(dir, args[3])
					args = args[4:]
				}
				want, text = wantOf(args), goIn(sources, dir, args)
			default:
				continue
			}
			for _, pattern := range want {
				if !regexp.MustCompile(pattern).MatchString(text) {
					t.Errorf("%s shows %q, but there is no %s", document, line, pattern)
				}
			}
			checked++
		}
	}
	if checked < 30 {
		t.Errorf("found %d commands, want at least 30", checked)
	}
}

// goFlags are flags of the go command, and of a tool that is not in this repository.
const goFlags = " -v -race -count -timeout -shuffle -parallel -skip -short -cpuprofile -fuzzminimizetime -col -filter "

// wantOf returns patterns of what the Go of a command must have.
func wantOf(args []string) (patterns []string) {
	kinds := map[string]string{"-run": "Test", "-bench": "Benchmark", "-fuzz": "Fuzz"}
	for i, arg := range args {
		if kind, ok := kinds[arg]; ok {
			first, _, _ := strings.Cut(strings.Trim(args[i+1], "'"), "/")
			for name := range strings.SplitSeq(first, "|") {
				if name != "^$" {
					patterns = append(patterns, `\nfunc `+kind+`\w*`+strings.TrimPrefix(name, kind))
				}
			}
		} else if arg[0] == '-' && !strings.Contains(goFlags, " "+arg+" ") {
			patterns = append(patterns, `(flag|flags)\.\w+\("`+arg[1:]+`"`)
		}
	}
	return append(patterns, `\nfunc (Test|main\()`)
}

// goIn returns the Go of the packages or the program that a command names, or else of
// the directory that it is run in, and of testdb, which has a flag for all tests.
func goIn(sources map[string]string, dir string, args []string) string {
	pattern := dir
	for _, arg := range args {
		if strings.HasPrefix(arg, "./") {
			pattern = path.Join(dir, arg)
		}
	}
	var text strings.Builder
	below, all := strings.CutSuffix(pattern, "...")
	for name, source := range sources {
		if in := path.Dir(name); in == path.Clean(pattern) || in == "internal/testdb" || all && strings.HasPrefix(name, below) {
			text.WriteString("\n" + source)
		}
	}
	return text.String()
}

// commandsIn returns the commands in a document, in its blocks and in its text.
func commandsIn(text string) (lines []string) {
	for _, fence := range fences.FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(fence[2]) {
			if line = comments.ReplaceAllString(strings.TrimSpace(line), ""); fence[1] == "sh" && line != "" {
				lines = append(lines, line)
			}
		}
	}
	for _, span := range spans.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
		lines = append(lines, strings.Join(strings.Fields(span[1]), " "))
	}
	return lines
}

func eachFence(t *testing.T, language string, each func(document, code string)) {
	t.Helper()
	found := false
	for document, text := range files(t, ".md") {
		for _, fence := range fences.FindAllStringSubmatch(text, -1) {
			if fence[1] == language {
				found = true
				each(document, fence[2])
			}
		}
	}
	if !found {
		t.Errorf("found no %s", language)
	}
}

// files returns the files in the repository whose names have an ending, without the
// results of measurements.
func files(t *testing.T, ending string) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != root && (entry.Name()[0] == '.' || entry.Name() == "results"):
			return fs.SkipDir
		case strings.HasSuffix(name, ending) && !entry.IsDir():
			text, err := os.ReadFile(name)
			below, _ := filepath.Rel(root, name)
			texts[filepath.ToSlash(below)] = strings.ReplaceAll(string(text), "\r\n", "\n")
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
