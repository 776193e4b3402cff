package robustness

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/vfs"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

const fewFilesGoroutines, fewFilesCommits = 8, 75 // enough for several logs

// fewFilesChild commits while files with the given part in their name can't be
// created for a moment. Then it opens what is left after a loss of power. It prints
// what happened.
func fewFilesChild(dir, file string) {
	d := testdb.NewFaultDisk(filepath.Join(dir, "pebble"))
	vfs.Default = engine.OnDisk(d)
	db, s := openStore(dir)
	fault := &testdb.Fault{Op: "create", File: file, Err: syscall.EMFILE, After: 1, Lasts: 300 * time.Millisecond}
	d.Break(fault)
	data := make([]byte, 16_000)
	rand.NewChaCha8([32]byte{}).Read(data)
	errs := make([]error, fewFilesGoroutines)
	var wg sync.WaitGroup
	for g := range errs {
		wg.Go(func() {
			for i := 0; i < fewFilesCommits && errs[g] == nil; i++ {
				errs[g] = s.Commit(fmt.Sprint(g, "-", i), data, inAnHour())
			}
		})
	}
	wg.Wait()
	for !fault.HasStruck() { // writing was faster than flushing
		if err := db.DB.Store.DB().Flush(); err != nil {
			panic(err)
		}
	}
	vfs.Default = engine.OnDisk(d.Cut(testdb.KeepNothing))
	fmt.Println("failed:", fault.HasStruck())
	fmt.Println("commits:", errs)
	if s.Stats().WriteError == "" {
		fmt.Println("close:", db.Close())
	}
	db, s = openStore(dir)
	all, err := s.All()
	fmt.Println("after a loss of power:", len(all), err, db.Close())
	os.Exit(0)
}

// When the process has too many files open for a moment, commits wait, and then go
// on.
func TestFewFiles(t *testing.T) {
	testdb.WithoutRace(t)
	for name, file := range map[string]string{"logs": ".log", "rows": ".sst", "all": ""} {
		t.Run(name, func(t *testing.T) {
			if name != "logs" {
				testdb.Long(t)
			}
			t.Parallel()
			testdb.Watchdog(t, time.Minute)
			cmd, out := startChild(t, "few files", t.TempDir(), file)
			var got []string
			for lines := bufio.NewScanner(out); lines.Scan(); {
				got = append(got, lines.Text())
			}
			if err := cmd.Wait(); err != nil {
				t.Fatalf("the process ended with %v, want no error", err)
			}
			want := fmt.Sprintf("failed: true\ncommits: %v\nclose: <nil>\nafter a loss of power: %d <nil> <nil>",
				make([]error, fewFilesGoroutines), fewFilesGoroutines*fewFilesCommits)
			if got := strings.Join(got, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
