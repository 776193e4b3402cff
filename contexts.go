// Contexts of sessions: what a session holds open ends with it.

package chaistore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"

	"github.com/alexedwards/scs/v2"
)

// SessionContext returns a copy of parent that is canceled when the session with the given
// token ends. It is for what outlives the load of the session: WebSockets, event streams,
// long polls. [StoredToken] returns the token of a request's session.
//
//	ctx, cancel := store.SessionContext(r.Context(), chaistore.StoredToken(r.Context(), sessionManager))
//	defer cancel()
//
// The cause, which [context.Cause] returns, is [ErrEnded] when the session
//
//   - was deleted, by a store on the database, by a sweep, or with SQL. When a method of a
//     store that deletes has returned, the context is done. When SQL has committed, it will be
//     a moment later. Transactions that are open or are rolled back have no effect;
//   - has expired. A commit that moves the expiry moves the end of the context;
//   - was in a table that was dropped, or replaced by one without it.
//
// It is done at once if there is no such session, which is also what a request sees that has
// loaded a session before it was deleted. A session that was deleted and is put again, for
// example by a request that is still being served, has ended; it gets new contexts. So
// RenewToken ends the contexts of the old token, and clients should connect again.
//
// When the database is closed, or the session can't be read, the cause is another error. When
// the database has become read-only, the context is canceled when the session expires.
//
// A context takes about a kilobyte of memory, and no goroutine, until it is done. Call cancel
// when it is not needed any more. SessionContext reads from a snapshot and waits for nobody.
func (s *ChaiStore) SessionContext(parent context.Context, token string) (ctx context.Context, cancel context.CancelFunc) {
	return s.table.Context(parent, token)
}

// StoredToken returns the token under which the store has the session of a request, which
// [ChaiStore.SessionContext] needs: the one in the cookie, or, if the session manager has
// HashTokenInStore, the hash of that, which takes less than a microsecond. ctx is the context
// of a request that [scs.SessionManager.LoadAndSave] serves; StoredToken panics if it has no
// session data, as all methods of the session manager do. A session that was not committed
// yet has the token "".
func StoredToken(ctx context.Context, sessionManager *scs.SessionManager) string {
	token := sessionManager.Token(ctx)
	if token == "" || !sessionManager.HashTokenInStore {
		return token
	}
	hash := sha256.Sum256([]byte(token)) // as hashToken in session.go of SCS
	return base64.RawURLEncoding.EncodeToString(hash[:])
}
