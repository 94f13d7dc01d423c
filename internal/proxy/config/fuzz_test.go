package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/internal/proxy/config"
)

// FuzzParse reads any text. Nothing panics; a refused text has problems with places in it; an accepted one is complete: it compiles, and what is
// written of it reads as the same.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/broken/*.yaml", examples + "*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	for _, text := range []string{
		"&a [*a]", "a: &a [x, x]\nb: [*a, *a]", "<<: {backends: []}", "{{}: []}", "? backends\n: []", strings.Repeat("[", 200), strings.Repeat("- ", 200),
		"%YAML 1.1\n---\n{}", "--- !!binary x", "\xef\xbb\xbfbackends: [{name: a, target: \"a:1\"}]", "a: |\n x", "backends: [{name: a, target: \"a:1\"}]\r\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := config.Parse("p.yaml", text)
		if err == nil {
			c.Compile().Route("authority:1", "/a.B/C")
			again, err := config.Parse("p.yaml", c.YAML())
			if err != nil {
				t.Fatalf("what was written cannot be read: %v\n%s", err, c.YAML())
			}
			if diff := cmp.Diff(c, again, ignoreText); diff != "" {
				t.Errorf("(-was +is):\n%s", diff)
			}
			return
		}
		var problems config.Problems
		if c != nil || !errors.As(err, &problems) || len(problems) == 0 || len(problems) > 202 {
			t.Fatalf("%v, %v", c, err)
		}
		lines := len(strings.FieldsFunc(string(text)+"x", func(r rune) bool { return strings.ContainsRune("\n\r\u0085\u2028\u2029", r) }))
		lines += strings.Count(string(text), "\n") + strings.Count(string(text), "\r")
		for _, p := range problems {
			if p.File != "p.yaml" || p.Line < 1 || p.Line > lines+1 || p.Column < 1 || p.Message == "" || strings.ContainsAny(p.Error(), "\n\r\x1b") {
				t.Errorf("an odd problem: %+v", p)
			}
			if strings.ContainsAny(p.Excerpt(), "\r\x1b") {
				t.Errorf("an odd excerpt: %q", p.Excerpt())
			}
		}
	})
}
