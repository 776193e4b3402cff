package engine

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.elara.ws/chaistore/internal/reach"
	"go.elara.ws/chaistore/internal/testdb"
)

// With a version that is not known, each call returns an error at once, and the
// application can use its database.
func TestUnknownEngine(t *testing.T) {
	testdb.Watchdog(t, 30*time.Second)
	t.Cleanup(reach.Forget())
	engine := testdb.Memory(t)
	createTable(t, engine)
	db := Open(engine, func() *slog.Logger { return slog.New(slog.DiscardHandler) })
	db.GrowCache(1 << 20)
	for name, call := range map[string]func() error{
		"Read":       func() error { _, err := value(db, "a"); return err },
		"Write":      func() error { return db.Write(t.Context(), 100, set("a", 1)) },
		"Update":     func() error { return Open(engine, discard).Update(t.Context(), insert(1)) },
		"Usable":     db.Usable,
		"WriteError": db.WriteError,
	} {
		t.Run(name, func(t *testing.T) { wantError(t, call(), reach.Err()) })
	}
	if row := db.Cached(key("a")); row != nil {
		t.Errorf("Cached = %q, want nil", row)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, db.Write(done, 100, set("a", 1)), context.Canceled)
	lockIsFree(engine)
	testdb.Exec(t, engine, "INSERT INTO t (k) VALUES (1)")
	if got := rows(t, engine); got != 1 {
		t.Errorf("the table has %d rows, want 1", got)
	}
}
