package chaistore_test

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// When the commit of a session fails, the answer is that of ErrorFunc, and nothing of the
// handler's follows, however it answers. Otherwise the answer is the handler's.
func TestLoadAndSave(t *testing.T) {
	s := newStoreWith(t, testdb.Memory(t), chaistore.Config{RememberEnded: time.Minute})
	manager := scs.New()
	manager.Store = s
	manager.ErrorFunc = func(w http.ResponseWriter, r *http.Request, err error) {
		if !errors.Is(err, chaistore.ErrEnded) {
			t.Errorf("ErrorFunc got %v, want %v", err, chaistore.ErrEnded)
		}
		http.Redirect(w, r, "/sign-in", http.StatusSeeOther)
	}
	page := strings.Repeat("secret ", 10_000)
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter) error
		want   string // if all is well
	}{
		"nothing": {func(http.ResponseWriter) error { return nil }, ""},
		"header":  {func(w http.ResponseWriter) error { w.WriteHeader(http.StatusOK); return nil }, ""},
		"body":    {func(w http.ResponseWriter) error { _, err := io.WriteString(w, page); return err }, page},
		"redirect": {func(w http.ResponseWriter) error {
			w.WriteHeader(http.StatusOK)
			_, err := io.WriteString(w, page)
			return err
		}, page},
		"length": {func(w http.ResponseWriter) error {
			w.Header().Set("Content-Length", fmt.Sprint(len(page)))
			_, err := io.WriteString(w, page)
			return err
		}, page},
		"encoding": {func(w http.ResponseWriter) error {
			w.Header().Set("Content-Encoding", "gzip")
			encoder := gzip.NewWriter(w)
			_, err := io.WriteString(encoder, page)
			return errors.Join(err, encoder.Close())
		}, page},
		"stream": {func(w http.ResponseWriter) error {
			controller := http.NewResponseController(w)
			for range 3 {
				if _, err := io.WriteString(w, "event\n"); err != nil {
					return err
				}
				if err := controller.Flush(); err != nil {
					t.Errorf("Flush = %v", err)
				}
			}
			return nil
		}, "event\nevent\nevent\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var mux http.ServeMux
			mux.HandleFunc("GET /start", func(w http.ResponseWriter, r *http.Request) { manager.Put(r.Context(), "user", "alice") })
			results := make(chan error, 1) // of the handler
			mux.HandleFunc("GET /{how}", func(w http.ResponseWriter, r *http.Request) {
				if user := manager.GetString(r.Context(), "user"); user != "alice" {
					t.Errorf("the user is %q, want alice", user)
				}
				manager.Put(r.Context(), "page", r.URL.Path)
				if r.PathValue("how") == "ended" {
					if err := s.Delete(manager.Token(r.Context())); err != nil {
						t.Error(err)
					}
				}
				results <- test.answer(w)
			})
			server := httptest.NewServer(chaistore.LoadAndSave(manager, &mux))
			defer server.Close()
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			client := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			get := func(path string) (status int, location, body string) {
				response, err := client.Get(server.URL + path)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				text, err := io.ReadAll(response.Body)
				if err != nil {
					t.Errorf("reading the answer to %s: %v", path, err)
				}
				return response.StatusCode, response.Header.Get("Location"), string(text)
			}
			get("/start")
			status, _, body := get("/well")
			if written := <-results; status != 200 || body != test.want || written != nil {
				t.Errorf("got %d %.50q, and the handler %v; want 200 %.50q and nil", status, body, written, test.want)
			}
			status, location, body := get("/ended")
			if want := "<a href=\"/sign-in\">See Other</a>.\n\n"; status != 303 || location != "/sign-in" || body != want {
				t.Errorf("after the session has ended, got %d to %q, %.80q; want 303 to /sign-in, %q", status, location, body, want)
			}
			if written := <-results; test.want != "" && !errors.Is(written, chaistore.ErrEnded) {
				t.Errorf("the handler's Write returned %v, want %v", written, chaistore.ErrEnded)
			}
		})
	}
}
