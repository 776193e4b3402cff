package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.elara.ws/chaistore"
)

// heartbeat is how often a stream looks at the places by itself, and sends something. It
// finds connections that are lost, and keeps proxies from ending a stream that is idle.
const heartbeat = 20 * time.Second

// events serves the event stream of a page: it sends the list of places whenever it
// changes, and says when the session has ended.
//
// LoadAndSave loads the session once, and commits it once, when the headers are written.
// So a stream sees the session as it was at the start. What it would put into the session
// later is lost, and so is a cookie that is set later. As with any two requests, it would
// overwrite what another commits between the two, so there is nothing slow between them.
// The commit counts as a visit, the only one: the session of a stream that is open for
// longer than the IdleTimeout expires, unless other requests renew it.
func (a *app) events(w http.ResponseWriter, r *http.Request) {
	// Before the commit, to see a deletion that comes before it.
	ctx, cancel := a.store.SessionContext(r.Context(), chaistore.StoredToken(r.Context(), a.sessions))
	defer cancel()
	user := a.sessions.GetString(ctx, keyUser)
	changed, stop := a.changes.follow(user) // before the first look at the places
	defer stop()

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // for nginx
	w.WriteHeader(http.StatusOK)              // commits; a Flush without it would send headers without the cookie
	controller := http.NewResponseController(w)
	send := func(event string) error {
		// Instead of the server's deadline. HTTP/2 ends even an idle stream at its deadline,
		// so it is after the next heartbeat.
		if err := controller.SetWriteDeadline(time.Now().Add(2 * heartbeat)); err != nil {
			return err
		}
		if _, err := io.WriteString(w, event); err != nil {
			return err
		}
		return controller.Flush()
	}

	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	for sent := ""; ; {
		event, err := a.placesEvent(ctx, user)
		switch {
		case err != nil:
		case event == sent:
			err = send(": still here\n\n")
		default:
			sent, err = event, send(event)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, chaistore.ErrEnded) {
			slog.Error("webapp: event stream", "error", err)
			return
		}
		select {
		case <-changed:
		case <-ticker.C:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), chaistore.ErrEnded) {
				_ = send("event: ended\ndata: ended\n\n") // the visitor may have left
			}
			return
		case <-a.stopping.Done(): // the page connects again
			return
		}
	}
}

// placesEvent returns the event that has the list of places, as HTML in a JSON string,
// which has no newlines.
func (a *app) placesEvent(ctx context.Context, user string) (string, error) {
	places, err := a.places(ctx, user, time.Now())
	if err != nil {
		return "", err
	}
	var list strings.Builder
	if err := pageTemplate.ExecuteTemplate(&list, "places", page{Places: places}); err != nil {
		return "", err
	}
	data, err := json.Marshal(list.String())
	return "event: places\ndata: " + string(data) + "\n\n", err
}

// changes tells the streams of a user that the places have changed.
type changes struct {
	mu      sync.Mutex
	streams map[chan struct{}]string // to their users
}

// follow returns a channel that receives after each change, until stop is called.
func (c *changes) follow(user string) (changed <-chan struct{}, stop func()) {
	stream := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[stream] = user
	return stream, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, stream)
	}
}

func (c *changes) announce(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for stream, of := range c.streams {
		if of != user {
			continue
		}
		select {
		case stream <- struct{}{}:
		default: // it has not looked since the last change
		}
	}
}

// announced announces the changes that a handler makes, for the user before and the user
// after it. The handler has committed the session: it has written its answer.
func (a *app) announced(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		before := a.sessions.GetString(r.Context(), keyUser)
		h(w, r)
		a.changes.announce(before)
		if after := a.sessions.GetString(r.Context(), keyUser); after != before {
			a.changes.announce(after)
		}
	}
}
