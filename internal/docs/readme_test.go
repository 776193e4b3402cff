package docs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// Fragments of the README. TestGo compares them.

var _ = func(ctx context.Context, sessionManager *scs.SessionManager, store *chaistore.ChaiStore, userID string) error {
	if err := sessionManager.RenewToken(ctx); err != nil {
		return err
	}
	_, err := store.DeleteOf(ctx, userID) // a string; an integer in decimal
	return err
}

var _ = func(ctx context.Context, db *chai.DB) error {
	err := chaistore.Update(ctx, db, func(tx *chai.Tx) error {
		return tx.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
	})
	return err
}

var _ = func(ctx context.Context, db *chai.DB) error {
	err := chaistore.Backup(ctx, db, "/var/backups/sessions-"+time.Now().Format(time.DateOnly))
	return err
}

func handleEvents(mux *http.ServeMux, store *chaistore.ChaiStore, sessionManager *scs.SessionManager, stream func(context.Context, http.ResponseWriter)) {
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := store.SessionContext(r.Context(), chaistore.StoredToken(r.Context(), sessionManager))
		defer cancel()
		w.WriteHeader(http.StatusOK) // SCS commits the session here, and not later; a Flush before this loses its cookie
		stream(ctx, w)               // until ctx is done
	})
}

// The stream in the README sends the cookie, and ends with its session.
func TestEvents(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	store, err := chaistore.NewWithConfig(testdb.Memory(t), chaistore.Config{CreateTable: true, CleanupInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	sessionManager := scs.New()
	sessionManager.Store = store
	sessionManager.HashTokenInStore = true
	sessionManager.IdleTimeout = time.Hour // each request commits
	ctx, _ := sessionManager.Load(t.Context(), "")
	sessionManager.Put(ctx, "user", "alice")
	token, _, err := sessionManager.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	handleEvents(mux, store, sessionManager, func(ctx context.Context, w http.ResponseWriter) {
		http.NewResponseController(w).Flush()
		<-ctx.Done()
		fmt.Fprint(w, context.Cause(ctx))
	})
	server := httptest.NewServer(chaistore.LoadAndSave(sessionManager, mux))
	defer server.Close()
	request, err := http.NewRequest(http.MethodGet, server.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.AddCookie(&http.Cookie{Name: sessionManager.Cookie.Name, Value: token})
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if cookies := response.Cookies(); len(cookies) != 1 || cookies[0].Value != token {
		t.Error("the stream does not send the cookie")
	}
	if err := store.Delete(chaistore.StoredToken(ctx, sessionManager)); err != nil {
		t.Fatal(err)
	}
	if end, err := io.ReadAll(response.Body); err != nil || string(end) != chaistore.ErrEnded.Error() {
		t.Errorf("the stream ends with %q, %v", end, err)
	}
}
