package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaisql/chai"
)

// A stream receives the events of an event stream.
type stream struct {
	t      *testing.T
	header http.Header
	events chan string // closed at the end of the stream
}

// open opens the event stream of a page.
func (b *browser) open() *stream {
	b.site.t.Helper()
	return open(b.site.t, b.client, b.site.server.URL)
}

func open(t *testing.T, client *http.Client, site string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, site+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("GET /events: %s, %s", response.Status, kind)
	}
	s := &stream{t, response.Header, make(chan string, 1000)}
	go func() {
		defer close(s.events)
		scanner := bufio.NewScanner(response.Body)
		scanner.Split(splitEvents)
		for scanner.Scan() {
			s.events <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range s.events {
		}
		response.Body.Close()
	})
	return s
}

func splitEvents(data []byte, _ bool) (int, []byte, error) {
	event, _, ok := bytes.Cut(data, []byte("\n\n"))
	if !ok {
		return 0, nil, nil
	}
	return len(event) + 2, event, nil
}

// next returns the next event, or "" at the end of the stream.
func (s *stream) next() string {
	s.t.Helper()
	select {
	case event := <-s.events:
		return event
	case <-time.After(time.Minute):
		s.t.Fatal("there is no event")
		return ""
	}
}

// wantPlaces checks that the next event has these places. It returns their HTML.
func (s *stream) wantPlaces(want ...string) string {
	s.t.Helper()
	event := s.next()
	data, ok := strings.CutPrefix(event, "event: places\ndata: ")
	var html string
	if err := json.Unmarshal([]byte(data), &html); !ok || err != nil {
		s.t.Fatalf("the event is %q (%v), want places", event, err)
	}
	var got []string
	for _, match := range idPattern.FindAllStringSubmatch(html, -1) {
		got = append(got, match[2])
	}
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		s.t.Fatalf("the places are %q, want %q", got, want)
	}
	return html
}

// wantEnd checks that the session has ended, and the stream with it.
func (s *stream) wantEnd() {
	s.t.Helper()
	if got := s.next(); got != "event: ended\ndata: ended" {
		s.t.Fatalf("the event is %q, want that the session has ended", got)
	}
	if got := s.next(); got != "" {
		s.t.Fatalf("after the end there is %q", got)
	}
}

func TestStream(t *testing.T) {
	s := newSite(t)
	laptop, phone, stranger := s.browser(firefox), s.browser(safari), s.browser("curl/8.1")
	laptop.signIn("Ada")
	onLaptop := laptop.open()
	html := onLaptop.wantPlaces("Firefox on Linux, this one")
	if page := laptop.get(); !strings.Contains(page, `<div id="list">`+html+`</div>`) {
		t.Errorf("the list in the stream\n%s\nis not the one on the page:\n%s", html, page)
	}

	phone.signIn("Ada")
	onLaptop.wantPlaces("Firefox on Linux, this one", "Safari on iPhone")
	stranger.signIn("Bob")
	onStranger := stranger.open()
	onStranger.wantPlaces("curl, this one")
	onPhone := phone.open()
	onPhone.wantPlaces("Safari on iPhone, this one", "Firefox on Linux")

	laptop.post("/signout-elsewhere", "", "")
	onPhone.wantEnd()
	onLaptop.wantPlaces("Firefox on Linux, this one")
	if r, err := phone.do(http.MethodGet, "/signedout", nil); err != nil || !strings.Contains(r.body, ended) {
		t.Errorf("GET /signedout: %d, %v:\n%s", r.status, err, r.body)
	}

	// Visitors who sign out here, or sign in under another name, see their own doing.
	laptop.signIn("Bob")
	onLaptop.wantEnd()
	onStranger.wantPlaces("curl, this one", "Firefox on Linux")
	onLaptop = laptop.open()
	onLaptop.wantPlaces("Firefox on Linux, this one", "curl")
	laptop.post("/signout", "id", laptop.wantPlaces("Firefox on Linux, this one", "curl")[0])
	onLaptop.wantEnd()
	onStranger.wantPlaces("curl, this one")
	if r, err := laptop.do(http.MethodGet, "/signedout", nil); err != nil || !strings.Contains(r.body, signedOut) {
		t.Errorf("GET /signedout: %d, %v:\n%s", r.status, err, r.body)
	}
}

