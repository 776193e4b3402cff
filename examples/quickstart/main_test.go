package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// A process is a running instance of the program.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	url string
}

// The tests run this test binary again as the program.
const childEnv = "QUICKSTART_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
		return
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil { // they wait for time to pass
		log.Fatal(err)
	}
	os.Exit(m.Run())
}

// command returns a command that runs the program in a directory.
func command(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, one process can't interrupt another")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), childEnv+"=1", "PORT=0")
	return cmd
}

// start starts the program in a directory and waits until it listens.
func start(t *testing.T, dir string) *process {
	t.Helper()
	cmd := command(t, dir)
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
	if err != nil || !ok || !strings.HasPrefix(url, "http://localhost:") {
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

// wantVisit opens the page, which must say how many visits the browser has made.
func (p *process) wantVisit(browser *http.Client, want int) {
	p.t.Helper()
	status, body, err := get(browser, p.url)
	if want := fmt.Sprintf("Visit %d. ", want); err != nil || !strings.HasPrefix(body, want) {
		p.t.Fatalf("the server answers %s %q (%v), want %q", status, body, err, want)
	}
}

func get(browser *http.Client, url string) (status, body string, err error) {
	response, err := browser.Get(url)
	if err != nil {
		return "", "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.Status, string(text), err
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
	dir := t.TempDir()
	alice, bob := newBrowser(t), newBrowser(t)

	p := start(t, dir)
	p.wantVisit(alice, 1)
	p.wantVisit(alice, 2)
	p.wantVisit(bob, 1)
	p.stop()

	p = start(t, dir)
	p.wantVisit(alice, 3)
	p.wantVisit(bob, 2)
	p.stop()

	expireAll(t, filepath.Join(dir, "chai_db"))
	p = start(t, dir)
	p.wantVisit(alice, 1)
	p.stop()
}

// An interrupted program finishes the requests under way: it answers each visit that it
// counts.
func TestInterruptUnderLoad(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	browsers, visits := make([]*http.Client, 8), make([]int, 8)
	var interrupted atomic.Bool
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for i := range browsers {
		browsers[i] = newBrowser(t)
		p.wantVisit(browsers[i], 1)
		visits[i] = 1
		wg.Go(func() {
			for {
				status, body, err := get(browsers[i], p.url)
				if err != nil && interrupted.Load() {
					return
				}
				if want := fmt.Sprintf("Visit %d. ", visits[i]+1); err != nil || !strings.HasPrefix(body, want) {
					t.Errorf("the server answers %s %q (%v), want %q", status, body, err, want)
					return
				}
				visits[i]++
			}
		})
	}
	another := newBrowser(t)
	for i := range 20 {
		p.wantVisit(another, i+1)
	}
	interrupted.Store(true)
	p.stop()
	wg.Wait()

	p = start(t, dir)
	for i, browser := range browsers {
		p.wantVisit(browser, visits[i]+1)
	}
	p.stop()
}

// A program waits for the one that it replaces.
func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	browser := newBrowser(t)
	p := start(t, dir)
	p.wantVisit(browser, 1)
	next := make(chan *process)
	go func() { next <- start(t, dir) }()
	p.wantVisit(browser, 2)
	p.stop()
	p = <-next
	p.wantVisit(browser, 3)
	p.stop()
}

// A program that is interrupted while it waits says why it ends.
func TestDirectoryStaysInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir)
	second := command(t, dir)
	lines, err := second.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	printed := bufio.NewReader(lines)
	for i, want := range []string{"waiting for another process that has the database open", "another process has it open: stop that, or wait longer"} {
		line, err := printed.ReadString('\n')
		if err != nil || !strings.Contains(line, want) || !strings.Contains(line, filepath.Join(dir, "chai_db")) {
			t.Errorf("a second program in the directory printed %q (%v), want %q", line, err, want)
		}
		if i == 0 {
			if err := second.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := second.Wait(); err == nil {
		t.Error("the second program ended without an error")
	}
	p.wantVisit(newBrowser(t), 1)
	p.stop()
}

// A client that does not send the body of its request keeps the program for seven
// seconds, and not beyond another interrupt.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	for name, interrupts := range map[string]int{"one interrupt": 1, "two interrupts": 2} {
		t.Run(name, func(t *testing.T) {
			if interrupts == 1 {
				testdb.Long(t) // waits for seven seconds
			}
			t.Parallel()
			p := start(t, t.TempDir())
			address := strings.TrimPrefix(p.url, "http://")
			slow, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer slow.Close()
			// More than the buffers between the two hold, and less than what the server
			// reads of a body that its handler did not: when all but the last byte is
			// written, the handler has ended and the server waits for that byte.
			const length = 250_000
			if err := slow.(*net.TCPConn).SetWriteBuffer(4 << 10); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(slow, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", length)
			if _, err := slow.Write(make([]byte, length-1)); err != nil {
				t.Fatal(err)
			}
			p.wantVisit(newBrowser(t), 1)
			for i := range interrupts {
				if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
					t.Fatal(err)
				}
				for i == 0 { // until it has noticed
					connection, err := net.Dial("tcp", address)
					if err != nil {
						break
					}
					connection.Close()
				}
			}
			begun := time.Now()
			timer := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
			defer timer.Stop()
			p.cmd.Wait()
			waited, want := time.Since(begun), "exit status 1"
			if interrupts > 1 {
				want = "signal: interrupt"
			}
			if state := p.cmd.ProcessState.String(); state != want || waited > 9*time.Second {
				t.Errorf("the program ended after %v with %q, want %q", waited, state, want)
			}
		})
	}
}

// The connection of a client that does not send its request ends after ten seconds.
func TestSlowClientIsCutOff(t *testing.T) {
	testdb.Long(t) // waits for ten seconds
	t.Parallel()
	p := start(t, t.TempDir())
	slow, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprint(slow, "POST / HTTP/1.1\r\n")
	slow.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadAll(slow); err != nil {
		t.Errorf("the connection does not end: %v", err)
	}
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

// The curl commands in the README print what it says.
func TestREADMEShowsWhatCurlPrints(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, console, _ := strings.Cut(string(readme), "```console\n")
	console, _, _ = strings.Cut(console, "```")
	p := start(t, t.TempDir())
	defer p.stop()
	dir := t.TempDir() // for the cookies
	lines := strings.Split(strings.TrimSpace(console), "\n")
	if len(lines) != 4 {
		t.Fatalf("the README shows %d lines of a terminal, want 4", len(lines))
	}
	for i := 0; i < len(lines); i += 2 {
		command := strings.ReplaceAll(strings.TrimPrefix(lines[i], "$ "), "http://localhost:4000", p.url)
		curl := exec.Command("sh", "-c", command+" --silent --show-error")
		curl.Dir = dir
		out, err := curl.CombinedOutput()
		if got := strings.TrimSpace(string(out)); got != lines[i+1] || err != nil {
			t.Errorf("%s prints %q (%v), want %q", lines[i], got, err, lines[i+1])
		}
	}
}
