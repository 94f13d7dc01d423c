package docs

import (
	"strings"
	"testing"
)

// plainComments are the folders whose comments are held to the same English as help and logs. Add a folder once its comments are.
var plainComments = []string{"stream/", "internal/streamcmd/"}

// TestPlainEnglishInComments finds banned phrases in comments, which are what a user of a library reads first.
func TestPlainEnglishInComments(t *testing.T) {
	for _, file := range files(t, ".go") {
		plain := false
		for _, folder := range plainComments {
			plain = plain || strings.HasPrefix(file, folder)
		}
		if !plain || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for i, line := range strings.Split(read(t, file), "\n") {
			_, comment, ok := strings.Cut(line, "//")
			if !ok {
				continue
			}
			for _, b := range banned {
				for _, found := range b.pattern.FindAllString(comment, -1) {
					t.Errorf("%s:%d: %q: write plain English instead: %s", file, i+1, found, b.instead)
				}
			}
		}
	}
}
