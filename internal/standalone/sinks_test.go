package standalone_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
