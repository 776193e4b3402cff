package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// A site serves the app over TLS, from a database on disk.
type site struct {
	t   *testing.T
	dir string

	db     *chai.DB
	store  *chaistore.ChaiStore
	app    *app
	server *httptest.Server
	log    bytes.Buffer // of the server

	// Requests for /held send to held in their handlers, and go on when release is closed.
	// GET renders the home page and is then held. POST is held first, and then signs out
	// elsewhere. A stream, at /held/events, is held before its session is committed.
	held, release chan struct{}
}

func newSite(t *testing.T) *site {
	s := &site{t: t, dir: t.TempDir(), held: make(chan struct{}), release: make(chan struct{})}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *site) start() {
	s.t.Helper()
	var err error
	if s.db, err = chai.Open(s.dir); err != nil {
		s.t.Fatal(err)
	}
	if s.store, err = newStore(s.db); err != nil {
		s.t.Fatal(err)
	}
	s.app = newApp(s.store, true)
	a := s.app
	mux := http.NewServeMux()
	mux.Handle("/", a.handler())
	mux.Handle("GET /held", a.withSession(func(w http.ResponseWriter, r *http.Request) {
		a.home(heldWriter{w, s}, r)
	}))
	mux.Handle("POST /held", a.withSession(func(w http.ResponseWriter, r *http.Request) {
		s.hold()
		a.signOutElsewhere(w, r)
	}))
	mux.Handle("GET /held/events", chaistore.LoadAndSave(a.sessions, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.events(heldWriter{w, s}, r)
	})))
	s.server = httptest.NewUnstartedServer(mux)
	s.server.Config.ErrorLog = log.New(&s.log, "", 0)
	s.server.StartTLS()
}

func (s *site) stop() {
	s.server.Close()
	if logged := s.log.String(); strings.Contains(logged, "superfluous") {
		s.t.Errorf("the server logged %q", logged)
	}
	s.store.StopCleanup()
	if err := s.db.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *site) hold() {
	s.held <- struct{}{}
	<-s.release
}

// A heldWriter holds a request just before its answer is written.
type heldWriter struct {
	http.ResponseWriter
	site *site
}

func (w heldWriter) WriteHeader(status int) {
	w.site.hold()
	w.ResponseWriter.WriteHeader(status)
}

