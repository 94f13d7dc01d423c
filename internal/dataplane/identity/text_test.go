package identity

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/casefile"
	"github.com/levada-io/levada/internal/flow"
)

// TestAdmit runs testdata/admit.txt. A line is a block that comes to a reader: the positions covered, and optionally the floor and the block before (prev). It
// has a message at each position. Behind -> are the positions of those that are new, what is missing for good, and what the reader remembers of the lane.
func TestAdmit(t *testing.T) {
	casefile.Run(t, "admit.txt", func(t *testing.T, text string) string {
		var seen *Seen
		return casefile.Lines(text, func() { seen = New(time.Hour, 100) }, func(command string) string { return admit(t, seen, command) })
	})
}

func admit(t *testing.T, s *Seen, command string) string {
	b := &flow.Block{Lane: "a/0"}
	words := strings.Fields(command)
	for _, part := range strings.Split(words[0], ",") {
		var c flow.Span
		if _, err := fmt.Sscanf(part, "%d-%d", &c.Lo, &c.Hi); err != nil {
			t.Fatalf("%q: %v", command, err)
		}
		b.Cover = append(b.Cover, c)
		for p := c.Lo; p <= c.Hi; p++ {
			b.Messages = append(b.Messages, flow.Message{Pos: p})
		}
	}
	b.Lo, b.Hi = b.Cover[0].Lo, b.Last()
	if len(b.Cover) == 1 {
		b.Cover = nil
	}
	for i := 1; i+1 < len(words); i += 2 {
		_, err := fmt.Sscan(words[i+1], map[string]*uint64{"floor": &b.Floor, "prev": &b.Prev}[words[i]])
		if err != nil {
			t.Fatalf("%q: %v", command, err)
		}
	}
	lost := s.Admit(b, time.Time{})
	var fresh []string
	for _, m := range b.Messages {
		fresh = append(fresh, fmt.Sprint(m.Pos))
	}
	result := "new " + strings.Join(fresh, " ")
	if len(fresh) == 0 {
		result = "nothing new"
	}
	if slices.Sort(lost); len(lost) > 0 {
		result += fmt.Sprintf("; lost %v", lost)
	}
	l := s.lanes["a/0"]
	result += fmt.Sprintf("; floor %d", l.floor)
	for _, sp := range l.spans {
		result += fmt.Sprintf(" %d-%d", sp.lo, sp.hi)
	}
	return result
}
