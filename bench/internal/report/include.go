package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// included matches what a Markdown file includes: the text between two comments,
// the first of which names the file that it comes from.
var included = regexp.MustCompile(`(?s)(<!-- include (\S+) -->\n)(.*?)(<!-- end -->)`)

// Include brings what a Markdown file includes of other files up to date: the text
// between lines like these, where the path is relative to the file.
//
//	<!-- include bench/results/short.md -->
//	<!-- end -->
func Include(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var failed error
	updated := included.ReplaceAllStringFunc(string(text), func(old string) string {
		parts := included.FindStringSubmatch(old)
		content, err := os.ReadFile(filepath.Join(filepath.Dir(path), filepath.FromSlash(parts[2])))
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("include in %s: %w", path, err))
			return old
		}
		return parts[1] + block(string(content)) + parts[4]
	})
	if failed != nil || updated == string(text) {
		return failed
	}
	return os.WriteFile(path, []byte(updated), 0o666)
}

// block returns what stands between the comments for a file with this content.
func block(content string) string {
	return "\n" + strings.TrimSpace(content) + "\n\n"
}
