// The group Store: cases for All.

package storetest

import (
	"bytes"
	"fmt"
	"time"
)

// testAll commits more sessions than a database may return at once: more than a
// thousand, and more than a megabyte.
func testAll(c *check) {
	const workers, each = 4, 300
	data := func(token string) []byte { return bytes.Repeat([]byte(token), 24) }
	// Concurrent commits can share an fsync.
	c.parallel(workers, func(worker int) error {
		for i := range each {
			token := token(fmt.Sprint("user", worker*each+i))
			if err := c.commit(c.ctx, token, data(token), inAnHour()); err != nil {
				return fmt.Errorf("calling Commit: %v", err)
			}
		}
		return nil
	})
	want := make(map[string]string)
	for i := range workers * each {
		token := token(fmt.Sprint("user", i))
		want[token] = string(data(token))
	}
	c.wantAll(want)
	for i := range 50 {
		token := token(fmt.Sprint("user", 20*i))
		delete(want, token)
		c.mustDelete(token)
	}
	c.wantAll(want)
}

func testAllWithoutExpired(c *check) {
	soon := time.Now().Add(c.resolution + 100*time.Millisecond)
	c.mustCommit(token("past"), "past", time.Now().Add(-time.Hour))
	c.mustCommit(token("soon"), "soon", soon)
	c.mustCommit(token("alice"), "of alice", inAnHour())
	time.Sleep(time.Until(soon.Add(c.resolution)))
	c.wantAll(map[string]string{token("alice"): "of alice"})
}

func testAllEmpty(c *check) {
	c.wantAll(nil)
	c.mustCommit(token("past"), "past", time.Now().Add(-time.Hour))
	c.wantAll(nil)
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.mustDelete(token("alice"))
	c.wantAll(nil)
}

func testAllEmptyData(c *check) {
	want := map[string]string{token("alice"): "", token("bob"): "of bob", token("carol"): ""}
	for token, data := range want {
		c.mustCommit(token, data, inAnHour())
	}
	c.wantAll(want)
}

// testAllLargeData commits some data that is so large that a store may refuse it.
func testAllLargeData(c *check) {
	want := make(map[string]string)
	for i, size := range []int{10, 1 << 20, 60_000, 20, 1 << 20, 30} {
		token := token(fmt.Sprint("user", i))
		data := bytesOf(size)
		if err := c.commit(c.ctx, token, data, inAnHour()); err == nil {
			want[token] = string(data)
		}
	}
	c.wantAll(want)
}

// testAllDataStays checks that later calls don't change the data that All returned.
func testAllDataStays(c *check) {
	want := c.fill()
	all, err := c.all(c.ctx)
	if err != nil {
		c.fatalf("All: %v", err)
	}
	c.useBuffers()
	for token, data := range want {
		if string(all[token]) != data {
			c.fatalf("the data that All returned has changed by itself, from %s to %s",
				quote([]byte(data)), quote(all[token]))
		}
	}
}