func (w heldWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A browser is a client of the site with its own cookies.
type browser struct {
	site      *site
	client    *http.Client
	userAgent string
}

const (
	firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
	safari  = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1"
)

func (s *site) browser(userAgent string) *browser {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	client := s.server.Client()
	return &browser{s, &http.Client{Jar: jar, Transport: client.Transport, Timeout: 20 * time.Second}, userAgent}
}

// A response is the response to a request, after redirects.
type response struct {
	status int
	header http.Header
	body   string
}

func (b *browser) do(method, path string, form url.Values, header ...string) (response, error) {
	request, err := http.NewRequest(method, b.site.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		return response{}, err
	}
	request.Header.Set("User-Agent", b.userAgent)
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	r, err := b.client.Do(request)
	if err != nil {
		return response{}, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return response{r.StatusCode, r.Header, string(body)}, err
}

// get returns the home page.
func (b *browser) get() string {
	b.site.t.Helper()
	r, err := b.do(http.MethodGet, "/", nil)
	if err != nil || r.status != http.StatusOK {
		b.site.t.Fatalf("GET /: %d, %v", r.status, err)
	}
	return r.body
}

func (b *browser) post(path, field, value string) response {
	b.site.t.Helper()
	r, err := b.do(http.MethodPost, path, url.Values{field: {value}})
	if err != nil {
		b.site.t.Fatalf("POST %s: %v", path, err)
	}
	return r
}

func (b *browser) signIn(name string) {
	b.site.t.Helper()
	if r := b.post("/signin", "name", name); r.status != http.StatusOK || !strings.Contains(r.body, "Hello, "+name) {
		b.site.t.Fatalf("after signing in as %s: %d\n%s", name, r.status, r.body)
	}
}

func (b *browser) wantSignedOut() {
	b.site.t.Helper()
	if page := b.get(); !strings.Contains(page, "<h1>Sign in</h1>") {
		b.site.t.Fatalf("the browser is not signed out:\n%s", page)
	}
}

var idPattern = regexp.MustCompile(`name="id" value="([^"]+)">\s*<button id="[^"]+" aria-label="Sign out ([^"]*)"`)

// wantPlaces checks the places on the page and their order. It returns the ids of their
// sessions.
func (b *browser) wantPlaces(want ...string) (ids []string) {
	b.site.t.Helper()
	page := b.get()
	var got []string
	for _, match := range idPattern.FindAllStringSubmatch(page, -1) {
		ids, got = append(ids, match[1]), append(got, match[2])
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.site.t.Fatalf("the places are %q, want %q:\n%s", got, want, page)
	}
	return ids
}

func (b *browser) wantText(want string) {
	b.site.t.Helper()
	if page := b.get(); !strings.Contains(page, want) {
		b.site.t.Fatalf("the page does not contain %q:\n%s", want, page)
	}
}

// cookie returns the value of the session cookie.
func (b *browser) cookie() string {
	u, _ := url.Parse(b.site.server.URL)
	for _, cookie := range b.client.Jar.Cookies(u) {
		if cookie.Name == "session" {
			return cookie.Value
		}
	}
	return ""
}

func TestPlaces(t *testing.T) {
	s := newSite(t)
	laptop, phone := s.browser(firefox), s.browser(safari)
	laptop.wantSignedOut()
	if laptop.cookie() != "" {
		t.Error("a visitor who is not signed in has a session")
	}
	if page := laptop.get(); strings.Contains(page, signedOut) {
		t.Errorf("the page mentions signing out on the first visit:\n%s", page)
	}
	laptop.signIn("Ada")
	phone.signIn("Ada")
	laptop.wantPlaces("Firefox on Linux, this one", "Safari on iPhone")
	phone.wantPlaces("Safari on iPhone, this one", "Firefox on Linux")
	laptop.wantText(`<strong id="visits">3</strong>`)

	// A restart changes nothing.
	s.stop()
	s.start()
	laptop.wantText(`<strong id="visits">4</strong>`)
	ids := laptop.wantPlaces("Firefox on Linux, this one", "Safari on iPhone")

	// The phone is signed out from its next request on.
	if r := laptop.post("/signout", "id", ids[1]); !strings.Contains(r.body, "You have been signed out in one other place.") {
		t.Errorf("the page does not say what happened:\n%s", r.body)
	}
	phone.wantSignedOut()
	laptop.wantPlaces("Firefox on Linux, this one")
	phone.wantSignedOut()
	phone.wantText(signedOut)
	if r := laptop.post("/signout", "id", ids[1]); !strings.Contains(r.body, "You were already signed out there.") {
		t.Errorf("the page does not say that nothing happened:\n%s", r.body)
	}

	// The laptop signs itself out.
	if r := laptop.post("/signout", "id", ids[0]); !strings.Contains(r.body, signedOut) {
		t.Errorf("the page does not say what happened:\n%s", r.body)
	}
	laptop.wantSignedOut()
	if laptop.cookie() != "" {
		t.Error("the cookie is still there")
	}
}

func TestSignOutElsewhere(t *testing.T) {
	s := newSite(t)
	here, other, another, stranger := s.browser(firefox), s.browser(safari), s.browser("curl/8.1"), s.browser(firefox)
	for _, b := range []*browser{here, other, another} {
		b.signIn("Ada")
	}
	stranger.signIn("Bob")
	if r := here.post("/signout-elsewhere", "", ""); !strings.Contains(r.body, "You have been signed out in 2 other places.") {
		t.Errorf("the page does not say what happened:\n%s", r.body)
	}
	other.wantSignedOut()
	another.wantSignedOut()
	here.wantPlaces("Firefox on Linux, this one")
	stranger.wantPlaces("Firefox on Linux, this one")
}

func TestUsersCannotEndSessionsOfOthers(t *testing.T) {
	s := newSite(t)
	ada, bob, nobody := s.browser(firefox), s.browser(safari), s.browser("")
	ada.signIn("Ada")
	bob.signIn("Bob")
	id := ada.wantPlaces("Firefox on Linux, this one")[0]
	for _, b := range []*browser{bob, nobody} {
		b.post("/signout", "id", id)
		b.post("/signout", "id", "")
		b.post("/signout-elsewhere", "", "")
	}
	ada.wantPlaces("Firefox on Linux, this one")
	if nobody.cookie() != "" {
		t.Error("a visitor who is not signed in has a session")
	}
}

// hold sends n requests, and returns once they are held. The channel receives their
// responses; redirects are not followed.
func (b *browser) hold(method, path string, n int) <-chan response {
	b.site.t.Helper()
	client := *b.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	sender := &browser{b.site, &client, b.userAgent}
	responses := make(chan response, n)
	for range n {
		go func() {
			r, err := sender.do(method, path, nil)
			if err != nil {
				r.body = err.Error()
			}
			responses <- r
		}()
	}
	for range n {
		select {
		case <-b.site.held:
		case r := <-responses:
			b.site.t.Fatalf("a request was not held: %d\n%s", r.status, r.body)
		}
	}
	return responses
}

// TestEndedSessionsStayEnded ends sessions that are in use by requests, although SCS
// commits a session at the end of each request.
func TestEndedSessionsStayEnded(t *testing.T) {
	s := newSite(t)
	here, one, stranger := s.browser(firefox), s.browser("curl/8.1"), s.browser(safari)
	here.signIn("Ada")
	one.signIn("Ada")
	stranger.signIn("Bob")
	id := here.wantPlaces("Firefox on Linux, this one", "curl")[1]
	ending := []<-chan response{one.hold("GET", "/held", 9), one.hold("POST", "/held", 1)}
	if r := here.post("/signout", "id", id); !strings.Contains(r.body, "You have been signed out in one other place.") {
		t.Errorf("the page does not say what happened:\n%s", r.body)
	}
	var others []*browser
	for range 4 {
		other := s.browser(safari)
		other.signIn("Ada")
		others = append(others, other)
		ending = append(ending, other.hold("GET", "/held", 10))
	}
	staying := []<-chan response{here.hold("GET", "/held", 3), stranger.hold("GET", "/held", 3)}
	if r := here.post("/signout-elsewhere", "", ""); !strings.Contains(r.body, "You have been signed out in 4 other places.") {
		t.Errorf("the page does not say what happened:\n%s", r.body)
	}
	s.browser("").signIn("Ada") // a later session must stay
	close(s.release)

	for _, responses := range ending {
		for range cap(responses) {
			if r := <-responses; r.status != http.StatusSeeOther || r.header.Get("Location") != "/signedout" || r.body != "" {
				t.Errorf("a request of an ended session: %d to %q\n%s", r.status, r.header.Get("Location"), r.body)
			}
		}
	}
	for _, responses := range staying {
		for range cap(responses) {
			if r := <-responses; r.status != http.StatusOK || !strings.Contains(r.body, "Hello, ") {
				t.Errorf("a request of a session that was not ended: %d\n%s", r.status, r.body)
			}
		}
	}
	for _, b := range append(others, one) {
		if r, err := b.do(http.MethodGet, "/signedout", nil); err != nil || !strings.Contains(r.body, ended) || !strings.Contains(r.body, "<h1>Sign in</h1>") {
			t.Errorf("GET /signedout: %d, %v:\n%s", r.status, err, r.body)
		}
	}
	here.wantPlaces("Firefox on Linux, this one", "Unknown browser")
	stranger.wantPlaces("Safari on iPhone, this one")
}

// TestSigningInAgain checks that a visitor who signs in under another name stays signed
// in, although this ends the session of a request in another tab.
func TestSigningInAgain(t *testing.T) {
	s := newSite(t)
	b := s.browser(firefox)
	b.signIn("Ada")
	responses := b.hold("GET", "/held", 1)
	b.signIn("Bob")
	close(s.release)
	if r := <-responses; r.header.Get("Location") != "/signedout" {
		t.Fatalf("the earlier request: %d to %q\n%s", r.status, r.header.Get("Location"), r.body)
	}
	if r, err := b.do(http.MethodGet, "/signedout", nil); err != nil || !strings.Contains(r.body, "Hello, Bob") {
		t.Errorf("GET /signedout: %d, %v:\n%s", r.status, err, r.body)
	}
}

// A visitor who signs out and closes the tab is signed out.
func TestSignOutWithoutItsVisitor(t *testing.T) {
	for _, path := range []string{"/signout", "/signout-elsewhere"} {
		s := newSite(t)
		here, there := s.browser(firefox), s.browser(safari)
		here.signIn("Ada")
		there.signIn("Ada")
		ids := here.wantPlaces("Firefox on Linux, this one", "Safari on iPhone")
		form := strings.NewReader(url.Values{"id": ids[:1]}.Encode())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		request := httptest.NewRequestWithContext(ctx, http.MethodPost, path, form)
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.AddCookie(&http.Cookie{Name: "session", Value: here.cookie()})
		newApp(s.store, true).handler().ServeHTTP(httptest.NewRecorder(), request)
		if path == "/signout" {
			here.wantSignedOut()
			there.wantPlaces("Safari on iPhone, this one")
		} else {
			there.wantSignedOut()
			here.wantPlaces("Firefox on Linux, this one")
		}
	}
}

// A program that can't open its directory names it.
func TestOpen(t *testing.T) {
	s := newSite(t)
	if err := run(t.Context(), s.dir, "localhost:0", true); err == nil || !strings.Contains(err.Error(), s.dir) {
		t.Errorf("run with a directory in use = %v, want an error that names it", err)
	}
}

func TestSignIn(t *testing.T) {
	s := newSite(t)
	b := s.browser(firefox)
	for name, want := range map[string]string{
		"":                      "Please enter a name.",
		" \t":                   "Please enter a name.",
		"\u200d \u200c":         "Please enter a name.",
		strings.Repeat("é", 26): "no more than 25 characters",
		"a\x00b":                "Please use only letters",
		"a\u202eb":              "Please use only letters",
		"\xff":                  "Please use only letters",
	} {
		r := b.post("/signin", "name", name)
		if r.status != http.StatusUnprocessableEntity || !strings.Contains(r.body, want) {
			t.Errorf("signing in as %q: %d, want %q:\n%s", name, r.status, want, r.body)
		}
	}
	if r := b.post("/signin", "name", strings.Repeat("x", 10_000)); r.status != http.StatusBadRequest {
		t.Errorf("after a form of 10,000 bytes: %d, want 400", r.status)
	}
	b.wantSignedOut()
	for _, name := range []string{strings.Repeat("😀", 25), "مهر\u200cناز", "അനില\u0d4d\u200d", "👩\u200d💻 ❤\ufe0f"} {
		b.signIn(name)
	}
	if r := b.post("/signin", "name", "<b>"); !strings.Contains(r.body, "Hello, &lt;b&gt;") {
		t.Errorf("the name is not shown as text:\n%s", r.body)
	}
}

// TestTokenIsRenewed checks that an attacker can't plant a token and use it after the
// victim has signed in.
func TestTokenIsRenewed(t *testing.T) {
	s := newSite(t)
	victim, attacker := s.browser(firefox), s.browser(safari)
	victim.signIn("Ada")
	planted := victim.cookie()
	victim.signIn("Ada")
	if victim.cookie() == planted || victim.cookie() == "" {
		t.Error("signing in did not change the token")
	}
	attacker.client.Jar = nil
	r, err := attacker.do(http.MethodGet, "/", nil, "Cookie", "session="+planted)
	if err != nil || !strings.Contains(r.body, "<h1>Sign in</h1>") {
		t.Errorf("the old token still works: %d, %v:\n%s", r.status, err, r.body)
	}
	victim.wantPlaces("Firefox on Linux, this one")
}

func TestStoreHasNoTokens(t *testing.T) {
	s := newSite(t)
	b := s.browser(firefox)
	b.signIn("Ada")
	n := 0
	for session, err := range s.store.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if session.Token == b.cookie() || strings.Contains(string(session.Data), b.cookie()) {
			t.Error("the token is in the database unhashed")
		}
		if strings.Contains(b.get(), session.Token) {
			t.Error("the hashed token is on the page")
		}
	}
	if n != 1 {
		t.Errorf("there are %d sessions, want 1", n)
	}
}

func TestCookie(t *testing.T) {
	for secure, advice := range map[bool]string{true: "start it with -insecure", false: "Please allow cookies"} {
		s := newSite(t)
		recorder := httptest.NewRecorder()
		request := httptest.NewRequest(http.MethodPost, "/signin", strings.NewReader("name=Ada"))
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		newApp(s.store, secure).handler().ServeHTTP(recorder, request)
		cookies := recorder.Result().Cookies()
		if len(cookies) != 1 {
			t.Fatalf("there are %d cookies, want 1", len(cookies))
		}
		c := cookies[0]
		if c.Secure != secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" {
			t.Errorf("with secure = %v, the cookie is %v", secure, c)
		}
		if left := time.Until(c.Expires); left < 6*24*time.Hour || left > 7*24*time.Hour+time.Minute {
			t.Errorf("the cookie expires in %v, want a week", left)
		}

		// A browser that drops the cookie learns why it is not signed in.
		next := recorder.Result().Header.Get("Location")
		recorder = httptest.NewRecorder()
		newApp(s.store, secure).handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, next, nil))
		if body := recorder.Body.String(); recorder.Code != http.StatusOK || !strings.Contains(body, advice) {
			t.Errorf("with secure = %v and without a cookie, %s shows %d, want %q:\n%s", secure, next, recorder.Code, advice, body)
		}
	}
}

