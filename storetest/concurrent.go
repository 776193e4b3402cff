// The group Store: cases for concurrent use.

package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// whileWriting calls write with increasing numbers, while readers call read again and
// again. It ends after a third of a second, but not before the writer and each reader
// have made 100 calls. They yield after each call, so that their calls alternate on a
// busy machine.
func (c *check) whileWriting(write func(n int64) error, read func(reader int) error) {
	const readers, calls = 2, 100
	end := time.Now().Add(330 * time.Millisecond)
	var done atomic.Bool
	var reading atomic.Int64 // readers that have not yet made their calls
	reading.Store(readers)
	c.parallel(readers+1, func(i int) error {
		defer done.Store(true)
		for n := 1; !done.Load(); n++ {
			if i < readers {
				if err := read(i); err != nil {
					return err
				}
				if n == calls {
					reading.Add(-1)
				}
			} else {
				if err := write(int64(n)); err != nil {
					return err
				}
				if n >= calls && reading.Load() == 0 && time.Now().After(end) {
					return nil
				}
			}
			runtime.Gosched()
		}
		return nil
	})
}

// testFindDuringRenewal renews a session while readers look for it. It catches stores
// that delete the session before they renew it, and stores that return an old copy:
// the data is a number that grows.
func testFindDuringRenewal(c *check) {
	alice := token("alice")
	c.mustCommit(alice, "0", inAnHour())
	var begun, ended atomic.Int64
	c.whileWriting(func(n int64) error {
		begun.Store(n)
		if err := c.commit(c.ctx, alice, strconv.AppendInt(nil, n, 10), inAnHour()); err != nil {
			return fmt.Errorf("calling Commit: %v", err)
		}
		ended.Store(n)
		return nil
	}, func(reader int) error {
		low := ended.Load()
		data, found, err := c.find(c.ctx, alice)
		if reader == 0 && c.all != nil {
			var all map[string][]byte
			all, err = c.all(c.ctx)
			data, found = all[alice]
		}
		high := begun.Load()
		if err != nil {
			return fmt.Errorf("calling Find or All: %v", err)
		}
		if !found {
			return fmt.Errorf("an active session is not found while it is being renewed")
		}
		if n, err := strconv.ParseInt(string(data), 10, 64); err != nil || n < low || n > high {
			return fmt.Errorf("the data found is %s; want the data of renewal %d, which had ended before, or of a later one",
				quote(data), low)
		}
		return nil
	})
}

// testCommitAtOnce renews a session with other data and another expiry. It catches
// stores that write one after the other.
func testCommitAtOnce(c *check) {
	alice := token("alice")
	c.whileWriting(func(n int64) error {
		data, expiry := "active", inAnHour()
		if n%2 == 0 {
			data, expiry = "expired", time.Now().Add(-time.Hour)
		}
		if err := c.commit(c.ctx, alice, []byte(data), expiry); err != nil {
			return fmt.Errorf("calling Commit: %v", err)
		}
		return nil
	}, func(int) error {
		data, found, err := c.find(c.ctx, alice)
		if err != nil || found && string(data) != "active" {
			return fmt.Errorf("calling Find = %s, %v, %v: this data was only committed with an expiry in the past", quote(data), found, err)
		}
		return nil
	})
}

