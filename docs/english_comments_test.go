package docs

import (
	"strings"
	"testing"
)

// TestPlainEnglishInComments finds banned phrases in comments: they are the first documentation that a user of a library and the next engineer read.
func TestPlainEnglishInComments(t *testing.T) {
	for _, file := range files(t, ".go") {
		for i, line := range strings.Split(read(t, file), "\n") {
			_, comment, _ := strings.Cut(line, "//")
			for _, b := range banned {
				for _, found := range b.pattern.FindAllString(comment, -1) {
					t.Errorf("%s:%d: %q: write plain English instead: %s", file, i+1, found, b.instead)
				}
			}
		}
	}
}
