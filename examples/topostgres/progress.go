package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// A progress says how far the work is: on a terminal in a line that is written
// over and over again, elsewhere in a line now and then.
type progress struct {
	w        io.Writer
	terminal bool
	interval time.Duration
	last     time.Time // when something was shown
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

// clearLine is what empties the line that the cursor is on.
const clearLine = "\r\x1b[2K"

// show shows a text, unless it has shown another one a moment ago.
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

// end makes room for other output.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.w, clearLine)
	}
}
