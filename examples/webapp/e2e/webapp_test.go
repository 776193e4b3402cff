// Package e2e tests the site with a real browser.
package e2e

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/device"
	"github.com/chromedp/chromedp/kb"
)

var screenshots = flag.String("screenshots", "", "write screenshots of two browsers to this `directory`")

// The tests share an executable and a browser, in which each tab has its own cookies.
var (
	webapp   string
	chromium context.Context // nil if there is no Chromium
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	names := []string{"chromium", "chromium-browser", "google-chrome", "chrome"}
	installed := slices.IndexFunc(names, func(name string) bool { _, err := exec.LookPath(name); return err == nil })
	if installed < 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "webapp")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	webapp = filepath.Join(dir, "webapp")
	build := exec.Command("go", "build", "-o", webapp, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		log.Printf("go build: %v\n%s", err, out)
		return 1
	}

	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(names[installed]),
		chromedp.UserDataDir(filepath.Join(dir, "profile")),
		chromedp.Flag("host-resolver-rules", "MAP site.example 127.0.0.1"),
		chromedp.WSURLReadTimeout(time.Minute))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium has no sandbox for root
	}
	allocated, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	defer cancel()
	ctx, cancel := chromedp.NewContext(allocated)
	defer cancel()
	if err := chromedp.Do(ctx); err != nil {
		log.Printf("start Chromium: %v", err)
		return 1
	}
	chromium = ctx
	return m.Run()
}

// A program is a running instance of the site.
type program struct {
	t    *testing.T
	dir  string
	addr string   // with the actual port after the first start
	args []string // other arguments

	cmd *exec.Cmd
}

func newProgram(t *testing.T, args ...string) *program {
	t.Helper()
	if chromium == nil {
		t.Skip("there is no Chromium (on Debian: apt-get install chromium)")
	}
	p := &program{t: t, dir: filepath.Join(t.TempDir(), "chai_db"), addr: "localhost:0", args: args}
	p.start()
	t.Cleanup(p.stop)
	return p
}

// start starts the program and waits until it listens. A restarted program listens at
// the same address.
func (p *program) start() {
	p.t.Helper()
	p.cmd = exec.Command(webapp, append([]string{"-dir", p.dir, "-addr", p.addr}, p.args...)...)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_, port, ok := strings.Cut(strings.TrimSpace(line), "listening on http://127.0.0.1:")
	if err != nil || !ok {
		p.stop()
		p.t.Fatalf("the program printed %q (%v)", line, err)
	}
	p.addr = "localhost:" + port
}

// stop interrupts the program and waits for its end.
func (p *program) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Error(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the program ended with %v", err)
	}
}

// A browser is a tab with its own cookies, so the site sees it as a browser.
type browser struct {
	t   *testing.T
	ctx context.Context
	url string
}

