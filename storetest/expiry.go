// The group Store: cases for expiry.

package storetest

import (
	"fmt"
	"slices"
	"time"
)

const day = 24 * time.Hour

func testFindExpired(c *check) {
	for _, ago := range []time.Duration{c.resolution, c.resolution + time.Second, time.Hour, 365 * 24 * time.Hour} {
		c.mustCommit(token("alice"), "of alice", time.Now().Add(-ago))
		c.wantMissing(token("alice"))
	}
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

// testExpiryWithinSecond keeps looking for sessions whose expiries are spread over a
// second. In a store that rounds to whole seconds, at least one of them expires too
// early or too late, no matter when the case begins.
func testExpiryWithinSecond(c *check) {
	type session struct {
		token         string
		expiry        time.Time
		before, after bool // whether a find came just before its expiry, and just after
	}
	c.inTime(func(unit time.Duration) bool {
		var sessions []*session
		for i := range 4 {
			s := &session{
				token:  token(fmt.Sprint("user", i, "-", unit)),
				expiry: time.Now().Add(c.resolution + time.Duration(i+1)*2*unit),
			}
			c.mustCommit(s.token, "data", s.expiry)
			sessions = append(sessions, s)
		}
		for waiting := slices.Clone(sessions); len(waiting) > 0; time.Sleep(unit / 10) {
			waiting = slices.DeleteFunc(waiting, func(s *session) bool {
				over := time.Since(s.expiry) - c.resolution
				got, found, err := c.find(c.ctx, s.token)
				left := time.Until(s.expiry) - c.resolution
				switch {
				case err != nil:
					c.fatalf("Find: %v", err)
				case found && string(got) != "data":
					c.fatalf("Find = %s, want %q", quote(got), "data")
				case found && over > 0:
					c.fatalf("the session is still found %v after its expiry", over+c.resolution)
				case !found && left > 0:
					c.fatalf("the session is not found %v before its expiry", left+c.resolution)
				}
				s.before = s.before || 0 < left && left < unit
				s.after = 0 < over && over < unit
				return over > 0
			})
		}
		c.wantAll(nil)
		return !slices.ContainsFunc(sessions, func(s *session) bool { return !s.before || !s.after })
	})
}

// testExpiryFarAhead commits expiries that are so far ahead that the time until then,
// in microseconds or milliseconds, needs more than 31 or 32 bits. If a store cuts off
// the upper bits, the sessions have expired, or expire soon.
func testExpiryFarAhead(c *check) {
	c.inTime(func(unit time.Duration) bool {
		begin := time.Now()
		end := begin.Add(2 * unit)
		want := make(map[string]string)
		for i, ahead := range []time.Duration{
			2*unit + time.Microsecond<<31, 2*unit + time.Microsecond<<32,
			2*unit + time.Millisecond<<31, 2*unit + time.Millisecond<<32,
			25 * day, 49 * day, 50 * day, 100 * day, 249 * day, 365 * day, 400 * day,
		} {
			token := token(fmt.Sprint("user", i))
			want[token] = ahead.String()
			c.mustCommit(token, want[token], begin.Add(ahead))
		}
		soonEnough := time.Now().Before(end)
		time.Sleep(time.Until(end.Add(c.resolution)))
		for token, data := range want {
			c.wantFound(token, data)
		}
		c.wantAll(want)
		return soonEnough
	})
}

// testExpiryLongPast commits expiries that a store may mistake for no expiry. A store
// may refuse an expiry that its database can't represent.
func testExpiryLongPast(c *check) {
	for i, expiry := range []time.Time{
		{}, time.Unix(-1, 0), time.Unix(0, 0), time.Unix(0, 1), time.Unix(1, 0), time.Unix(1, 0).AddDate(1, 0, 0),
	} {
		fresh, renewed := token(fmt.Sprint("fresh", i)), token(fmt.Sprint("renewed", i))
		_ = c.commit(c.ctx, fresh, []byte("fresh"), expiry)
		c.mustCommit(renewed, "one", inAnHour())
		if err := c.commit(c.ctx, renewed, []byte("two"), expiry); err != nil {
			c.mustDelete(renewed)
		}
		for _, token := range []string{fresh, renewed} {
			if data, found, err := c.find(c.ctx, token); found || err != nil {
				c.fatalf("Find = %s, %v, %v for a session with the expiry %v; want found == false and err == nil",
					quote(data), found, err, expiry.UTC())
			}
		}
	}
	c.wantAll(nil)
}
