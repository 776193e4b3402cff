//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"
	"github.com/jackc/pgx/v5/pgxpool"

	"go.elara.ws/chaistore"
)

// withChai and withPostgres are an application before and after its sessions are
// moved. README.md shows how they differ.

func withChai(_ context.Context, serve func(*scs.SessionManager) error) error {
	db, err := chai.Open("chai_db")
	if err != nil {
		return err
	}
	defer db.Close()
	store := chaistore.New(db)
	defer store.StopCleanup()
	sessionManager := scs.New()
	sessionManager.Store = store
	return serve(sessionManager)
}

func withPostgres(ctx context.Context, serve func(*scs.SessionManager) error) error {
	db, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer db.Close()
	store := pgxstore.New(db)
	defer store.StopCleanup()
	sessionManager := scs.New()
	sessionManager.Store = store
	return serve(sessionManager)
}

func TestNobodyIsSignedOut(t *testing.T) {
	for _, hash := range []bool{false, true} {
		t.Run(fmt.Sprintf("HashTokenInStore=%v", hash), func(t *testing.T) {
			db := newTable(t)
			t.Chdir(t.TempDir())
			t.Setenv("DATABASE_URL", db.url)
			(&directory{t, "chai_db"}).exec("CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)")

			var browsers []*http.Client
			for range 5 {
				jar, err := cookiejar.New(nil)
				if err != nil {
					t.Fatal(err)
				}
				browsers = append(browsers, &http.Client{Jar: jar, Timeout: 10 * time.Second})
			}
			// visit serves the application, and sends each browser there. In what they get,
			// # stands for the number of the browser.
			visit := func(application func(context.Context, func(*scs.SessionManager) error) error, path, want string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				err := application(ctx, func(sessionManager *scs.SessionManager) error {
					sessionManager.HashTokenInStore = hash
					server := httptest.NewServer(sessionManager.LoadAndSave(newMux(sessionManager)))
					defer server.Close()
					for i, browser := range browsers {
						body, err := get(browser, fmt.Sprintf("%s%s?user=%d", server.URL, path, i))
						if err != nil {
							return err
						}
						if want := strings.ReplaceAll(want, "#", strconv.Itoa(i)); body != want {
							t.Errorf("%s answers %q, want %q", path, body, want)
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			move := func(args ...string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if err := run(ctx, append([]string{"-chai", "chai_db"}, args...), io.Discard, io.Discard); err != nil {
					t.Fatal(err)
				}
			}

			visit(withChai, "/user", "nobody")
			visit(withChai, "/login", "user #")
			move()
			visit(withPostgres, "/user", "user #")
			visit(withPostgres, "/rename", "renamed user #")
			move("-reverse", "-overwrite")
			visit(withChai, "/user", "renamed user #")
			visit(withChai, "/logout", "nobody")
			visit(withChai, "/user", "nobody")
		})
	}
}

// newMux returns an application's pages, each of which answers who is signed in.
func newMux(sessionManager *scs.SessionManager) http.Handler {
	mux := http.NewServeMux()
	page := func(path string, change func(r *http.Request) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if err := change(r); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			user := sessionManager.GetString(r.Context(), "user")
			if user == "" {
				user = "nobody"
			}
			io.WriteString(w, user)
		})
	}
	page("/user", func(*http.Request) error { return nil })
	page("/login", func(r *http.Request) error {
		sessionManager.Put(r.Context(), "user", "user "+r.FormValue("user"))
		return sessionManager.RenewToken(r.Context())
	})
	page("/rename", func(r *http.Request) error {
		sessionManager.Put(r.Context(), "user", "renamed "+sessionManager.GetString(r.Context(), "user"))
		return nil
	})
	page("/logout", func(r *http.Request) error { return sessionManager.Destroy(r.Context()) })
	return mux
}

func get(browser *http.Client, url string) (body string, err error) {
	response, err := browser.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

// What README.md shows as the change is how withPostgres differs from withChai.
func TestREADMEShowsTheChange(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("recipe_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, diff, _ := strings.Cut(string(readme), "```diff\n")
	diff, _, ok := strings.Cut(diff, "```")
	if !ok {
		t.Fatal("README.md shows no change")
	}
	var before, after strings.Builder
	for line := range strings.Lines(diff) {
		switch line[0] {
		case '-':
			before.WriteString(line[1:])
		case '+':
			after.WriteString(line[1:])
		default:
			before.WriteString(line[1:])
			after.WriteString(line[1:])
		}
	}
	for _, text := range []string{before.String(), after.String()} {
		if !strings.Contains(string(source), text) {
			t.Errorf("README.md shows code that is not in recipe_test.go:\n%s", text)
		}
	}
	if diff := "\n" + diff; strings.Count(diff, "\n-") != 2 || strings.Count(diff, "\n+") != 2 {
		t.Error("README.md does not show a change of two lines")
	}
}
