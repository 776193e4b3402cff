// Serving HTTP.

package chaistore

import (
	"net/http"

	"github.com/alexedwards/scs/v2"
)

// LoadAndSave is like the session manager's own LoadAndSave, but sends nothing after the
// response of its ErrorFunc.
//
// SCS commits the session when next begins its response. If the commit fails, for example
// with [ErrEnded], SCS calls ErrorFunc, and then still sends the response of next: the
// redirect to the sign-in page is followed by a page that only a signed-in user should see.
//
// LoadAndSave drops the response of next instead: its calls of Write return the error that
// ErrorFunc got. Headers that next has set stay, except for Content-Length and
// Content-Encoding.
//
// LoadAndSave panics if the session manager or next is nil.
func LoadAndSave(sessionManager *scs.SessionManager, next http.Handler) http.Handler {
	switch {
	case sessionManager == nil:
		panic("chaistore: the session manager is nil: pass one from scs.New")
	case next == nil:
		panic("chaistore: the handler is nil: pass the one that serves the requests")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &answer{ResponseWriter: w}
		manager := *sessionManager // with the key of its values in contexts
		manager.ErrorFunc = func(w http.ResponseWriter, r *http.Request, err error) {
			w.Header().Del("Content-Length")
			w.Header().Del("Content-Encoding")
			sessionManager.ErrorFunc(w, r, err)
			answer.failure = err
		}
		manager.LoadAndSave(next).ServeHTTP(answer, r)
	})
}

// An answer is what is written until ErrorFunc has returned.
type answer struct {
	http.ResponseWriter
	failure error // that ErrorFunc got
}

func (a *answer) WriteHeader(status int) {
	if a.failure == nil {
		a.ResponseWriter.WriteHeader(status)
	}
}

func (a *answer) Write(b []byte) (int, error) {
	if a.failure != nil {
		return 0, a.failure
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
