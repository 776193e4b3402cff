// The group Ctx: cases for methods that take a context.

package storetest

import (
	"context"
	"fmt"
	"time"
)

const ctxRule = "CommitCtx is the same as Store.Commit, except it takes a context.Context."

var ctxCases = []testCase{
	{
		name: "SameAsPlain", doc: "scs.CtxStore.FindCtx",
		rule: "FindCtx is the same as Store.Find, except it takes a context.Context.",
		test: testSameAsPlain, needs: needsBoth,
	},
	{name: "Canceled", doc: "scs.CtxStore.CommitCtx", rule: ctxRule, test: testCanceled, needs: needsCtx},
	{name: "DeadlineExceeded", doc: "scs.CtxStore.CommitCtx", rule: ctxRule, test: testDeadlineExceeded, needs: needsCtx},
	{name: "EndsDuringCall", doc: "scs.CtxStore.CommitCtx", rule: ctxRule, test: testEndsDuringCall, needs: needsCtx},
	{name: "EndsAfterCall", doc: "scs.CtxStore.CommitCtx", rule: ctxRule, test: testEndsAfterCall, needs: needsCtx},
}

func testSameAsPlain(c *check) {
	for _, writer := range c.views {
		for _, reader := range c.views {
			alice := token("alice-" + writer.name + "-" + reader.name)
			c.view = writer
			c.mustCommit(alice, writer.name, inAnHour())
			c.view = reader
			c.wantFound(alice, writer.name)
			c.wantAll(map[string]string{alice: writer.name})
			c.mustCommit(alice, reader.name, inAnHour())
			c.view = writer
			c.wantFound(alice, reader.name)
			c.mustDelete(alice)
			c.view = reader
			c.wantMissing(alice)
		}
	}
}

func testCanceled(c *check) {
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	c.callEnded(ctx)
}

func testDeadlineExceeded(c *check) {
	ctx, cancel := context.WithDeadline(c.ctx, time.Now().Add(-time.Second))
	defer cancel()
	c.callEnded(ctx)
}

// callEnded calls the store with a context that has ended. A store may ignore the
// context, or return an error. But it must not report a session as missing, which
// would log the user out, or return nil for a write that it did not make, which could
// keep the user logged in. Nor may it make a write after it returned an error.
func (c *check) callEnded(ended context.Context) {
	alice := token("alice")
	c.mustCommit(alice, "of alice", inAnHour())
	data, found, err := c.find(ended, alice)
	if err == nil && (!found || string(data) != "of alice") {
		c.fatalf("FindCtx = %s, %v, nil with an ended context (%v); want an error, or the session",
			quote(data), found, ended.Err())
	}
	if c.all != nil {
		all, err := c.all(ended)
		if err == nil && len(all) != 1 {
			c.fatalf("AllCtx returned %d of 1 sessions and no error with an ended context (%v)", len(all), ended.Err())
		}
	}

	want := map[string]string{alice: "of alice"}
	var tokens []string
	for i := range 20 {
		added, renewed, deleted := token(fmt.Sprint("added", i)), token(fmt.Sprint("renewed", i)), token(fmt.Sprint("deleted", i))
		tokens = append(tokens, added, renewed, deleted)
		if c.commit(ended, added, []byte("new"), inAnHour()) == nil {
			want[added] = "new"
		}
		c.mustCommit(renewed, "one", inAnHour())
		want[renewed] = "one"
		if c.commit(ended, renewed, []byte("two"), inAnHour()) == nil {
			want[renewed] = "two"
		}
		c.mustCommit(deleted, "old", inAnHour())
		if c.delete(ended, deleted) != nil {
			want[deleted] = "old"
		}
	}
	time.Sleep(100 * time.Millisecond) // for writes that come late
	for _, token := range tokens {
		data, found, err := c.find(c.ctx, token)
		if wantData, wantFound := want[token]; err != nil || found != wantFound || string(data) != wantData {
			c.fatalf("Find(%q) = %s, %v, %v; want %q, %v, nil: with an ended context (%v), a call either "+
				"returned an error but did write, or returned nil but did not",
				token, quote(data), found, err, wantData, wantFound, ended.Err())
		}
	}

	// The store must still work.
	c.mustDelete(alice)
	c.wantMissing(alice)
}

// testEndsDuringCall uses contexts that end during a call.
func testEndsDuringCall(c *check) {
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.parallel(4, func(worker int) error {
		for n := range 20 {
			ctx, cancel := context.WithTimeout(c.ctx, time.Duration(n*n)*10*time.Microsecond)
			defer cancel()
			if data, found, err := c.find(ctx, token("alice")); err == nil && (!found || string(data) != "of alice") {
				return fmt.Errorf("calling FindCtx while its context ended = %s, %v, nil; want an error, or the session", quote(data), found)
			}
			own := token(fmt.Sprint("worker", worker, "-", n))
			if err := c.commit(ctx, own, []byte("own"), inAnHour()); err != nil {
				continue // it may have written, or not
			}
			if data, found, err := c.find(c.ctx, own); err != nil || !found || string(data) != "own" {
				return fmt.Errorf("calling Find = %s, %v, %v, although CommitCtx returned nil while its context ended; want %q, true, nil",
					quote(data), found, err, "own")
			}
		}
		return nil
	})
	c.wantFound(token("alice"), "of alice")
}

// Each request has its own context, which ends with the request.
func testEndsAfterCall(c *check) {
	call := func(f func()) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		c.ctx = ctx
		f()
		cancel()
		time.Sleep(20 * time.Millisecond) // for whatever the end of the context starts
	}
	alice := token("alice")
	for _, data := range []string{"one", "two"} {
		call(func() { c.mustCommit(alice, data, inAnHour()) })
		call(func() { c.wantFound(alice, data) })
		call(func() { c.wantAll(map[string]string{alice: data}) })
	}
	call(func() { c.mustDelete(alice) })
	call(func() { c.wantMissing(alice) })
}
