// This file has the cases for stores that delete expired sessions in the
// background until StopCleanup: the group Cleanup. SCS's interfaces say nothing
// about it, but all its stores do it as the one in memory does.

package storetest

import (
	"bytes"
	"fmt"
	"reflect"
	"runtime/pprof"
	"time"
)

// A cleaner is a store with a cleanup that can be stopped.
type cleaner interface{ StopCleanup() }

const (
	stopDoc  = "memstore.MemStore.StopCleanup"
	stopRule = "StopCleanup terminates the background cleanup goroutine for the MemStore instance."
)

var cleanupCases = []testCase{
	{name: "StopEarly", doc: stopDoc, rule: stopRule, test: testStopEarly, needs: needsCleanup},
	{name: "StopTwice", doc: stopDoc, rule: stopRule, test: testStopTwice, needs: needsCleanup},
	{name: "StopAtOnce", doc: stopDoc, rule: stopRule, test: testStopAtOnce, needs: needsCleanup},
	{name: "StopInUse", doc: stopDoc, rule: stopRule, test: testStopInUse, needs: needsCleanup},
}

func testStopEarly(c *check) {
	c.store.(cleaner).StopCleanup()
	// The goroutine may take a moment to end, or to begin.
	var stack []byte
	for range 100 {
		time.Sleep(20 * time.Millisecond)
		if stack = c.storeGoroutine(); stack == nil {
			return
		}
	}
	c.fatalf("a goroutine of the store still runs after StopCleanup:\n%s", stack)
}

// storeGoroutine returns the stack of a goroutine that newStore has started, with
// its descendants, and that runs in the package of the store, or nil if there is
// none. Others, such as those of a database, may go on.
func (c *check) storeGoroutine() []byte {
	storeType := reflect.TypeOf(c.store)
	if storeType.Kind() == reflect.Pointer {
		storeType = storeType.Elem()
	}
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		c.fatalf("read the goroutine profile: %v", err)
	}
	label := fmt.Appendf(nil, "%q:%q", goroutineLabel, c.t.Name())
	for stack := range bytes.SplitSeq(profile.Bytes(), []byte("\n\n")) {
		if bytes.Contains(stack, label) && bytes.Contains(stack, []byte("\t"+storeType.PkgPath()+".")) {
			return stack
		}
	}
	return nil
}

func testStopTwice(c *check) {
	stopper := c.store.(cleaner)
	time.Sleep(10 * time.Millisecond) // so that the goroutine runs
	stopper.StopCleanup()
	stopper.StopCleanup()
}

func testStopAtOnce(c *check) {
	time.Sleep(10 * time.Millisecond)
	c.parallel(10, func(int) error {
		c.store.(cleaner).StopCleanup()
		return nil
	})
}

func testStopInUse(c *check) {
	c.parallel(4, func(i int) error {
		token := token(fmt.Sprint("user", i))
		for n := range 20 {
			if i == 0 && n == 10 {
				c.store.(cleaner).StopCleanup()
			}
			if err := c.commit(c.ctx, token, fmt.Append(nil, n), inAnHour()); err != nil {
				return fmt.Errorf("calling Commit: %v", err)
			}
		}
		return nil
	})
	for i := range 4 {
		c.wantFound(token(fmt.Sprint("user", i)), "19")
	}
	c.mustDelete(token("user0"))
	c.wantMissing(token("user0"))
}
