// The group Store: cases for tokens that SCS does not make, and for tokens that
// resemble each other.

package storetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// scsToken is a token in SCS's format. It has uppercase and lowercase letters, digits,
// and the other two characters of URL-safe base64.
const scsToken = "UvEWIOOX-Ge32fGeSMrrZGWDVqa10XE4wA3Z_q9detY"

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

// A store may refuse a token that SCS does not make, but must not confuse it with
// another token.
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
			c.fatalf("Commit(%s) failed, but Find returns %s", quote([]byte(token)), quote(got))
		}
	}
	for token, data := range want {
		c.wantFound(token, data)
	}
	c.wantAll(want)
}

// SCS deletes the empty token when it destroys a session that was never committed.
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

// tampered returns tokens that differ from scsToken at position i: it leaves out the
// character, swaps its case, changes its lowest bits, or puts a wildcard of SQL there.
func tampered(i int) []string {
	before, char, after := scsToken[:i], scsToken[i], scsToken[i+1:]
	tokens := []string{before + after}
	for _, other := range []byte{swapCase(char), char + 1, '_', '%'} {
		if other != char {
			tokens = append(tokens, before+string(other)+after)
		}
	}
	return tokens
}

// swapCase swaps the case of a letter, and returns other characters unchanged.
func swapCase(char byte) byte {
	if lower := char | 0x20; 'a' <= lower && lower <= 'z' {
		return char ^ 0x20
	}
	return char
}

// rewritten returns tokens that differ from scsToken in other ways.
func rewritten() []string {
	return []string{
		strings.ToLower(scsToken), strings.ToUpper(scsToken), scsToken[1:], scsToken + scsToken,
		strings.Repeat("_", len(scsToken)), scsToken[:5] + "%", scsToken[:5] + "*",
		scsToken + "-", scsToken + "=", scsToken + " ", " " + scsToken, scsToken + "\n",
	}
}

func testFindTampered(c *check) {
	c.mustCommit(scsToken, "of alice", inAnHour())
	for _, token := range rewritten() {
		c.wantMissing(token)
	}
	for i := range scsToken {
		for _, token := range append(tampered(i), scsToken[:max(i, 1)]) {
			c.wantMissing(token)
		}
		for _, extra := range []string{"-", "_", "=", " ", "\n"} {
			c.wantMissing(scsToken[:i] + extra + scsToken[i:])
		}
	}
	c.wantFound(scsToken, "of alice")
}

func testDeleteTampered(c *check) {
	c.mustCommit(scsToken, "of alice", inAnHour())
	// Concurrent deletes can share an fsync.
	const workers = 4
	c.parallel(workers, func(worker int) error {
		for i := worker; i < len(scsToken); i += workers {
			tokens := append(tampered(i), scsToken[:max(i, 1)])
			if i < len(rewritten()) {
				tokens = append(tokens, rewritten()[i])
			}
			for _, token := range tokens {
				if err := c.delete(c.ctx, token); err != nil {
					return fmt.Errorf("calling Delete(%q) = %v, want nil", token, err)
				}
				if _, found, err := c.find(c.ctx, scsToken); !found || err != nil {
					return fmt.Errorf("calling Find(%q) = _, %v, %v after deleting other tokens, such as %q; want true, nil", scsToken, found, err, token)
				}
			}
		}
		return nil
	})
}

// testCommitSimilarTokens commits tokens that SCS may make and that differ in one
// character.
func testCommitSimilarTokens(c *check) {
	want := map[string]string{scsToken: "of alice"}
	for i := range len(scsToken) - 1 { // in the last character, SCS leaves some bits 0
		for _, char := range []byte{swapCase(scsToken[i]), '-', '_'} {
			if token := scsToken[:i] + string(char) + scsToken[i+1:]; token != scsToken {
				want[token] = fmt.Sprintf("has %c at %d", char, i)
			}
		}
	}
	tokens := slices.Sorted(maps.Keys(want))
	const workers = 4
	c.parallel(workers, func(worker int) error {
		for i := worker; i < len(tokens); i += workers {
			if err := c.commit(c.ctx, tokens[i], []byte(want[tokens[i]]), inAnHour()); err != nil {
				return fmt.Errorf("calling Commit(%q): %v", tokens[i], err)
			}
		}
		return nil
	})
	for range 2 {
		for token, data := range want {
			c.wantFound(token, data)
		}
		c.mustDelete(scsToken)
		delete(want, scsToken)
	}
	c.wantMissing(scsToken)
}
