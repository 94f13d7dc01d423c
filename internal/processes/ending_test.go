package processes

import (
	"fmt"
	"strings"
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
)

// Vertices end after all that write to them, and those of a cycle together, in whatever order the manifest has them.
func TestAVertexEndsAfterThoseThatWriteToIt(t *testing.T) {
	for _, c := range []struct{ vertices, edges, want string }{
		{"in cat out", "in-cat cat-out", "[in] [cat] [out]"},
		{"out cat in", "cat-out in-cat", "[in] [cat] [out]"},
		{"a b join out", "a-join b-join join-out", "[a] [b] [join] [out]"},
		{"in even odd", "in-even in-odd", "[in] [even] [odd]"},
		{"in loop back out", "in-loop loop-back back-loop loop-out", "[in] [loop back] [out]"},
		{"in self out", "in-self self-self self-out", "[in] [self] [out]"},
		{"mono", "", "[mono]"},
	} {
		var edges []v1alpha1.Edge
		for _, e := range strings.Fields(c.edges) {
			from, to, _ := strings.Cut(e, "-")
			edges = append(edges, v1alpha1.Edge{From: from, To: to})
		}
		if got := strings.Trim(fmt.Sprint(stagesOf(strings.Fields(c.vertices), edges)), "[]"); "["+got+"]" != c.want {
			t.Errorf("%s with %s: stages [%s], want %s", c.vertices, c.edges, got, c.want)
		}
	}
}
