package bench_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/alexedwards/scs/v2"
)

// requests starts a server on the loopback interface, and returns an operation that
// requests a page as a random visitor. The server counts visits in the session, so each
// request finds a session and commits it. The server runs until the benchmark ends.
func (s *sessions) requests(b *testing.B, clients int) operation {
	var failure atomic.Pointer[error]
	manager := scs.New()
	manager.Store = s.store
	manager.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) {
		failure.CompareAndSwap(nil, &err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	server := httptest.NewServer(manager.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		visits := manager.GetInt(r.Context(), "visits")
		manager.Put(r.Context(), "visits", visits+1)
		fmt.Fprintln(w, visits)
	})))
	b.Cleanup(server.Close)
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	b.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}

	return func(random *rand.Rand) error {
		token := pick(s.tokens, random)
		request, err := http.NewRequest(http.MethodGet, server.URL, nil)
		if err != nil {
			return err
		}
		request.AddCookie(&http.Cookie{Name: manager.Cookie.Name, Value: token})
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("request: %s: %w", response.Status, *failure.Load())
		}
		// If SCS does not find the session, it begins a new one.
		cookies := response.Cookies()
		if len(cookies) != 1 || cookies[0].Value != token {
			return errors.New("a session is missing")
		}
		return nil
	}
}
