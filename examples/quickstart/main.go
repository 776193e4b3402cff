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

	"go.elara.ws/chaistore"
)

func main() {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	db, err := chaistore.Open(interrupted, "chai_db")
	if err != nil {
		log.Fatal(err)
	}
	store, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true})
	if err != nil {
		log.Fatal(err)
	}
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
		log.Fatal(err)
	}
	fmt.Printf("listening on http://localhost:%d\n", listener.Addr().(*net.TCPAddr).Port)
	server := &http.Server{
		Handler:      sessionManager.LoadAndSave(mux),
		ReadTimeout:  10 * time.Second,
		WriteTimeout: 10 * time.Second,
	}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			log.Fatal(err)
		}
	}()

	<-interrupted.Done()
	stop() // from now on, an interrupt ends the program at once
	time.AfterFunc(7*time.Second, func() { log.Fatal("a request or a transaction does not end") })
	server.Shutdown(context.Background())
	store.StopCleanup()
	db.Close()
}
