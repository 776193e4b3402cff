package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore"
)

// The keys of the values in a signed-in user's session.
const (
	keyUser    = "user"    // string
	keyID      = "id"      // string: identifies the session in forms, since its token is secret
	keyBrowser = "browser" // string
	keySince   = "since"   // int64: seconds, as time.Time.Unix
	keySeen    = "seen"    // int64
	keyVisits  = "visits"  // int
	keyNotice  = "notice"  // string: shown on the next page
)

// An app is the site.
type app struct {
	store    *chaistore.ChaiStore
	sessions *scs.SessionManager
	changes  changes
	stopping context.Context // ends the event streams
	stop     context.CancelFunc
}

func newApp(store *chaistore.ChaiStore, secure bool) *app {
	a := &app{store: store, sessions: newSessionManager(store, secure)}
	a.changes.streams = make(map[chan struct{}]string)
	a.stopping, a.stop = context.WithCancel(context.Background())
	return a
}

//go:embed page.html page.js style.css
var files embed.FS

var pageTemplate = template.Must(template.ParseFS(files, "page.html"))

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", a.withSession(a.home))
	mux.Handle("GET /events", chaistore.LoadAndSave(a.sessions, http.HandlerFunc(a.events)))
	mux.Handle("POST /signin", a.withSession(a.announced(a.signIn)))
	mux.Handle("POST /signout", a.withSession(a.announced(a.signOut)))
	mux.Handle("POST /signout-elsewhere", a.withSession(a.announced(a.signOutElsewhere)))
	mux.Handle("GET /signedin", a.landing(func(*http.Request) page { return page{Warning: a.noCookie()} }))
	mux.Handle("GET /signedout", a.landing(a.whySignedOut))
	mux.Handle("GET /page.js", http.FileServerFS(files))
	mux.Handle("GET /style.css", http.FileServerFS(files))
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		render(w, http.StatusForbidden, page{Failure: "This request came from another site, so nothing was done."})
	}))
	protected := http.MaxBytesHandler(protection.Handler(withErrorPages(mux)), 4096)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy",
			"default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; "+
				"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		header.Set("Referrer-Policy", "same-origin")
		header.Set("X-Content-Type-Options", "nosniff")
		protected.ServeHTTP(w, r)
	})
}

// withErrorPages serves the mux, with error pages that look like the site.
func withErrorPages(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern == "" {
			w = refusal{w}
		}
		mux.ServeHTTP(w, r)
	})
}

// A refusal replaces the error text of a mux with an error page.
type refusal struct{ http.ResponseWriter }

func (r refusal) WriteHeader(status int) {
	failure := "There is no such page."
	if status == http.StatusMethodNotAllowed {
		failure = "This page doesn’t accept that kind of request."
	}
	render(r.ResponseWriter, status, page{Failure: failure})
}

func (r refusal) Write(text []byte) (int, error) { return len(text), nil }

