package modeltest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// Sessions that end while the requests of a site use them.

// An endingSite is a site whose sessions end while their requests are being served.
type endingSite struct {
	manager *scs.SessionManager
	store   *chaistore.ChaiStore
	handler http.Handler
	release chan struct{} // closed to release the held requests

	mu    sync.Mutex
	ended int // calls of ErrorFunc with ErrEnded
}

// newEndingSite returns a site with a manager made outside of the bubble, because
// scs.New starts a goroutine that does not end.
func newEndingSite(t *testing.T, manager *scs.SessionManager, hash bool, remember time.Duration) *endingSite {
	site := &endingSite{manager: manager, release: make(chan struct{})}
	site.manager.IdleTimeout = 20 * time.Minute // so each request commits its session
	site.manager.HashTokenInStore = hash
	site.store = newStore(t, testdb.Memory(t), chaistore.Config{
		RememberEnded: remember, Owner: chaistore.OwnerByKey(site.manager.Codec, "user"),
	})
	site.manager.Store = site.store
	site.manager.ErrorFunc = func(w http.ResponseWriter, r *http.Request, err error) {
		if !errors.Is(err, chaistore.ErrEnded) {
			t.Errorf("ErrorFunc was called with %v", err)
		}
		site.mu.Lock()
		site.ended++
		site.mu.Unlock()
		http.Redirect(w, r, "/sign-in", http.StatusSeeOther)
	}
	session := func(f func(ctx context.Context) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := f(r.Context()); err != nil {
				t.Error(err)
			}
			fmt.Fprint(w, site.manager.GetString(r.Context(), "user"))
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/sign-in", session(func(ctx context.Context) error {
		site.manager.Put(ctx, "user", "alice")
		return nil
	}))
	mux.HandleFunc("/held", session(func(context.Context) error { <-site.release; return nil }))
	mux.HandleFunc("/", session(func(context.Context) error { return nil }))
	mux.HandleFunc("/sign-out", session(site.manager.Destroy))
	mux.HandleFunc("/renew", session(site.manager.RenewToken))
	site.handler = site.manager.LoadAndSave(mux)
	return site
}

// get makes a request. It returns the response, and the cookie that the response
// sets, or the given one if it sets none.
func (site *endingSite) get(path string, cookie *http.Cookie) (*httptest.ResponseRecorder, *http.Cookie) {
	r := httptest.NewRequest("GET", path, nil)
	if cookie != nil {
		r.AddCookie(cookie)
	}
	w := httptest.NewRecorder()
	site.handler.ServeHTTP(w, r)
	for _, set := range w.Result().Cookies() {
		cookie = set
	}
	return w, cookie
}

// Requests that loaded a session before it ended, and commit it afterwards, don't
// bring it back.
func TestSessionEndsWhileRequestsAreServed(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, site *endingSite, cookie *http.Cookie) (renewed *http.Cookie){
		"DeleteOf": func(t *testing.T, site *endingSite, _ *http.Cookie) *http.Cookie {
			if n, err := site.store.DeleteOf(t.Context(), "alice"); n != 1 || err != nil {
				t.Fatalf("DeleteOf = %d, %v; want 1, nil", n, err)
			}
			return nil
		},
		"DeleteFunc": func(t *testing.T, site *endingSite, _ *http.Cookie) *http.Cookie {
			if n, err := site.store.DeleteFunc(t.Context(), func(chaistore.Session) bool { return true }); n != 1 || err != nil {
				t.Fatalf("DeleteFunc = %d, %v; want 1, nil", n, err)
			}
			return nil
		},
		"Destroy": func(t *testing.T, site *endingSite, cookie *http.Cookie) *http.Cookie {
			site.get("/sign-out", cookie)
			return nil
		},
		"RenewToken": func(t *testing.T, site *endingSite, cookie *http.Cookie) *http.Cookie {
			_, renewed := site.get("/renew", cookie)
			return renewed
		},
	} {
		for _, hash := range []bool{false, true} {
			for _, remember := range []time.Duration{0, time.Minute} {
				t.Run(fmt.Sprintf("%s/hash=%v/remember=%v", name, hash, remember), func(t *testing.T) {
					manager := scs.New()
					synctest.Test(t, func(t *testing.T) {
						site := newEndingSite(t, manager, hash, remember)
						_, cookie := site.get("/sign-in", nil)
						const requests = 50
						answers := make([]*httptest.ResponseRecorder, requests)
						for i := range answers {
							go func() { answers[i], _ = site.get("/held", cookie) }()
						}
						synctest.Wait() // until all of them are held
						renewed := end(t, site, cookie)
						close(site.release)
						synctest.Wait()

						w, _ := site.get("/", cookie)
						if remember == 0 {
							if w.Body.String() != "alice" || site.ended > 0 {
								t.Errorf("got user %q and %d refused requests, want alice and 0", w.Body, site.ended)
							}
							return
						}
						if w.Body.String() != "" {
							t.Errorf("%s is signed in again", w.Body)
						}
						want := slices.Repeat([]string{"303 /sign-in"}, requests)
						var got []string
						for _, w := range answers {
							got = append(got, fmt.Sprint(w.Code, " ", w.Header().Get("Location")))
							if cookie := w.Header().Get("Set-Cookie"); cookie != "" {
								t.Errorf("got the cookie %q for an ended session, want none", cookie)
							}
						}
						if !slices.Equal(got, want) || site.ended != requests {
							t.Errorf("ErrorFunc was called %d times, want %d; the responses are:\n%s", site.ended, requests, strings.Join(got, "\n"))
						}
						sessions := tokensOf(t, site.store, "alice")
						if renewed == nil && len(sessions) > 0 {
							t.Errorf("got sessions %q, want none", sessions)
						}
						if renewed != nil {
							if w, _ := site.get("/", renewed); w.Body.String() != "alice" || len(sessions) != 1 {
								t.Errorf("with the new token, got user %q and sessions %q, want alice and one session", w.Body, sessions)
							}
						}
					})
				})
			}
		}
	}
}

// A request that loaded a session before it expired can still renew it, so DeleteOf
// ends expired sessions, too.
func TestDeleteOfEndsExpiredSessions(t *testing.T) {
	manager := scs.New()
	synctest.Test(t, func(t *testing.T) {
		site := newEndingSite(t, manager, false, time.Minute)
		_, cookie := site.get("/sign-in", nil)
		go site.get("/held", cookie)
		synctest.Wait()
		time.Sleep(site.manager.IdleTimeout + time.Second)
		if n, err := site.store.DeleteOf(t.Context(), "alice"); n != 0 || err != nil {
			t.Errorf("DeleteOf = %d, %v; want 0, nil", n, err)
		}
		close(site.release)
		synctest.Wait()
		if w, _ := site.get("/", cookie); w.Body.String() != "" || site.ended != 1 {
			t.Errorf("got user %q and %d calls of ErrorFunc, want none and 1", w.Body, site.ended)
		}
	})
}
