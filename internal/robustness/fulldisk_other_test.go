//go:build !linux

package robustness

import "testing"

func mountSmallDisk(t *testing.T) string {
	t.Skip("a small disk can only be mounted on Linux")
	return ""
}
