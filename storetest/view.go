// Views: the methods of a store that the cases call.

package storetest

import (
	"context"
	"time"

	"github.com/alexedwards/scs/v2"
)

// A view has one method of a store for each operation. If the method takes no
// context, the view ignores the context.
type view struct {
	name   string
	find   func(ctx context.Context, token string) ([]byte, bool, error)
	commit func(ctx context.Context, token string, b []byte, expiry time.Time) error
	delete func(ctx context.Context, token string) error
	all    func(ctx context.Context) (map[string][]byte, error) // nil if the store has none
}

// viewsOf returns the plain view, and the ctx view if any method of the store takes a
// context. With CtxOnly, the ctx view replaces the plain one. The last view has the
// methods that SCS calls.
func viewsOf(store scs.Store, cfg config) []view {
	plain := view{
		name:   "plain",
		find:   func(_ context.Context, token string) ([]byte, bool, error) { return store.Find(token) },
		delete: func(_ context.Context, token string) error { return store.Delete(token) },
		commit: func(_ context.Context, token string, b []byte, expiry time.Time) error {
			return store.Commit(token, b, expiry)
		},
	}
	if s, ok := store.(scs.IterableStore); ok {
		plain.all = func(context.Context) (map[string][]byte, error) { return s.All() }
	}

	ctx := plain
	if s, ok := store.(interface {
		FindCtx(context.Context, string) ([]byte, bool, error)
	}); ok {
		ctx.name, ctx.find = "ctx", s.FindCtx
	}
	if s, ok := store.(interface {
		CommitCtx(context.Context, string, []byte, time.Time) error
	}); ok {
		ctx.name, ctx.commit = "ctx", s.CommitCtx
	}
	if s, ok := store.(interface {
		DeleteCtx(context.Context, string) error
	}); ok {
		ctx.name, ctx.delete = "ctx", s.DeleteCtx
	}
	if s, ok := store.(scs.IterableCtxStore); ok {
		ctx.name, ctx.all = "ctx", s.AllCtx
		if plain.all == nil {
			plain.all = s.AllCtx
		}
	}

	switch {
	case ctx.name == "plain":
		return []view{plain}
	case cfg.ctxOnly:
		return []view{ctx}
	default:
		return []view{plain, ctx}
	}
}
