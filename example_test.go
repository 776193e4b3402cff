package chaistore_test

import (
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// openStore opens a database in memory, with a table of sessions.
func openStore() (*chai.DB, *chaistore.ChaiStore) {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
	if err != nil {
		log.Fatal(err)
	}
	return db, store
}

// signIn commits a session in which a user is signed in, as a request would.
func signIn(sessionManager *scs.SessionManager, user string) (token string) {
	ctx, err := sessionManager.Load(context.Background(), "")
	if err != nil {
		log.Fatal(err)
	}
	sessionManager.Put(ctx, "user", user)
	token, _, err = sessionManager.Commit(ctx)
	if err != nil {
		log.Fatal(err)
	}
	return token
}

func Example() {
	db, err := chai.Open(":memory:") // or a directory
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
	if err != nil {
		log.Fatal(err)
	}
	defer store.StopCleanup()

	sessionManager := scs.New()
	sessionManager.Store = store

	token := signIn(sessionManager, "alice")
	ctx, err := sessionManager.Load(context.Background(), token)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sessionManager.GetString(ctx, "user"))
	// Output: alice
}

// A page shows where its user is signed in, and a button signs the user out
// everywhere. Neither reads other users' sessions.
func ExampleChaiStore_SessionsOf() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	sessionManager := scs.New()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable: true,
		Owner:       chaistore.OwnerByKey(sessionManager.Codec, "user"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer store.StopCleanup()
	sessionManager.Store = store
	for _, user := range []string{"alice", "bob", "alice"} {
		signIn(sessionManager, user)
	}

	for session, err := range store.SessionsOf(context.Background(), "alice") {
		if err != nil {
			log.Fatal(err)
		}
		_, values, err := sessionManager.Codec.Decode(session.Data)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("a session of", values["user"])
	}
	n, err := store.DeleteOf(context.Background(), "alice")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "sessions ended")
	// Output:
	// a session of alice
	// a session of alice
	// 2 sessions ended
}

// A session ends while one of its requests is being served. Its visitor is sent to the
// sign-in page, and gets nothing of the page that was asked for.
func ExampleErrEnded() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, RememberEnded: 10 * time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	defer store.StopCleanup()
	sessionManager := scs.New()
	sessionManager.Store = store
	sessionManager.ErrorFunc = func(w http.ResponseWriter, r *http.Request, err error) {
		if errors.Is(err, chaistore.ErrEnded) {
			http.Redirect(w, r, "/sign-in", http.StatusSeeOther)
			return
		}
		slog.Error("load or commit session", "error", err)
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
	}
	token := signIn(sessionManager, "alice")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mail", func(w http.ResponseWriter, r *http.Request) {
		sessionManager.Put(r.Context(), "page", r.URL.Path)
		if err := store.Delete(token); err != nil { // as another request would
			log.Fatal(err)
		}
		fmt.Fprintln(w, "the mail of", sessionManager.GetString(r.Context(), "user"))
	})
	mux.HandleFunc("GET /sign-in", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "Please sign in.") })
	// Not sessionManager.LoadAndSave, which would send the mail after the redirect.
	server := httptest.NewServer(chaistore.LoadAndSave(sessionManager, mux))
	defer server.Close()

	request, err := http.NewRequest("GET", server.URL+"/mail", nil)
	if err != nil {
		log.Fatal(err)
	}
	request.AddCookie(&http.Cookie{Name: sessionManager.Cookie.Name, Value: token})
	response, err := http.DefaultTransport.RoundTrip(request) // as a browser that has not followed the redirect yet
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(response.Status, response.Header.Get("Location"))
	fmt.Printf("%s", body)
	// Output:
	// 303 See Other /sign-in
	// <a href="/sign-in">See Other</a>.
}