// withSession loads the session and parses the form before it calls the handler. The
// context of the request does not end with the visit: a visitor who signs out and closes
// the tab is signed out.
func (a *app) withSession(h http.HandlerFunc) http.Handler {
	loaded := chaistore.LoadAndSave(a.sessions, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			render(w, http.StatusBadRequest, page{Failure: "The form could not be read."})
			return
		}
		h(w, r)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithoutCancel(r.Context())
		loaded.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (a *app) home(w http.ResponseWriter, r *http.Request) {
	ctx, now := r.Context(), time.Now()
	user := a.sessions.GetString(ctx, keyUser)
	if user == "" {
		var p page
		if _, err := r.Cookie(a.sessions.Cookie.Name); err == nil { // its session has ended
			p.Notice = signedOut
		}
		render(w, http.StatusOK, p)
		return
	}
	visits := a.sessions.GetInt(ctx, keyVisits) + 1
	a.sessions.Put(ctx, keyVisits, visits)
	a.sessions.Put(ctx, keySeen, now.Unix())
	places, err := a.places(ctx, user, now)
	if err != nil {
		fail(w, r, err)
		return
	}
	render(w, http.StatusOK, page{
		User:   user,
		Notice: a.sessions.PopString(ctx, keyNotice),
		Visits: visits,
		Places: places,
	})
}

const (
	signedOut = "You are signed out."
	ended     = "You were signed out on another device."
)

// landing shows a page to visitors who are not signed in, and sends the others home: a
// visitor whose session has ended may have signed in again.
func (a *app) landing(pageOf func(*http.Request) page) http.Handler {
	return a.withSession(func(w http.ResponseWriter, r *http.Request) {
		if a.sessions.Exists(r.Context(), keyUser) {
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		render(w, http.StatusOK, pageOf(r))
	})
}

// whySignedOut tells sessions that this browser has ended, whose cookie it has dropped,
// from those that another device has ended. Cookies expire with their sessions.
func (a *app) whySignedOut(r *http.Request) page {
	if _, err := r.Cookie(a.sessions.Cookie.Name); err != nil {
		return page{Notice: signedOut}
	}
	return page{Notice: ended}
}

// noCookie explains why a visitor who has just signed in is not signed in: browsers
// silently drop cookies that they don't accept.
func (a *app) noCookie() string {
	if !a.sessions.Cookie.Secure {
		return "You are not signed in, because your browser did not return the cookie. Please allow cookies for this site."
	}
	return "You are not signed in, because your browser did not return the cookie. " +
		"Browsers return it over HTTPS, and most of them also on localhost. " +
		"To try this site over plain HTTP from another machine, start it with -insecure."
}

// A place is a session of the signed-in user.
type place struct {
	token   string // in the store
	ID      string
	Browser string
	Since   time.Time
	Seen    time.Time
	SeenAgo string
	Here    bool // whether this request belongs to it
}

// places returns where the user is signed in, with this session first. If this session
// has ended meanwhile, it returns [chaistore.ErrEnded].
func (a *app) places(ctx context.Context, user string, now time.Time) ([]place, error) {
	here := a.sessions.GetString(ctx, keyID)
	var places []place
	for session, err := range a.store.SessionsOf(ctx, user) {
		if err != nil {
			return nil, err
		}
		_, values, err := a.sessions.Codec.Decode(session.Data)
		if err != nil {
			return nil, err
		}
		id, _ := values[keyID].(string)
		browser, _ := values[keyBrowser].(string)
		since, _ := values[keySince].(int64)
		seen, _ := values[keySeen].(int64)
		if id == here {
			seen = now.Unix() // this request is not in the store yet
		}
		places = append(places, place{
			token:   session.Token,
			ID:      id,
			Browser: browser,
			Since:   time.Unix(since, 0),
			Seen:    time.Unix(seen, 0),
			SeenAgo: ago(now.Sub(time.Unix(seen, 0))),
			Here:    id == here,
		})
	}
	slices.SortFunc(places, func(a, b place) int {
		switch {
		case a.Here:
			return -1
		case b.Here:
			return 1
		}
		return b.Seen.Compare(a.Seen)
	})
	if len(places) == 0 || !places[0].Here {
		return nil, chaistore.ErrEnded
	}
	return places, nil
}

// signIn signs in a visitor who gives a name. A real site would check a password here.
func (a *app) signIn(w http.ResponseWriter, r *http.Request) {
	ctx, now := r.Context(), time.Now()
	name := strings.TrimSpace(r.PostForm.Get("name"))
	if problem := problemOf(name); problem != "" {
		render(w, http.StatusUnprocessableEntity, page{Problem: problem, Name: name})
		return
	}
	// An attacker may have planted the old token in the browser, but does not know the
	// new one.
	if err := a.sessions.Clear(ctx); err != nil {
		fail(w, r, err)
		return
	}
	if err := a.sessions.RenewToken(ctx); err != nil {
		fail(w, r, err)
		return
	}
	a.sessions.Put(ctx, keyUser, name)
	a.sessions.Put(ctx, keyID, rand.Text())
	a.sessions.Put(ctx, keyBrowser, browserOf(r.UserAgent()))
	a.sessions.Put(ctx, keySince, now.Unix())
	a.sessions.Put(ctx, keySeen, now.Unix())
	http.Redirect(w, r, "/signedin", http.StatusSeeOther)
}

const maxNameLen = 25 // characters, which fit the 100 bytes of an owner

// joiners are invisible characters. Names in Persian and in the languages of India may
// have them, and so do many emoji.
const joiners = "\u200c\u200d"

// problemOf returns what is wrong with a name, or "".
func problemOf(name string) string {
	switch {
	case strings.Trim(name, " "+joiners) == "":
		return "Please enter a name."
	case utf8.RuneCountInString(name) > maxNameLen:
		return fmt.Sprintf("Please enter a name of no more than %d characters.", maxNameLen)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsPrint(r) && !strings.ContainsRune(joiners, r)
	}):
		return "Please use only letters, digits, spaces, and symbols."
	}
	return ""
}

