// Webapp is a site that shows users where they are signed in, and lets them sign out
// there.
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
	addr := flag.String("addr", "localhost:4000", "address to listen on")
	// Without TLS, most browsers return a Secure cookie only to localhost. Safari does
	// not return it at all.
	insecure := flag.Bool("insecure", false, "let browsers return the cookie without TLS")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() {
		stop() // a second interrupt ends the program at once
		// Shutdown waits for requests, and Close for transactions, even for goroutines that
		// have deadlocked in Chai. All that was committed is on disk.
		time.AfterFunc(7*time.Second, func() { log.Fatal("a request or a transaction does not end") })
	})
	if err := run(ctx, *dir, *addr, !*insecure); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends. Then it waits for the requests under way, stops the
// cleanup, and closes the database, in this order.
func run(ctx context.Context, dir, addr string, secure bool) error {
	db, err := chaistore.Open(ctx, dir)
	if err != nil {
		return err
	}
	defer db.Close()

	store, err := newStore(db)
	if err != nil {
		return err
	}
	defer store.StopCleanup()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := newServer(newApp(store, secure))
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Printf("listening on http://%s\n", listener.Addr())

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	return server.Shutdown(context.Background())
}

// newServer returns a server whose Shutdown ends the event streams, for which it would
// wait otherwise.
func newServer(a *app) *http.Server {
	server := &http.Server{
		Handler:      a.handler(),
		ReadTimeout:  10 * time.Second,
		WriteTimeout: 10 * time.Second,
		IdleTimeout:  time.Minute,
	}
	server.RegisterOnShutdown(a.stop)
	return server
}

// newStore returns a store in which each session is owned by its signed-in user.
func newStore(db *chai.DB) (*chaistore.ChaiStore, error) {
	return chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable:   true,
		RememberEnded: 10 * time.Minute, // longer than any request takes
		Owner:         chaistore.OwnerByKey(scs.GobCodec{}, keyUser),
	})
}

// newSessionManager returns a session manager for sessions that end a week after
// the last visit, and a month after the visitor signed in.
func newSessionManager(store *chaistore.ChaiStore, secure bool) *scs.SessionManager {
	manager := scs.New()
	manager.Store = store
	manager.HashTokenInStore = true // hashed tokens from the database can't be used to sign in
	manager.Lifetime = 30 * 24 * time.Hour
	manager.IdleTimeout = 7 * 24 * time.Hour
	manager.Cookie.Secure = secure
	manager.Cookie.HttpOnly = true
	manager.Cookie.SameSite = http.SameSiteLaxMode
	manager.ErrorFunc = fail
	return manager
}
