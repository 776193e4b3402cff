// The group Manager: cases that use a store through SCS's session manager.

package storetest

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

var managerCases = []testCase{
	{
		name: "LoadAndSave", doc: "scs.SessionManager.LoadAndSave",
		rule: "LoadAndSave provides middleware which automatically loads and saves session data for the current request, " +
			"and communicates the session token to and from the client in a cookie.",
		test: testLoadAndSave,
	},
	{
		name: "RenewToken", doc: "scs.SessionManager.RenewToken",
		rule: "The old session token and accompanying data are deleted from the session store.",
		test: testRenewToken,
	},
	{
		name: "Destroy", doc: "scs.SessionManager.Destroy",
		rule: "Destroy deletes the session data from the session store and sets the session status to Destroyed.",
		test: testDestroy,
	},
	{
		name: "DestroyNewSession", doc: "scs.Store.Delete", rule: noOpRule,
		test: testDestroyNewSession,
	},
	{
		name: "TokenFixation", doc: "scs.SessionManager.Load",
		rule: "If no matching token is found then this will create a new session.",
		test: testTokenFixation,
	},
	{
		name: "IdleTimeout", doc: "scs.SessionManager.IdleTimeout",
		rule: "IdleTimeout controls the maximum length of time a session can be inactive before it expires.",
		test: testIdleTimeout,
	},
	{
		name: "Lifetime", doc: "scs.SessionManager.Lifetime",
		rule: "The lifetime is an 'absolute expiry' which is set when the session is first created and does not change.",
		test: testLifetime,
	},
	{
		name: "HashTokenInStore", doc: "scs.SessionManager.HashTokenInStore",
		rule: "HashTokenInStore controls whether or not to store the session token or a hashed version in the store.",
		test: testHashTokenInStore,
	},
	{
		name: "Iterate", doc: "scs.SessionManager.Iterate",
		rule: "Iterate retrieves all active (i.e. not expired) sessions from the store and executes the provided function " +
			"fn for each session.",
		test: testIterate, needs: needsAll,
	},
	{
		name: "IterateAndDestroy", doc: "scs.SessionManager.Iterate",
		rule: "Iterate retrieves all active (i.e. not expired) sessions from the store and executes the provided function " +
			"fn for each session.",
		test: testIterateAndDestroy, needs: needsAll,
	},
}

// newManager returns a session manager for the store of the case.
func (c *check) newManager() *scs.SessionManager {
	manager := scs.New()
	manager.Store = c.store
	manager.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	return manager
}

// A browser is a client with one cookie.
type browser struct {
	c       *check
	manager *scs.SessionManager
	token   string // the value of the cookie, or ""
}

// request sends a request with the cookie, has the server call handle, and keeps the
// cookie of the response.
func (b *browser) request(handle func(ctx context.Context)) {
	handler := b.manager.LoadAndSave(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		handle(r.Context())
	}))
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if b.token != "" {
		r.Header.Set("Cookie", b.manager.Cookie.Name+"="+b.token)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		b.c.fatalf("a request failed with status %d: %s", w.Code, w.Body)
	}
	for _, cookie := range w.Result().Cookies() {
		b.token = cookie.Value
	}
}

func (b *browser) put(value string) {
	b.request(func(ctx context.Context) { b.manager.Put(ctx, "value", value) })
}

// want fails the case unless the browser's session has the value. Without a session,
// the value is "".
func (b *browser) want(value string) {
	b.request(func(ctx context.Context) {
		if got := b.manager.GetString(ctx, "value"); got != value {
			b.c.fatalf("the session of token %q has the value %q, want %q", b.token, got, value)
		}
	})
}

func (b *browser) destroy() {
	b.request(func(ctx context.Context) {
		if err := b.manager.Destroy(ctx); err != nil {
			b.c.fatalf("Destroy: %v", err)
		}
	})
}

func testLoadAndSave(c *check) {
	manager := c.newManager()
	alice := &browser{c: c, manager: manager}
	bob := &browser{c: c, manager: manager}
	alice.want("")
	if alice.token != "" {
		c.fatalf("a client without session data got the cookie %q", alice.token)
	}
	alice.put("of alice")
	bob.put("of bob")
	if alice.token == "" || alice.token == bob.token {
		c.fatalf("two clients have the cookies %q and %q", alice.token, bob.token)
	}
	alice.want("of alice")
	bob.want("of bob")
	before := alice.token
	alice.put("changed")
	if alice.token != before {
		c.fatalf("the token changed with the session data")
	}
	alice.want("changed")
	bob.want("of bob")
	(&browser{c: c, manager: manager}).want("")

	// A new manager, as after a restart of the program.
	(&browser{c: c, manager: c.newManager(), token: alice.token}).want("changed")
}

func testRenewToken(c *check) {
	manager := c.newManager()
	alice := &browser{c: c, manager: manager}
	alice.put("of alice")
	old := *alice
	alice.request(func(ctx context.Context) {
		if err := manager.RenewToken(ctx); err != nil {
			c.fatalf("RenewToken: %v", err)
		}
	})
	if alice.token == old.token {
		c.fatalf("the token is the same after RenewToken")
	}
	alice.want("of alice")
	c.wantMissing(old.token)
	old.want("")
}

func testDestroy(c *check) {
	manager := c.newManager()
	alice := &browser{c: c, manager: manager}
	bob := &browser{c: c, manager: manager}
	alice.put("of alice")
	bob.put("of bob")
	stolen := *alice
	alice.destroy()
	if alice.token != "" {
		c.fatalf("the cookie is %q after Destroy, want none", alice.token)
	}
	c.wantMissing(stolen.token)
	alice.want("")
	stolen.want("")
	bob.want("of bob")
}