// testCommitDuringSweep renews sessions that have just expired, when a sweep may
// already have found them.
func testCommitDuringSweep(c *check) {
	// Let the database file grow now. If it had to be mapped anew while a sweep reads
	// it without a transaction, the process would end.
	_ = c.commit(c.ctx, token("large"), bytesOf(1<<20), inAnHour())
	c.mustDelete(token("large"))

	const workers, batches, sessions = 4, 5, 4
	end := time.Now().Add(600 * time.Millisecond)
	c.parallel(workers, func(worker int) error {
		random := rand.New(rand.NewPCG(uint64(worker), 0))
		commit := func(token string, expiry time.Time) error {
			if err := c.commit(c.ctx, token, []byte("data"), expiry); err != nil {
				return fmt.Errorf("calling Commit: %v", err)
			}
			return nil
		}
		find := func(token string) error {
			if _, found, err := c.find(c.ctx, token); !found || err != nil {
				return fmt.Errorf("calling Find = _, %v, %v for a session that was renewed just after it expired; want true, nil", found, err)
			}
			return nil
		}
		name := func(batch, i int) string { return token(fmt.Sprint("worker", worker, "-", batch, "-", i)) }
		for n := 0; n <= batches || time.Now().Before(end); n++ {
			for i := range sessions {
				token := name(n%batches, i)
				if n >= batches {
					if err := find(token); err != nil {
						return err
					}
				}
				// Some expire right now, and some have expired already.
				if err := commit(token, time.Now().Add(time.Duration(random.IntN(3)-2)*time.Millisecond)); err != nil {
					return err
				}
			}
			for i := range sessions {
				if err := commit(name(n%batches, i), inAnHour()); err != nil {
					return err
				}
			}
		}
		time.Sleep(100 * time.Millisecond) // for a sweep that is under way
		for batch := range batches {
			for i := range sessions {
				if err := find(name(batch, i)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// testConcurrent has goroutines make random calls. Each goroutine has sessions of its
// own, whose data it always knows. All share some others, whose data is their token,
// repeated. If the store refuses ended sessions, these are deleted in the end, and a
// goroutine goes on with other tokens of its own from time to time.
func testConcurrent(c *check) {
	const workers, sessionsEach, shared = 8, 4, 4
	models := make([]map[string]string, workers)
	end := time.Now().Add(250 * time.Millisecond)
	c.parallel(workers, func(worker int) error {
		model, ended := make(map[string]string), make(map[string]bool)
		models[worker] = model
		random := rand.New(rand.NewPCG(uint64(worker), 0))
		for n := 0; time.Now().Before(end); n++ {
			i := random.IntN(sessionsEach)
			if c.suite.refusesEnded {
				i += n / 50 * sessionsEach
			}
			own := token(fmt.Sprint("worker", worker, "-", i))
			common := token(fmt.Sprint("shared", random.IntN(shared)))
			switch random.IntN(8) {
			case 0, 1:
				data := fmt.Sprint(own, " ", n, strings.Repeat("x", random.IntN(2000)))
				err := c.commit(c.ctx, own, []byte(data), inAnHour())
				if refused := c.suite.refusesEnded && ended[own]; refused && err == nil {
					return errors.New("calling Commit = nil for a deleted session; want an error, because of the option RefusesEnded")
				} else if !refused && err != nil {
					return fmt.Errorf("calling Commit: %v", err)
				} else if !refused {
					model[own] = data
				}
			case 2:
				if err := c.delete(c.ctx, own); err != nil {
					return fmt.Errorf("calling Delete: %v", err)
				}
				delete(model, own)
				ended[own] = true
			case 3:
				data := strings.Repeat(common, 1+random.IntN(50))
				if err := c.commit(c.ctx, common, []byte(data), inAnHour()); err != nil {
					return fmt.Errorf("calling Commit with a token that others also commit: %v", err)
				}
			case 4:
				if c.suite.refusesEnded {
					continue
				}
				if err := c.delete(c.ctx, common); err != nil {
					return fmt.Errorf("calling Delete with a token that others also use: %v", err)
				}
			case 5:
				data, _, err := c.find(c.ctx, common)
				if err != nil || !isRepeated(data, common) {
					return fmt.Errorf("calling Find(%q) = %s, %v: nobody committed this data", common, quote(data), err)
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
						return fmt.Errorf("calling All returned %s for %q; want %s", quote(all[token]), token, quote([]byte(data)))
					}
				}
			}
			want, exists := model[own]
			data, found, err := c.find(c.ctx, own)
			if err != nil || found != exists || found && string(data) != want {
				return fmt.Errorf("calling Find(%q) = %s, %v, %v; want %s, %v, nil, as only this goroutine uses the token",
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

// isRepeated reports whether data is the token, repeated any number of times.
func isRepeated(data []byte, token string) bool {
	return len(bytes.ReplaceAll(data, []byte(token), nil)) == 0
}
