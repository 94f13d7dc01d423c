package standalone_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/standalone"
)

// logs collects log lines.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// site is a directory with files, and how to run manifests in it.
type site struct {
	dir  string
	cfg  standalone.Config
	logs *logs
}

func newSite(t *testing.T) *site {
	dir := t.TempDir()
	s := &site{dir: dir, logs: &logs{}}
	s.cfg = standalone.Config{DataDir: filepath.Join(dir, ".levada"), Dir: dir, DrainTimeout: 10 * time.Second, Logger: slog.New(slog.NewTextHandler(s.logs, nil))}
	return s
}

// run runs manifests until their sources end.
func (s *site) run(t *testing.T, manifests string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return s.runUntil(ctx, t, manifests)
}

func (s *site) runUntil(ctx context.Context, t *testing.T, manifests string) error {
	t.Helper()
	objects, problems := manifest.Decode("test.yaml", []byte(manifests))
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	for _, o := range objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	cfg := s.cfg
	cfg.Objects = objects
	return standalone.Run(ctx, cfg)
}

func (s *site) must(t *testing.T, manifests string) {
	t.Helper()
	if err := s.run(t, manifests); err != nil {
		t.Fatalf("%v\n%s", err, s.logs)
	}
}

func (s *site) write(t *testing.T, name string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s *site) lines(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// forget removes the data directory, as the README says.
func (s *site) forget(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(s.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
}

// numbered are lines of the same length, so that the positions of two files are the same.
func numbered(word string, n int) []string {
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("%s %04d", word, i))
	}
	return lines
}

func monoFile(name string) string {
	return fmt.Sprintf(`
apiVersion: numaflow.numaproj.io/v1alpha1
kind: MonoVertex
metadata: {name: %s}
spec:
  source: {file: {path: data.txt}}
  sink: {file: {path: out.txt}}
`, name)
}

func pipelineFile(name, vertex string) string {
	return fmt.Sprintf(`
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: %s}
spec:
  vertices:
    - {name: in, source: {file: {path: data.txt}}}
    - {name: %s, sink: {file: {path: out.txt}}}
  edges: [{from: in, to: %s}]
`, name, vertex, vertex)
}

// startBroker starts a broker with a port, in a directory of the test.
func startBroker(t *testing.T) (url string, js jetstream.JetStream) {
	t.Helper()
	b, err := broker.Start(broker.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return b.URL(), connect(t, b.URL())
}

func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// A sink's journal outlives the data directory. What is read after the directory was removed is new all the same: it is of another incarnation.
func TestRemovedDataDirectoryBeginsAnew(t *testing.T) {
	for kind, manifest := range map[string]string{"MonoVertex": monoFile("m"), "Pipeline": pipelineFile("p", "out")} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			var want []string
			for _, word := range []string{"first", "other", "third"} {
				input := numbered(word, 100)
				s.write(t, "data.txt", input...)
				s.must(t, manifest)
				s.must(t, manifest) // again with the same directory: nothing is written twice
				want = append(want, input...)
				if got := s.lines(t, "out.txt"); !slices.Equal(got, want) {
					t.Fatalf("after %q the file has %d lines instead of %d: %q ...", word, len(got), len(want), got[max(0, len(got)-3):])
				}
				s.forget(t)
			}
		})
	}
}

// Positions and buffers are at a broker of its own: there the data directory is not what makes a pipeline start over, the broker's store is.
func TestIncarnationIsTheStoresAndNotTheDirectorys(t *testing.T) {
	s := newSite(t)
	s.cfg.NATS, _ = startBroker(t)
	input := numbered("line", 50)
	s.write(t, "data.txt", input...)
	s.must(t, monoFile("m"))
	s.forget(t)
	s.must(t, monoFile("m"))
	if got := s.lines(t, "out.txt"); !slices.Equal(got, input) {
		t.Fatalf("%d lines instead of %d", len(got), len(input))
	}
}

