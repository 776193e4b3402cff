// Package docs lists the commands in this repository's documents, and runs them as a
// reader would, in a copy of the repository.
package docs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A document shows commands.
type document struct {
	path     string // below the root of the repository
	commands []command
}

// A command is run in the directory of its document.
type command struct {
	line string
	with []string // replacements, mostly to take less time: old, new, …
	in   string   // the module whose tests run it, "" for the root module

	// tested is the test that does the same, if package docs does not run the command:
	// a file and a function, or "make" and a target that .ci/run makes.
	tested string
}

// short returns the command with its replacements.
func (c command) short() string {
	return strings.NewReplacer(c.with...).Replace(c.line)
}

// Run runs the commands of a module, "" for the root module, one after the other.
func Run(t *testing.T, module string) {
	if testing.Short() {
		t.Skip("a go command for each of the documents")
	}
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	dir := copied(t)
	for _, document := range documents {
		for _, c := range document.commands {
			if c.in != module || c.tested != "" {
				continue
			}
			t.Run(c.line, func(t *testing.T) {
				out := shell(t, filepath.Join(dir, filepath.Dir(document.path)), c.short())
				if strings.Contains(out, "warning: no ") || strings.Contains(out, "[no test files]") ||
					strings.Contains(c.line, "-bench ") && !strings.Contains(c.line, " > ") && !strings.Contains(out, " ns/op") {
					t.Errorf("%s\nfinds nothing to run:\n%s", c.short(), out)
				}
			})
		}
	}
}

// copied returns a copy of the repository without hidden files and workspaces. Go sees
// which files are read here, and repeats the test when one of them has changed.
func copied(t *testing.T) string {
	t.Helper()
	from, to := root(t), t.TempDir()
	entries, err := os.ReadDir(from)
	for _, entry := range entries {
		name := entry.Name()
		if err != nil || name[0] == '.' || strings.HasPrefix(name, "go.work") {
			continue
		}
		if entry.IsDir() {
			err = os.CopyFS(filepath.Join(to, name), os.DirFS(filepath.Join(from, name)))
			continue
		}
		var text []byte
		if text, err = os.ReadFile(filepath.Join(from, name)); err == nil {
			err = os.WriteFile(filepath.Join(to, name), text, 0o666)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// shell runs a command in a directory, and returns its output.
func shell(t *testing.T, dir, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", command)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	// A test that hangs must end before the command does, to say where.
	cmd.Env = append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -vet=off -timeout=3m", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// root returns the directory of the repository, in which each test is.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, err = os.Stat(filepath.Join(dir, "internal", "docs")); err == nil {
			return dir
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir, err = parent, nil
		}
	}
	t.Fatal(err)
	return ""
}
