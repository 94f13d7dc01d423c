package docs

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// banned are phrases that a reader of gRPC's, NATS's or Kubernetes' documentation would stumble over, and what to write.
var banned = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`(?i)\bwhoever\b`), "the process (client, caller) that ..."},
	{regexp.MustCompile(`(?i)\banew\b`), "again, or a verb: recreated, reopened, resubmitted"},
	{regexp.MustCompile(`(?i)\bfor ever\b`), "indefinitely, without limit"},
	{regexp.MustCompile(`(?i)\b(?:put|puts|putting|set) (?:(?:it|them|one) )?aside\b`), "dead-lettered (a message), quarantined (a record)"},
	{regexp.MustCompile(`(?i)\bin hand\b`), "in flight"},
	{regexp.MustCompile(`(?i)\bmend(?:s|ed|ing)?\b`), "fix"},
	{regexp.MustCompile(`(?i)\bamiss\b`), "say what the peer does"},
	{regexp.MustCompile(`(?i)\blast words\b`), "stderr"},
	{regexp.MustCompile(`(?i)\bgoodbye\b`), "GOAWAY"},
	{regexp.MustCompile(`(?i)\b(?:is|are|was|were|be|been) told\b`), "receives, gets, is notified"},
	{regexp.MustCompile(`(?i)\bhears\b`), "is called with, receives"},
	{regexp.MustCompile(`(?i)\bsays so\b`), "name the log line, the error or the warning"},
	{regexp.MustCompile(`(?i)\bwithout a word\b`), "silently, without an error"},
	{regexp.MustCompile(`(?i)\b(?:the|with|tells?) truth\b`), "an accurate status"},
	{regexp.MustCompile(`(?i)\bnonsense\b`), "violates the protocol"},
	{regexp.MustCompile(`(?i)\bis away\b`), "is unavailable"},
}

// mayStand are texts that name a banned phrase because they are about it.
var mayStand = []string{"docs/english_test.go"}

// TestPlainEnglish finds banned phrases in the documentation, in comments of examples, and in what programs say: help, log lines and errors.
func TestPlainEnglish(t *testing.T) {
	check := func(place, text string) {
		for _, b := range banned {
			for _, found := range b.pattern.FindAllString(text, -1) {
				t.Errorf("%s: %q: write plain English instead: %s", place, found, b.instead)
			}
		}
	}
	for _, file := range files(t, ".md", ".yaml") {
		if !slices.Contains(mayStand, file) && file != "CHANGELOG.md" && !strings.HasPrefix(file, "test/") {
			check(file, read(t, file))
		}
	}
	for place, text := range literals() {
		if !strings.Contains(place, "streamtest/") && !strings.HasPrefix(place, "test/") && !strings.HasPrefix(place, "bench/") {
			check(place, text)
		}
	}
}
