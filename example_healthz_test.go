package chaistore_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// healthz answers 503 when a restart helps. A database that is busy gets a minute. One that
// is read-only still finds sessions, and can't be opened again while its disk is full: so
// somebody must free space first, whom the metrics and the logs tell.
func healthz(store *chaistore.ChaiStore) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := store.Err()
		switch {
		case err == nil:
			fmt.Fprintln(w, "ok")
		case errors.Is(err, chaistore.ErrBusy) && time.Since(store.Stats().BusySince) < time.Minute:
			fmt.Fprintln(w, "busy")
		case errors.Is(err, chaistore.ErrReadOnly):
			fmt.Fprintln(w, err)
		default:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}
}

// A supervisor asks /healthz, and restarts the program if it answers 503.
func ExampleChaiStore_Err() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
	if err != nil {
		log.Fatal(err)
	}
	defer store.StopCleanup()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz(store))
	server := httptest.NewServer(mux)
	defer server.Close()

	response, err := http.Get(server.URL + "/healthz")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s", response.Status, body)
	// Output: 200 OK: ok
}
