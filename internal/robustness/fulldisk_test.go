package robustness

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// fullDiskData returns data that can't be compressed.
func fullDiskData(i, size int) []byte {
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(data)
	return data
}

// Every fourth session is deleted when the session with a number higher by
// fullDiskLater has been committed.
const fullDiskLater = 40

// fullDiskDeleted reports whether session i is deleted once n sessions have been
// committed. Session n-fullDiskLater may or may not be deleted yet.
func fullDiskDeleted(i, n int) bool { return i%4 == 3 && i < n-fullDiskLater }

// fullDiskChild commits sessions of the given size until the disk is full, and then
// prints which calls still work.
func fullDiskChild(dir, task string) {
	size, err := strconv.Atoi(task)
	if err != nil {
		panic(err)
	}
	db, err := chai.Open(dir)
	if err != nil {
		panic(err)
	}
	s, err := chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, CleanupInterval: -1})
	if err != nil {
		panic(err)
	}
	n := 0
	for ; err == nil; n++ {
		err = s.Commit(fmt.Sprint(n), fullDiskData(n, size), inAnHour())
		if i := n - fullDiskLater; err == nil && fullDiskDeleted(i, n+1) {
			err = s.Delete(fmt.Sprint(i))
		}
	}
	n-- // session n may or may not be there
	fmt.Printf("acknowledged %d\n", n)
	fmt.Printf("first %v\n", err)
	for range 3 {
		for name, call := range map[string]func() error{
			"commit": func() error { return s.Commit("more", nil, inAnHour()) },
			"delete": func() error { return s.Delete("0") },
		} {
			start := time.Now()
			err := call()
			fmt.Printf("%s at once=%v %v\n", name, time.Since(start) < time.Second, err)
		}
	}
	all, err := s.All()
	if err != nil {
		fmt.Printf("unreadable %v\n", err)
	}
	for i := range n {
		if i == n-fullDiskLater {
			continue
		}
		data, found, err := s.Find(fmt.Sprint(i))
		if inAll, ok := all[fmt.Sprint(i)]; ok != found || !bytes.Equal(inAll, data) {
			fmt.Printf("not the same in All %d\n", i)
		}
		if err != nil || found == fullDiskDeleted(i, n) || found && !bytes.Equal(data, fullDiskData(i, size)) {
			fmt.Printf("unreadable %d %v %v\n", i, found, err)
		}
	}
	// Chai can't be closed any more: Close would wait for a lock that a panic left held.
	os.Exit(0)
}

// On a full disk, writes fail at once, with an error that says so, and reads go on.
// Once there is space, a reopened database works again.
func TestFullDisk(t *testing.T) {
	testdb.WithoutRace(t)
	for _, test := range []struct{ size, ballast int }{{0, 51}, {300, 50}, {4000, 47}} {
		t.Run(fmt.Sprint(test.size), func(t *testing.T) {
			if test.size != 300 {
				testdb.Long(t)
			}
			t.Parallel() // it mostly waits for a child process
			testFullDisk(t, test.size, test.ballast)
		})
	}
}

// testFullDisk commits sessions of the given size to a disk of 56 MB, of which ballast are
// taken.
func testFullDisk(t *testing.T, size, ballast int) {
	testdb.Watchdog(t, 2*time.Minute)
	disk := mountSmallDisk(t)
	ballastFile := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballastFile, make([]byte, ballast<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(disk, "db")
	cmd, out := startChild(t, "full disk", dir, fmt.Sprint(size))
	acknowledged, refused := 0, 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		switch what, rest, _ := strings.Cut(line, " "); what {
		case "acknowledged":
			fmt.Sscan(rest, &acknowledged)
		case "first":
			t.Logf("the first error on the full disk: %s", rest)
		case "commit", "delete":
			refused++
			saysSo := strings.Contains(rest, "no space left on device") || strings.Contains(rest, "the disk may be full")
			if !strings.Contains(rest, "at once=true") || !saysSo {
				t.Errorf("got %q for a write on the full disk, want an error at once that says so", line)
			}
		default:
			t.Errorf("the process on the full disk printed %q", line)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the process ended with %v, want no error", err)
	}
	if acknowledged == 0 || refused != 6 {
		t.Fatalf("got %d commits before the disk was full and %d refused writes after that, want some and 6", acknowledged, refused)
	}

	if err := os.Remove(ballastFile); err != nil {
		t.Fatal(err)
	}
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatalf("reopen the database with space: %v", err)
	}
	defer db.Close()
	s := newStore(t, db, nil)
	lost, undone := 0, 0
	for i := range acknowledged {
		if i == acknowledged-fullDiskLater {
			continue
		}
		data, found, err := s.Find(fmt.Sprint(i))
		switch {
		case err != nil:
			t.Fatal(err)
		case found == fullDiskDeleted(i, acknowledged):
			if found {
				undone++
			} else {
				lost++
			}
		case found && !bytes.Equal(data, fullDiskData(i, size)):
			t.Errorf("session %d does not have the committed data", i)
		}
	}
	t.Logf("of %d acknowledged sessions, %d are lost, and %d that were deleted are back", acknowledged, lost, undone)
	if lost+undone > 0 {
		t.Errorf("got %d lost commits and %d undone deletes, want none", lost, undone)
	}
	commit(t, s, "more", "one")
	if data, found, err := s.Find("more"); string(data) != "one" || !found || err != nil {
		t.Errorf("Find = %q, %v, %v; want one", data, found, err)
	}
}
