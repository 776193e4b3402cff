// Contexts of sessions: what a session holds open ends with it.

package chaistore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/alexedwards/scs/v2"
)

// SessionContext returns a copy of parent that is canceled when the session with the given
// token ends. Use it for what stays open long after the session was loaded: WebSockets,
// event streams and long polls. [StoredToken] returns the token of a request's session.
//
//	ctx, cancel := store.SessionContext(r.Context(), chaistore.StoredToken(r.Context(), sessionManager))
//	defer cancel()
//
// The cause, which [context.Cause] returns, is [ErrEnded] when the session
//
//   - was deleted by a store on the database, by a sweep, or with SQL. The context is done
//     when the deleting method returns, or a moment after SQL is committed. Transactions
//     that are open or rolled back have no effect;
//   - has expired. A commit that moves the expiry moves the end of the context;
//   - was in a table that was dropped, or replaced by one without it.
//
// If there is no such session, the context is done at once: the session may have been
// deleted since the request loaded it. A context that is done stays done, even if a request
// that is still running commits the session again. RenewToken ends the contexts of the old
// token; clients should connect again.
//
// When the database is closed, the cause wraps [ErrClosed]. When the session can't be read,
// the cause says why. When the database is read-only, the context ends when the session
// expires.
//
// Until it is done, a context takes about a kilobyte of memory, and no goroutine. Call cancel
// when it is not needed any more. SessionContext reads from a snapshot and waits for nobody.
func (s *ChaiStore) SessionContext(parent context.Context, token string) (ctx context.Context, cancel context.CancelFunc) {
	if s.table == nil {
		ctx, cancel := context.WithCancelCause(parent)
		cancel(fmt.Errorf("chaistore: watch session: %w", errZeroStore))
		return ctx, func() { cancel(nil) }
	}
	return s.table.Context(parent, token)
}

// StoredToken returns the token under which the store keeps the session of a request, for
// [ChaiStore.SessionContext]. It is the token in the cookie, or its hash if the session
// manager has HashTokenInStore. A session that was not committed yet has the token "".
//
// ctx is the context of a request inside [LoadAndSave], or inside the session manager's
// own. StoredToken panics if ctx has no session data, as all methods of the session manager
// do.
func StoredToken(ctx context.Context, sessionManager *scs.SessionManager) string {
	token := sessionManager.Token(ctx)
	if token == "" || !sessionManager.HashTokenInStore {
		return token
	}
	hash := sha256.Sum256([]byte(token)) // as hashToken in session.go of SCS
	return base64.RawURLEncoding.EncodeToString(hash[:])
}
