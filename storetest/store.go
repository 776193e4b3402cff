// The group Store: cases that call the methods of a store directly.

package storetest

import (
	"fmt"
	"strings"
	"time"
)

// Rules that several cases check.
const (
	findRule = "If the session token is not found or is expired, the found return value should be false " +
		"(and the err return value should be nil)."
	malformedRule = "Similarly, tampered or malformed tokens should result in a found return value of false and a nil err value."
	findDataRule  = "Find should return the data for a session token from the store."
	commitRule    = "Commit should add the session token and data to the store, with the given expiry time."
	overwriteRule = "If the session token already exists, then the data and expiry time should be overwritten."
	deleteRule    = "Delete should remove the session token and corresponding data from the session store."
	noOpRule      = "If the token does not exist then Delete should be a no-op and return nil (not an error)."
	allRule       = "All should return a map containing data for all active sessions (i.e. sessions which have not expired)."
	emptyMapRule  = "If no active sessions exist this should return an empty (not nil) map."
)

var storeCases = []testCase{
	{name: "FindMissing", doc: "scs.Store.Find", rule: findRule, test: testFindMissing},
	{name: "FindExpired", doc: "scs.Store.Find", rule: findRule, test: testFindExpired},
	{name: "FindEmptyToken", doc: "scs.Store.Find", rule: malformedRule, test: testFindEmptyToken},
	{name: "FindMalformed", doc: "scs.Store.Find", rule: malformedRule, test: testFindMalformed},
	{name: "FindTampered", doc: "scs.Store.Find", rule: malformedRule, test: testFindTampered},
	{name: "FoundDataStays", doc: "scs.Store.Find", rule: findDataRule, test: testFoundDataStays},
	{name: "FindDuringRenewal", doc: "scs.Store.Find", rule: findDataRule, test: testFindDuringRenewal},

	{name: "Commit", doc: "scs.Store.Commit", rule: commitRule, test: testCommit},
	{name: "CommitEmptyData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitEmptyData},
	{name: "CommitNilData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitNilData},
	{name: "CommitBinaryData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitBinaryData},
	{name: "CommitLargeData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitLargeData},
	{name: "CommitSameData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitSameData},
	{name: "CommitSimilarTokens", doc: "scs.Store.Commit", rule: commitRule, test: testCommitSimilarTokens},
	{name: "CommitOddTokens", doc: "scs.Store.Commit", rule: commitRule, test: testCommitOddTokens},
	{name: "CommitOverwritesData", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitOverwritesData},
	{name: "CommitLengthensExpiry", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitLengthensExpiry},
	{name: "CommitShortensExpiry", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitShortensExpiry},
	{name: "CommitAtOnce", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitAtOnce},
	{name: "CommitDuringSweep", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitDuringSweep},

	{name: "ExpiryInAnyZone", doc: "scs.Store.Commit", rule: commitRule, test: testExpiryInAnyZone},
	{name: "ExpiryWithinSecond", doc: "scs.Store.Commit", rule: commitRule, test: testExpiryWithinSecond},
	{name: "ExpiryFarAhead", doc: "scs.Store.Commit", rule: commitRule, test: testExpiryFarAhead},
	{name: "ExpiryLongPast", doc: "scs.Store.Find", rule: findRule, test: testExpiryLongPast},

	{name: "Delete", doc: "scs.Store.Delete", rule: deleteRule, test: testDelete},
	{name: "DeleteMissing", doc: "scs.Store.Delete", rule: noOpRule, test: testDeleteMissing},
	{name: "DeleteEmptyToken", doc: "scs.Store.Delete", rule: noOpRule, test: testDeleteEmptyToken},
	{name: "DeleteMalformed", doc: "scs.Store.Delete", rule: noOpRule, test: testDeleteMalformed},
	{name: "DeleteTampered", doc: "scs.Store.Delete", rule: noOpRule, test: testDeleteTampered},

	{name: "All", doc: "scs.IterableStore.All", rule: allRule, test: testAll, needs: needsAll},
	{name: "AllWithoutExpired", doc: "scs.IterableStore.All", rule: allRule, test: testAllWithoutExpired, needs: needsAll},
	{name: "AllEmpty", doc: "scs.IterableStore.All", rule: emptyMapRule, test: testAllEmpty, needs: needsAll},
	{name: "AllEmptyData", doc: "scs.IterableStore.All", rule: allRule, test: testAllEmptyData, needs: needsAll},
	{name: "AllLargeData", doc: "scs.IterableStore.All", rule: allRule, test: testAllLargeData, needs: needsAll},
	{name: "AllDataStays", doc: "scs.IterableStore.All", rule: allRule, test: testAllDataStays, needs: needsAll},

	{name: "Concurrent", doc: "scs.New", rule: "It is safe for concurrent use.", test: testConcurrent},
}

func testFindMissing(c *check) {
	c.wantMissing(token("alice"))
	c.mustCommit(token("bob"), "of bob", inAnHour())
	c.wantMissing(token("alice"))
	c.wantFound(token("bob"), "of bob")
}

func testCommit(c *check) {
	want := make(map[string]string)
	for i := range 50 {
		token := token(fmt.Sprint("user", i))
		want[token] = strings.Repeat(fmt.Sprint(i, " "), i+1)
		c.mustCommit(token, want[token], inAnHour())
		c.wantFound(token, want[token])
	}
	for token, data := range want {
		c.wantFound(token, data)
	}
	for token, data := range want {
		c.wantFound(token, data) // the first find did not use it up
	}
}

func testCommitBinaryData(c *check) {
	var every strings.Builder
	for b := range 256 {
		every.WriteByte(byte(b))
	}
	for i, data := range []string{
		every.String(), "\x00", "a\x00b\x00", "\xff\xfe", "\xc3\x28", " a ", "\r\n", `'"\`, `\x41`, "%s", "0x41", "42", "null",
	} {
		token := token(fmt.Sprint("binary", i))
		c.mustCommit(token, data, inAnHour())
		c.wantFound(token, data)
	}
}

func testCommitOverwritesData(c *check) {
	c.mustCommit(token("bob"), "of bob", inAnHour())
	for _, data := range []string{"one", "longer than before", "two", strings.Repeat("x", 10_000), "three", "three"} {
		c.mustCommit(token("alice"), data, inAnHour())
		c.wantFound(token("alice"), data)
	}
	c.wantAll(map[string]string{token("alice"): "three", token("bob"): "of bob"})
	c.wantFound(token("bob"), "of bob")
	c.mustDelete(token("alice"))
	c.wantMissing(token("alice")) // no earlier version is left
}

func testDelete(c *check) {
	c.mustCommit(token("alice"), "one", inAnHour())
	c.mustCommit(token("bob"), "of bob", inAnHour())
	c.mustDelete(token("alice"))
	c.wantMissing(token("alice"))
	c.wantFound(token("bob"), "of bob")
	c.wantAll(map[string]string{token("bob"): "of bob"})
	if !c.suite.refusesEnded {
		c.mustCommit(token("alice"), "two", inAnHour())
		c.wantFound(token("alice"), "two")
		return
	}
	for range 2 {
		for _, expiry := range []time.Time{inAnHour(), time.Now().Add(2 * time.Hour)} {
			if err := c.commit(c.ctx, token("alice"), []byte("two"), expiry); err == nil {
				c.fatalf("Commit of a deleted session = nil, want an error, because of the option RefusesEnded")
			}
			c.wantMissing(token("alice"))
			c.wantAll(map[string]string{token("bob"): "of bob"})
		}
		c.mustDelete(token("alice"))
	}
	c.mustCommit(token("bob"), "anew", inAnHour())
	c.wantFound(token("bob"), "anew")
}

func testDeleteMissing(c *check) {
	c.mustDelete(token("nobody"))
	if !c.suite.refusesEnded {
		c.mustDelete(token("alice"))
	}
	c.mustCommit(token("bob"), "of bob", inAnHour())
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.mustCommit(token("expired"), "old", time.Now().Add(-time.Hour))
	for range 2 {
		c.mustDelete(token("alice"))
		c.mustDelete(token("expired"))
	}
	c.wantFound(token("bob"), "of bob")
}

// fill commits so many sessions that they are not a special case for the store. It
// returns their data by token.
func (c *check) fill() map[string]string {
	sessions := make(map[string]string)
	for i := range 20 {
		token := token(fmt.Sprint("other", i))
		sessions[token] = strings.Repeat(fmt.Sprint(i), 500)
		c.mustCommit(token, sessions[token], inAnHour())
	}
	return sessions
}

// useBuffers makes so many calls that the store must reuse its buffers.
func (c *check) useBuffers() {
	for range 20 {
		c.mustCommit(token("other0"), "anew", inAnHour())
		c.mustCommit(token("other1"), strings.Repeat("x", 1000), inAnHour())
		c.wantFound(token("other0"), "anew")
		if c.all != nil {
			if _, err := c.all(c.ctx); err != nil {
				c.fatalf("All: %v", err)
			}
		}
	}
	c.mustDelete(token("other0"))
}

// testFoundDataStays checks that later calls don't change the data that Find returned.
func testFoundDataStays(c *check) {
	want := c.fill()
	got := make(map[string][]byte)
	for token := range want {
		data, _, err := c.find(c.ctx, token)
		if err != nil {
			c.fatalf("Find: %v", err)
		}
		got[token] = data
	}
	c.useBuffers()
	for token, data := range want {
		if string(got[token]) != data {
			c.fatalf("the data that Find returned has changed by itself, from %s to %s",
				quote([]byte(data)), quote(got[token]))
		}
	}
}

func testCommitEmptyData(c *check) {
	c.mustCommit(token("new"), "", inAnHour())
	c.wantFound(token("new"), "")
	c.mustCommit(token("renewed"), "something", inAnHour())
	c.mustCommit(token("renewed"), "", inAnHour())
	c.wantFound(token("renewed"), "")
}

// A store may refuse nil data, but must not lose it.
func testCommitNilData(c *check) {
	if err := c.commit(c.ctx, token("alice"), nil, inAnHour()); err != nil {
		return
	}
	c.wantFound(token("alice"), "")
}

// A store may refuse large data, but must not truncate it.
func testCommitLargeData(c *check) {
	for _, size := range []int{1<<16 - 1, 1 << 16, 1 << 20} {
		c.mustCommit(token("alice"), "small", inAnHour())
		data := bytesOf(size)
		if err := c.commit(c.ctx, token("alice"), data, inAnHour()); err != nil {
			if data, found, err := c.find(c.ctx, token("alice")); err != nil || found && string(data) != "small" {
				c.fatalf("Commit of %d bytes failed, but then Find = %s, %v, %v", size, quote(data), found, err)
			}
			continue
		}
		c.wantFound(token("alice"), string(data))
	}
	c.mustCommit(token("alice"), "small", inAnHour())
	c.wantFound(token("alice"), "small")
}

// bytesOf returns data of the given size, with varying bytes.
func bytesOf(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	return data
}

// testCommitSameData commits sessions with the same data, which a store may keep
// only once.
func testCommitSameData(c *check) {
	same := strings.Repeat("same", 100)
	for _, name := range []string{"alice", "bob", "carol"} {
		c.mustCommit(token(name), same, inAnHour())
	}
	c.mustDelete(token("alice"))
	c.mustCommit(token("bob"), "changed", inAnHour())
	c.wantMissing(token("alice"))
	c.wantFound(token("bob"), "changed")
	c.wantFound(token("carol"), same)
	c.wantAll(map[string]string{token("bob"): "changed", token("carol"): same})
}
