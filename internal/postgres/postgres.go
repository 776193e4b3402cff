//go:build unix

// Package postgres starts PostgreSQL servers for tests and measurements, from the
// binaries that are installed on the system. Each server has its own, empty cluster.
//
// A server has the default settings, and listens only on a Unix socket. It trusts the
// superuser, which [Server.URL] names, and asks other users for passwords. If the
// process that started a server ends without [Server.Stop], the server keeps running
// until its directory is deleted.
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

// ErrNotInstalled is the error of [Start] and [Version] if there are no PostgreSQL
// binaries.
var ErrNotInstalled = errors.New("PostgreSQL is not installed")

// superuser is the name of the role that owns a cluster.
const superuser = "postgres"

// A Server is a running PostgreSQL server.
type Server struct {
	bin     string
	data    string
	sockets string
	owner   *syscall.Credential
}

// Start creates a cluster in dir, which must be empty or not exist, and starts a server
// on it. It returns when the server accepts connections. If PostgreSQL is not installed,
// the error is [ErrNotInstalled].
//
// PostgreSQL refuses to run as root. If the process runs as root, Start makes the user
// postgres, or else nobody, the owner of dir, and runs the server as that user. The user
// must be able to pass through the directories above dir. If dir was made by
// [testing.T.TempDir] or [os.MkdirTemp], Start sets their permissions.
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
	// The path of a socket is limited to about 100 bytes, and dir may be longer.
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
	// Without --no-sync, initdb would wait until the empty cluster is on the disk. The
	// server itself syncs.
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

// URL returns the URL with which clients connect to the server's database.
func (s *Server) URL() string {
	query := url.Values{"host": {s.sockets}, "user": {superuser}}
	return "postgres:///postgres?" + query.Encode()
}

// Stop disconnects the clients, shuts the server down, and waits until it has ended. It
// leaves the cluster in place. Stop must be called only once.
func (s *Server) Stop() error {
	err := s.run("pg_ctl", "stop", "--wait", "--silent", "--mode=fast", "--pgdata="+s.data)
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return os.RemoveAll(s.sockets)
}

// run runs one of PostgreSQL's programs until it ends.
func (s *Server) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = string(filepath.Separator) // the cluster's owner may lack access to ours
	if s.owner != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	}
	// pg_ctl leaves the server running, which would keep a pipe open.
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

// owner returns the user to run the server as, or nil for the current user.
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

// letPassTo lets all users pass through the directories between [os.TempDir] and dir.
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

// installations has patterns for directories that are not in PATH. Debian, Fedora and
// Homebrew keep several versions of the server there.
var installations = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql@*/bin",
	"/usr/local/opt/postgresql@*/bin",
}

var number = regexp.MustCompile(`[0-9]+`)

// binaries returns the directory of the server's binaries: the one in PATH if there is
// one, or else the newest installation.
func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		// initdb may be a link, without links to the other programs beside it.
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
