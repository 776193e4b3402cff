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
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/jackc/pgx/v5/pgxpool"

	"go.elara.ws/chaistore"
)

// An application before its sessions are moved, in two variants, and afterwards.
// README.md shows the differences.

func withChai(ctx context.Context, serve func(*scs.SessionManager) error) error {
	db, err := chaistore.Open(ctx, "chai_db")
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

func withConfig(ctx context.Context, serve func(*scs.SessionManager) error) error {
	db, err := chaistore.Open(ctx, "chai_db")
	if err != nil {
		return err
	}
	defer db.Close()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
	if err != nil {
		return err
	}
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

// An application is one of the three functions above.
type application func(context.Context, func(*scs.SessionManager) error) error

func TestUsersStaySignedIn(t *testing.T) {
	for name, test := range map[string]struct {
		before application
		hash   bool // HashTokenInStore
	}{
		"New":                          {withChai, false},
		"New, hashed tokens":           {withChai, true},
		"NewWithConfig":                {withConfig, false},
		"NewWithConfig, hashed tokens": {withConfig, true},
	} {
		t.Run(name, func(t *testing.T) {
			db := newTable(t)
			t.Chdir(t.TempDir())
			t.Setenv("DATABASE_URL", db.url)
			if err := withConfig(t.Context(), func(*scs.SessionManager) error { return nil }); err != nil { // creates the table
				t.Fatal(err)
			}

			var browsers []*http.Client
			for range 5 {
				jar, err := cookiejar.New(nil)
				if err != nil {
					t.Fatal(err)
				}
				browsers = append(browsers, &http.Client{Jar: jar, Timeout: 10 * time.Second})
			}
			// visit serves the application and sends each browser to the path. In want, #
			// stands for the number of the browser.
			visit := func(serve application, path, want string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				err := serve(ctx, func(sessionManager *scs.SessionManager) error {
					sessionManager.HashTokenInStore = test.hash
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

			visit(test.before, "/user", "nobody")
			visit(test.before, "/login", "user #")
			move("-dry-run")
			move()
			visit(withPostgres, "/user", "user #")
			visit(withPostgres, "/rename", "renamed user #")
			if err := os.Rename("chai_db", "old_chai_db"); err != nil {
				t.Fatal(err)
			}
			move("-reverse", "-dry-run")
			move("-reverse")
			visit(test.before, "/user", "renamed user #")
			visit(test.before, "/logout", "nobody")
			visit(test.before, "/user", "nobody")
		})
	}
}

// newMux returns the pages of an application. Each page answers who is signed in.
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

// The statements and commands of README.md, in their order, move sessions to PostgreSQL
// and back.
func TestREADMEsCommands(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	db, dir, want := newDatabase(t), newDirectory(t), someSessions(10)
	dir.fill(want)
	module, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer(
		"go build", "go build -C '"+module+"' -o \"$PWD\"",
		"postgres://user:password@host:5432/database", "'"+db.url+"'",
		"/path/to/", filepath.Dir(dir.path)+"/",
		"go test", "true go test",
	)
	var script strings.Builder
	for _, fence := range regexp.MustCompile("(?ms)^```(sql|sh)\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1) {
		if fence[1] == "sql" {
			db.exec(fence[2])
		} else {
			script.WriteString(fence[2])
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", here.Replace(script.String()))
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkSame(t, "PostgreSQL has the sessions", db.all(), want)
	back := &directory{t, filepath.Join(filepath.Dir(dir.path), "new_chai_db")}
	checkSame(t, "the new directory has them, too", back.all(), want)
	if got := strings.Count(string(out), "dry run: 10 sessions would be copied"); got != 2 {
		t.Errorf("there were %d dry runs, want 2:\n%s", got, out)
	}
}

// README.md shows how withPostgres differs from the other two.
func TestREADMEShowsTheChanges(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("recipe_test.go")
	if err != nil {
		t.Fatal(err)
	}
	diffs := strings.Split(string(readme), "```diff\n")[1:]
	if len(diffs) != 2 {
		t.Fatalf("README.md shows %d changes, want 2", len(diffs))
	}
	for _, diff := range diffs {
		diff, _, _ = strings.Cut(diff, "```")
		var before, after strings.Builder
		for line := range strings.Lines(diff) {
			if line[0] != '+' {
				before.WriteString(line[1:])
			}
			if line[0] != '-' {
				after.WriteString(line[1:])
			}
		}
		for _, text := range []string{before.String(), after.String()} {
			if text == "" || !strings.Contains(string(source), text) {
				t.Errorf("README.md shows code that is not in recipe_test.go:\n%s", text)
			}
		}
	}
	if diff, _, _ := strings.Cut(diffs[0], "```"); strings.Count("\n"+diff, "\n-") != 2 || strings.Count("\n"+diff, "\n+") != 2 {
		t.Error("README.md does not show a change of two lines")
	}
}
