// The group Advice: cases for what SCS does not require of a store.

package storetest

import (
	"fmt"
	"time"
)

const (
	ownData = "SCS itself does not change data that it passes to a store or gets from one, but others may."
	stopOut = "Tests and servers often stop things twice, once in a deferred call."
)

var adviceCases = []testCase{
	{name: "FoundDataIsCopy", rule: ownData, test: testFoundDataIsCopy},
	{name: "AllIsCopy", rule: ownData, test: testAllIsCopy, needs: needsAll},
	{name: "CommitCopiesData", rule: ownData, test: testCommitCopiesData},
	{name: "CommitNilData", rule: "In Go, a nil slice is usually as good as an empty one.", test: testAcceptsNilData},
	{name: "CommitLargeData", rule: "Sessions grow with the application.", test: testAcceptsLargeData},
	{name: "StopTwice", rule: stopOut, test: testStopTwice, needs: needsCleanup, stops: true},
	{name: "StopAtOnce", rule: stopOut, test: testStopAtOnce, needs: needsCleanup, stops: true},
}

func overwrite(data []byte) {
	for i := range data {
		data[i] = 'X'
	}
	_ = append(data, " and more"...)
}

func testFoundDataIsCopy(c *check) {
	c.fill()
	c.mustCommit(token("alice"), "of alice", inAnHour())
	data, _, err := c.find(c.ctx, token("alice"))
	if err != nil {
		c.fatalf("Find: %v", err)
	}
	overwrite(data)
	if got, _, _ := c.find(c.ctx, token("alice")); string(got) != "of alice" {
		c.fatalf("writing to the data that Find returned has changed the session to %s", quote(got))
	}
}

func testAllIsCopy(c *check) {
	want := c.fill()
	all, err := c.all(c.ctx)
	if err != nil {
		c.fatalf("All: %v", err)
	}
	for _, data := range all {
		overwrite(data)
	}
	clear(all)
	for token, data := range want {
		if got, _, _ := c.find(c.ctx, token); string(got) != data {
			c.fatalf("writing to the data that All returned has changed a session to %s", quote(got))
		}
	}
	c.wantAll(want)
}

func testCommitCopiesData(c *check) {
	c.fill()
	data := []byte("of alice")
	if err := c.commit(c.ctx, token("alice"), data, inAnHour()); err != nil {
		c.fatalf("Commit: %v", err)
	}
	overwrite(data)
	if got, _, _ := c.find(c.ctx, token("alice")); string(got) != "of alice" {
		c.fatalf("writing to the data after Commit has changed the session to %s", quote(got))
	}
}

func testAcceptsNilData(c *check) {
	for _, name := range []string{"new", "renewed"} {
		if name == "renewed" {
			c.mustCommit(token(name), "something", inAnHour())
		}
		if err := c.commit(c.ctx, token(name), nil, inAnHour()); err != nil {
			c.fatalf("Commit of nil data: %v", err)
		}
		c.wantFound(token(name), "")
	}
}

func testAcceptsLargeData(c *check) {
	if err := c.commit(c.ctx, token("alice"), bytesOf(1<<20), inAnHour()); err != nil {
		c.fatalf("Commit of a megabyte: %v", err)
	}
}

func testStopTwice(c *check) {
	stopper := c.store.(cleaner)
	c.awaitGoroutine()
	stopper.StopCleanup()
	c.mustReturn(1, stopper.StopCleanup)
}

func testStopAtOnce(c *check) {
	c.awaitGoroutine()
	c.mustReturn(10, c.store.(cleaner).StopCleanup)
}

// mustReturn calls stop in n goroutines. A single call must return within a second.
// Of several calls, the first may take longer, and the others must follow within a
// second each.
func (c *check) mustReturn(n int, stop func()) {
	returned := make(chan error, n)
	for range n {
		go func() { returned <- noPanic(stop) }()
	}
	timeout := c.suite.timeout
	if n == 1 {
		timeout = time.Second
	}
	for i := range n {
		select {
		case err := <-returned:
			if err != nil {
				c.fatalf("StopCleanup: %v", err)
			}
			timeout = time.Second
		case <-patience(timeout):
			c.fatalf("%d of %d calls of StopCleanup did not return within %v\n%s",
				n-i, n, timeout, stacksOf(c.lifetime.label))
		}
	}
}

// noPanic calls f, and returns an error if f panics.
func noPanic(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, panicStack())
		}
	}()
	f()
	return nil
}
