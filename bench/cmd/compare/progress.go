package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// A progress is a line that says how far the work is, and how much time is left.
// It is shown on terminals only.
type progress struct {
	w        io.Writer
	terminal bool
	began    time.Time
}

func newProgress(w io.Writer) *progress {
	file, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && term.IsTerminal(int(file.Fd())), began: time.Now()}
}

// clearLine is what empties the line that the cursor is on.
const clearLine = "\r\x1b[2K"

func (p *progress) show(what string, done float64) {
	if p.terminal {
		fmt.Fprintf(p.w, "%s%3.0f %%, %s left: %s", clearLine, 100*done, p.left(done), what)
	}
}

// left estimates the time that is left.
func (p *progress) left(done float64) string {
	if done < 0.005 {
		return "?"
	}
	elapsed := time.Since(p.began).Seconds()
	left := time.Duration(elapsed * (1 - done) / done * float64(time.Second))
	return left.Round(time.Second).String()
}

// print prints a line of its own.
func (p *progress) print(text string) {
	if p.terminal {
		fmt.Fprint(p.w, clearLine)
	}
	fmt.Fprintln(p.w, text)
}

func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.w, clearLine)
	}
}
