//go:build unix

// Package postgres starts PostgreSQL servers for tests and measurements, from the
// binaries that are installed on the system, each with an empty cluster of its
// own.
//
// A server has the default settings, and listens on a Unix socket alone. It trusts
// the superuser, whom [Server.URL] names, and asks other users for their
// passwords. It keeps running if the process that started it ends without
// [Server.Stop], until somebody deletes its directory.
package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ErrNotInstalled is the error of [Start] and of [Version] where there are no
// PostgreSQL binaries.
var ErrNotInstalled = errors.New("PostgreSQL is not installed")

// superuser is the name of the role that owns a cluster.
const superuser = "postgres"

// A Server is a PostgreSQL server that runs.
type Server struct {
	bin     string
	data    string
	sockets string
	owner   *syscall.Credential
}

// Start creates a cluster in dir, which must be empty or not exist, and starts a
// server on it. It returns when the server takes connections. If PostgreSQL is
// not installed, the error is [ErrNotInstalled].
//
// PostgreSQL refuses to be run by root: a process of root starts it as the user
// postgres, or nobody, to whom dir then belongs. That user has to be able to pass
// through the directories above dir. For a directory like those that
// [testing.T.TempDir] and [os.MkdirTemp] make, Start sees to that.
func Start(dir string) (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin}
	if s.data, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	if s.owner, err = owner(); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	if err := os.MkdirAll(s.data, 0o700); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	// The path of a socket may have about 100 bytes, which that of dir may exceed.
	if s.sockets, err = os.MkdirTemp("", "postgres"); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	if err := s.start(); err != nil {
		os.RemoveAll(s.sockets)
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	return s, nil
}

func (s *Server) start() error {
	if s.owner != nil {
		for _, dir := range []string{s.data, s.sockets} {
			if err := os.Chown(dir, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
				return err
			}
		}
		if err := letPassTo(s.data); err != nil {
			return err
		}
	}
	// Without --no-sync initdb waits until the empty cluster is on the disk, which
	// is of no use here. The server itself syncs.
	if err := s.run("initdb", "--no-sync", "--auth=trust", "--username="+superuser,
		"--encoding=UTF8", "--locale=C", "--pgdata="+s.data); err != nil {
		return err
	}
	hba := "local all " + superuser + " trust\nlocal all all scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(s.data, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		return err
	}
	log := filepath.Join(s.sockets, "log")
	if err := s.run("pg_ctl", "start", "--wait", "--silent", "--pgdata="+s.data, "--log="+log,
		"--options=-c listen_addresses= -k "+s.sockets); err != nil {
		text, _ := os.ReadFile(log)
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// URL returns the URL of the server's database for a client's connections.
func (s *Server) URL() string {
	query := url.Values{"host": {s.sockets}, "user": {superuser}}
	return "postgres:///postgres?" + query.Encode()
}

// Stop disconnects the clients, shuts the server down, and waits for its end. The
// cluster stays. It must be called once.
func (s *Server) Stop() error {
	err := s.run("pg_ctl", "stop", "--wait", "--silent", "--mode=fast", "--pgdata="+s.data)
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return os.RemoveAll(s.sockets)
}

// run runs one of PostgreSQL's programs, and waits for its end.
func (s *Server) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = string(filepath.Separator) // the owner of the cluster may not enter ours
	if s.owner != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	}
	// A pipe would stay open until the server that pg_ctl leaves behind ends.
	out, err := os.CreateTemp("", program)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w\n%s", program, err, text)
	}
	return nil
}

// owner returns the user that the server runs as, or nil if it is our own.
func owner() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("find a user other than root to run it: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// letPassTo lets all users pass through the directories between that of temporary
// files and dir.
func letPassTo(dir string) error {
	for {
		dir = filepath.Dir(dir)
		below, err := filepath.Rel(os.TempDir(), dir)
		if err != nil || below == "." || strings.HasPrefix(below, "..") {
			return nil
		}
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil {
			return err
		}
	}
}

// Version returns the name and the version of the installed server.
func Version() (string, error) {
	bin, err := binaries()
	if err != nil {
		return "", err
	}
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask for the version of PostgreSQL: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Debian, Fedora and Homebrew keep the server's binaries out of PATH, so that
// several versions can be installed.
var installations = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql@*/bin",
	"/usr/local/opt/postgresql@*/bin",
}

var number = regexp.MustCompile(`[0-9]+`)

// binaries returns the directory of the newest server's binaries, of those in
// PATH if there are any.
func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		// Beside a link there need not be links to the other programs.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", fmt.Errorf("find the programs of PostgreSQL: %w", err)
		}
		return filepath.Dir(path), nil
	}
	var found []string
	for _, pattern := range installations {
		dirs, err := filepath.Glob(filepath.Join(pattern, "initdb"))
		if err != nil {
			return "", err
		}
		found = append(found, dirs...)
	}
	if len(found) == 0 {
		return "", ErrNotInstalled
	}
	version := func(path string) int {
		v, _ := strconv.Atoi(number.FindString(path))
		return v
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) })
	return filepath.Dir(newest), nil
}