// Names joined with '-' used to be the same for these, and one read the other's messages.
func TestNamesThatReadTheSameShareNothing(t *testing.T) {
	pipeline := func(namespace, name, vertex, word string) string {
		return fmt.Sprintf(`
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {namespace: %s, name: %s}
spec:
  vertices:
    - {name: in, source: {file: {path: %s.txt}}}
    - {name: %s, sink: {file: {path: %s.out}}}
  edges: [{from: in, to: %s}]
---`, namespace, name, word, vertex, word, vertex)
	}
	for name, manifests := range map[string]string{
		"vertex":    pipeline("default", "a", "b-c", "one") + pipeline("default", "a-b", "c", "two"),
		"namespace": pipeline("x", "y-z", "out", "one") + pipeline("x-y", "z", "out", "two"),
		"kind": pipeline("default", "m", "out", "one") + `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: MonoVertex
metadata: {name: m}
spec:
  source: {file: {path: two.txt}}
  sink: {file: {path: two.out}}
`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.write(t, "one.txt", numbered("one", 500)...)
			s.write(t, "two.txt", numbered("two", 500)...)
			s.must(t, manifests)
			for _, word := range []string{"one", "two"} {
				if got := s.lines(t, word+".out"); !slices.Equal(got, numbered(word, 500)) {
					t.Errorf("%s.out has %d lines, the first is %q", word, len(got), got[0])
				}
			}
		})
	}
}

func TestForeignStreamIsRefusedWithBothOwners(t *testing.T) {
	s := newSite(t)
	var js jetstream.JetStream
	s.cfg.NATS, js = startBroker(t)
	s.write(t, "data.txt", numbered("line", 10)...)
	mine := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "p"}
	theirs := naming.Owner{Namespace: "team", Kind: naming.Pipeline, Name: "other"}
	for _, stream := range []string{mine.Buffer("out", 0), mine.DeadLetters(), naming.KVStream(mine.State())} {
		cfg := jetstream.StreamConfig{
			Name: stream, Subjects: []string{stream}, Discard: jetstream.DiscardNew, Metadata: naming.Tag{Owner: theirs, Role: naming.RoleBuffer, Vertex: "v"}.In(nil),
		}
		if strings.HasPrefix(stream, "KV_") {
			cfg.Subjects, cfg.MaxMsgsPerSubject, cfg.AllowRollup, cfg.AllowDirect = []string{"$KV." + mine.State() + ".>"}, 1, true, true
		}
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		err := s.run(t, pipelineFile("p", "out"))
		if err == nil || !strings.Contains(err.Error(), "Pipeline team/other") || !strings.Contains(err.Error(), "Pipeline default/p") || !strings.Contains(err.Error(), stream) {
			t.Errorf("stream %s of somebody else: %v", stream, err)
		}
		if err := js.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
		for _, created := range []string{naming.KVStream(mine.State()), mine.DeadLetters(), mine.Buffer("out", 0)} { // as if nothing had been created
			if err := js.DeleteStream(t.Context(), created); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
				t.Fatal(err)
			}
		}
	}
}

func TestNamespaceThatIsNoLabelIsOneError(t *testing.T) {
	for _, namespace := range []string{"x y", "Prod", "a.b", strings.Repeat("n", 64)} {
		s := newSite(t)
		s.write(t, "data.txt", "line")
		manifest := strings.Replace(monoFile("m"), "{name: m}", fmt.Sprintf("{name: m, namespace: %q}", namespace), 1)
		err := s.run(t, manifest)
		if err == nil || !strings.Contains(err.Error(), "metadata.namespace") || strings.Contains(err.Error(), "\n") {
			t.Errorf("namespace %q: %v", namespace, err)
		}
	}
}

// Without its state a buffer's messages cannot be distinguished from those that the sources give again, so the state is not created silently beside it.
func TestMissingStateBucketIsRefused(t *testing.T) {
	s := newSite(t)
	var js jetstream.JetStream
	s.cfg.NATS, js = startBroker(t)
	s.write(t, "data.txt", numbered("line", 10)...)
	s.must(t, pipelineFile("p", "out"))
	owner := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "p"}
	if err := js.DeleteKeyValue(t.Context(), owner.State()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.run(t, pipelineFile("p", "out")); err == nil || !strings.Contains(err.Error(), owner.State()) || !strings.Contains(err.Error(), owner.Buffer("out", 0)) {
			t.Fatal(err)
		}
	}
	s.must(t, strings.ReplaceAll(pipelineFile("other", "out"), "out.txt", "other.txt")) // nobody else is concerned
}
