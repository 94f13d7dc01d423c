package topology

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestChanges(t *testing.T) {
	text, err := os.ReadFile("testdata/changes.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range strings.Split(string(text), "\n== ")[1:] {
		name, rest, _ := strings.Cut(c, "\n")
		given, want, ok := strings.Cut(rest, "----\n")
		if !ok {
			t.Fatalf("%s: no ----", name)
		}
		t.Run(name, func(t *testing.T) {
			stored, wanted, state := parse(t, given)
			var got []string
			for _, c := range Compare(stored, wanted, state) {
				where, n := c.Vertex, ""
				if c.Partition >= 0 {
					where += "/" + strconv.Itoa(c.Partition)
				}
				if c.Messages > 0 {
					n = strconv.Itoa(c.Messages)
				}
				got = append(got, fmt.Sprintf("%-11s  %-9s  %-8s %4s  %s", c.Class, c.Hazard, where, n, c.What))
			}
			slices.Sort(got)
			want := slices.DeleteFunc(strings.Split(want, "\n"), func(s string) bool { return s == "" })
			slices.Sort(want)
			if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// parse reads the pictures of testdata/changes.txt.
func parse(t *testing.T, given string) (stored, wanted *Topology, state State) {
	t.Helper()
	pending, crashed, unread := map[string]int{}, false, false
	for line := range strings.Lines(given) {
		line = strings.TrimSpace(line)
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "was":
			stored = picture(t, rest)
		case "was?":
			streams := map[string][]string{}
			for _, v := range strings.Fields(rest) {
				name, n := partitions(t, v)
				for p := range n {
					streams[name] = append(streams[name], fmt.Sprintf("%s-%d", name, p))
				}
			}
			stored = FromStreams("Pipeline", "default", "p", streams)
		case "now":
			wanted = picture(t, rest)
		case "holds":
			for _, h := range strings.Fields(rest) {
				where, n, _ := strings.Cut(h, "=")
				pending[where], _ = strconv.Atoi(n)
			}
		case "crashed":
			crashed = true
		case "unread":
			unread = true
		case "":
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	return stored, wanted, State{
		Pending: func(v string, p int) int { return pending[v+"/"+strconv.Itoa(p)] },
		Settled: func(string) bool { return !crashed },
		HasRead: func(string) bool { return !unread },
	}
}

func partitions(t *testing.T, token string) (name string, n int) {
	t.Helper()
	name, count, ok := strings.Cut(token, "*")
	if n = 1; ok {
		var err error
		if n, err = strconv.Atoi(count); err != nil {
			t.Fatal(err)
		}
	}
	return name, n
}

func picture(t *testing.T, text string) *Topology {
	t.Helper()
	top := &Topology{Format: Format, Kind: "Pipeline", Namespace: "default", Name: "p"}
	ends := map[string]string{}
	for chain := range strings.SplitSeq(text, ";") {
		from, edge := "", Edge{}
		for _, token := range strings.Fields(chain) {
			switch {
			case token == "->":
				edge = Edge{}
			case token == "-x>":
				edge = Edge{Discard: true}
			case strings.HasPrefix(token, "-["):
				edge = Edge{Condition: strings.TrimSuffix(strings.TrimPrefix(token, "-["), "]->")}
			default:
				token, end, _ := strings.Cut(token, ":")
				token, ordered := strings.CutSuffix(token, "!")
				name, n := partitions(t, token)
				if top.Vertex(name) == nil {
					top.Vertices = append(top.Vertices, Vertex{Name: name, Kind: "map", Partitions: n, Ordered: ordered})
				}
				if end != "" {
					ends[name] = end
				}
				if from != "" {
					edge.From, edge.To = from, name
					top.Edges = append(top.Edges, edge)
				}
				from = name
			}
		}
	}
	for name, end := range ends {
		v := top.Vertex(name)
		e := Endpoint{}
		end, e.Cursor, _ = strings.Cut(end, "@")
		end, e.How, _ = strings.Cut(end, "|")
		e.Type, e.Of, _ = strings.Cut(end, "=")
		if slices.ContainsFunc(top.Edges, func(e Edge) bool { return e.From == name }) {
			v.Kind, v.Source, v.Partitions = "source", &e, 0
		} else {
			v.Kind, v.Sinks = "sink", map[string]Endpoint{"sink": e}
		}
	}
	return top
}

func TestRefusalNamesVerticesPartitionsMessagesAndWays(t *testing.T) {
	stored, wanted := picture(t, "in:file=a -> cat*2 -> out:file=b"), picture(t, "in:file=a -> kitty -> out:file=b")
	changes := Unsafe(Compare(stored, wanted, State{
		Pending: func(v string, p int) int { return map[string]int{"cat1": 500}[v+strconv.Itoa(p)] },
		Settled: func(string) bool { return true }, HasRead: func(string) bool { return true },
	}))
	want := `Pipeline default/p: the manifest cannot be applied to what is stored, and nothing was changed:
  - vertex cat, partition 1, 500 messages: vertex cat is not in the manifest any more (kitty looks like it under a new name). Nothing would process its messages
What you can do:
  - finish what is in flight with the stored topology first, and go on with this manifest then: levada run --drain-old
  - run the manifest as it was once more until nothing is pending, and stop it with SIGTERM or Ctrl-C if it does not end by itself
  - drop 500 messages for good: levada run --discard cat
See docs/changing-a-pipeline.md.`
	if d := cmp.Diff(want, Explain(stored, changes, true)); d != "" {
		t.Error(d)
	}
}

func TestOlderLevadaRefusesANewerStoreAndNewerReadsTheOlder(t *testing.T) {
	_, err := Decode([]byte(`{"format":2,"levada":"v9.1.0","vertices":"of another type"}`))
	if newer, ok := errors.AsType[*NewerError](err); !ok || !strings.Contains(newer.Error(), "levada v9.1.0") || strings.Contains(newer.Error(), "\n") {
		t.Error(err)
	}
	if _, err := Decode([]byte(`{`)); err == nil {
		t.Error("a damaged record was taken")
	}
	one := picture(t, "in:file=a -> cat*2! -[x]-> out:file=b")
	b, err := one.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(one, again); d != "" {
		t.Error(d)
	}
}
