//go:build unix

package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, dir string) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("starting a server is slow")
	}
	bin, err := binaries()
	if errors.Is(err, ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Some systems package PostgreSQL's client separately.
	if _, err := os.Stat(filepath.Join(bin, "psql")); err != nil {
		t.Skip("psql is not installed beside the server")
	}
	server, err := Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// psql returns a command that runs PostgreSQL's client.
func psql(t *testing.T, server *Server, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	args = append([]string{"--no-psqlrc", "--no-align", "--tuples-only", "--dbname=" + server.URL()}, args...)
	return exec.CommandContext(ctx, filepath.Join(server.bin, "psql"), args...)
}

func query(t *testing.T, server *Server, sql string) (result string) {
	t.Helper()
	out, err := psql(t, server, "--command="+sql).Output()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.TrimSpace(string(out))
}

// Two servers run beside each other.
func TestServer(t *testing.T) {
	server, other := start(t, filepath.Join(t.TempDir(), strings.Repeat("long", 30))), start(t, t.TempDir())
	defer other.Stop()
	defer server.Stop()
	const identifier = "SELECT system_identifier::text FROM pg_control_system()"
	if query(t, server, identifier) == query(t, other, identifier) {
		t.Error("the two servers share a cluster")
	}
	// A commit must be on the disk when it returns.
	for _, setting := range []string{"fsync", "synchronous_commit"} {
		if got := query(t, server, "SHOW "+setting); got != "on" {
			t.Errorf("%s is %q, want on", setting, got)
		}
	}
	version, err := Version()
	if err != nil {
		t.Fatal(err)
	}
	if running := query(t, server, "SHOW server_version"); !strings.Contains(version, running) {
		t.Errorf("the server has the version %q, but Version returns %q", running, version)
	}
	t.Run("password", func(t *testing.T) { testPassword(t, server) })
	t.Run("stop", func(t *testing.T) { testStopDisconnects(t, server) })
}

// Users other than the superuser need a password.
func testPassword(t *testing.T, server *Server) {
	query(t, server, "CREATE ROLE web LOGIN PASSWORD 'right'")
	for password, want := range map[string]bool{"right": true, "wrong": false} {
		url := strings.Replace(server.URL(), "user=postgres", "user=web", 1)
		client := psql(t, server, "--dbname="+url, "--command=SELECT 1")
		client.Env = append(os.Environ(), "PGPASSWORD="+password)
		if out, err := client.CombinedOutput(); (err == nil) != want {
			t.Errorf("with the password %s the client ended with %v: %s", password, err, out)
		}
	}
}

func testStopDisconnects(t *testing.T, server *Server) {
	client := psql(t, server)
	statements, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	results := bufio.NewScanner(out)
	fmt.Fprintln(statements, "SELECT 'one';")
	if !results.Scan() || results.Text() != "one" {
		t.Fatalf("the client printed %q (%v)", results.Text(), results.Err())
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(statements, "SELECT 'two';")
	statements.Close()
	if results.Scan() {
		t.Errorf("after Stop the server answers %q", results.Text())
	}
	if err := client.Wait(); err == nil {
		t.Error("the client did not notice Stop")
	}
}

func TestStartInUsedDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := Start(dir)
	switch {
	case errors.Is(err, ErrNotInstalled):
		t.Skip(err)
	case err == nil:
		server.Stop()
		t.Fatal("a server was started in a directory that is not empty")
	case !strings.Contains(err.Error(), "not empty"):
		t.Errorf("the error does not say that the directory is not empty: %v", err)
	}
}

func TestNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	defer func(before []string) { installations = before }(installations)
	installations = []string{filepath.Join(t.TempDir(), "*")}
	if _, err := Start(t.TempDir()); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("the error of Start is %v, want %v", err, ErrNotInstalled)
	}
	if _, err := Version(); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("the error of Version is %v, want %v", err, ErrNotInstalled)
	}
}

func TestNewestInstallationIsUsed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	defer func(before []string) { installations = before }(installations)
	root := t.TempDir()
	t.Chdir(root)
	installations = []string{"postgresql/*/bin"}
	for _, version := range []string{"9.6", "17", "8"} {
		bin := filepath.Join("postgresql", version, "bin")
		if err := os.MkdirAll(bin, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bin, "initdb"), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	got, err := binaries()
	if want := "postgresql/17/bin"; err != nil || got != want {
		t.Errorf("the binaries are in %q (%v), want %q", got, err, want)
	}
}

func TestLinkInPath(t *testing.T) {
	installed, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	initdb := filepath.Join(installed, "initdb")
	if err := os.WriteFile(initdb, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	path := t.TempDir()
	if err := os.Symlink(initdb, filepath.Join(path, "initdb")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", path)
	if got, err := binaries(); err != nil || got != installed {
		t.Errorf("the binaries are in %q (%v), want %q", got, err, installed)
	}
}
