package flow_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/flow"
)

// TestIDsAreTextAndStayDifferent: a name that a sender chose may hold any bytes; the id made of it is UTF-8, and another one for another name.
func TestIDsAreTextAndStayDifferent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]byte{'a', '%', '/', 'F', 0xff, 0xc3, 0xbc}), 0, 6), func(b []byte) string { return string(b) })
		a, b := draw.Draw(t, "a"), draw.Draw(t, "b")
		idA, idB := flow.RootID("in/0", a), flow.RootID("in/0", b)
		if !utf8.ValidString(idA) || (a == b) != (idA == idB) {
			t.Fatalf("%q is %q and %q is %q", a, idA, b, idB)
		}
	})
}

func TestHeadersThatAreNotUTF8AreLeftOut(t *testing.T) {
	var h flow.Headers
	long := strings.Repeat("x", 300)
	for _, pair := range [][2]string{{"a", "1"}, {"b", "M\xfcller"}, {"c", "M\u00fcller"}, {"\xff", "1"}, {"d", long}} {
		h = flow.AppendHeader(h, pair[0], pair[1])
	}
	var dropped []string
	got := map[string]string{}
	for name, value := range h.ValidText(func(name string) { dropped = append(dropped, name) }).All {
		got[name] = value
	}
	if len(got) != 3 || got["a"] != "1" || got["c"] != "M\u00fcller" || got["d"] != long || strings.Join(dropped, " ") != "b %FF" {
		t.Fatalf("kept %v, dropped %q", got, dropped)
	}
}
