package config_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/strictyaml"
)

// TestBounds reads texts that were made to cost much. Each is as long as is read.
func TestBounds(t *testing.T) {
	fill := func(prefix, unit, suffix string) string {
		return prefix + strings.Repeat(unit, (strictyaml.MaxBytes-len(prefix)-len(suffix))/len(unit)) + suffix
	}
	var keys strings.Builder
	for i := 0; i < 50_000; i++ {
		fmt.Fprintf(&keys, "k%d: 1\n", i)
	}
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 30 {
		fmt.Fprintf(&bomb, "a%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i, i, i)
	}
	for name, c := range map[string]struct{ text, want string }{
		"too long":          {strings.Repeat("#", strictyaml.MaxBytes+1), "the file is too long; expected at most 1048576 bytes"},
		"nested lists":      {fill("", "[", ""), ""},
		"nested objects":    {fill("", "{a: ", ""), ""},
		"nested blocks":     {fill("", "- ", ""), ""},
		"deep and closed":   {strings.Repeat("[", 60) + strings.Repeat("]", 60), "more than 50 levels"},
		"many values":       {fill("routes: [", "[],", "]"), "more than 200000 values"},
		"many routes":       {fill("routes: [", strings.Repeat(" ", 50)+"{},", "]"), "elements; expected at most 10000"},
		"ten thousand":      {"backends: [" + strings.Repeat("{}, ", 9999) + "{}]\nroutes: [" + strings.Repeat("{backend: a}, ", 9999) + "{}]", "more than 100 problems"},
		"unknown fields":    {keys.String(), "more than 100 problems"},
		"one field again":   {strings.Repeat("drain: {}\n", 50_000), "more than 100 problems"},
		"a bomb of aliases": {bomb.String(), "aliases"},
		"long text":         {fill("admin: {address: ", "a", "}"), "not host:port"},
		"many listeners":    {fill("listeners: [", "{address: 'a:1'}, {address: ':1'}, ", "]"), "elements; expected at most 10000"},
		"loops": {"listeners: [" + strings.Repeat("{address: 'a:1'}, {address: 'b:2'}, ", 4999) + "{}]\n" +
			"backends: [{name: a, target: '" + strings.Repeat("c:1,", 150_000) + "c:1'}]", "100 problems"},
		"long name":  {fill("", "a", ": 1"), ""},
		"long lines": {fill("backends: [{name: a, target: \"", "a:1,", "\"}]"), ""},
		"line feeds": {fill("", "\n", ""), "empty"},
		"anchors":    {fill("", "&a ", "x"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := config.Parse("p.yaml", []byte(c.text))
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			var problems config.Problems
			if !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%.300v", err)
			}
			if n := len(err.Error()); n > 50_000 {
				t.Errorf("the problems are %d bytes long", n)
			}
			// All that was ever allocated, much of it no longer used.
			if used := after.TotalAlloc - before.TotalAlloc; used > 400<<20 {
				t.Errorf("%d MiB were allocated", used>>20)
			}
			t.Logf("%d problems, %s, %d KiB", len(problems), took.Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>10)
		})
	}
}
