package standalone_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func stored(t *testing.T, js jetstream.JetStream, name string) (values []string) {
	t.Helper()
	stream, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, m.Subject+" "+string(m.Data))
	}
	slices.Sort(values)
	return values
}

// fan is a pipeline with two sinks into one stream.
func fan(name, url string) string {
	return fmt.Sprintf(`
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: %s}
spec:
  vertices:
    - {name: in, source: {file: {path: data.txt}}}
    - {name: a, sink: {jetstream: {url: %q, subject: fan.%s.a}}}
    - {name: b, sink: {jetstream: {url: %q, subject: fan.%s.b}}}
  edges: [{from: in, to: a}, {from: in, to: b}]
---`, name, url, name, url, name)
}

func fanOf(name string, lines []string) (want []string) {
	for _, l := range lines {
		want = append(want, "fan."+name+".a "+l, "fan."+name+".b "+l)
	}
	return want
}

// The broker drops what has an id that it knows. Whatever publishes into one stream within its duplicate window (two sinks of a pipeline, pipelines whose
// sources read files of the same name, a pipeline whose data directory was removed) has other ids.
func TestTwoSinksIntoOneStreamKeepEveryMessage(t *testing.T) {
	s := newSite(t)
	url, js := startBroker(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "FAN", Subjects: []string{"fan.>"}}); err != nil {
		t.Fatal(err)
	}
	input := numbered("line", 40)
	s.write(t, "data.txt", input...)
	want := append(fanOf("p", input), fanOf("q", input)...)
	s.must(t, fan("p", url)+fan("q", url))
	check := func(when string) {
		t.Helper()
		slices.Sort(want)
		if got := stored(t, js, "FAN"); !slices.Equal(got, want) {
			t.Fatalf("%s the stream has %d messages, not %d", when, len(got), len(want))
		}
	}
	check("at first")
	s.must(t, fan("p", url)+fan("q", url))
	check("after the same again")
	s.forget(t)
	s.must(t, fan("p", url)+fan("q", url))
	want = append(want, want...)
	check("after the data directory was removed")
	mono := strings.Replace(monoFile("p"), "file: {path: out.txt}", fmt.Sprintf("jetstream: {url: %q, subject: fan.mono}", url), 1)
	s.must(t, mono)
	for _, l := range input {
		want = append(want, "fan.mono "+l)
	}
	check("after a MonoVertex of the same name")
	if strings.Contains(s.logs.String(), "already has messages") {
		t.Error(s.logs)
	}
}

// Two sinks of one file would cut away each other's lines.
func TestTwoSinksOfOneFileAreRefused(t *testing.T) {
	two := strings.ReplaceAll(fan("p", "x"), `jetstream: {url: "x", subject: fan.p.a}`, "file: {path: out.txt}")
	for name, path := range map[string]string{
		"the same path": "out.txt", "another spelling": "./sub/../out.txt", "a symbolic link": "link.txt", "a link to its directory": "dir/out.txt", "its journal": "out.txt.levada-journal",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.write(t, "data.txt", "line")
			for _, err := range []error{
				os.Mkdir(filepath.Join(s.dir, "sub"), 0o755), os.Symlink("out.txt", filepath.Join(s.dir, "link.txt")), os.Symlink(s.dir, filepath.Join(s.dir, "dir")),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			err := s.run(t, strings.ReplaceAll(two, `jetstream: {url: "x", subject: fan.p.b}`, fmt.Sprintf("file: {path: %q}", path)))
			if err == nil || !strings.Contains(err.Error(), "vertex a") || !strings.Contains(err.Error(), "vertex b") || !strings.Contains(err.Error(), "out.txt") {
				t.Error(err)
			}
		})
	}
	t.Run("two pipelines", func(t *testing.T) {
		s := newSite(t)
		s.write(t, "data.txt", "line")
		err := s.run(t, pipelineFile("p", "out")+"---"+monoFile("m"))
		if err == nil || !strings.Contains(err.Error(), "Pipeline default/p") || !strings.Contains(err.Error(), "MonoVertex default/m") {
			t.Error(err)
		}
	})
}

func jetstreamSource(namespace, url, out string) string {
	return fmt.Sprintf(`
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {namespace: %s, name: p}
spec:
  vertices:
    - {name: in, source: {jetstream: {url: %q, stream: IN}}}
    - {name: out, sink: {file: {path: %s}}}
  edges: [{from: in, to: out}]
---`, namespace, url, out)
}

// until runs manifests until the files have so many lines, and a little longer, to see whether there will be more.
func (s *site) until(t *testing.T, manifests string, lines map[string]int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.runUntil(ctx, t, manifests) }()
	count := func(name string) int {
		b, _ := os.ReadFile(filepath.Join(s.dir, name))
		return strings.Count(string(b), "\n")
	}
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		missing := 0
		for name, n := range lines {
			missing += max(0, n-count(name))
		}
		if missing == 0 {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("%d lines are missing: %v\n%s", missing, err, s.logs)
		default:
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatalf("%v\n%s", err, s.logs)
	}
	for name, n := range lines {
		if got := count(name); got != n {
			t.Fatalf("%s has %d lines, want %d", name, got, n)
		}
	}
}

func publish(t *testing.T, js jetstream.JetStream, subject string, values []string) {
	t.Helper()
	for _, v := range values {
		if _, err := js.Publish(t.Context(), subject, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
}

// A stream that is deleted and created again gives its sequences to other messages, and none of them is taken for an old one.
func TestRecreatedSourceStreamLosesNothing(t *testing.T) {
	s := newSite(t)
	url, js := startBroker(t)
	total := 0
	for _, word := range []string{"first", "other", "third"} {
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "IN", Subjects: []string{"in"}}); err != nil {
			t.Fatal(err)
		}
		publish(t, js, "in", numbered(word, 30))
		total += 30
		s.until(t, jetstreamSource("default", url, "out.txt"), map[string]int{"out.txt": total})
		if err := js.DeleteStream(t.Context(), "IN"); err != nil {
			t.Fatal(err)
		}
	}
	for _, word := range []string{"first", "other", "third"} {
		for _, l := range numbered(word, 30) {
			if !slices.Contains(s.lines(t, "out.txt"), l) {
				t.Errorf("%q is missing", l)
			}
		}
	}
}

// Pipelines of one name in two namespaces each get every message of a stream: they do not share a consumer.
func TestConsumersOfTwoNamespacesAreTwo(t *testing.T) {
	s := newSite(t)
	url, js := startBroker(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "IN", Subjects: []string{"in"}}); err != nil {
		t.Fatal(err)
	}
	publish(t, js, "in", numbered("line", 50))
	s.until(t, jetstreamSource("one", url, "one.txt")+jetstreamSource("two", url, "two.txt"), map[string]int{"one.txt": 50, "two.txt": 50})
}