// A page that connects when its session has ended already learns that.
func TestStreamOfEndedSession(t *testing.T) {
	s := newSite(t)
	laptop, phone := s.browser(firefox), s.browser(safari)
	laptop.signIn("Ada")
	phone.signIn("Ada")
	laptop.post("/signout-elsewhere", "", "")
	for _, b := range []*browser{phone, s.browser("")} {
		stream := b.open()
		stream.wantEnd()
		if cookie := stream.header.Get("Set-Cookie"); cookie != "" {
			t.Error("a visitor who is not signed in gets a cookie")
		}
	}
}

// The commit when a stream begins renews the cookie, or fails if the session has ended.
func TestStreamCommits(t *testing.T) {
	s := newSite(t)
	laptop, phone := s.browser(firefox), s.browser(safari)
	laptop.signIn("Ada")
	phone.signIn("Ada")
	if cookie := laptop.open().header.Get("Set-Cookie"); !strings.HasPrefix(cookie, "session="+laptop.cookie()) {
		t.Error("the stream does not renew the cookie")
	}
	held := phone.hold("GET", "/held/events", 1)
	laptop.post("/signout-elsewhere", "", "")
	close(s.release)
	if r := <-held; r.status != http.StatusSeeOther || r.header.Get("Location") != "/signedout" || r.body != "" {
		t.Errorf("a stream of an ended session: %d to %q\n%s", r.status, r.header.Get("Location"), r.body)
	}
}

// A visitor who leaves while a stream begins is nothing to log.
func TestStreamWithoutItsVisitor(t *testing.T) {
	var logged bytes.Buffer
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
	s := newSite(t)
	b := s.browser(firefox)
	b.signIn("Ada")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	request := httptest.NewRequestWithContext(ctx, http.MethodGet, "/events", nil)
	request.AddCookie(&http.Cookie{Name: "session", Value: b.cookie()})
	s.app.handler().ServeHTTP(httptest.NewRecorder(), request)
	if logged.Len() > 0 {
		t.Errorf("logged %s", &logged)
	}
}

// A bubble has a server in a synctest bubble, with the deadlines of the program.
type bubble struct {
	t      *testing.T
	db     *chai.DB
	app    *app
	server *http.Server
	conns  chan net.Conn // to the server
}

func inBubble(t *testing.T, test func(t *testing.T, b *bubble)) {
	a := newApp(nil, false) // outside, because scs.New leaves a goroutine
	synctest.Test(t, func(t *testing.T) {
		db, err := chai.Open(":memory:")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		store, err := newStore(db)
		if err != nil {
			t.Fatal(err)
		}
		defer store.StopCleanup()
		a.store, a.sessions.Store = store, store
		b := &bubble{t, db, a, newServer(a), make(chan net.Conn)}
		b.server.Protocols = new(http.Protocols)
		b.server.Protocols.SetHTTP1(true)
		b.server.Protocols.SetUnencryptedHTTP2(true)
		go b.server.Serve(listener{b.conns, make(chan struct{})})
		defer b.server.Shutdown(context.Background())
		test(t, b)
	})
}

// A listener accepts the connections that it receives.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { close(l.closed); return nil }
func (l listener) Addr() net.Addr { return &net.TCPAddr{} }

func (b *bubble) dial(context.Context, string, string) (net.Conn, error) {
	conn, server := net.Pipe()
	b.conns <- server
	return conn, nil
}

