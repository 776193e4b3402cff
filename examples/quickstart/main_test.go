package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// A process is the program, running.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	url string
}

func build(t *testing.T) (program string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a process can't be interrupted by another one on Windows")
	}
	program = filepath.Join(t.TempDir(), "quickstart")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// start starts the program and waits until it listens.
func start(t *testing.T, program, dir string) *process {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "-dir", dir, "-addr", "127.0.0.1:0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		t.Fatalf("the program printed %q (%v)", line, err)
	}
	return &process{t, cmd, url}
}

// stop interrupts the program and waits for its end.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("the program ended with %v", err)
	}
}

func (p *process) get(client *http.Client, path string) string {
	p.t.Helper()
	response, err := client.Get(p.url + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		p.t.Fatalf("GET %s: %s: %s", path, response.Status, body)
	}
	return strings.TrimSpace(string(body))
}

func newBrowser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, Timeout: 10 * time.Second}
}

func TestSessionSurvivesRestart(t *testing.T) {
	const message, none = "Hello from a session!", "There is no message in your session: see /put."
	program, dir := build(t), filepath.Join(t.TempDir(), "chai_db")
	alice, bob := newBrowser(t), newBrowser(t)
	want := func(p *process, browser *http.Client, want string) {
		t.Helper()
		if got := p.get(browser, "/get"); got != want {
			t.Fatalf("/get: %q, want %q", got, want)
		}
	}

	p := start(t, program, dir)
	want(p, alice, none)
	p.get(alice, "/put")
	p.get(bob, "/put")
	want(p, alice, message)
	p.stop()

	p = start(t, program, dir)
	want(p, alice, message)
	p.get(alice, "/logout")
	want(p, alice, none)
	want(p, bob, message)
	p.stop()

	p = start(t, program, dir)
	want(p, alice, none)
	want(p, bob, message)
	p.stop()

	expireAll(t, dir)
	p = start(t, program, dir)
	want(p, bob, none)
	p.stop()
}

// expireAll makes all sessions in dir expire.
func expireAll(t *testing.T, dir string) {
	t.Helper()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	store := chaistore.NewWithCleanupInterval(db, 0)
	sessions, err := store.All()
	if err != nil {
		t.Fatal(err)
	}
	if len(sessions) == 0 {
		t.Fatal("there are no sessions")
	}
	for token, data := range sessions {
		if err := store.Commit(token, data, time.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestREADMEShowsThisProgram(t *testing.T) {
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), fmt.Sprintf("```go\n%s```\n", program)) {
		t.Error("README.md does not show main.go as it is")
	}
}
