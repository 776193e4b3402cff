package docs

import (
	"context"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// Fragments of the README. TestGo compares them.

var _ = func(ctx context.Context, sessionManager *scs.SessionManager, store *chaistore.ChaiStore, userID string) error {
	if err := sessionManager.RenewToken(ctx); err != nil {
		return err
	}
	_, err := store.DeleteOf(ctx, userID)
	return err
}

var _ = func(ctx context.Context, db *chai.DB) error {
	err := chaistore.Update(ctx, db, func(tx *chai.Tx) error {
		return tx.Exec("INSERT INTO visits (at) VALUES (?)", time.Now())
	})
	return err
}

var _ = func(ctx context.Context, db *chai.DB) error {
	err := chaistore.Backup(ctx, db, "/var/backups/sessions-"+time.Now().Format(time.DateOnly))
	return err
}