// Pages that say what has happened are of no use to a visitor who is signed in.
func TestLandingPages(t *testing.T) {
	s := newSite(t)
	b := s.browser(firefox)
	b.signIn("Ada")
	for _, path := range []string{"/signedin", "/signedout"} {
		if r, err := b.do(http.MethodGet, path, nil); err != nil || !strings.Contains(r.body, "Hello, Ada") {
			t.Errorf("GET %s: %d, %v:\n%s", path, r.status, err, r.body)
		}
	}
}

// Pages may use the site's own files, and nothing else.
func TestContentSecurityPolicy(t *testing.T) {
	s := newSite(t)
	b := s.browser(firefox)
	b.signIn("Ada")
	r, err := b.do(http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	if got := r.header.Get("Content-Security-Policy"); got != want {
		t.Errorf("the policy is %q, want %q", got, want)
	}
	if inline := regexp.MustCompile(`<script>|<style|\s(style|on[a-z]+)=`).FindString(r.body); inline != "" {
		t.Errorf("the page has %q, which the policy forbids:\n%s", inline, r.body)
	}
}

func TestRefusedRequests(t *testing.T) {
	s := newSite(t)
	b := s.browser(firefox)
	b.signIn("Ada")
	id := b.wantPlaces("Firefox on Linux, this one")[0]
	for _, test := range []struct {
		method, path string
		header       []string
		want         int
	}{
		{"POST", "/signout", []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		{"POST", "/signout", []string{"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, http.StatusForbidden},
		{"POST", "/signout-elsewhere", []string{"Sec-Fetch-Site", "same-site"}, http.StatusForbidden},
		{"POST", "/signin", []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		{"GET", "/signout", nil, http.StatusMethodNotAllowed},
		{"GET", "/signin", nil, http.StatusMethodNotAllowed},
		{"GET", "/signout-elsewhere", nil, http.StatusMethodNotAllowed},
		{"POST", "/", nil, http.StatusMethodNotAllowed},
		{"GET", "/page.html", nil, http.StatusNotFound},
	} {
		r, err := b.do(test.method, test.path, url.Values{"id": {id}, "name": {"Eve"}}, test.header...)
		if err != nil || r.status != test.want {
			t.Errorf("%s %s with %q: %d, %v, want %d", test.method, test.path, test.header, r.status, err, test.want)
		}
		if !strings.Contains(r.body, "<h1>Sorry</h1>") || r.header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s %s with %q does not show a page of the site: %v\n%s", test.method, test.path, test.header, r.header, r.body)
		}
		if allow := r.header.Get("Allow"); (allow != "") != (test.want == http.StatusMethodNotAllowed) {
			t.Errorf("%s %s with %q allows %q", test.method, test.path, test.header, allow)
		}
	}
	b.wantPlaces("Firefox on Linux, this one")
	for path, want := range map[string]string{"/style.css": "focus-visible", "/page.js": "EventSource"} {
		if r, err := b.do("GET", path, nil); err != nil || r.status != http.StatusOK || !strings.Contains(r.body, want) {
			t.Errorf("GET %s: %d, %v", path, r.status, err)
		}
	}
	for _, path := range []string{"/style.css", "/page.js", "/favicon.ico"} { // browsers request these along with a page
		if r, err := b.do("GET", path, nil); err != nil || r.header.Get("Vary") != "" {
			t.Errorf("GET %s loads the session: %v, %v", path, r.header, err)
		}
	}
}

// TestFailure checks what a visitor sees when the database fails.
func TestFailure(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.DiscardHandler))
	s := newSite(t)
	b := s.browser(firefox)
	b.signIn("Ada")
	held := b.hold("GET", "/held", 1)
	if err := s.db.Exec("DROP TABLE sessions"); err != nil {
		t.Fatal(err)
	}
	close(s.release)
	r, err := b.do(http.MethodGet, "/", nil)
	for _, r := range []response{r, <-held} {
		if err != nil || r.status != http.StatusInternalServerError || !strings.Contains(r.body, "Something went wrong") || strings.Count(r.body, "<html") != 1 {
			t.Errorf("GET / without a table: %d, %v:\n%s", r.status, err, r.body)
		}
	}
}

func TestBrowserOf(t *testing.T) {
	for userAgent, want := range map[string]string{
		firefox: "Firefox on Linux",
		safari:  "Safari on iPhone",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0": "Edge on Windows",
		"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36":               "Chrome on Android",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15":         "Safari on Mac",
		"":                          "Unknown browser",
		"<script>alert(1)</script>": "Unknown browser",
	} {
		if got := browserOf(userAgent); got != want {
			t.Errorf("browserOf(%q) = %q, want %q", userAgent, got, want)
		}
	}
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second:     "just now",
		59 * time.Second: "just now",
		time.Minute:      "1 minute ago",
		59 * time.Minute: "59 minutes ago",
		time.Hour:        "1 hour ago",
		47 * time.Hour:   "1 day ago",
		48 * time.Hour:   "2 days ago",
	} {
		if got := ago(d); got != want {
			t.Errorf("ago(%v) = %q, want %q", d, got, want)
		}
	}
}
