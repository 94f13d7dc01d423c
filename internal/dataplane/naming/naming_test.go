package naming_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/naming"
)

// label draws a name that Kubernetes takes, often one that hides a separator or is a word of ours.
func label() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.SampledFrom([]string{"a", "b", "a-b", "b-c", "a-b-c", "c", "mono", "state", "deadletters", "payloads", "0", "1", "a-0", "kv", "h"}),
		rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`),
	)
}

type place struct{ owner, what string }

// names are all names of an owner with a vertex and a partition, each with what it is for.
func names(o naming.Owner, vertex string, n int) map[string]place {
	at := func(what string) place { return place{o.String(), what} }
	return map[string]place{
		naming.KVStream(o.State()): at("state"),
		o.DeadLetters():            at("dead letters"),
		naming.ObjectStream(naming.Payloads(o.DeadLetters())): at("payloads"),
		o.Buffer(vertex, n):              at(fmt.Sprintf("buffer %s %d", vertex, n)),
		"consumer " + o.Consumer(vertex): at("consumer " + vertex),
	}
}

func TestNoTwoOwnersShareAName(t *testing.T) {
	kinds := rapid.SampledFrom([]naming.Kind{naming.Pipeline, naming.MonoVertex})
	rapid.Check(t, func(t *rapid.T) {
		seen := map[string]place{}
		for range rapid.IntRange(2, 6).Draw(t, "owners") {
			o, err := naming.New(label().Draw(t, "namespace"), kinds.Draw(t, "kind"), label().Draw(t, "name"))
			if err != nil {
				t.Fatal(err)
			}
			vertex := label().Draw(t, "vertex")
			if err := o.CheckVertex(vertex); err != nil {
				t.Fatal(err)
			}
			for name, at := range names(o, vertex, rapid.IntRange(0, 12).Draw(t, "partition")) {
				if other, ok := seen[name]; ok && other != at {
					t.Fatalf("%v and %v share the name %s", other, at, name)
				}
				seen[name] = at
				if bare := strings.TrimPrefix(name, "consumer "); len(bare) > 255 || strings.ContainsAny(bare, ".*> /\\\t\r\n") {
					t.Fatalf("%q is not a name for a stream or consumer", bare)
				}
			}
		}
	})
}

func TestWritersAreUnambiguous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(i int) (string, string) {
			kind := rapid.SampledFrom([]naming.Kind{naming.Pipeline, naming.MonoVertex}).Draw(t, "kind")
			o := naming.Owner{Namespace: label().Draw(t, "namespace"), Kind: kind, Name: label().Draw(t, "name")}
			vertex := o.Name
			if kind == naming.Pipeline {
				vertex = label().Draw(t, "vertex")
			}
			role := rapid.SampledFrom([]string{"", "fb-udsink", "ons-udsink"}).Draw(t, "role")
			return fmt.Sprintf("%v %q %q", o, vertex, role), o.Writer(vertex, role)
		}
		a, nameA := draw(0)
		b, nameB := draw(1)
		if (a == b) != (nameA == nameB) {
			t.Fatalf("%s is %s, %s is %s", a, nameA, b, nameB)
		}
	})
}

func TestLongNamesKeepTheirDifference(t *testing.T) {
	// Such names are refused by New; the names stay usable all the same.
	long := strings.Repeat("n", 300)
	a := naming.Owner{Namespace: long + "1", Kind: naming.Pipeline, Name: long}
	b := naming.Owner{Namespace: long + "2", Kind: naming.Pipeline, Name: long}
	for _, pair := range [][2]string{{a.State(), b.State()}, {a.DeadLetters(), b.DeadLetters()}, {a.Buffer(long, 1), b.Buffer(long, 1)}, {a.Buffer(long, 1), a.Buffer(long, 2)}} {
		if pair[0] == pair[1] {
			t.Errorf("both are %s", pair[0])
		}
		for _, name := range pair {
			if len(naming.ObjectStream(naming.Payloads(name))) > 255 {
				t.Errorf("%d bytes: %s", len(name), name)
			}
		}
	}
}

func TestNamesThatAreNoLabelsAreRefused(t *testing.T) {
	for _, bad := range []string{"", "x y", "X", "a.b", "a/b", "a_b", "a*", ">", "-a", "a-", "ä", strings.Repeat("a", 64), "a\x1b[0m"} {
		_, err := naming.New(bad, naming.Pipeline, "p")
		if err == nil || strings.ContainsRune(err.Error(), '\x1b') || !strings.Contains(err.Error(), "metadata.namespace") {
			t.Errorf("namespace %q: %v", bad, err)
		}
		if _, err := naming.New("default", naming.Pipeline, bad); err == nil {
			t.Errorf("name %q is taken", bad)
		}
		if err := (naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "p"}).CheckVertex(bad); err == nil {
			t.Errorf("vertex %q is taken", bad)
		}
	}
}

func TestTagsReadBackAndTellOwnersApart(t *testing.T) {
	tag := naming.Tag{Owner: naming.Owner{Namespace: "x", Kind: naming.Pipeline, Name: "y-z", Incarnation: "abc"}, Role: naming.RoleBuffer, Vertex: "out", Partition: 3}
	metadata := tag.In(map[string]string{"theirs": "kept"})
	if got, ok := naming.TagOf(metadata); !ok || got != tag || metadata["theirs"] != "kept" {
		t.Errorf("%+v, %v of %v", got, ok, metadata)
	}
	if missing, err := tag.Check("s", metadata); missing || err != nil {
		t.Error(missing, err)
	}
	if missing, err := tag.Check("s", map[string]string{"theirs": "kept"}); !missing || err != nil {
		t.Error(missing, err)
	}
	other := tag
	other.Owner = naming.Owner{Namespace: "x-y", Kind: naming.Pipeline, Name: "z"}
	_, err := other.Check("s", metadata)
	var foreign *naming.ForeignError
	if !errors.As(err, &foreign) || !strings.Contains(err.Error(), "Pipeline x/y-z") || !strings.Contains(err.Error(), "Pipeline x-y/z") {
		t.Error(err)
	}
	other = tag
	other.Partition = 2
	if _, err := other.Check("s", metadata); err == nil {
		t.Error("another partition is taken for this one")
	}
}

func TestOldBucketsTellTheirVertices(t *testing.T) {
	o := naming.Owner{Namespace: "x", Kind: naming.Pipeline, Name: "y-z"}
	got := o.OldVertices([]string{"source.in.data_2etxt", "buffer.x-y-z-b-c-12.made", "buffer.x-y-z-b-c-12.seen", "incarnation"})
	if len(got) != 2 || !got["in"] || !got["b-c"] {
		t.Error(got)
	}
}