// A connection that stays open, such as a WebSocket, ends with the session that has opened
// it: here, another device signs the user out everywhere. The client may connect again, with
// the session that it has then.
func ExampleChaiStore_SessionContext() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	sessionManager := scs.New()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable: true,
		Owner:       chaistore.OwnerByKey(sessionManager.Codec, "user"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer store.StopCleanup()
	sessionManager.Store = store

	messages := make(chan string) // to the user
	serve := func(ctx context.Context, connection io.Writer) {
		// With HashTokenInStore, the store knows the session by another token.
		ctx, cancel := store.SessionContext(ctx, chaistore.StoredToken(ctx, sessionManager))
		defer cancel()
		for {
			select {
			case message := <-messages:
				fmt.Fprintln(connection, message)
			case <-ctx.Done():
				if errors.Is(context.Cause(ctx), chaistore.ErrEnded) {
					fmt.Fprintln(connection, "You were signed out.")
				}
				return
			}
		}
	}

	request, err := sessionManager.Load(context.Background(), signIn(sessionManager, "alice"))
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		serve(request, os.Stdout)
	}()
	messages <- "Hello!"
	if _, err := store.DeleteOf(context.Background(), "alice"); err != nil { // on another device
		log.Fatal(err)
	}
	<-served
	// Output:
	// Hello!
	// You were signed out.
}

// DeleteFunc ends the sessions that a function chooses, such as those of a user if
// the store has no Owner. It works with HashTokenInStore, too.
func ExampleChaiStore_DeleteFunc() {
	db, store := openStore()
	defer db.Close()
	defer store.StopCleanup()
	sessionManager := scs.New()
	sessionManager.Store = store
	sessionManager.HashTokenInStore = true
	for _, user := range []string{"alice", "bob", "alice"} {
		signIn(sessionManager, user)
	}

	n, err := store.DeleteFunc(context.Background(), func(session chaistore.Session) bool {
		_, values, err := sessionManager.Codec.Decode(session.Data)
		return err == nil && values["user"] == "alice"
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "sessions ended")
	// Output: 2 sessions ended
}

// A session that Config.Owner can't read may be anybody's, so DeleteOf returns ErrOwnerUnreadable.
// Such sessions are found and ended with DeleteFunc.
func ExampleChaiStore_DeleteFunc_unreadable() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	owner := chaistore.OwnerByKey(scs.GobCodec{}, "user")
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, Owner: owner})
	if err != nil {
		log.Fatal(err)
	}
	defer store.StopCleanup()
	if err := store.Commit("token", []byte("of a former version"), time.Now().Add(time.Hour)); err != nil {
		log.Fatal(err)
	}
	_, err = store.DeleteOf(ctx, "alice")
	fmt.Println("all but unreadable sessions ended:", errors.Is(err, chaistore.ErrOwnerUnreadable))

	n, err := store.DeleteFunc(ctx, func(session chaistore.Session) bool {
		_, err := owner(session.Data)
		return err != nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("unreadable sessions ended:", n)
	_, err = store.DeleteOf(ctx, "alice")
	fmt.Println("all sessions ended:", err == nil)
	// Output:
	// all but unreadable sessions ended: true
	// unreadable sessions ended: 1
	// all sessions ended: true
}

// Active sessions can be counted without having them all in memory.
func ExampleChaiStore_Sessions() {
	db, store := openStore()
	defer db.Close()
	defer store.StopCleanup()
	sessionManager := scs.New()
	sessionManager.Store = store
	for _, user := range []string{"alice", "bob", "carol"} {
		signIn(sessionManager, user)
	}

	n := 0
	for _, err := range store.Sessions(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		n++
	}
	fmt.Println(n, "active sessions")
	// Output: 3 active sessions
}

// A short-lived program, or one that wants to choose the hour, can do without the
// cleanup.
func ExampleChaiStore_DeleteExpired() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, CleanupInterval: -1})
	if err != nil {
		log.Fatal(err)
	}
	if err := store.Commit("token", nil, time.Now().Add(-time.Hour)); err != nil {
		log.Fatal(err)
	}

	n, err := store.DeleteExpired(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "expired sessions deleted")
	// Output: 1 expired sessions deleted
}

