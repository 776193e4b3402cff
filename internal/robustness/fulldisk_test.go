package robustness

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// fullDiskData returns data that can't be compressed.
func fullDiskData(i int) []byte {
	data := make([]byte, 4000)
	rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(data)
	return data
}

// fullDiskChild commits sessions until the disk is full, and then prints which calls
// still work.
func fullDiskChild(dir string) {
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
		err = s.Commit(fmt.Sprint(n), fullDiskData(n), inAnHour())
	}
	n--
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
	for i := range n {
		if data, found, err := s.Find(fmt.Sprint(i)); err != nil || !found || !bytes.Equal(data, fullDiskData(i)) {
			fmt.Printf("unreadable %d %v %v\n", i, found, err)
		}
	}
	all, err := s.All()
	fmt.Printf("all %d %v\n", len(all), err)
	// Chai can't be closed any more: Close would wait for a lock that a panic left held.
	os.Exit(0)
}

// On a full disk, writes fail at once, with an error that says so, and reads go on.
// Once there is space, a reopened database works again.
func TestFullDisk(t *testing.T) {
	t.Parallel() // it mostly waits for a child process
	testdb.Watchdog(t, 2*time.Minute)
	disk := mountSmallDisk(t)
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 24<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(disk, "db")
	cmd, out := startChild(t, "full disk", dir)
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
		case "all":
			if want := fmt.Sprint(acknowledged, " <nil>"); rest != want {
				t.Errorf("All on the full disk = %s, want %s", rest, want)
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

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	db, err := chai.Open(dir)
	if err != nil {
		t.Fatalf("reopen the database with space: %v", err)
	}
	defer db.Close()
	s := newStore(t, db, nil)
	lost := 0
	for i := range acknowledged {
		data, found, err := s.Find(fmt.Sprint(i))
		switch {
		case err != nil:
			t.Fatal(err)
		case !found:
			lost++
		case !bytes.Equal(data, fullDiskData(i)):
			t.Errorf("session %d does not have the committed data", i)
		}
	}
	t.Logf("of %d acknowledged sessions %d are lost", acknowledged, lost)
	if lost > maxLostOnFullDisk {
		t.Errorf("got %d lost sessions, want at most %d", lost, maxLostOnFullDisk)
	}
	commit(t, s, "more", "one")
	if data, found, err := s.Find("more"); string(data) != "one" || !found || err != nil {
		t.Errorf("Find = %q, %v, %v; want one", data, found, err)
	}
}

// maxLostOnFullDisk is the limit for "the last few commits" before the first error,
// which the README says may be lost.
const maxLostOnFullDisk = 10
