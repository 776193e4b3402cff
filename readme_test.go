package chaistore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// Fragments of the README. Package docs compares them.

var _ = func(db *chai.DB, sessionManager *scs.SessionManager) (*chaistore.ChaiStore, error) {
	store, err := chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable:   true,
		Owner:         chaistore.OwnerByKey(sessionManager.Codec, "userID"),
		RememberEnded: 10 * time.Minute,
	})
	return store, err
}

var _ = func(sessionManager *scs.SessionManager) {
	sessionManager.ErrorFunc = func(w http.ResponseWriter, r *http.Request, err error) {
		if errors.Is(err, chaistore.ErrEnded) {
			http.Redirect(w, r, "/sign-in?ended", http.StatusSeeOther)
			return
		}
		http.Error(w, "The session could not be kept.", http.StatusInternalServerError)
	}
}

var _ = func(ctx context.Context, db *chai.DB) error {
	err := chaistore.Update(ctx, db, func(tx *chai.Tx) error {
		return tx.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
	})
	return err
}

var _ = func(db *chai.DB, dir string) error {
	err := db.DB.Store.DB().Checkpoint(filepath.Join(dir, "pebble"))
	return err
}

// A backup made while the store is in use can be opened, and has the sessions
// committed before.
func TestBackup(t *testing.T) {
	db, err := chai.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := newStore(t, db)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ctx.Err() == nil; i++ {
			commit(t, s, fmt.Sprint("later-", i%100), "two", inAnHour())
		}
	}()
	commit(t, s, "alice", "one", inAnHour())

	dir := t.TempDir()
	if err := db.DB.Store.DB().Checkpoint(filepath.Join(dir, "pebble")); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-stopped
	restored, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	wantFound(t, newStore(t, restored), "alice", "one")
}