// Two session managers, such as one for users and one for administrators, keep their
// sessions in separate tables of one database.
func ExampleNewWithConfig() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	newManager := func(tableName string) *scs.SessionManager {
		store, err := chaistore.NewWithConfig(db, chaistore.Config{TableName: tableName, CreateTable: true})
		if err != nil {
			log.Fatal(err)
		}
		sessionManager := scs.New()
		sessionManager.Store = store
		sessionManager.Cookie.Name = tableName
		return sessionManager
	}
	users, admins := newManager("user_sessions"), newManager("admin_sessions")
	defer users.Store.(*chaistore.ChaiStore).StopCleanup()
	defer admins.Store.(*chaistore.ChaiStore).StopCleanup()

	token := signIn(users, "alice")
	for _, sessionManager := range []*scs.SessionManager{users, admins} {
		ctx, err := sessionManager.Load(context.Background(), token)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(sessionManager.Cookie.Name, sessionManager.Exists(ctx, "user"))
	}
	// Output:
	// user_sessions true
	// admin_sessions false
}

// Goroutines of an application that write to the same database take turns with
// Update.
func ExampleUpdate() {
	db, store := openStore()
	defer db.Close()
	defer store.StopCleanup()

	err := chaistore.Update(context.Background(), db, func(tx *chai.Tx) error {
		if err := tx.Exec("CREATE TABLE visits (at TIMESTAMP)"); err != nil {
			return err
		}
		return tx.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
	})
	fmt.Println(err)
	// Output: <nil>
}

// Statements outside any transaction take their turn with the lock.
func ExampleWriteLock() {
	db, store := openStore()
	defer db.Close()
	defer store.StopCleanup()

	lock := chaistore.WriteLock(db)
	lock.Lock()
	err := db.Exec("CREATE TABLE visits (at TIMESTAMP)")
	lock.Unlock()
	fmt.Println(err)
	// Output: <nil>
}

