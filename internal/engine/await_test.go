package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.elara.ws/chaistore/internal/testdb"
)

// told returns the end of a batch that a function has others told of.
func told(t *testing.T, db *DB, f func() error) uint64 {
	t.Helper()
	before := db.Told()
	if err := f(); err != nil {
		t.Fatal(err)
	}
	if db.Told() <= before {
		t.Fatal("nothing was told")
	}
	return db.Told()
}

// sees reports whether a snapshot has the batch that ends at the given number.
func sees(t *testing.T, db *DB, end uint64) (ok bool) {
	t.Helper()
	err := db.Read(context.Background(), func(s *Snapshot) error { ok = s.Number() >= end; return nil })
	if err != nil {
		t.Error(err)
	}
	return ok
}

// Await returns when a snapshot has what was told: at once, after a commit, and for what a
// transaction has written out, when that has ended, either way. Meanwhile it sleeps.
func TestAwait(t *testing.T) {
	for _, end := range []string{"commit", "rollback"} {
		t.Run(end, func(t *testing.T) {
			testdb.Watchdog(t, time.Minute)
			synctest.Test(t, func(t *testing.T) {
				engine, db := newDB(t)
				write(t, db, set("a", 1))
				if err := db.Await(t.Context(), db.Told()); err != nil {
					t.Error(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := db.Await(ctx, db.Told()+1); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Await of what is never told = %v", err)
				}
				tx, err := engine.Begin(true)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				writtenOut := told(t, db, func() error {
					return errors.Join(tx.Exec("INSERT INTO t (k, v) VALUES (1, 1)"), tx.Exec("UPDATE t SET v = 2"), tx.Exec("SELECT * FROM t"))
				})
				returned := make(chan error, 1)
				start := time.Now()
				go func() {
					err := db.Await(t.Context(), writtenOut)
					if !sees(t, db, writtenOut) {
						t.Error("Await has returned before a snapshot sees it")
					}
					returned <- err
				}()
				synctest.Wait()
				time.Sleep(time.Hour) // takes long if it polls
				if len(returned) > 0 {
					t.Fatal("Await has returned while the transaction is open")
				}
				if end == "commit" {
					err = tx.Commit()
				} else {
					err = tx.Rollback()
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := <-returned; err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > time.Hour+time.Millisecond {
					t.Errorf("Await has taken %v after the end of the transaction", took-time.Hour)
				}
			})
		})
	}
}

// Await gives up when its context ends, when the database is closed, and when it is
// read-only, and what was told will not be seen.
func TestAwaitGivesUp(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	synctest.Test(t, func(t *testing.T) {
		engine, db := newDB(t)
		write(t, db, set("a", 1))
		tx, err := engine.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		end := told(t, db, func() error {
			return errors.Join(tx.Exec("INSERT INTO t (k, v) VALUES (1, 1)"), tx.Exec("UPDATE t SET v = 2"), tx.Exec("SELECT * FROM t"))
		})
		ctx, cancel := context.WithCancel(t.Context())
		canceled := make(chan error, 1)
		go func() { canceled <- db.Await(ctx, end) }()
		synctest.Wait()
		cancel()
		wantError(t, <-canceled, context.Canceled)
		_ = db.state.fail(errNo)
		wantError(t, db.Await(t.Context(), end), errNo)
		_ = tx.Rollback()
		wantError(t, db.Await(t.Context(), end), errNo)
		if err := db.Await(t.Context(), 1); err != nil {
			t.Errorf("Await of what is seen = %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		engine, db := newDB(t)
		write(t, db, set("a", 1))
		closed := make(chan error, 1)
		go func() { closed <- db.Await(t.Context(), db.Told()+1) }()
		time.Sleep(time.Second)
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
		<-db.Closed()
		wantError(t, <-closed, ErrClosed)
	})
}
