package storetest_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore/storetest"
)

// A fault is a faulty store, which must fail some cases.
type fault struct {
	name     string
	newStore func(t *testing.T) scs.Store
	opts     []storetest.Option
	fails    []string // cases that it must fail
	whole    bool     // whether these cases need the others to run, too
}

var faults = []fault{
	// Tokens.
	{
		name: "missing is an error",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{found: func(token string, s session, ok bool) (session, bool, error) {
				if !ok {
					return s, false, errors.New("no rows in result set")
				}
				return s, ok, nil
			}})
		},
		fails: []string{"Store/FindMissing"},
	},
	{
		name: "empty token is an error",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{
				found: func(token string, s session, ok bool) (session, bool, error) { return s, ok, refuseEmpty(token) },
			})
		},
		fails: []string{"Store/FindEmptyToken"},
	},
	{
		name: "text tokens only",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{
				commit: refuseBinary,
				delete: refuseBinary,
				found:  func(token string, s session, ok bool) (session, bool, error) { return s, ok, refuseBinary(token) },
			})
		},
		fails: []string{"Store/FindMalformed", "Store/DeleteMalformed"},
	},
	{
		name: "any token is found",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{found: func(token string, s session, ok bool) (session, bool, error) { return s, true, nil }})
		},
		fails: []string{"Store/FindMissing", "Manager/TokenFixation"},
	},
	keyed("ignores case", strings.ToLower, "Store/FindTampered", "Store/DeleteTampered", "Store/CommitSimilarTokens"),
	keyed("ignores spaces", strings.TrimSpace, "Store/FindTampered", "Store/DeleteTampered"),
	keyed("ignores padding", func(token string) string { return strings.TrimRight(token, "=") }, "Store/FindTampered"),
	keyed("ignores hyphens", func(token string) string { return strings.ReplaceAll(token, "-", "") },
		"Store/FindTampered", "Store/DeleteTampered", "Store/CommitSimilarTokens"),
	keyed("ignores one character", func(token string) string { return token[:min(len(token), 20)] + token[min(len(token), 21):] },
		"Store/FindTampered", "Store/DeleteTampered", "Store/CommitSimilarTokens"),
	keyed("ignores extra characters", func(token string) string { return token[:min(len(token), 43)] },
		"Store/FindTampered", "Store/DeleteTampered"),
	keyed("decodes base64 laxly", func(token string) string {
		if key, err := base64.RawURLEncoding.DecodeString(token); err == nil {
			return string(key)
		}
		return token
	}, "Store/FindTampered", "Store/DeleteTampered"),
	{
		name:     "finds by pattern",
		newStore: func(t *testing.T) scs.Store { return findsByPattern{newMemory(t)} },
		fails:    []string{"Store/FindTampered"},
	},
	{
		name:     "deletes by pattern",
		newStore: func(t *testing.T) scs.Store { return deletesMatching{newMemory(t), like} },
		fails:    []string{"Store/DeleteTampered"},
	},
	{
		name:     "deletes by prefix",
		newStore: func(t *testing.T) scs.Store { return deletesMatching{newMemory(t), strings.HasPrefix} },
		fails:    []string{"Store/DeleteTampered"},
	},
	{
		name:     "deletes in any case",
		newStore: func(t *testing.T) scs.Store { return deletesMatching{newMemory(t), strings.EqualFold} },
		fails:    []string{"Store/DeleteTampered", "Store/CommitSimilarTokens"},
	},
	{
		name: "truncates tokens",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{token: func(token string) string { return token[:min(len(token), 255)] }})
		},
		fails: []string{"Store/CommitOddTokens"},
	},
	// Data.
	{
		name:     "returns its own slice",
		newStore: func(t *testing.T) scs.Store { return givesSlice{newMemory(t)} },
		fails:    []string{"Advice/FoundDataIsCopy"},
	},
	{
		name:     "reuses its buffers",
		newStore: func(t *testing.T) scs.Store { return &reusesBuffers{memory: newMemory(t)} },
		fails:    []string{"Store/FoundDataStays", "Store/AllDataStays"},
	},
	{
		name:     "returns its own slices from All",
		newStore: func(t *testing.T) scs.Store { return givesSlices{newMemory(t)} },
		fails:    []string{"Advice/AllIsCopy"},
	},
	{
		name:     "keeps the caller's slice",
		newStore: func(t *testing.T) scs.Store { return keepsSlice{newMemory(t)} },
		fails:    []string{"Advice/CommitCopiesData"},
	},
	{
		name:     "forgets when full",
		newStore: func(t *testing.T) scs.Store { return forgets{newMemory(t)} },
		fails:    []string{"Store/Commit", "Store/All"},
	},
	{
		name: "empty data is missing",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{found: func(_ string, s session, ok bool) (session, bool, error) { return s, ok && len(s.data) > 0, nil }})
		},
		fails: []string{"Store/CommitEmptyData", "Store/CommitNilData"},
	},
	{
		name: "text data only",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{data: func(b []byte) []byte { return bytes.ToValidUTF8(b, []byte("?")) }})
		},
		fails: []string{"Store/CommitBinaryData"},
	},
	{
		name: "truncates data",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{data: func(b []byte) []byte { return b[:min(len(b), 1<<16-1)] }})
		},
		fails: []string{"Store/CommitLargeData"},
	},
	{
		name: "a column that is too short",
		newStore: func(t *testing.T) scs.Store {
			return refuses{newMemory(t), func(b []byte) bool { return len(b) > 1<<16-1 }}
		},
		fails: []string{"Advice/CommitLargeData"},
	},
	{
		name:     "refuses nil data",
		newStore: func(t *testing.T) scs.Store { return refuses{newMemory(t), func(b []byte) bool { return b == nil }} },
		fails:    []string{"Advice/CommitNilData"},
	},
	{
		name:     "keeps equal data once",
		newStore: func(t *testing.T) scs.Store { return sharesData{newMemory(t), make(map[string]int)} },
		fails:    []string{"Store/CommitSameData"},
	},
	{
		name:     "keeps the first data",
		newStore: func(t *testing.T) scs.Store { return keepsFirst{newMemory(t), true, false} },
		fails:    []string{"Store/CommitOverwritesData", "Manager/LoadAndSave"},
	},
	// Expiry.
	{
		name:     "keeps the first expiry",
		newStore: func(t *testing.T) scs.Store { return keepsFirst{newMemory(t), false, true} },
		fails:    []string{"Store/CommitLengthensExpiry", "Store/CommitShortensExpiry", "Manager/IdleTimeout"},
	},
	{
		name:     "sweeps renewed sessions",
		newStore: func(t *testing.T) scs.Store { return staleIndex{newMemory(t), make(map[string]time.Time)} },
		fails:    []string{"Store/CommitLengthensExpiry"},
	},
	{
		name: "finds expired sessions",
		newStore: func(t *testing.T) scs.Store {
			m := newMemory(t)
			return edited(t, edits{memory: m, found: func(token string, _ session, _ bool) (session, bool, error) {
				m.mu.Lock()
				defer m.mu.Unlock()
				s, ok := m.sessions[token]
				return s, ok, nil
			}})
		},
		fails: []string{
			"Store/FindExpired", "Store/CommitShortensExpiry", "Store/ExpiryWithinSecond", "Store/ExpiryInAnyZone",
			"Manager/TokenFixation", "Manager/IdleTimeout", "Manager/Lifetime",
		},
	},
	{
		name: "same expiry for all",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(time.Time) time.Time { return time.Now().Add(time.Minute) }})
		},
		fails: []string{
			"Store/FindExpired", "Store/CommitShortensExpiry", "Store/ExpiryWithinSecond", "Store/ExpiryInAnyZone",
			"Store/AllWithoutExpired", "Manager/IdleTimeout", "Manager/Lifetime", "Manager/Iterate",
		},
	},
	{
		name: "drops the zone",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(e time.Time) time.Time {
				if e.Location() == time.Local {
					return e
				}
				_, offset := e.Zone()
				return e.Add(time.Duration(offset) * time.Second)
			}})
		},
		fails: []string{"Store/ExpiryInAnyZone"},
	},
	{
		name: "whole seconds",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(e time.Time) time.Time { return e.Truncate(time.Second) }})
		},
		fails: []string{"Store/ExpiryWithinSecond"},
	},
	{
		name: "whole seconds, rounded up",
		newStore: func(t *testing.T) scs.Store {
			return edited(t, edits{expiry: func(e time.Time) time.Time { return e.Add(time.Second - 1).Truncate(time.Second) }})
		},
		fails: []string{"Store/ExpiryWithinSecond"},
	},
	expiring("milliseconds in 31 bits", func(e time.Time) time.Time {
		return time.Now().Add(time.Duration(int32(time.Until(e).Milliseconds())) * time.Millisecond)
	}, "Store/ExpiryFarAhead"),
	expiring("milliseconds in 32 bits", func(e time.Time) time.Time {
		return time.Now().Add(time.Duration(uint32(time.Until(e).Milliseconds())) * time.Millisecond)
	}, "Store/ExpiryFarAhead"),
	expiring("microseconds in 32 bits", func(e time.Time) time.Time {
		return time.Now().Add(time.Duration(uint32(time.Until(e).Microseconds())) * time.Microsecond)
	}, "Store/ExpiryFarAhead"),
	expiring("a month at most", func(e time.Time) time.Time {
		if time.Until(e) > 30*24*time.Hour { // a duration that is mistaken for a date
			return time.Unix(0, 0).Add(time.Until(e))
		}
		return e
	}, "Store/ExpiryFarAhead"),
	expiring("the zero time means never", func(e time.Time) time.Time {
		if e.IsZero() {
			return time.Now().Add(time.Hour)
		}
		return e
	}, "Store/ExpiryLongPast"),
	expiring("1970 means never", func(e time.Time) time.Time {
		if e.Unix() == 0 {
			return time.Now().Add(time.Hour)
		}
		return e
	}, "Store/ExpiryLongPast"),
	expiring("nanoseconds without a sign", func(e time.Time) time.Time {
		if e.UnixNano() < 0 {
			return time.Now().Add(time.Hour)
		}
		return e
	}, "Store/ExpiryLongPast"),
	{
		name:     "a find renews the session",
		newStore: func(t *testing.T) scs.Store { return findingRenews{newMemory(t)} },
		fails:    []string{"Store/ExpiryWithinSecond"},
	},
	{
		name:     "slow, and keeps the first expiry",
		newStore: func(t *testing.T) scs.Store { return slow{keepsFirst{newMemory(t), false, true}} },
		fails:    []string{"Manager/IdleTimeout"},
	},
	{
		name: "slow, and ends late",
		newStore: func(t *testing.T) scs.Store {
			return slow{edited(t, edits{expiry: func(e time.Time) time.Time { return e.Add(2 * time.Second) }})}
		},
		fails: []string{"Manager/IdleTimeout", "Manager/Lifetime"},
	},
	// Delete.
	{
		name:     "deletes nothing",
		newStore: func(t *testing.T) scs.Store { return deletesNothing{newMemory(t)} },
		fails: []string{
			"Store/Delete", "Manager/RenewToken", "Manager/Destroy", "Manager/HashTokenInStore", "Manager/IterateAndDestroy",
			"Manager/Iterate", "Cleanup/StopInUse",
		},
	},
	{
		name: "deletes all",
		newStore: func(t *testing.T) scs.Store {
			m := newMemory(t)
			return edited(t, edits{memory: m, delete: func(string) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				clear(m.sessions)
				return nil
			}})
		},
		fails: []string{"Store/Delete", "Store/DeleteMissing", "Store/DeleteEmptyToken", "Store/DeleteMalformed", "Manager/Destroy"},
	},
	{
		name:     "deleting the missing is an error",
		newStore: func(t *testing.T) scs.Store { return deletesExisting{newMemory(t)} },
		fails:    []string{"Store/DeleteMissing", "Store/DeleteEmptyToken", "Store/DeleteMalformed", "Manager/DestroyNewSession"},
	},
	{
		name:     "deleting the empty token is an error",
		newStore: func(t *testing.T) scs.Store { return edited(t, edits{delete: refuseEmpty}) },
		fails:    []string{"Store/DeleteEmptyToken", "Manager/DestroyNewSession"},
	},
	// All.
	paged("All stops at 100 sessions", func(n, _ int) bool { return n <= 100 }, "Store/All"),
	paged("All stops at 1,000 sessions", func(n, _ int) bool { return n <= 1000 }, "Store/All"),
	paged("All stops at a megabyte", func(_, bytes int) bool { return bytes <= 1<<20 }, "Store/All", "Store/AllLargeData"),
	{
		name:     "All returns an iterator's buffers",
		newStore: func(t *testing.T) scs.Store { return iteratorBuffers{newMemory(t)} },
		fails:    []string{"Store/All"},
	},
	{
		name: "All leaves out empty data",
		newStore: func(t *testing.T) scs.Store {
			return leavesOut{newMemory(t), func(data []byte) bool { return len(data) == 0 }}
		},
		fails: []string{"Store/AllEmptyData"},
	},
	{
		name: "All leaves out large data",
		newStore: func(t *testing.T) scs.Store {
			return leavesOut{newMemory(t), func(data []byte) bool { return len(data) > 1<<16 }}
		},
		fails: []string{"Store/AllLargeData"},
	},
	{
		name:     "All returns expired sessions",
		newStore: func(t *testing.T) scs.Store { return allExpired{newMemory(t)} },
		fails:    []string{"Store/AllWithoutExpired", "Store/AllEmpty", "Manager/Iterate"},
	},
	{
		name:     "All returns nil",
		newStore: func(t *testing.T) scs.Store { return nilAll{newMemory(t)} },
		fails:    []string{"Store/AllEmpty"},
	},
	// Concurrency and contexts.
	{
		name:     "loses updates",
		newStore: func(t *testing.T) scs.Store { return &losesUpdates{memory: newMemory(t)} },
		fails:    []string{"Store/Concurrent"},
	},
	{
		name:     "deletes before it renews",
		newStore: func(t *testing.T) scs.Store { return gap{newMemory(t)} },
		fails:    []string{"Store/FindDuringRenewal"},
	},
	{
		name: "a stale cache",
		newStore: func(t *testing.T) scs.Store {
			return &staleCache{memory: newMemory(t), copies: make(map[string]session)}
		},
		fails: []string{"Store/FindDuringRenewal"},
	},
	{
		name:     "writes the expiry after the data",
		newStore: func(t *testing.T) scs.Store { return twoWrites{newMemory(t)} },
		fails:    []string{"Store/CommitAtOnce"},
	},
	{
		name:     "sweeps in two steps",
		newStore: func(t *testing.T) scs.Store { return newTwoSteps(t) },
		fails:    []string{"Store/CommitDuringSweep"},
	},
	{
		name:     "deadlocks",
		newStore: func(t *testing.T) scs.Store { return &deadlocks{memory: newMemory(t)} },
		opts:     []storetest.Option{storetest.Timeout(2 * time.Second)},
		fails:    []string{"Store/Concurrent"},
	},
	{
		name:     "does not refuse ended sessions",
		newStore: func(t *testing.T) scs.Store { return newMemory(t) },
		opts:     []storetest.Option{storetest.RefusesEnded()},
		fails:    []string{"Store/Concurrent", "Store/Delete"},
	},
	{
		name:     "refuses ended sessions without the option",
		newStore: func(t *testing.T) scs.Store { return newRefusesEnded(t) },
		fails:    []string{"Store/Concurrent", "Store/Delete", "Store/DeleteMissing"},
	},
	{
		name:     "its two methods don't share sessions",
		newStore: func(t *testing.T) scs.Store { return twoStores{newMemory(t), withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/SameAsPlain"},
	},
	{
		name:     "only one of two methods is broken",
		newStore: func(t *testing.T) scs.Store { return brokenCtx{withCtx{newMemory(t)}} },
		fails:    []string{"Advice/CommitNilData"},
	},
	{
		name:     "canceled means missing",
		newStore: func(t *testing.T) scs.Store { return canceledIsMissing{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/Canceled"},
	},
	{
		name:     "deadline exceeded means missing",
		newStore: func(t *testing.T) scs.Store { return lateIsMissing{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/DeadlineExceeded"},
	},
	{
		name:     "canceled during the call means missing",
		newStore: func(t *testing.T) scs.Store { return canceledMeanwhile{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/EndsDuringCall"},
	},
	{
		name:     "writes late",
		newStore: func(t *testing.T) scs.Store { return writesLate{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/Canceled", "Ctx/DeadlineExceeded"},
	},
	{
		name:     "a write is undone when its context ends",
		newStore: func(t *testing.T) scs.Store { return rollsBack{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/EndsAfterCall"},
	},
	{
		name:     "a canceled commit returns nil",
		newStore: func(t *testing.T) scs.Store { return canceledIsNotDone{withCtx{newMemory(t)}} },
		fails:    []string{"Ctx/Canceled"},
	},
	// Cleanup.
	{
		name:     "does not stop",
		newStore: func(t *testing.T) scs.Store { return doesNotStop{newMemory(t)} },
		fails:    []string{"Cleanup/StopEarly"},
	},
	{
		name:     "does not wait for a sweep to end",
		newStore: func(t *testing.T) scs.Store { return newSlowSweep(t) },
		fails:    []string{"Cleanup/StopDuringSweep"},
	},
	{
		name:     "leaves a goroutine behind after a commit",
		newStore: func(t *testing.T) scs.Store { return leavesGoroutine{newMemory(t)} },
		fails:    []string{"Cleanup/StopInUse"},
	},
	{
		name: "never sweeps",
		newStore: func(t *testing.T) scs.Store {
			m := newMemory(t)
			m.StopCleanup()
			return m
		},
		opts:  []storetest.Option{storetest.Count(countRows)},
		fails: []string{"Cleanup/Sweep"},
	},
	{
		name: "sweeps active sessions",
		newStore: func(t *testing.T) scs.Store {
			m := newMemory(t)
			return edited(t, edits{memory: m, commit: func(string) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				if len(m.sessions) > 30 {
					clear(m.sessions)
				}
				return nil
			}})
		},
		opts:  []storetest.Option{storetest.Count(func(store scs.Store) (int, error) { return countRows(store.(editedStore).memory) })},
		fails: []string{"Cleanup/Sweep"},
	},
	{
		name: "stops only once",
		newStore: func(t *testing.T) scs.Store {
			s := newStopsOnce()
			t.Cleanup(s.memory.StopCleanup)
			return s
		},
		fails: []string{"Advice/StopTwice", "Advice/StopAtOnce"},
	},
	{
		name:     "panics when stopped twice",
		newStore: func(t *testing.T) scs.Store { return &closesTwice{memory: newMemory(t), stop: make(chan struct{})} },
		fails:    []string{"Advice/StopTwice", "Advice/StopAtOnce"},
	},
	{
		name:     "fails once stopped",
		newStore: func(t *testing.T) scs.Store { return &endsWhenStopped{memory: newMemory(t)} },
		fails:    []string{"Cleanup/StopInUse"},
	},
	{
		name:     "forgets everything after a while",
		newStore: func(t *testing.T) scs.Store { return forgetsAfter{newMemory(t), time.Now().Add(2 * time.Second)} },
		whole:    true,
		fails:    []string{"End/FirstSessionStays"},
	},
}

// keyed returns a store that uses a key other than the token.
func keyed(name string, key func(token string) string, fails ...string) fault {
	return fault{
		name:     name,
		newStore: func(t *testing.T) scs.Store { return edited(t, edits{token: key}) },
		fails:    fails,
	}
}

// expiring returns a store that changes the expiries.
func expiring(name string, expiry func(time.Time) time.Time, fails ...string) fault {
	return fault{
		name:     name,
		newStore: func(t *testing.T) scs.Store { return edited(t, edits{expiry: expiry}) },
		fails:    fails,
	}
}

// paged returns a store whose All returns only as many sessions as fit.
func paged(name string, fits func(sessions, bytes int) bool, fails ...string) fault {
	return fault{
		name:     name,
		newStore: func(t *testing.T) scs.Store { return firstPage{newMemory(t), fits} },
		fails:    fails,
	}
}
