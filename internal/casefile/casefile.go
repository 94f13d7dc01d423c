// Package casefile runs test cases that are text files. A file has commands, and behind -> what each leads to:
//
//	# lines that begin with # are comments, an empty line begins a new case
//	retry interval=1s -> 1s 1s 1s
//
// With go test -rewrite the results are written into the files, to be reviewed as a diff.
package casefile

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the results of the text files in testdata into them")

// Run has replay make each file's text again, and compares. Files are those that match a pattern, below testdata.
func Run(t *testing.T, pattern string, replay func(t *testing.T, text string) string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files match %s, error %v", len(files), pattern, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("it comes out as\n%s", got)
			}
		})
	}
}

// Lines is the text with what do returns behind the -> of each command. begin, unless it is nil, is called before each case.
func Lines(text string, begin func(), do func(command string) (result string)) string {
	var out strings.Builder
	fresh := true
	for line := range strings.Lines(text) {
		command, _, found := strings.Cut(line, "->")
		if strings.HasPrefix(line, "#") || !found {
			fresh = fresh || strings.TrimSpace(line) == ""
			out.WriteString(line)
			continue
		}
		if fresh && begin != nil {
			begin()
		}
		fresh = false
		fmt.Fprintf(&out, "%s-> %s\n", command, do(command))
	}
	return out.String()
}