func newBrowser(t *testing.T, p *program) *browser {
	t.Helper()
	limited, cancel := context.WithTimeout(chromium, 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(limited, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	return &browser{t, ctx, "http://" + p.addr + "/"}
}

// do performs actions on the page.
func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// follow performs actions that lead to another page, and waits for that page.
func (b *browser) follow(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if _, err := chromedp.RunResponse(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// evaluate returns the value of a JavaScript expression.
func evaluate[T any](b *browser, expression string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

// open opens the page, which must show a heading.
func (b *browser) open(heading string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.url))
	b.wantHeading(heading)
}

func (b *browser) wantHeading(want string) {
	b.t.Helper()
	if got := evaluate[string](b, `document.querySelector("h1").innerText`); got != want {
		b.t.Fatalf("the heading is %q, want %q", got, want)
	}
}

// awaitFocus waits until the browser gives the focus to the field for the name, which
// it does a moment after it has loaded the page.
func (b *browser) awaitFocus() {
	b.t.Helper()
	if _, err := chromedp.Run(b.ctx, chromedp.Poll[bool](`document.activeElement?.id === "name"`)); err != nil {
		b.t.Fatalf("wait for the focus: %v", err)
	}
}

func (b *browser) signIn(name string) {
	b.t.Helper()
	b.open("Sign in")
	b.do(chromedp.SendKeys(chromedp.ID("name"), name))
	b.follow(chromedp.Click(chromedp.CSS(".signin button")))
	b.wantHeading("Hello, " + name)
}

// wantPlaces opens the page and checks the places on it.
func (b *browser) wantPlaces(want ...string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.url))
	got := evaluate[[]string](b, `[...document.querySelectorAll(".places h3")].map(h => h.innerText)`)
	if !slices.Equal(got, want) {
		b.t.Fatalf("the places are %q, want %q", got, want)
	}
}

// await waits until the page, which does not load again, has this number of places.
func (b *browser) await(places int) {
	b.t.Helper()
	if _, err := chromedp.Run(b.ctx, chromedp.Poll[bool](fmt.Sprintf(`document.querySelectorAll(".places li").length === %d`, places))); err != nil {
		b.t.Fatalf("wait for %d places: %v", places, err)
	}
}

// turns performs actions elsewhere that make this page turn to the one for signing in,
// and returns how long that takes after them.
func (b *browser) turns(elsewhere func()) time.Duration {
	b.t.Helper()
	var start time.Time
	b.follow(chromedp.Func(func(context.Context, *chromedp.Target) error {
		elsewhere()
		start = time.Now()
		return nil
	}))
	took := time.Since(start)
	b.wantHeading("Sign in")
	b.wantNotice("You were signed out on another device.")
	return took
}

func (b *browser) wantNotice(want string) {
	b.t.Helper()
	if got := evaluate[string](b, `document.querySelector("[role=status]").innerText`); got != want {
		b.t.Fatalf("the page says %q, want %q", got, want)
	}
}

// save writes a screenshot of the page, if the flag asks for it.
func (b *browser) save(name string) {
	b.t.Helper()
	if *screenshots == "" {
		return
	}
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name), picture, 0o666); err != nil {
		b.t.Fatal(err)
	}
}

// TestTwoBrowsers signs a phone out from a laptop. The page on the phone turns without
// being touched, and the lists on both are up to date without loading the page again.
func TestTwoBrowsers(t *testing.T) {
	p := newProgram(t)
	laptop, phone, tablet := newBrowser(t, p), newBrowser(t, p), newBrowser(t, p)
	laptop.do(chromedp.EmulateViewport(760, 450, chromedp.EmulateScale(2)))
	phone.do(chromedp.Emulate(device.IPhone13))

	laptop.signIn("Ada")
	const focused = "Sign out Chrome on Linux, this one"
	laptop.do(chromedp.Focus(chromedp.CSS(".here button")))
	phone.signIn("Ada")
	laptop.await(2)
	if got := evaluate[string](laptop, "document.activeElement.ariaLabel"); got != focused {
		t.Errorf("the focus is on %q, want %q", got, focused)
	}

	p.stop() // does not wait for the streams
	p.start()
	tablet.signIn("Ada")
	laptop.await(3) // both have connected again
	phone.await(3)

	took := phone.turns(func() { laptop.follow(chromedp.Click(chromedp.ID("elsewhere"))) })
	if took > time.Second {
		t.Errorf("the page turns after %v, want a second", took)
	}
	phone.wantUsable()
	laptop.wantNotice("You have been signed out in 2 other places.")
	laptop.await(1)
	laptop.save("laptop.png")
	phone.save("phone.png")

	// Those who sign out themselves are not told of another device.
	laptop.follow(chromedp.Click(chromedp.CSS(".here button")))
	laptop.wantHeading("Sign in")
	laptop.wantNotice("You are signed out.")
}

// TestHiddenPage checks that a page that nobody sees needs no connection, and turns when
// it is looked at.
func TestHiddenPage(t *testing.T) {
	p := newProgram(t)
	laptop, phone := newBrowser(t, p), newBrowser(t, p)
	laptop.signIn("Ada")
	phone.signIn("Ada")
	hide := func(hidden string) {
		evaluate[bool](phone, `Object.defineProperty(document, "hidden", {value: `+hidden+`, configurable: true});
			document.dispatchEvent(new Event("visibilitychange"))`)
	}
	hide("true")
	if got := evaluate[int](phone, "stream.readyState"); got != 2 { // CLOSED
		t.Fatalf("the stream of a hidden page is in state %d", got)
	}
	laptop.await(2)
	laptop.follow(chromedp.Click(chromedp.ID("elsewhere")))
	phone.wantHeading("Hello, Ada")
	phone.turns(func() { hide("false") })
}

