// This file has the cases that call the methods of a store themselves: the groups
// Store and Ctx.

package storetest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// The rules that several cases check.
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
	{name: "FoundDataIsCopy", doc: "scs.Store.Find", rule: findDataRule, test: testFoundDataIsCopy},

	{name: "Commit", doc: "scs.Store.Commit", rule: commitRule, test: testCommit},
	{name: "CommitEmptyData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitEmptyData},
	{name: "CommitNilData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitNilData},
	{name: "CommitBinaryData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitBinaryData},
	{name: "CommitLargeData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitLargeData},
	{name: "CommitOddTokens", doc: "scs.Store.Commit", rule: commitRule, test: testCommitOddTokens},
	{name: "CommitCopiesData", doc: "scs.Store.Commit", rule: commitRule, test: testCommitCopiesData},
	{name: "CommitOverwritesData", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitOverwritesData},
	{name: "CommitLengthensExpiry", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitLengthensExpiry},
	{name: "CommitShortensExpiry", doc: "scs.Store.Commit", rule: overwriteRule, test: testCommitShortensExpiry},

	{name: "ExpiryInAnyZone", doc: "scs.Store.Commit", rule: commitRule, test: testExpiryInAnyZone},
	{name: "ExpiryWithinSecond", doc: "scs.Store.Commit", rule: commitRule, test: testExpiryWithinSecond},

	{name: "Delete", doc: "scs.Store.Delete", rule: deleteRule, test: testDelete},
	{name: "DeleteMissing", doc: "scs.Store.Delete", rule: noOpRule, test: testDeleteMissing},
	{name: "DeleteEmptyToken", doc: "scs.Store.Delete", rule: noOpRule, test: testDeleteEmptyToken},
	{name: "DeleteMalformed", doc: "scs.Store.Delete", rule: noOpRule, test: testDeleteMalformed},

	{name: "All", doc: "scs.IterableStore.All", rule: allRule, test: testAll, needs: needsAll},
	{name: "AllWithoutExpired", doc: "scs.IterableStore.All", rule: allRule, test: testAllWithoutExpired, needs: needsAll},
	{name: "AllEmpty", doc: "scs.IterableStore.All", rule: emptyMapRule, test: testAllEmpty, needs: needsAll},
	{name: "AllIsCopy", doc: "scs.IterableStore.All", rule: allRule, test: testAllIsCopy, needs: needsAll},

	{name: "Concurrent", doc: "scs.New", rule: "It is safe for concurrent use.", test: testConcurrent},
}

var ctxCases = []testCase{
	{
		name: "Twins", doc: "scs.CtxStore.FindCtx",
		rule: "FindCtx is the same as Store.Find, except it takes a context.Context.",
		test: testTwins, needs: needsTwins,
	},
	{
		name: "Canceled", doc: "scs.CtxStore.CommitCtx",
		rule: "CommitCtx is the same as Store.Commit, except it takes a context.Context.",
		test: testCanceled, needs: needsCtx,
	},
}

// token returns a token that is as long as those of SCS and has only characters
// that are in those. It begins with name.
func token(name string) string {
	return name + strings.Repeat("-", 43-len(name))
}

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

// quote returns data for an error message.
func quote(data []byte) string {
	if len(data) > 60 {
		return fmt.Sprintf("%q… (%d bytes)", data[:60], len(data))
	}
	return fmt.Sprintf("%q", data)
}

// The methods of a check that begin with must and want end the case if the store
// does not do what they say.

func (c *check) mustCommit(token, data string, expiry time.Time) {
	c.t.Helper()
	if err := c.commit(c.ctx, token, []byte(data), expiry); err != nil {
		c.fatalf("Commit(%s): %v", quote([]byte(token)), err)
	}
}

func (c *check) mustDelete(token string) {
	c.t.Helper()
	if err := c.delete(c.ctx, token); err != nil {
		c.fatalf("Delete(%s) = %v, want nil", quote([]byte(token)), err)
	}
}

func (c *check) wantFound(token, want string) {
	c.t.Helper()
	got, found, err := c.find(c.ctx, token)
	if err != nil || !found || string(got) != want {
		c.fatalf("Find(%s) = %s, %v, %v; want %s, true, nil",
			quote([]byte(token)), quote(got), found, err, quote([]byte(want)))
	}
}

func (c *check) wantMissing(token string) {
	c.t.Helper()
	if got, found, err := c.find(c.ctx, token); err != nil || found {
		c.fatalf("Find(%s) = %s, %v, %v; want found to be false and err to be nil",
			quote([]byte(token)), quote(got), found, err)
	}
}

// wantAll compares the map that All returns with want, which has data by token.
// It does nothing if the store has no All.
func (c *check) wantAll(want map[string]string) {
	c.t.Helper()
	if c.all == nil {
		return
	}
	all, err := c.all(c.ctx)
	if err != nil || all == nil {
		c.fatalf("All = %q, %v; want a map that is not nil, and nil", all, err)
	}
	for token, data := range all {
		if wantData, ok := want[token]; !ok || string(data) != wantData {
			c.fatalf("All has %s for %s; want %s, %v",
				quote(data), quote([]byte(token)), quote([]byte(wantData)), ok)
		}
	}
	for token := range want {
		if _, ok := all[token]; !ok {
			c.fatalf("All has %d sessions, but not %s", len(all), quote([]byte(token)))
		}
	}
}

func testFindMissing(c *check) {
	c.wantMissing(token("alice"))
	c.mustCommit(token("bob"), "of bob", inAnHour())
	c.wantMissing(token("alice"))
	c.wantFound(token("bob"), "of bob")
}

func testFindExpired(c *check) {
	for _, ago := range []time.Duration{c.resolution, c.resolution + time.Second, time.Hour, 365 * 24 * time.Hour} {
		c.mustCommit(token("alice"), "of alice", time.Now().Add(-ago))
		c.wantMissing(token("alice"))
	}
}

func testFindEmptyToken(c *check) {
	c.wantMissing("")
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.wantMissing("")
}

// malformedTokens returns tokens that SCS does not make.
func malformedTokens() []string {
	return []string{
		" ", "\n", "\x00", "\xff\xfe\x80", "日本語",
		token("alice") + "\x00",
		"'; DROP TABLE sessions; --", `"`, "`", `\`, "../../etc/passwd", "%", "*", "a:b", "$ne",
		strings.Repeat("x", 44), strings.Repeat("x", 256), strings.Repeat("x", 4096), strings.Repeat("x", 1<<17),
	}
}

func testFindMalformed(c *check) {
	c.mustCommit(token("alice"), "of alice", inAnHour())
	for _, token := range malformedTokens() {
		c.wantMissing(token)
	}
	c.wantFound(token("alice"), "of alice")
}

func testFindTampered(c *check) {
	token := token("Alice")
	c.mustCommit(token, "of Alice", inAnHour())
	for _, tampered := range []string{
		strings.ToLower(token), strings.ToUpper(token),
		token[1:], token[:42], token + "-", "-" + token, token + " ", " " + token, token + "\n", token + "=",
		"B" + token[1:], token[:42] + "_",
		strings.Repeat("_", 43), "Alice%", "Alice*", token + token,
	} {
		c.wantMissing(tampered)
	}
	c.wantFound(token, "of Alice")
}

// fill commits so many sessions that a store does not treat its few as a special
// case, and returns their data by token.
func (c *check) fill() map[string]string {
	c.t.Helper()
	sessions := make(map[string]string)
	for i := range 20 {
		token := token(fmt.Sprint("other", i))
		sessions[token] = strings.Repeat(fmt.Sprint(i), 500)
		c.mustCommit(token, sessions[token], inAnHour())
	}
	return sessions
}

func testFoundDataIsCopy(c *check) {
	c.fill()
	c.mustCommit(token("alice"), "of alice", inAnHour())
	kept, _, err := c.find(c.ctx, token("alice"))
	if err != nil {
		c.fatalf("Find: %v", err)
	}
	changed, _, err := c.find(c.ctx, token("alice"))
	if err != nil {
		c.fatalf("Find: %v", err)
	}
	for i := range changed {
		changed[i] = 'X'
	}
	_ = append(changed, " and more"...)
	c.wantFound(token("alice"), "of alice")

	// Enough for the store to use its buffers again.
	for range 20 {
		c.mustCommit(token("alice"), "anew", inAnHour())
		c.mustCommit(token("alice"), strings.Repeat("x", 1000), inAnHour())
	}
	c.mustDelete(token("alice"))
	if string(kept) != "of alice" {
		c.fatalf("the data that Find returned, %q, has become %q without the caller's doing", "of alice", kept)
	}
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
		c.wantFound(token, data) // finding it does not use it up
	}
}

func testCommitEmptyData(c *check) {
	c.commitNothing([]byte{})
}

func testCommitNilData(c *check) {
	c.commitNothing(nil)
}

// commitNothing commits a new session and one that exists, both with data of
// length 0.
func (c *check) commitNothing(data []byte) {
	for _, before := range []string{"", "something"} {
		token := token("before" + before)
		if before != "" {
			c.mustCommit(token, before, inAnHour())
		}
		if err := c.commit(c.ctx, token, data, inAnHour()); err != nil {
			c.fatalf("Commit of %#v: %v", data, err)
		}
		c.wantFound(token, "")
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

func testCommitLargeData(c *check) {
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	c.mustCommit(token("alice"), string(data), inAnHour())
	c.wantFound(token("alice"), string(data))
	c.mustCommit(token("alice"), "small", inAnHour())
	c.wantFound(token("alice"), "small")
}

// A store may refuse a token that is not like those of SCS, but it must not take
// it for another one.
func testCommitOddTokens(c *check) {
	tokens := []string{
		"", "a", "A", "a ", " a", "a\x00", "a\x00b", "\xff", "\xfe", "é", "e\u0301", "a%", "a_", "ab",
		strings.Repeat("x", 300) + "1", strings.Repeat("x", 300) + "2",
		strings.Repeat("x", 100_000) + "1", strings.Repeat("x", 100_000) + "2",
	}
	want := make(map[string]string)
	for i, token := range tokens {
		data := fmt.Sprint("of token ", i)
		if err := c.commit(c.ctx, token, []byte(data), inAnHour()); err == nil {
			want[token] = data
		} else if got, found, _ := c.find(c.ctx, token); found {
			c.fatalf("Commit(%s) has failed, but Find returns %s", quote([]byte(token)), quote(got))
		}
	}
	for token, data := range want {
		c.wantFound(token, data)
	}
	c.wantAll(want)
}

func testCommitCopiesData(c *check) {
	data := []byte("of alice")
	if err := c.commit(c.ctx, token("alice"), data, inAnHour()); err != nil {
		c.fatalf("Commit: %v", err)
	}
	copy(data, "XXXXXXXX")
	c.wantFound(token("alice"), "of alice")
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
	c.wantMissing(token("alice")) // there was only one
}

func testCommitLengthensExpiry(c *check) {
	first := time.Now().Add(c.resolution + 200*time.Millisecond)
	c.mustCommit(token("alice"), "one", first)
	c.mustCommit(token("alice"), "two", inAnHour())
	c.mustCommit(token("expired"), "one", time.Now().Add(-time.Hour))
	c.mustCommit(token("expired"), "two", inAnHour())
	c.wantFound(token("expired"), "two")

	time.Sleep(time.Until(first.Add(c.resolution + 100*time.Millisecond)))
	c.wantFound(token("alice"), "two")
	c.wantFound(token("expired"), "two")
	c.wantAll(map[string]string{token("alice"): "two", token("expired"): "two"})
}

func testCommitShortensExpiry(c *check) {
	c.mustCommit(token("past"), "one", inAnHour())
	c.mustCommit(token("past"), "two", time.Now().Add(-time.Minute))
	c.wantMissing(token("past"))

	second := time.Now().Add(c.resolution + 100*time.Millisecond)
	c.mustCommit(token("soon"), "one", inAnHour())
	c.mustCommit(token("soon"), "two", second)
	time.Sleep(time.Until(second.Add(c.resolution)))
	c.wantMissing(token("soon"))
	c.wantAll(nil)
}

func testExpiryInAnyZone(c *check) {
	want := make(map[string]string)
	for _, hours := range []int{-12, -5, 0, 5, 14} {
		zone := time.FixedZone("", hours*3600)
		past, future, far := token(fmt.Sprint("past", hours)), token(fmt.Sprint("future", hours)), token(fmt.Sprint("far", hours))
		c.mustCommit(past, "past", time.Now().Add(-time.Hour).In(zone))
		c.mustCommit(future, "future", time.Now().Add(time.Hour).In(zone))
		c.mustCommit(far, "far", time.Now().AddDate(10, 0, 0).In(zone))
		c.wantMissing(past)
		c.wantFound(future, "future")
		c.wantFound(far, "far")
		want[future], want[far] = "future", "far"
	}
	c.wantAll(want)
}

// testExpiryWithinSecond looks all the time at sessions whose expiries are spread
// over most of a second, so that at least one of them is found too long, or too
// short, wherever in the second the case begins.
func testExpiryWithinSecond(c *check) {
	type session struct {
		token  string
		expiry time.Time
	}
	var sessions []session
	for i := range 4 {
		s := session{token(fmt.Sprint("user", i)), time.Now().Add(c.resolution + time.Duration(i+1)*200*time.Millisecond)}
		c.mustCommit(s.token, "data", s.expiry)
		sessions = append(sessions, s)
	}
	for len(sessions) > 0 {
		sessions = slices.DeleteFunc(sessions, func(s session) bool {
			before := time.Now()
			got, found, err := c.find(c.ctx, s.token)
			after := time.Now()
			switch {
			case err != nil:
				c.fatalf("Find: %v", err)
			case found && string(got) != "data":
				c.fatalf("Find = %s, want %q", quote(got), "data")
			case found && before.After(s.expiry.Add(c.resolution)):
				c.fatalf("the session is still found %v after its expiry", before.Sub(s.expiry))
			case !found && after.Before(s.expiry.Add(-c.resolution)):
				c.fatalf("the session is not found %v before its expiry", s.expiry.Sub(after))
			}
			return before.After(s.expiry.Add(c.resolution))
		})
		time.Sleep(20 * time.Millisecond)
	}
	c.wantAll(nil)
}

func testDelete(c *check) {
	c.mustCommit(token("alice"), "one", inAnHour())
	c.mustCommit(token("bob"), "of bob", inAnHour())
	c.mustDelete(token("alice"))
	c.wantMissing(token("alice"))
	c.wantFound(token("bob"), "of bob")
	c.wantAll(map[string]string{token("bob"): "of bob"})
	c.mustCommit(token("alice"), "two", inAnHour())
	c.wantFound(token("alice"), "two")
}

func testDeleteMissing(c *check) {
	c.mustDelete(token("alice"))
	c.mustCommit(token("bob"), "of bob", inAnHour())
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.mustCommit(token("expired"), "old", time.Now().Add(-time.Hour))
	for range 2 {
		c.mustDelete(token("alice"))
		c.mustDelete(token("expired"))
	}
	c.wantFound(token("bob"), "of bob")
}

// SCS deletes the empty token when a session is destroyed that was never
// committed.
func testDeleteEmptyToken(c *check) {
	c.mustDelete("")
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.mustDelete("")
	c.wantFound(token("alice"), "of alice")
}

func testDeleteMalformed(c *check) {
	c.mustCommit(token("alice"), "of alice", inAnHour())
	for _, token := range malformedTokens() {
		c.mustDelete(token)
	}
	c.wantFound(token("alice"), "of alice")
}

func testAll(c *check) {
	want := make(map[string]string)
	for i := range 100 {
		token := token(fmt.Sprint("user", i))
		want[token] = strings.Repeat(fmt.Sprint(i, " "), i+1)
		c.mustCommit(token, want[token], inAnHour())
	}
	c.wantAll(want)
	for i := range 50 {
		token := token(fmt.Sprint("user", 2*i))
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

func testAllIsCopy(c *check) {
	c.mustCommit(token("alice"), "of alice", inAnHour())
	want := c.fill()
	want[token("alice")] = "of alice"
	all, err := c.all(c.ctx)
	if err != nil {
		c.fatalf("All: %v", err)
	}
	for _, data := range all {
		for i := range data {
			data[i] = 'X'
		}
	}
	c.wantAll(want)

	if all, err = c.all(c.ctx); err != nil {
		c.fatalf("All: %v", err)
	}
	for range 20 {
		c.mustCommit(token("alice"), strings.Repeat("x", 1000), inAnHour())
		c.mustCommit(token("other0"), "anew", inAnHour())
	}
	for token, data := range want {
		if string(all[token]) != data {
			c.fatalf("the data that All returned, %s, has become %s without the caller's doing",
				quote([]byte(data)), quote(all[token]))
		}
	}
	clear(all)
	want[token("alice")], want[token("other0")] = strings.Repeat("x", 1000), "anew"
	c.wantAll(want)
}

// testConcurrent lets goroutines use the store at random. Each has sessions of
// its own, whose data it always knows, and all share some, whose data belongs to
// the token.
func testConcurrent(c *check) {
	const workers, sessionsEach, shared = 8, 4, 4
	models := make([]map[string]string, workers)
	end := time.Now().Add(250 * time.Millisecond)
	c.parallel(workers, func(worker int) error {
		model := make(map[string]string)
		models[worker] = model
		random := rand.New(rand.NewPCG(uint64(worker), 0))
		for n := 0; time.Now().Before(end); n++ {
			own := token(fmt.Sprint("worker", worker, "-", random.IntN(sessionsEach)))
			common := token(fmt.Sprint("shared", random.IntN(shared)))
			switch random.IntN(8) {
			case 0, 1:
				data := fmt.Sprint(own, " ", n, strings.Repeat("x", random.IntN(2000)))
				if err := c.commit(c.ctx, own, []byte(data), inAnHour()); err != nil {
					return fmt.Errorf("calling Commit: %v", err)
				}
				model[own] = data
			case 2:
				if err := c.delete(c.ctx, own); err != nil {
					return fmt.Errorf("calling Delete: %v", err)
				}
				delete(model, own)
			case 3:
				data := strings.Repeat(common, 1+random.IntN(50))
				if err := c.commit(c.ctx, common, []byte(data), inAnHour()); err != nil {
					return fmt.Errorf("calling Commit with a token that others commit too: %v", err)
				}
			case 4:
				if err := c.delete(c.ctx, common); err != nil {
					return fmt.Errorf("calling Delete with a token that others use too: %v", err)
				}
			case 5:
				data, _, err := c.find(c.ctx, common)
				if err != nil || !isRepeated(data, common) {
					return fmt.Errorf("calling Find(%q) = %s, %v, which nobody has committed", common, quote(data), err)
				}
			case 6:
				if c.all == nil {
					continue
				}
				all, err := c.all(c.ctx)
				if err != nil {
					return fmt.Errorf("calling All: %v", err)
				}
				for token, data := range model {
					if string(all[token]) != data {
						return fmt.Errorf("calling All has returned %s for %q; want %s", quote(all[token]), token, quote([]byte(data)))
					}
				}
			}
			want, exists := model[own]
			data, found, err := c.find(c.ctx, own)
			if err != nil || found != exists || found && string(data) != want {
				return fmt.Errorf("calling Find(%q) = %s, %v, %v, where only this goroutine uses the token; want %s, %v, nil",
					own, quote(data), found, err, quote([]byte(want)), exists)
			}
		}
		return nil
	})
	for i := range shared {
		c.mustDelete(token(fmt.Sprint("shared", i)))
	}
	want := make(map[string]string)
	for _, model := range models {
		maps.Copy(want, model)
	}
	for token, data := range want {
		c.wantFound(token, data)
	}
	c.wantAll(want)
}

// isRepeated reports whether data is token, any number of times.
func isRepeated(data []byte, token string) bool {
	return len(bytes.ReplaceAll(data, []byte(token), nil)) == 0
}

func testTwins(c *check) {
	for _, writer := range c.views {
		for _, reader := range c.views {
			c.view = writer
			c.mustCommit(token("alice"), writer.name, inAnHour())
			c.view = reader
			c.wantFound(token("alice"), writer.name)
			c.wantAll(map[string]string{token("alice"): writer.name})
			c.mustCommit(token("alice"), reader.name, inAnHour())
			c.view = writer
			c.wantFound(token("alice"), reader.name)
			c.mustDelete(token("alice"))
			c.view = reader
			c.wantMissing(token("alice"))
		}
	}
}

// A store may ignore that a context has ended, or return an error. But it must
// not say that there is no session, or that it has done what it has not: the user
// would be logged out, or stay logged in.
func testCanceled(c *check) {
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.mustCommit(token("bob"), "of bob", inAnHour())
	canceled, cancel := context.WithCancel(c.ctx)
	cancel()

	data, found, err := c.find(canceled, token("alice"))
	if err == nil && (!found || string(data) != "of alice") {
		c.fatalf("FindCtx with a canceled context = %s, %v, nil; want an error, or the session", quote(data), found)
	}
	if c.all != nil {
		all, err := c.all(canceled)
		if err == nil && len(all) != 2 {
			c.fatalf("AllCtx with a canceled context returns %d sessions of 2 and no error", len(all))
		}
	}
	if err := c.commit(canceled, token("alice"), []byte("anew"), inAnHour()); err == nil {
		c.wantFound(token("alice"), "anew")
	}
	if err := c.delete(canceled, token("bob")); err == nil {
		c.wantMissing(token("bob"))
	}
	// The store can still be used.
	c.mustDelete(token("bob"))
	c.wantMissing(token("bob"))
	c.mustCommit(token("alice"), "of alice", inAnHour())
	c.wantFound(token("alice"), "of alice")
}