// SCS deletes the session's token even if it has none yet.
func testDestroyNewSession(c *check) {
	alice := &browser{c: c, manager: c.newManager()}
	alice.destroy()
	alice.put("of alice")
	alice.want("of alice")
}

// A token that the server did not issue must not become a session's token: an attacker
// who planted it in a browser would know it after the login.
func testTokenFixation(c *check) {
	manager := c.newManager()
	victim := &browser{c: c, manager: manager}
	victim.put("before")
	destroyed := victim.token
	victim.destroy()

	expired := token("expired")
	c.mustCommit(expired, "not to be decoded", time.Now().Add(-time.Hour))

	for _, planted := range []string{token("attacker"), "attacker", destroyed, expired, "%00", "'", strings.Repeat("x", 1000)} {
		victim.token = planted
		victim.want("")
		victim.put("secret")
		if victim.token == planted {
			c.fatalf("the session has the token %q, which the client made up", planted)
		}
		victim.want("secret")
		c.wantMissing(planted)
		(&browser{c: c, manager: manager, token: planted}).want("")
	}
}

func testIdleTimeout(c *check) {
	c.inTime(func(unit time.Duration) bool {
		manager := c.newManager()
		manager.IdleTimeout = 2*unit + 2*c.resolution
		alice := &browser{c: c, manager: manager}
		begin := time.Now() // of the previous request
		alice.put("of alice")
		for range 3 {
			time.Sleep(manager.IdleTimeout / 2)
			next := time.Now()
			var ended bool
			var idle time.Duration
			alice.request(func(ctx context.Context) {
				ended, idle = manager.GetString(ctx, "value") != "of alice", time.Since(begin)
			})
			if idle >= manager.IdleTimeout-c.resolution {
				return false // the session may have ended
			}
			if ended {
				c.fatalf("the session ended after %v without a request; the timeout is %v", idle, manager.IdleTimeout)
			}
			begin = next
		}
		time.Sleep(manager.IdleTimeout + c.resolution)
		alice.want("")
		return true
	})
}

func testLifetime(c *check) {
	c.inTime(func(unit time.Duration) bool {
		manager := c.newManager()
		manager.Lifetime = 3*unit + 2*c.resolution
		alice := &browser{c: c, manager: manager}
		begin := time.Now()
		alice.put("one")
		deadline := time.Now().Add(manager.Lifetime + c.resolution)
		time.Sleep(manager.Lifetime / 2)

		token := alice.token
		var ended bool
		var age time.Duration
		alice.request(func(ctx context.Context) {
			ended, age = manager.GetString(ctx, "value") != "one", time.Since(begin)
			if !ended {
				manager.Put(ctx, "value", "two")
			}
		})
		inTime := age < manager.Lifetime-c.resolution
		if ended && inTime {
			c.fatalf("the session ended after %v; the lifetime is %v", age, manager.Lifetime)
		}
		time.Sleep(time.Until(deadline))
		c.wantMissing(token)
		alice.want("")
		return inTime
	})
}

func testHashTokenInStore(c *check) {
	manager := c.newManager()
	manager.HashTokenInStore = true
	alice := &browser{c: c, manager: manager}
	alice.put("of alice")
	alice.want("of alice")
	c.wantMissing(alice.token)
	if c.all != nil {
		all, err := c.all(c.ctx)
		if _, ok := all[alice.token]; err != nil || ok || len(all) != 1 {
			c.fatalf("All returned %d sessions, including one under the token itself: %v, %v; want 1, false, nil", len(all), ok, err)
		}
	}
	stolen := *alice
	alice.destroy()
	stolen.want("")
}

// iterate returns the values of all sessions, by token.
func (c *check) iterate(manager *scs.SessionManager) map[string]string {
	values := make(map[string]string)
	err := manager.Iterate(c.ctx, func(ctx context.Context) error {
		token := manager.Token(ctx)
		if _, ok := values[token]; ok {
			return fmt.Errorf("token %q appears twice", token)
		}
		values[token] = manager.GetString(ctx, "value")
		return nil
	})
	if err != nil {
		c.fatalf("Iterate: %v", err)
	}
	return values
}

func testIterate(c *check) {
	manager := c.newManager()
	if got := c.iterate(manager); len(got) != 0 {
		c.fatalf("Iterate visited %d sessions, want 0", len(got))
	}
	want := make(map[string]string)
	for i := range 10 {
		user := &browser{c: c, manager: manager}
		user.put(fmt.Sprint("of user ", i))
		want[user.token] = fmt.Sprint("of user ", i)
		if i%3 == 0 {
			delete(want, user.token)
			user.destroy()
		}
	}
	expired := &browser{c: c, manager: manager}
	expired.request(func(ctx context.Context) {
		manager.Put(ctx, "value", "expired")
		manager.SetDeadline(ctx, time.Now().Add(-time.Hour))
	})
	if got := c.iterate(manager); !maps.Equal(got, want) {
		c.fatalf("Iterate visited %q, want %q", got, want)
	}
}

func testIterateAndDestroy(c *check) {
	manager := c.newManager()
	want := make(map[string]string)
	for i := range 20 {
		user := &browser{c: c, manager: manager}
		user.put(fmt.Sprint("of user ", i%2))
		if i%2 == 0 {
			want[user.token] = "of user 0"
		}
	}
	err := manager.Iterate(c.ctx, func(ctx context.Context) error {
		if manager.GetString(ctx, "value") == "of user 1" {
			return manager.Destroy(ctx)
		}
		return nil
	})
	if err != nil {
		c.fatalf("Iterate: %v", err)
	}
	if got := c.iterate(manager); !maps.Equal(got, want) {
		c.fatalf("after the other sessions were destroyed, Iterate visited %q, want %q", got, want)
	}
}