// client returns a client that is signed in as Ada.
func (b *bubble) client(http2 bool) *http.Client {
	b.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.t.Fatal(err)
	}
	transport := &http.Transport{DialContext: b.dial, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetUnencryptedHTTP2(http2)
	b.t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Jar: jar, Transport: transport}
	r, err := client.PostForm("http://site.example/signin", url.Values{"name": {"Ada"}})
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Body.Close()
	if body, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(body), "Hello, Ada") {
		b.t.Fatalf("after signing in: %s, %v\n%s", r.Status, err, body)
	}
	return client
}

func (b *bubble) open(client *http.Client) *stream {
	b.t.Helper()
	return open(b.t, client, "http://site.example")
}

// A stream goes on for longer than the deadlines of the server, is never silent for
// long, and ends with the server, which does not wait for it.
func TestStreamDeadlines(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bubble) {
				here := b.open(b.client(http2))
				here.wantPlaces("Unknown browser, this one")
				there := b.open(b.client(http2))
				there.wantPlaces("Unknown browser, this one", "Unknown browser")
				here.wantPlaces("Unknown browser, this one", "Unknown browser")
				for range 180 { // an hour
					start := time.Now()
					if event := here.next(); event == "" || time.Since(start) > heartbeat {
						t.Fatalf("the next event is %q after %v", event, time.Since(start))
					}
				}
				if got := <-here.events; got == "" {
					t.Fatal("the stream has ended")
				}

				start := time.Now()
				if err := b.server.Shutdown(t.Context()); err != nil || time.Since(start) > time.Second {
					t.Errorf("Shutdown = %v after %v", err, time.Since(start))
				}
				for event := range here.events {
					if strings.Contains(event, "ended") {
						t.Error("a stop of the server ends the session")
					}
				}
			})
		})
	}
}

// Streams show what SQL deletes. Those of the deleted sessions end at once, others at
// their next heartbeat.
func TestStreamSeesSQL(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		here := b.open(b.client(false))
		here.wantPlaces("Unknown browser, this one")
		var token string
		for session, err := range b.app.store.Sessions(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			token = session.Token
		}
		there := b.open(b.client(false))
		there.wantPlaces("Unknown browser, this one", "Unknown browser")
		start := time.Now()
		if err := b.db.Exec("DELETE FROM sessions WHERE token = ?", token); err != nil {
			t.Fatal(err)
		}
		here.wantPlaces("Unknown browser, this one", "Unknown browser")
		here.wantEnd()
		if time.Since(start) > time.Millisecond {
			t.Errorf("the stream has ended after %v", time.Since(start))
		}
		for event := ": still here"; event == ": still here"; event = there.next() {
			if time.Since(start) > heartbeat {
				t.Fatal("the list still has what SQL has deleted")
			}
		}
	})
}

// The server gives up streams whose visitors have left, whether they say so or not.
func TestStreamsOfVisitorsWhoLeft(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		streams := func() int {
			synctest.Wait()
			b.app.changes.mu.Lock()
			defer b.app.changes.mu.Unlock()
			return len(b.app.changes.streams)
		}
		client := b.client(false)
		ctx, cancel := context.WithCancel(t.Context())
		request, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://site.example/events", nil)
		r, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if got := streams(); got != 1 {
			t.Fatalf("there are %d streams, want 1", got)
		}
		cancel()
		if got := streams(); got != 0 {
			t.Fatalf("there are %d streams after the visitor has closed it, want 0", got)
		}

		silent, _ := b.dial(ctx, "", "")
		defer silent.Close()
		for _, cookie := range client.Jar.Cookies(request.URL) {
			request.AddCookie(cookie)
		}
		if err := request.Write(silent); err != nil {
			t.Fatal(err)
		}
		if got := streams(); got != 1 {
			t.Fatalf("there are %d streams, want 1", got)
		}
		time.Sleep(2*heartbeat + time.Second) // in the bubble
		if got := streams(); got != 0 {
			t.Fatalf("there are %d streams after the visitor has read nothing, want 0", got)
		}
	})
}
