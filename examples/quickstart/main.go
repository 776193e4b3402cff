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

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

func main() {
	db, err := chai.Open("chai_db")
	if err != nil {
		log.Fatalf("open the database in chai_db (is another process using it?): %v", err)
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
	server := &http.Server{Handler: sessionManager.LoadAndSave(mux)}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			log.Fatal(err)
		}
	}()

	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	<-interrupted
	server.Shutdown(context.Background()) // finishes the requests under way
	store.StopCleanup()
	db.Close()
}