// Each night, a goroutine of the program makes a copy, and removes all but the last
// seven.
func ExampleBackup() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	db, err := chaistore.Open(context.Background(), filepath.Join(dir, "sessions"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	copies := filepath.Join(dir, "copies")
	backUp := func(ctx context.Context, now time.Time) error {
		name := now.UTC().Format("2006-01-02T150405.000Z")
		if err := chaistore.Backup(ctx, db, filepath.Join(copies, name)); err != nil {
			return err
		}
		entries, err := os.ReadDir(copies) // by name, so the oldest are first
		if err != nil {
			return err
		}
		for _, old := range entries[:max(0, len(entries)-7)] {
			if err := os.RemoveAll(filepath.Join(copies, old.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(24 * time.Hour)
		defer ticker.Stop()
		for {
			select {
			case now := <-ticker.C:
				if err := backUp(ctx, now); err != nil {
					slog.Error("back up sessions", "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { cancel(); <-ended }() // before the database is closed

	for day := range 9 {
		if err := backUp(ctx, time.Date(2026, time.January, 1+day, 4, 0, 0, 0, time.UTC)); err != nil {
			log.Fatal(err)
		}
	}
	entries, err := os.ReadDir(copies)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(entries), "copies, from", entries[0].Name(), "to", entries[len(entries)-1].Name())
	// Output: 7 copies, from 2026-01-03T040000.000Z to 2026-01-09T040000.000Z
}

// A copy is restored to where the database was, while the program does not run.
func ExampleBackup_restore() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sessions, backup := filepath.Join(dir, "sessions"), filepath.Join(dir, "copy")
	open := func() (*chai.DB, *chaistore.ChaiStore) {
		db, err := chaistore.Open(context.Background(), sessions)
		if err != nil {
			log.Fatal(err)
		}
		store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, CleanupInterval: -1})
		if err != nil {
			log.Fatal(err)
		}
		return db, store
	}
	db, store := open()
	sessionManager := scs.New()
	sessionManager.Store = store
	signIn(sessionManager, "alice")
	if err := chaistore.Backup(context.Background(), db, backup); err != nil {
		log.Fatal(err)
	}
	db.Close()

	if err := os.Rename(sessions, sessions+"-before"); err != nil {
		log.Fatal(err)
	}
	if err := os.Rename(backup, sessions); err != nil {
		log.Fatal(err)
	}
	db, store = open()
	defer db.Close()
	all, err := store.All()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(all), "session restored")
	// Output: 1 session restored
}

// A store publishes its counters with those of the process, at /debug/vars.
func ExampleChaiStore_Stats() {
	db, store := openStore()
	defer db.Close()
	defer store.StopCleanup()
	expvar.Publish("sessions", expvar.Func(func() any { return store.Stats() }))

	sessionManager := scs.New()
	sessionManager.Store = store
	token := signIn(sessionManager, "alice")
	if _, err := sessionManager.Load(context.Background(), token); err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(http.DefaultServeMux) // expvar has registered /debug/vars there
	defer server.Close()
	response, err := http.Get(server.URL + "/debug/vars")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	var vars struct {
		Sessions chaistore.Stats `json:"sessions"`
	}
	if err := json.NewDecoder(response.Body).Decode(&vars); err != nil {
		log.Fatal(err)
	}
	stats := vars.Sessions
	fmt.Printf("%d commits, %d finds, %d from memory, error %q\n", stats.Commits, stats.Finds, stats.CacheHits, stats.WriteError)
	// Output: 1 commits, 1 finds, 1 from memory, error ""
}

// Prometheus reads the counters of a store at /metrics, in its text format. With
// Prometheus's own library, register functions that return the same numbers.
func ExampleChaiStore_Stats_prometheus() {
	db, store := openStore()
	defer db.Close()
	defer store.StopCleanup()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		stats := store.Stats()
		writable, merges := 1, 1
		if store.Err() != nil {
			writable = 0
		}
		if stats.BackgroundError != "" {
			merges = 0
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		for _, metric := range []struct {
			name, kind string
			value      any
		}{
			{"sessions_finds_total", "counter", stats.Finds},
			{"sessions_cache_hits_total", "counter", stats.CacheHits},
			{"sessions_commits_total", "counter", stats.Commits},
			{"sessions_deletes_total", "counter", stats.Deletes},
			{"sessions_swept_total", "counter", stats.Swept},
			{"sessions_fsyncs_total", "counter", stats.Fsyncs},
			{"sessions_active", "gauge", stats.Active},
			{"sessions_last_sweep_timestamp_seconds", "gauge", max(0, stats.LastSweep.Unix())},
			{"sessions_writable", "gauge", writable},
			{"sessions_merges", "gauge", merges},
		} {
			fmt.Fprintf(w, "# TYPE %s %s\n%[1]s %[3]v\n", metric.name, metric.kind, metric.value)
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()

	sessionManager := scs.New()
	sessionManager.Store = store
	signIn(sessionManager, "alice")
	response, err := http.Get(server.URL + "/metrics")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		log.Fatal(err)
	}
	// Output:
	// # TYPE sessions_finds_total counter
	// sessions_finds_total 0
	// # TYPE sessions_cache_hits_total counter
	// sessions_cache_hits_total 0
	// # TYPE sessions_commits_total counter
	// sessions_commits_total 1
	// # TYPE sessions_deletes_total counter
	// sessions_deletes_total 0
	// # TYPE sessions_swept_total counter
	// sessions_swept_total 0
	// # TYPE sessions_fsyncs_total counter
	// sessions_fsyncs_total 1
	// # TYPE sessions_active gauge
	// sessions_active 0
	// # TYPE sessions_last_sweep_timestamp_seconds gauge
	// sessions_last_sweep_timestamp_seconds 0
	// # TYPE sessions_writable gauge
	// sessions_writable 1
	// # TYPE sessions_merges gauge
	// sessions_merges 1
}
