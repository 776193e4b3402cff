//go:build unix

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.elara.ws/chaistore"
)

// A meddler is a side that calls a function instead of its own write.
type meddler struct {
	side
	onWrite func(ctx context.Context, sessions []chaistore.Session) error
}

func (m meddler) write(ctx context.Context, sessions []chaistore.Session) error {
	return m.onWrite(ctx, sessions)
}

// copyBothWays runs a test for each direction. The source has the given active sessions,
// and the destination is empty. The function all returns the destination's sessions.
func copyBothWays(t *testing.T, source sessions, test func(t *testing.T, c copier, all func() sessions)) {
	for _, reverse := range []bool{false, true} {
		t.Run(fmt.Sprintf("reverse=%v", reverse), func(t *testing.T) {
			dir, db := newDirectory(t), newTable(t)
			all := dir.all
			if reverse {
				db.fill(source)
			} else {
				dir.fill(source)
				all = db.all
			}
			postgres, err := openPostgres(t.Context(), db.url, "sessions")
			if err != nil {
				t.Fatal(err)
			}
			chai, err := openChai(dir.path, "sessions", false)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(postgres.close)
			t.Cleanup(chai.close)
			c := copier{from: chai, to: postgres, batch: 100, progress: newProgress(io.Discard)}
			if reverse {
				c.from, c.to = postgres, chai
				all = func() sessions { return collect(t, chai) }
			}
			test(t, c, all)
		})
	}
}

// collect returns the active sessions of a side.
func collect(t *testing.T, s side) sessions {
	t.Helper()
	all := make(sessions)
	for session, err := range s.sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all.add(session.Token, session.Data, session.Expiry)
	}
	return all
}

// If a copy stops half-way for any reason, another run copies the rest.
func TestInterrupted(t *testing.T) {
	const n = 1000
	source := someSessions(n)
	copyBothWays(t, source, func(t *testing.T, c copier, all func() sessions) {
		to := c.to
		check := func(want string, total int, err error) {
			t.Helper()
			if err == nil || err.Error() != want {
				t.Errorf("the error is %v, want %s", err, want)
			}
			got := all()
			if len(got) != total {
				t.Errorf("the destination has %d sessions, want %d", len(got), total)
			}
			for token := range got {
				if _, ok := source[token]; !ok {
					t.Errorf("the destination has a session that the source lacks")
				}
			}
			// The copied sessions are right.
			part := maps.Clone(source)
			maps.DeleteFunc(part, func(token string, _ chaistore.Session) bool { _, ok := got[token]; return !ok })
			checkSame(t, "the destination", got, part)
		}

		ctx, cancel := context.WithCancel(t.Context())
		batches := 0
		c.to = meddler{to, func(ctx context.Context, sessions []chaistore.Session) error {
			if batches++; batches == 3 {
				cancel() // while the batch is being written
			}
			return to.write(ctx, sessions)
		}}
		check("interrupted; 300 of 1000 sessions have been copied: run the command again to copy the others", 300, c.run(ctx, false, io.Discard))
		check("interrupted; nothing was changed", 300, c.run(ctx, false, io.Discard))

		batches = 0
		c.to = meddler{to, func(ctx context.Context, sessions []chaistore.Session) error {
			if batches++; batches == 3 {
				return errors.New("no space left")
			}
			return to.write(ctx, sessions)
		}}
		check("no space left; 200 of 700 sessions have been copied: run the command again to copy the others", 500, c.run(t.Context(), false, io.Discard))

		c.to = to
		var out strings.Builder
		if err := c.run(t.Context(), false, &out); err != nil {
			t.Fatal(err)
		}
		if want := "500 are missing there, 0 differ, 500 are the same; 0 others"; !strings.Contains(out.String(), want) {
			t.Errorf("another run printed %q, want %q in it", &out, want)
		}
		checkSame(t, "the destination", all(), source)
	})
}

