package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgress(t *testing.T) {
	for name, test := range map[string]struct {
		terminal bool
		interval time.Duration
		want     string
	}{
		"terminal": {true, 4 * time.Second, clearLine + "4 done" + clearLine + "8 done" + clearLine},
		"file":     {false, 5 * time.Second, "5 done\n10 done\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out strings.Builder
				p := newProgress(&out)
				p.terminal, p.interval = test.terminal, test.interval
				for i := range 11 {
					p.show("%d done", i)
					time.Sleep(time.Second)
				}
				p.end()
				if got := out.String(); got != test.want {
					t.Errorf("the progress is %q, want %q", got, test.want)
				}
			})
		})
	}
}
