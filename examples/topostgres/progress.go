package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// A progress shows the progress of the work. On a terminal, it rewrites a single line;
// elsewhere, it prints a line now and then.
type progress struct {
	w        io.Writer
	terminal bool
	interval time.Duration
	last     time.Time // when a text was last shown
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, interval: 10 * time.Second, last: time.Now()}
	if file, ok := w.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.terminal, p.interval = true, 100*time.Millisecond
		}
	}
	return p
}

// clearLine clears the line with the cursor.
const clearLine = "\r\x1b[2K"

// show shows a text, unless less than an interval has passed since the last one.
func (p *progress) show(format string, args ...any) {
	if time.Since(p.last) < p.interval {
		return
	}
	p.last = time.Now()
	text := fmt.Sprintf(format, args...)
	if p.terminal {
		fmt.Fprint(p.w, clearLine, text)
	} else {
		fmt.Fprintln(p.w, text)
	}
}

// end clears the line on a terminal, before other output.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.w, clearLine)
	}
}