// signOut ends this session or another session of the user.
func (a *app) signOut(w http.ResponseWriter, r *http.Request) {
	ctx, id := r.Context(), r.PostForm.Get("id")
	if id != a.sessions.GetString(ctx, keyID) {
		a.end(w, r, func(other string) bool { return other == id })
		return
	}
	if err := a.sessions.Destroy(ctx); err != nil {
		fail(w, r, err)
		return
	}
	http.Redirect(w, r, "/signedout", http.StatusSeeOther)
}

// signOutElsewhere ends all sessions of the user except this one.
func (a *app) signOutElsewhere(w http.ResponseWriter, r *http.Request) {
	a.end(w, r, func(string) bool { return true })
}

// end ends the user's other sessions for which del returns true. It deletes them in the
// store, because SCS would hash their tokens again.
func (a *app) end(w http.ResponseWriter, r *http.Request, del func(id string) bool) {
	ctx := r.Context()
	if user := a.sessions.GetString(ctx, keyUser); user != "" {
		places, err := a.places(ctx, user, time.Now())
		if err != nil {
			fail(w, r, err)
			return
		}
		n := 0
		for _, other := range places[1:] {
			if !del(other.ID) {
				continue
			}
			if err := a.store.DeleteCtx(ctx, other.token); err != nil {
				fail(w, r, err)
				return
			}
			n++
		}
		switch n {
		case 0:
			a.sessions.Put(ctx, keyNotice, "You were already signed out there.")
		case 1:
			a.sessions.Put(ctx, keyNotice, "You have been signed out in one other place.")
		default:
			a.sessions.Put(ctx, keyNotice, fmt.Sprintf("You have been signed out in %d other places.", n))
		}
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// A page has the data for page.html.
type page struct {
	Failure string // what went wrong; if set, the page shows nothing else

	Notice  string
	Warning string // for visitors who are not signed in

	Problem string // what is wrong with Name
	Name    string

	User   string // empty if nobody is signed in
	Visits int
	Places []place
}

func render(w http.ResponseWriter, status int, p page) {
	var body bytes.Buffer
	if err := pageTemplate.Execute(&body, p); err != nil {
		slog.Error("webapp: render page", "error", err)
		http.Error(w, "The page could not be shown.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // the visitor may have left
}

// fail sends a visitor whose session was ended meanwhile to the sign-in page. It logs
// any other error, which names no session, and shows an error page.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, chaistore.ErrEnded) {
		http.Redirect(w, r, "/signedout", http.StatusSeeOther)
		return
	}
	if r.Context().Err() != nil {
		return // the visitor of a stream has left
	}
	slog.Error("webapp", "error", err)
	render(w, http.StatusInternalServerError, page{Failure: "Something went wrong on our side. Please try again."})
}
