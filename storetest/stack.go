// Stacks of goroutines, in as few lines as possible.

package storetest

import (
	"bytes"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
)

// Limits of the output.
const (
	maxStacks = 4
	maxFrames = 8
)

// stackFrame matches a frame in a goroutine profile: its function, file and line.
var stackFrame = regexp.MustCompile(`(?m)^#\t0x[0-9a-f]+\t+(\S+)\+0x[0-9a-f]+\t+(.+):(\d+)$`)

// A stack has the functions that a goroutine is in, the innermost first.
type stack []runtime.Frame

// goroutines returns the stacks of the goroutines with a label, without the runtime's
// innermost functions. Goroutines with equal stacks share one.
func goroutines(label string) []stack {
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		return nil // writing to a bytes.Buffer does not fail
	}
	var stacks []stack
	labels := fmt.Sprintf("%q:%q", labelKey, label)
	for record := range strings.SplitSeq(profile.String(), "\n\n") {
		if !strings.Contains(record, labels) {
			continue
		}
		var s stack
		for _, m := range stackFrame.FindAllStringSubmatch(record, -1) {
			line, _ := strconv.Atoi(m[3])
			s = append(s, runtime.Frame{Function: m[1], File: m[2], Line: line})
		}
		stacks = append(stacks, s)
	}
	return stacks
}

// stacksOf describes the goroutines with a label, except goroutines that are in one of
// the suite's own functions.
func stacksOf(label string) string {
	var texts []string
	for _, s := range goroutines(label) {
		if len(s) > 0 && !strings.HasPrefix(s[0].Function, packagePath+".") {
			texts = append(texts, "a goroutine is in\n"+s.String())
		}
	}
	if n := len(texts) - maxStacks; n > 0 {
		texts = append(texts[:maxStacks], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(texts, "\n")
}

// panicStack describes where the calling goroutine panics, or returns "" if it does
// not. Call it in a deferred function.
func panicStack() string {
	pcs := make([]uintptr, 100)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	var s stack
	panics := false
	for {
		frame, more := frames.Next()
		if frame.Function == "runtime.gopanic" {
			panics, s = true, nil
		} else if s != nil || !strings.HasPrefix(frame.Function, "runtime.") {
			s = append(s, frame)
		}
		if !more {
			break
		}
	}
	if !panics {
		return ""
	}
	return s.String()
}

// String returns a line for each function, ending with the first one of this package.
func (s stack) String() string {
	var b strings.Builder
	for i, frame := range s {
		if i == maxFrames {
			b.WriteString("\t…\n")
			break
		}
		fmt.Fprintf(&b, "\t%s (%s:%d)\n", path.Base(frame.Function), path.Base(frame.File), frame.Line)
		if strings.HasPrefix(frame.Function, packagePath+".") {
			break
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// packagePath is the import path of this package.
var packagePath = reflect.TypeFor[stack]().PkgPath()

// runsIn reports whether any of the functions is in one of the packages.
func (s stack) runsIn(packages []string) bool {
	return slices.ContainsFunc(s, func(frame runtime.Frame) bool {
		return slices.ContainsFunc(packages, func(pkg string) bool { return strings.HasPrefix(frame.Function, pkg+".") })
	})
}