// startBlocked starts the program, which copies one session at a time, and waits until
// it writes the first session. The program is blocked there until release is called.
func startBlocked(t *testing.T, dir *directory, db *database) (cmd *exec.Cmd, stderr *strings.Builder, release func()) {
	t.Helper()
	conn := db.connect()
	t.Cleanup(func() { conn.Close(context.Background()) })
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("BEGIN; LOCK TABLE sessions IN SHARE MODE")
	cmd = child(t, "main", "-chai", dir.path, "-postgres", db.url, "-batch", "1")
	stderr = &strings.Builder{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for waiting, deadline := false, time.Now().Add(20*time.Second); !waiting; {
		if time.Now().After(deadline) {
			t.Fatal("the program does not write")
		}
		const sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
		if err := conn.QueryRow(t.Context(), sql).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	return cmd, stderr, func() { exec("COMMIT") }
}

// SIGINT ends the program after the batch that it is writing.
func TestSignal(t *testing.T) {
	const n = 5000
	dir, db := newDirectory(t), newTable(t)
	source := someSessions(n)
	dir.fill(source)

	cmd, stderr, release := startBlocked(t, dir, db)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	release()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("the program ended with %v, and printed %q", err, stderr)
	}
	copied := 0
	if _, err := fmt.Sscanf(stderr.String(), "topostgres: interrupted; %d of 5000 sessions have been copied: ", &copied); err != nil {
		t.Fatalf("the program printed %q", stderr)
	}
	if got := len(db.all()); got != copied || copied < 1 || copied >= n {
		t.Errorf("%d sessions have been copied, but the program says %d", got, copied)
	}
	mustPrint(t, dir, db, nil, fmt.Sprintf("%d are missing there, 0 differ, %d are the same", n-copied, copied), "checked: all 5000")
	checkSame(t, "PostgreSQL", db.all(), source)
}

// A second SIGINT ends the program even if PostgreSQL does not answer.
func TestSecondSignal(t *testing.T) {
	dir, db := newDirectory(t), newTable(t)
	dir.fill(someSessions(10))
	cmd, _, release := startBlocked(t, dir, db)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		// The program may handle the first signal with a delay.
		if err := cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err == nil || err.Error() != "signal: interrupt" {
				t.Errorf("the program ended with %v", err)
			}
			release()
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// The check at the end finds every difference.
func TestCheck(t *testing.T) {
	source := someSessions(250)
	for name, test := range map[string]struct {
		spoil              func(batch []chaistore.Session) []chaistore.Session // called for each of three batches
		missing, different int
	}{
		"missing": {func(batch []chaistore.Session) []chaistore.Session {
			return batch[2:]
		}, 6, 0},
		"data": {func(batch []chaistore.Session) []chaistore.Session {
			batch[1].Data = append(batch[1].Data, 0)
			return batch
		}, 0, 3},
		"data of two": {func(batch []chaistore.Session) []chaistore.Session {
			batch[0].Data, batch[1].Data = batch[1].Data, batch[0].Data
			return batch
		}, 0, 6},
		"expiry": {func(batch []chaistore.Session) []chaistore.Session {
			batch[1].Expiry = batch[1].Expiry.Add(time.Microsecond)
			return batch
		}, 0, 3},
		"token": {func(batch []chaistore.Session) []chaistore.Session {
			batch[1].Token += "x"
			return batch
		}, 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			copyBothWays(t, source, func(t *testing.T, c copier, _ func() sessions) {
				to := c.to
				c.to = meddler{to, func(ctx context.Context, batch []chaistore.Session) error {
					return to.write(ctx, test.spoil(batch))
				}}
				err := c.run(t.Context(), false, io.Discard)
				want := fmt.Sprintf("the check failed: of 250 active sessions, %d are missing in %v, and %d differ there; is it in use?",
					test.missing, to, test.different)
				if err == nil || err.Error() != want {
					t.Errorf("the error is %v, want %s", err, want)
				}
			})
		})
	}
}

// A fake is a side that returns the given sessions, and records the batches that are
// written to it.
type fake struct {
	all     []chaistore.Session
	err     error // returned after all sessions
	batches [][]chaistore.Session
}

func (f *fake) String() string { return "the fake" }

func (f *fake) sessions(context.Context) iter.Seq2[chaistore.Session, error] {
	return func(yield func(chaistore.Session, error) bool) {
		for _, session := range f.all {
			if !yield(session, nil) {
				return
			}
		}
		if f.err != nil {
			yield(chaistore.Session{}, f.err)
		}
	}
}

func (f *fake) accepts(chaistore.Session) error { return nil }

func (f *fake) rehearse(context.Context, []chaistore.Session) error { return nil }

func (f *fake) write(_ context.Context, batch []chaistore.Session) error {
	f.batches = append(f.batches, slices.Clone(batch))
	return nil
}

func sorted(s sessions) []chaistore.Session {
	return slices.SortedFunc(maps.Values(s), func(a, b chaistore.Session) int { return cmp.Compare(a.Token, b.Token) })
}

func TestWalk(t *testing.T) {
	in, out := make(sessions), make(sessions)
	in.add("1", nil, inAnHour)
	in.add("2 has expired since it was read", nil, anHourAgo)
	in.add("3", []byte{}, inAnHour)
	out.add("3", nil, inAnHour)
	in.add("4", []byte("a"), inAnHour)
	out.add("4", []byte("b"), inAnHour)
	in.add("5", []byte("a"), inAnHour)
	out.add("5", []byte("a"), inAnHour.Add(time.Microsecond))
	out.add("6", nil, inAnHour)
	out.add("7 has expired since it was read", nil, anHourAgo)
	in.add("8 too, with both", nil, anHourAgo)
	out.add("8 too, with both", nil, anHourAgo)
	in.add("9", nil, inAnHour)

	from, to := &fake{all: sorted(in)}, &fake{all: sorted(out)}
	walk := func() (visited []string, err error) {
		c := copier{from: from, to: to}
		err = c.walk(t.Context(), func(session chaistore.Session, there state) error {
			visited = append(visited, fmt.Sprint(session.Token[:1], " ", [...]string{"missing", "different", "same", "other"}[there]))
			return nil
		})
		return visited, err
	}
	got, err := walk()
	want := []string{"1 missing", "3 same", "4 different", "5 different", "6 other", "8 same", "9 missing"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("walk visits %q (%v), want %q", got, err, want)
	}
	for _, side := range []*fake{from, to} {
		side.err = errors.New("broken")
		if _, err := walk(); !errors.Is(err, side.err) {
			t.Errorf("the error is %v, want %v", err, side.err)
		}
		side.err = nil
	}

	ctx, cancel := context.WithCancel(t.Context())
	visited := 0
	err = (&copier{from: from, to: to}).walk(ctx, func(chaistore.Session, state) error {
		visited++
		cancel()
		return nil
	})
	if visited != 1 || err != errInterrupted {
		t.Errorf("walk visited %d sessions (%v) although the context ended, want 1", visited, err)
	}
}

// If a session at the destination changes after the first comparison, copy does not
// overwrite it. The check reports it.
func TestCopyOverwritesOnlyIfTold(t *testing.T) {
	in, out := make(sessions), make(sessions)
	in.add("a", []byte("here"), inAnHour)
	out.add("a", []byte("there"), inAnHour)
	for overwrite, want := range map[bool]int{false: 0, true: 1} {
		c := copier{from: &fake{all: sorted(in)}, to: &fake{all: sorted(out)}, batch: 10, overwrite: overwrite, progress: newProgress(io.Discard)}
		if copied, err := c.copy(t.Context(), 0); copied != want || err != nil {
			t.Errorf("with overwrite = %v, copy = %d, %v; want %d", overwrite, copied, err, want)
		}
	}
}

func TestBatches(t *testing.T) {
	s := make(sessions)
	for i := range 7 {
		s.add(fmt.Sprint("small ", i), nil, inAnHour)
	}
	for i := range 3 {
		s.add(fmt.Sprint("large ", i), make([]byte, batchBytes), inAnHour)
	}
	to := &fake{}
	c := copier{from: &fake{all: sorted(s)}, to: to, batch: 3, progress: newProgress(io.Discard)}
	copied, err := c.copy(t.Context(), len(s))
	if err != nil || copied != len(s) {
		t.Fatalf("copy = %d, %v", copied, err)
	}
	var got []int
	written := make(sessions)
	for _, batch := range to.batches {
		got = append(got, len(batch))
		for _, session := range batch {
			written[session.Token] = session
		}
	}
	if want := []int{1, 1, 1, 3, 3, 1}; !slices.Equal(got, want) {
		t.Errorf("the batches have %v sessions, want %v", got, want)
	}
	checkSame(t, "what was written", written, s)
}
