// Quickstart is a web server whose sessions survive a restart.
package main

import (
	"context"
	"flag"
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
	dir := flag.String("dir", "chai_db", "directory of the database")
	addr := flag.String("addr", ":4000", "address to listen on")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, *addr); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends. Then it waits for the requests that are being
// served, stops the cleanup, and closes the database, in this order.
func run(ctx context.Context, dir, addr string) error {
	db, err := chai.Open(dir)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer db.Close()

	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
	if err != nil {
		return err
	}
	defer store.StopCleanup()

	sessionManager := scs.New()
	sessionManager.Store = store
	sessionManager.Lifetime = 24 * time.Hour

	mux := http.NewServeMux()
	mux.HandleFunc("/put", func(w http.ResponseWriter, r *http.Request) {
		sessionManager.Put(r.Context(), "message", "Hello from a session!")
		fmt.Fprintln(w, "The message is in your session: see /get.")
	})
	mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		message := sessionManager.GetString(r.Context(), "message")
		if message == "" {
			message = "There is no message in your session: see /put."
		}
		fmt.Fprintln(w, message)
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := sessionManager.Destroy(r.Context()); err != nil {
			http.Error(w, "The session could not be ended.", http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "Your session has ended.")
	})

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           sessionManager.LoadAndSave(mux),
		ReadHeaderTimeout: 10 * time.Second,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Printf("listening on http://%s\n", listener.Addr())

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	shutdownCtx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(shutdownCtx)
}
