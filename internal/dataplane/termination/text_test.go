package termination

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/casefile"
)

// TestTracker runs the files of testdata. Behind -> of a command is what the tracker asks for next; "cycle" says that what is consumed does not count as done.
//
//	pipeline in:0 mid:2 in>mid    vertices with their partitions, and edges
//	ended in                      the vertex has ended
//	floor 3, end 3                answers; closed and moved, too
func TestTracker(t *testing.T) {
	casefile.Run(t, "*.txt", func(t *testing.T, text string) string {
		var tracker *Tracker
		return casefile.Lines(text, nil, func(command string) string {
			f := strings.Fields(command)
			switch f[0] {
			case "pipeline":
				var err error
				if tracker, err = pipelineOf(t, f[1:]); err != nil {
					return "error: " + err.Error()
				}
			case "ended":
				for _, name := range f[1:] {
					tracker.Ended(name)
				}
			case "floor", "end":
				seq, err := strconv.ParseUint(f[1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				if f[0] == "floor" {
					tracker.Floor(seq)
				} else {
					tracker.End(seq)
				}
			case "closed":
				tracker.Closed()
			case "moved":
				tracker.Moved()
			default:
				t.Fatalf("there is no command %q", command)
			}
			return describe(tracker.Next())
		})
	})
}

func pipelineOf(t *testing.T, words []string) (*Tracker, error) {
	t.Helper()
	var vertices []Vertex
	var edges []Edge
	for _, w := range words {
		if from, to, ok := strings.Cut(w, ">"); ok {
			edges = append(edges, Edge{from, to})
			continue
		}
		name, n, _ := strings.Cut(w, ":")
		partitions, err := strconv.Atoi(n)
		if err != nil {
			t.Fatal(err)
		}
		vertices = append(vertices, Vertex{name, partitions})
	}
	return New(vertices, edges)
}

func describe(a Action) string {
	group, cycle := strings.Join(a.Group, "+"), ""
	if a.Cycle {
		cycle = ", cycle"
	}
	switch a.Do {
	case Wait:
		return strings.TrimRight(fmt.Sprintf("wait for %s", group), " ") + cycle
	case ReadFloor:
		return fmt.Sprintf("read the floor of %s %d%s", a.Vertex, a.Partition, cycle)
	case ReadEnd:
		return fmt.Sprintf("read the end of %s %d", a.Vertex, a.Partition)
	case Close:
		return "close " + group
	case EndInput:
		return "end the input of " + group
	}
	return "finished"
}
