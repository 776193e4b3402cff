package robustness

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// ended is the owner of a session that does not exist.
const ended = "-"

// ownersCrashChild adds the missing owners, and then commits, deletes and sweeps
// until it is killed. It prints each change before making it, and again when it is
// acknowledged.
func ownersCrashChild(dir string) {
	db, err := chai.Open(dir)
	if err != nil {
		panic(err)
	}
	fmt.Println("opened - -")
	s, err := chaistore.NewWithConfig(db, chaistore.Config{
		CleanupInterval: time.Millisecond, Logger: slog.New(slog.DiscardHandler), Owner: ownerInData,
	})
	if err != nil {
		panic(err)
	}
	for _, err := range s.SessionsOf(context.Background(), "nobody") { // when all have an owner
		panic(err)
	}
	fmt.Println("ready - -")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
			for i := 0; ; i++ {
				token, owner := fmt.Sprint(g, "-", rng.IntN(20)), fmt.Sprint("user", g, "-", rng.IntN(3))
				data := fmt.Appendf(nil, "%s|%d", owner, i)
				var call func() error
				what := "change"
				switch rng.IntN(8) {
				case 0:
					owner, call = ended, func() error { return s.Delete(token) }
				case 1: // expires the session, which a sweep then deletes
					owner, call = ended, func() error { return s.Commit(token, data, anHourAgo()) }
				case 2:
					what, token = "end", "-"
					call = func() error {
						_, err := s.DeleteOf(context.Background(), owner)
						return err
					}
				default:
					call = func() error { return s.Commit(token, data, inAnHour()) }
				}
				fmt.Println("begin-"+what, token, owner)
				if err := call(); err != nil {
					panic(err)
				}
				fmt.Println("done-"+what, token, owner)
			}
		})
	}
	wg.Wait()
}

// A process is killed at a random moment, in some rounds while it adds missing
// owners. Afterwards, the owners agree with the sessions and with all acknowledged
// changes.
func TestCrashWithOwners(t *testing.T) {
	testdb.WithoutRace(t)
	for name, setup := range map[string][]string{
		"plain":   {testdb.CreateTable},
		"indexed": {testdb.CreateTable, testdb.CreateIndex},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Watchdog(t, time.Duration(1+*crashRounds/4)*time.Minute)
			dir := t.TempDir()
			possible := make(map[string][]string) // the possible owners of each session
			acknowledged, interrupted := 0, 0
			for round := range *crashRounds {
				changeWithoutOwners(t, dir, setup, round)
				cmd, out := startChild(t, "crash with owners", dir, "")
				lines := bufio.NewScanner(out)
				kill := func(within time.Duration) {
					time.AfterFunc(rand.N(within), func() { cmd.Process.Kill() })
				}
				ready, killed := false, false
				for lines.Scan() {
					var what, token, owner string
					if _, err := fmt.Sscan(lines.Text(), &what, &token, &owner); err != nil {
						t.Fatalf("the process printed %q: %v", lines.Text(), err)
					}
					switch what {
					case "opened":
						if round%2 == 0 { // while it adds owners
							kill(15 * time.Millisecond)
						}
					case "ready":
						ready = true
					case "begin-change":
						if possible[token] == nil {
							possible[token] = []string{ended}
						}
						possible[token] = append(possible[token], owner)
					case "done-change":
						if round%2 == 1 && !killed {
							killed = true
							kill(300 * time.Millisecond)
						}
						possible[token] = []string{owner}
						acknowledged++
					case "begin-end", "done-end":
						for token, owners := range possible {
							if !slices.Contains(owners, owner) {
								continue
							}
							possible[token] = append(owners, ended)
							if what == "done-end" {
								possible[token] = slices.DeleteFunc(possible[token], func(of string) bool { return of == owner })
							}
						}
					}
				}
				if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
					t.Fatalf("the process ended with %v, want a kill", err)
				}
				if !ready {
					interrupted++
				}
				checkOwnersAfterCrash(t, dir, ready, possible)
				if t.Failed() {
					t.Fatalf("failed in round %d (ready: %v)", round, ready)
				}
			}
			t.Logf("%d processes were killed, %d of them before all owners were added, after %d acknowledged changes", *crashRounds, interrupted, acknowledged)
			if want := *crashRounds / 2; acknowledged < want {
				t.Errorf("got %d acknowledged changes, want at least %d", acknowledged, want)
			}
		})
	}
}

// After a kill, what makes and drops a table with Chai alone changes no other table.
func TestTableAfterAKill(t *testing.T) {
	testdb.Watchdog(t, time.Minute)
	dir := t.TempDir()
	db := testdb.Open(t, dir)
	testdb.Exec(t, db, testdb.CreateTable)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	cmd, out := startChild(t, "crash with owners", dir, "") // makes the table of owners
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "done-change") {
			cmd.Process.Kill()
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the process ended with %v, want a kill", err)
	}
	db = testdb.Open(t, dir)
	testdb.Exec(t, db, "CREATE TABLE later (line TEXT)", "DROP TABLE later")
	testdb.CheckOwners(t, db, ownerInData, false)
}

// changeWithoutOwners changes sessions without their owners, so that the next process
// has to add and remove owners.
func changeWithoutOwners(t *testing.T, dir string, setup []string, round int) {
	t.Helper()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if round == 0 {
		testdb.Exec(t, db, setup...)
	} else if round%4 == 0 {
		testdb.Exec(t, db, "DROP TABLE sessions_owners")
	}
	s := newStore(t, db, nil)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 1000 {
		token := fmt.Sprintf("plain%04d", i)
		if rng.IntN(2) == 0 {
			commit(t, s, token, fmt.Sprintf("plain%d|", i%10))
		} else if err := s.Delete(token); err != nil {
			t.Error(err)
		}
	}
}

// checkOwnersAfterCrash checks that each session has a possible owner, and makes that
// its only possible one.
func checkOwnersAfterCrash(t *testing.T, dir string, ready bool, possible map[string][]string) {
	t.Helper()
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatalf("open the database after a crash: %v", err)
	}
	defer db.Close()
	if ready {
		testdb.CheckOwners(t, db, ownerInData, false)
	}
	s := newStore(t, db, ownerInData)
	has(t, s, "nobody", "") // when all have an owner
	testdb.CheckOwners(t, db, ownerInData, false)
	for token, owners := range possible {
		data, found, err := s.Find(token)
		if err != nil {
			t.Fatal(err)
		}
		owner := ended
		if found {
			owner, _ = ownerInData(data)
			if !has(t, s, owner, token) {
				t.Errorf("SessionsOf(%s) lacks session %s", owner, token)
			}
		}
		if !slices.Contains(owners, owner) {
			t.Errorf("session %s has the owner %s, want one of %v", token, owner, owners)
		}
		possible[token] = []string{owner}
	}
	if _, err := s.DeleteExpired(context.Background()); err != nil {
		t.Errorf("DeleteExpired after a crash: %v", err)
	}
	testdb.CheckOwners(t, db, ownerInData, true)
}

// has reports whether an owner has a session.
func has(t *testing.T, s *chaistore.ChaiStore, owner, token string) bool {
	t.Helper()
	for session, err := range s.SessionsOf(t.Context(), owner) {
		if err != nil {
			t.Error(err)
		}
		if session.Token == token {
			return true
		}
	}
	return false
}

// ownerInData returns the owner in data, which ends at its last bar.
func ownerInData(data []byte) (string, error) {
	return string(data[:max(0, bytes.LastIndexByte(data, '|'))]), nil
}
