package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func start(t *testing.T, dir string) *Server {
	t.Helper()
	server, err := Start(dir)
	if errors.Is(err, ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func query(t *testing.T, server *Server, sql string) (result string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&result); err != nil {
		t.Fatal(err)
	}
	return result
}

func TestServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	server := start(t, dir)
	// Each commit is on the disk when it returns.
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
		t.Errorf("the server is of version %q, and Version returns %q", running, version)
	}
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the server answers after Stop")
	}
}

func TestTwoServers(t *testing.T) {
	one, two := start(t, t.TempDir()), start(t, t.TempDir())
	defer two.Stop()
	defer one.Stop()
	const identifier = "SELECT system_identifier::text FROM pg_control_system()"
	if query(t, one, identifier) == query(t, two, identifier) {
		t.Error("the two servers have one cluster")
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
