package docs

import (
	"strings"
	"testing"
)

// plainFolders are the folders of pipelines whose comments are held to the same English as help and log lines.
var plainFolders = []string{
	"api/", "sdk/", "examples/", "cmd/", "internal/broker/", "internal/commandline/", "internal/dataplane/", "internal/flow/", "internal/manifest/", "internal/metrics/",
	"internal/pipelinecmd/", "internal/profiling/", "internal/redact/", "internal/standalone/", "internal/streamtable/", "internal/strictyaml/",
}

// TestPlainEnglishInCommentsOfPipelines finds banned phrases in comments: the next engineer reads them as the documentation of the code.
func TestPlainEnglishInCommentsOfPipelines(t *testing.T) {
	for _, file := range files(t, ".go") {
		plain := false
		for _, folder := range plainFolders {
			plain = plain || strings.HasPrefix(file, folder)
		}
		if !plain || strings.HasSuffix(file, "_test.go") {
			continue
		}
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