func TestWithoutScript(t *testing.T) {
	p := newProgram(t)
	laptop, phone := newBrowser(t, p), newBrowser(t, p)
	phone.do(chromedp.Emulate(device.IPhone13))
	for _, b := range []*browser{laptop, phone} {
		b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
			return err
		}))
	}

	laptop.signIn("Ada")
	phone.signIn("Ada")
	laptop.wantPlaces("Chrome on Linux this one", "Safari on iPhone")
	phone.wantPlaces("Safari on iPhone this one", "Chrome on Linux")

	p.stop()
	p.start()
	phone.wantPlaces("Safari on iPhone this one", "Chrome on Linux")
	laptop.wantPlaces("Chrome on Linux this one", "Safari on iPhone")

	laptop.follow(chromedp.Click(chromedp.CSS(`[aria-label="Sign out Safari on iPhone"]`)))
	laptop.wantPlaces("Chrome on Linux this one")
	phone.open("Sign in")
	laptop.wantPlaces("Chrome on Linux this one")
}

func TestCookie(t *testing.T) {
	b := newBrowser(t, newProgram(t))
	b.signIn("Ada")
	result, err := chromedp.Run(b.ctx, func(ctx context.Context, t *chromedp.Target) (network.GetCookiesResult, error) {
		return cdp.Call(ctx, t, network.GetCookies, network.GetCookiesParams{})
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Cookies) != 1 {
		t.Fatalf("there are %d cookies, want 1", len(result.Cookies))
	}
	c := result.Cookies[0]
	if !c.HTTPOnly || !c.Secure || c.SameSite != network.CookieSameSiteLax || c.Session {
		t.Errorf("the cookie has HttpOnly: %v, Secure: %v, SameSite: %v, Session: %v",
			c.HTTPOnly, c.Secure, c.SameSite, c.Session)
	}
	if seen := evaluate[string](b, "document.cookie"); seen != "" {
		t.Error("scripts can read the cookie")
	}
}

// TestPlainHTTP signs in to a site that is not on localhost. Without TLS, browsers
// silently drop the cookie, unless the program runs with -insecure.
func TestPlainHTTP(t *testing.T) {
	elsewhere := func(p *program) *browser {
		b := newBrowser(t, p)
		b.url = strings.Replace(b.url, "localhost", "site.example", 1)
		return b
	}
	b := elsewhere(newProgram(t))
	b.open("Sign in")
	b.do(chromedp.SendKeys(chromedp.ID("name"), "Ada"))
	b.follow(chromedp.Click(chromedp.CSS(".signin button")))
	b.wantHeading("Sign in")
	if got := evaluate[string](b, `document.querySelector("[role=alert]").innerText`); !strings.Contains(got, "start it with -insecure") {
		t.Errorf("the page says %q", got)
	}

	elsewhere(newProgram(t, "-insecure")).signIn("Ada")
}

// TestErrorOnField checks that a field with an error looks different, even while it has
// the focus.
func TestErrorOnField(t *testing.T) {
	b := newBrowser(t, newProgram(t))
	b.open("Sign in")
	outline := func() string {
		b.awaitFocus()
		b.do(chromedp.KeyEvent("x")) // the first key gives the page the focus
		return evaluate[string](b, `getComputedStyle(document.activeElement).outlineColor`)
	}
	usual := outline()
	b.do(chromedp.SetValue(chromedp.ID("name"), "a\u202eb"))
	b.follow(chromedp.Click(chromedp.CSS(".signin button")))
	b.awaitFocus()
	if got := evaluate[string](b, `document.activeElement.getAttribute("aria-describedby")`); got != "problem" {
		t.Fatalf("the focused element is described by %q, want problem", got)
	}
	want := evaluate[string](b, `getComputedStyle(document.getElementById("problem")).color`)
	if got := outline(); got != want || got == usual {
		t.Errorf("the outline of the field is %s, want %s; without an error it is %s", got, want, usual)
	}
}

// TestKeyboard uses only the keyboard to sign in, and to sign out another browser.
func TestKeyboard(t *testing.T) {
	p := newProgram(t)
	b, phone := newBrowser(t, p), newBrowser(t, p)
	phone.do(chromedp.Emulate(device.IPhone13))
	phone.signIn("Ada")

	b.open("Sign in")
	b.awaitFocus()
	b.follow(chromedp.KeyEvent("Ada" + kb.Enter))
	b.wantHeading("Hello, Ada")
	b.do(chromedp.KeyEvent(kb.Tab + kb.Tab)) // to the second button
	if got := evaluate[string](b, "document.activeElement.ariaLabel"); got != "Sign out Safari on iPhone" {
		t.Fatalf("the focus is on %q", got)
	}
	if got := evaluate[string](b, "getComputedStyle(document.activeElement).outlineStyle"); got != "solid" {
		t.Errorf("the outline of the focused button is %q, want solid", got)
	}
	phone.turns(func() { b.follow(chromedp.KeyEvent(kb.Enter)) })
	b.wantPlaces("Chrome on Linux this one")
}

// A form is an empty form. Its function is called just before the form is sent.
type form func()

func (f form) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// TestEnded ends a session while a request that uses it is being served.
func TestEnded(t *testing.T) {
	p := newProgram(t)
	laptop := newBrowser(t, p)
	laptop.signIn("Ada")
	// A proxy holds a form back until the program, which has loaded the session, asks for
	// it. First, the laptop signs the other browser out.
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Transport: &http.Transport{ExpectContinueTimeout: time.Minute},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: p.addr})
			if r.In.URL.Path == "/signout-elsewhere" {
				r.Out.Header.Set("Expect", "100-continue")
				r.Out.ContentLength = -1 // unknown
				r.Out.Body = io.NopCloser(form(func() {
					if _, err := chromedp.RunResponse(laptop.ctx, chromedp.Click(chromedp.CSS(".places li:not(.here) button"))); err != nil {
						t.Error(err)
					}
				}))
			}
		},
	})
	defer proxy.Close()
	for name, device := range map[string]chromedp.Action[chromedp.Void]{
		"narrow": chromedp.Emulate(device.IPhoneSE),
		"wide":   chromedp.EmulateViewport(1440, 900),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBrowser(t, p)
			b.url = strings.Replace(proxy.URL, "127.0.0.1", "localhost", 1)
			b.do(device)
			b.signIn("Ada")
			laptop.open("Hello, Ada")
			b.follow(chromedp.Click(chromedp.CSS("[action='/signout-elsewhere'] button")))
			b.wantHeading("Sign in")
			b.wantUsable()
			b.wantNotice("You were signed out on another device.")
			laptop.wantPlaces("Chrome on Linux this one")
		})
	}
}

// wantUsable checks that the page does not scroll sideways, and that its buttons and
// fields are large enough for fingers.
func (b *browser) wantUsable() {
	b.t.Helper()
	if n := evaluate[int](b, "document.documentElement.scrollWidth - innerWidth"); n > 0 {
		b.t.Errorf("the page is %d pixels too wide", n)
	}
	if n := evaluate[int](b, `[...document.querySelectorAll("button, input:not([type=hidden])")].filter(e => e.offsetHeight < 44).length`); n > 0 {
		b.t.Errorf("%d buttons or fields are less than 44 pixels high", n)
	}
}

// TestPhone uses a narrow screen and a long name.
func TestPhone(t *testing.T) {
	p := newProgram(t)
	for range 2 {
		b := newBrowser(t, p)
		b.do(chromedp.Emulate(device.IPhoneSE))
		b.open("Sign in")
		b.wantUsable()
		b.signIn(strings.Repeat("W", 25))
		b.wantUsable()
	}
}
