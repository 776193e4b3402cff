package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// included matches an included file in a Markdown file: two comments, the first of which
// names the file, and the text between them.
var included = regexp.MustCompile(`(?s)(<!-- include (\S+) -->\n)(.*?)(<!-- end -->)`)

// Include updates the contents of other files that a Markdown file includes between
// lines like these. Paths are relative to the Markdown file.
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

// block returns the text between the comments for an included file with this content.
func block(content string) string {
	return "\n" + strings.TrimSpace(content) + "\n\n"
}
