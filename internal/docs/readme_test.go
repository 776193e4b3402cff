package docs

import (
	"context"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// Fragments of the README. TestEachFragmentIsTested compares them.

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
