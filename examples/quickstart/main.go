// Quickstart is a web server whose sessions survive a restart.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx); err != nil {
		log.Fatal(err)
	}
}

// serve runs until ctx ends. Then it finishes the requests under way, stops the
// cleanup, and closes the database, in this order.
func serve(ctx context.Context) error {
	db, err := chai.Open("chai_db")
	if err != nil {
		return fmt.Errorf("open the database in chai_db (is another process using it?): %w", err)
	}
	defer db.Close()
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
	if err != nil {
		return err
	}
	defer store.StopCleanup()
	sessionManager := scs.New()
	sessionManager.Store = store

	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		visits := sessionManager.GetInt(r.Context(), "visits") + 1
		sessionManager.Put(r.Context(), "visits", visits)
		fmt.Fprintf(w, "Visit %d. Restart the server and reload: it still counts.\n", visits)
	})

	listener, err := net.Listen("tcp", "localhost:"+cmp.Or(os.Getenv("PORT"), "4000"))
	if err != nil {
		return err
	}
	fmt.Printf("listening on http://localhost:%d\n", listener.Addr().(*net.TCPAddr).Port)
	server := &http.Server{Handler: sessionManager.LoadAndSave(mux), ReadTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	context.AfterFunc(ctx, func() { stopped <- server.Shutdown(context.Background()) })
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	return <-stopped
}
