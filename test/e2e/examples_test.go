// Package e2e runs the manifests of examples/ as a user would: the built program, with functions in processes of their own.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

// examples says what becomes of each manifest. One that is not named here, or named and not there, fails TestExamples.
var examples = map[string]func(t *testing.T, e *example){
	"first.yaml": func(t *testing.T, e *example) {
		e.prints(t, "A LEVADA CARRIES WATER", "AROUND THE MOUNTAIN", "AND HAS NOT STOPPED", "FOR CENTURIES")
		e.prints(t) // it was all delivered
		e.appendTo(t, "data/words.txt", "and one more\n")
		e.prints(t, "AND ONE MORE")
	},
	"processes.yaml": func(t *testing.T, e *example) {
		r := e.start(t, "--processes", "upper=3")
		r.wait(t)
		got := r.lines()
		slices.Sort(got)
		same(t, "standard output", []string{"A LEVADA CARRIES WATER", "AND HAS NOT STOPPED", "AROUND THE MOUNTAIN", "FOR CENTURIES"}, got)
		e.prints(t) // it was all delivered, also for a run in one process
	},
	"throughput.yaml": func(t *testing.T, e *example) { e.printsInAnyOrder(t, numbers(1, 20, 1)...) },
	"even-odd.yaml": func(t *testing.T, e *example) {
		e.prints(t)
		e.holds(t, "even.out", numbers(2, 20, 2)...)
		e.holds(t, "odd.out", numbers(1, 19, 2)...)
	},
	"monovertex.yaml": func(t *testing.T, e *example) {
		e.prints(t)
		e.holds(t, "fallback.out",
			`{"ID":1,"TIME":"2026-11-21T10:00:00Z","KIND":"LOGIN","USER":"ADA"}`,
			`{"ID":2,"TIME":"2026-11-21T10:00:01Z","KIND":"ORDER","USER":"ADA"}`,
			`{"ID":3,"TIME":"2026-11-21T10:00:04Z","KIND":"ORDER","USER":"GRACE"}`,
			`{"ID":5,"TIME":"2026-11-21T10:00:09Z","KIND":"LOGOUT","USER":"ADA"}`)
	},
	"cycle.yaml": func(t *testing.T, e *example) {
		e.printsInAnyOrder(t, "a levada carries water", "around the mountain", "and has not stopped", "for centuries")
	},
	"join.yaml": func(t *testing.T, e *example) {
		e.printsInAnyOrder(t, append(numbers(1, 20, 1), "A LEVADA CARRIES WATER", "AROUND THE MOUNTAIN", "AND HAS NOT STOPPED", "FOR CENTURIES")...)
	},
	"csv.yaml": func(t *testing.T, e *example) {
		e.prints(t,
			`{"id":"1","customer":"ada","total":"120","note":"two boxes, one bag"}`,
			`{"id":"3","customer":"edsger","total":"450","note":"say \"hello\""}`,
			`{"id":"5","customer":"ada","total":"1000","note":"fragile"}`)
	},
	"ndjson.yaml": func(t *testing.T, e *example) {
		e.prints(t)
		if err := os.WriteFile(filepath.Join(e.dir, "events.out"), []byte(withoutIncarnation(e.read(t, "events.out"))), 0o600); err != nil {
			t.Fatal(err)
		}
		e.holds(t, "events.out",
			`{"id":"in/events.ndjson/68/in","keys":[],"eventTime":"2026-11-21T10:00:01Z","headers":{},"value":"{\"id\":2,\"time\":\"2026-11-21T10:00:01Z\",\"kind\":\"order\",\"user\":\"ada\"}"}`,
			`{"id":"in/events.ndjson/135/in","keys":[],"eventTime":"2026-11-21T10:00:04Z","headers":{},"value":"{\"id\":3,\"time\":\"2026-11-21T10:00:04Z\",\"kind\":\"order\",\"user\":\"grace\"}"}`)
	},
	"ordered.yaml": func(t *testing.T, e *example) {
		var even, odd []string
		for _, n := range e.run(t).lines() {
			if strings.ContainsAny(n[len(n)-1:], "02468") {
				even = append(even, n)
			} else {
				odd = append(odd, n)
			}
		}
		same(t, "even numbers", numbers(2, 20, 2), even)
		same(t, "odd numbers", numbers(1, 19, 2), odd)
	},
	"compression.yaml": func(t *testing.T, e *example) {
		e.prints(t, "a levada carries water", "around the mountain", "and has not stopped", "for centuries")
	},
	"discard.yaml": func(t *testing.T, e *example) {
		r := e.run(t, "-o", "json")
		var dropped int
		for line := range strings.Lines(r.stderr.String()) {
			var v struct {
				Vertex  string
				Dropped int
			}
			if json.Unmarshal([]byte(line), &v) == nil && v.Vertex == "in" {
				dropped = v.Dropped
			}
		}
		if out := r.lines(); dropped == 0 || len(out)+dropped != 300 {
			t.Errorf("%d of 300 came out, and %d were counted as dropped:\n%s", len(out), dropped, r.stderr.String())
		}
	},
	"dead-letters.yaml": func(t *testing.T, e *example) {
		r := e.start(t)
		r.exits(t, 3)
		got, want := r.lines(), []string{"five", "four", "one", "three", "two"}
		slices.Sort(got)
		same(t, "standard output", want, got)
		reasons := map[string]string{}
		for line := range strings.Lines(e.levada(t, "deadletters", "list", "--data", ".levada/dead-letters", "-o", "json")) {
			var l struct {
				ID      string
				Failure struct{ Reason string }
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			reasons[l.Failure.Reason] = withoutIncarnation(l.ID)
		}
		same(t, "dead letters", map[string]string{"crash": "in/poison.txt/9", "panic": "in/poison.txt/26", "error": "in/poison.txt/42"}, reasons)
	},
	"http.yaml": func(t *testing.T, e *example) {
		address := e.freePort(t, "8090")
		e.freePort(t, "8443")
		r := e.start(t)
		for _, m := range []struct{ id, text string }{{"1", "hello"}, {"1", "hello"}, {"2", "world"}} {
			r.until(t, func() bool { return post("http://"+address+"/vertices/in", m.id, m.text) == nil })
		}
		r.untilLines(t, 2)
		r.stop(t)
		same(t, "standard output", []string{"HELLO", "WORLD"}, r.lines())
	},
	"functions.yaml": func(t *testing.T, e *example) {
		r := e.start(t, "--log-format", "text") // as on a terminal
		var values []string
		r.until(t, func() bool {
			values = nil
			for line := range strings.Lines(r.stderr.String()) {
				var v struct{ Value string }
				if text, ok := strings.CutPrefix(line, "print | "); ok && json.Unmarshal([]byte(text), &v) == nil {
					values = append(values, v.Value)
				}
			}
			return len(values) >= 25
		})
		r.stop(t)
		slices.Sort(values)
		want := numbers(0, 24, 1)
		slices.Sort(want)
		same(t, "what the sink printed", want, values)
	},
	"jetstream.yaml":     jetStream,
	"redis.yaml":         overRedis,
	"stream-sink.yaml":   streamSink,
	"stream-source.yaml": streamSource,
	"numaflow.yaml": func(t *testing.T, e *example) {
		r := e.start(t)
		r.untilLines(t, 6) // more than one burst
		r.stop(t)
	},
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no examples: ", err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			try := examples[name]
			if try == nil {
				t.Fatalf("%s has no test: add it to examples in %s", name, "test/e2e/examples_test.go")
			}
			e := copyOf(t, name)
			if command := "./bin/levada run examples/" + name; !strings.Contains(e.header(t), command) {
				t.Errorf("the comment at the top does not say how to run it: %s", command)
			}
			e.levada(t, "validate", "--runnable", name)
			try(t, e)
		})
	}
	for name := range examples {
		if !slices.Contains(files, "../../examples/"+name) {
			t.Errorf("the test of %s has no example", name)
		}
	}
}

// overRedis also looks at the buffers from outside.
func overRedis(t *testing.T, e *example) {
	server := testredis.Server(t)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(server.DSN(), "redis://"))
	if err != nil {
		t.Fatal(err)
	}
	e.write(t, e.name, strings.ReplaceAll(e.read(t, e.name), "6379", port))
	e.printsInAnyOrder(t, "a levada carries water", "around the mountain", "and has not stopped", "for centuries")
	e.prints(t) // it was all delivered
	buffers := e.levada(t, "buffers", "list", "--redis", server.DSN())
	for _, name := range []string{"default/redis/normalize/0", "default/redis/normalize/1", "default/redis/print/0"} {
		if !strings.Contains(buffers, name) {
			t.Errorf("%s is not listed:\n%s", name, buffers)
		}
	}
}

func jetStream(t *testing.T, e *example) {
	address := e.freePort(t, "4222")
	broker := e.startCommand(t, "broker", "--data", filepath.Join(t.TempDir(), "nats"), "--listen", address)
	var conn *nats.Conn
	broker.until(t, func() (ok bool) {
		var err error
		conn, err = nats.Connect("nats://" + address)
		return err == nil
	})
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []jetstream.StreamConfig{{Name: "ORDERS", Subjects: []string{"orders.>"}}, {Name: "LOUD", Subjects: []string{"loud.>"}}} {
		if _, err := js.CreateStream(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	r := e.start(t)
	want := []string{"TWO BOXES", "ONE BAG", "A LETTER"}
	for _, text := range want {
		if _, err := js.Publish(t.Context(), "orders.new", []byte(strings.ToLower(text))); err != nil {
			t.Fatal(err)
		}
	}
	loud, err := js.OrderedConsumer(t.Context(), "LOUD", jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for range want {
		m, err := loud.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil {
			t.Fatalf("after %q: %v\n%s", got, err, r.stderr.String())
		}
		got = append(got, string(m.Data()))
	}
	r.stop(t)
	same(t, "stream LOUD", want, got)
	if s, err := js.Stream(t.Context(), "LOUD"); err != nil || s.CachedInfo().State.Msgs != 3 {
		t.Errorf("LOUD does not hold three messages: %v, %v", s.CachedInfo().State, err)
	}
	broker.stop(t)
}

func post(url, id, text string) error {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("X-Numaflow-Id", id)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	if err := res.Body.Close(); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

func numbers(from, to, step int) (list []string) {
	for n := from; n <= to; n += step {
		list = append(list, fmt.Sprint(n))
	}
	return list
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// programs is a directory like bin/ after make build.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "levada-e2e")
	if err != nil {
		return "", err
	}
	for to, from := range map[string]string{"levada": "./cmd/levada", "functions/": "./examples/functions/..."} {
		path := filepath.Join(dir, filepath.FromSlash(to))
		if strings.HasSuffix(to, "/") {
			if err := os.Mkdir(path, 0o755); err != nil {
				return "", err
			}
		}
		build := exec.Command("go", "build", "-o", path, from)
		build.Dir = "../.."
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w: %s", build, err, out)
		}
	}
	return dir, nil
})

// incarnation is the part of an id that is another in each store.
var incarnation = regexp.MustCompile(`@[0-9a-z]+/`)

func withoutIncarnation(ids string) string { return incarnation.ReplaceAllString(ids, "/") }

func TestMain(m *testing.M) {
	code := m.Run()
	removeLeftovers()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// example is a copy of a manifest and its data, with the programs where the manifest looks for them.
type example struct{ dir, name string }

func copyOf(t *testing.T, name string) *example {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	e := &example{filepath.Join(root, "examples"), name}
	if err := os.Symlink(bin, filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(e.dir, "data"), os.DirFS("../../examples/data")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("../../examples", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(e.dir, name), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *example) header(t *testing.T) string {
	t.Helper()
	var header strings.Builder
	for line := range strings.Lines(e.read(t, e.name)) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		header.WriteString(line)
	}
	return header.String()
}

// freePort puts a free port in the place of one of the manifest's, and returns its address.
func (e *example) freePort(t *testing.T, port string) string {
	t.Helper()
	address := testserver.FreeAddress(t)
	_, free, _ := net.SplitHostPort(address)
	text := e.read(t, e.name)
	if !strings.Contains(text, port) {
		t.Fatalf("the manifest has no port %s", port)
	}
	if err := os.WriteFile(filepath.Join(e.dir, e.name), []byte(strings.ReplaceAll(text, port, free)), 0o644); err != nil {
		t.Fatal(err)
	}
	return address
}

func (e *example) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (e *example) appendTo(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(e.dir, name), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// levada runs another command to its end, which must be a good one.
func (e *example) levada(t *testing.T, args ...string) string {
	t.Helper()
	r := e.startCommand(t, args...)
	r.wait(t)
	return r.stdout.String()
}

// prints runs the pipeline to its end, and compares its standard output.
func (e *example) prints(t *testing.T, want ...string) {
	t.Helper()
	same(t, "standard output", want, e.run(t).lines())
}

func (e *example) printsInAnyOrder(t *testing.T, want ...string) {
	t.Helper()
	got := e.run(t).lines()
	slices.Sort(want)
	slices.Sort(got)
	same(t, "standard output", want, got)
}

// holds compares the lines of a file.
func (e *example) holds(t *testing.T, name string, want ...string) {
	t.Helper()
	same(t, name, want, lines(e.read(t, name)))
}

func (e *example) run(t *testing.T, flags ...string) *running {
	t.Helper()
	r := e.start(t, flags...)
	r.wait(t)
	return r
}

func (e *example) start(t *testing.T, flags ...string) *running {
	t.Helper()
	return e.startCommand(t, append([]string{"run", e.name}, flags...)...)
}

func (e *example) startCommand(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	r := &running{cmd: exec.CommandContext(ctx, "../bin/levada", args...), ended: make(chan error, 1)}
	r.cmd.Dir = e.dir
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() { r.ended <- r.cmd.Wait(); cancel() }() // cleanup waits for it
	t.Cleanup(func() {
		cancel()
		if !r.over {
			<-r.ended
		}
	})
	return r
}

// running is a process of levada.
type running struct {
	cmd            *exec.Cmd
	stdout, stderr output
	ended          chan error
	over           bool
}

func (r *running) lines() []string { return lines(r.stdout.String()) }

// wait waits for the end, with exit code 0.
func (r *running) wait(t *testing.T) {
	t.Helper()
	r.exits(t, 0)
}

// exits waits for the end, with one of the exit codes.
func (r *running) exits(t *testing.T, codes ...int) {
	t.Helper()
	<-r.ended
	r.over = true
	if code := r.cmd.ProcessState.ExitCode(); !slices.Contains(codes, code) {
		t.Fatalf("%v: %v, want one of the codes %v\n%s%s", r.cmd.Args, r.cmd.ProcessState, codes, r.stdout.String(), r.stderr.String())
	}
}

// stop sends SIGTERM. Messages may be kept for the next start.
func (r *running) stop(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.exits(t, 0, 143)
}

// until waits for something that the running process brings about.
func (r *running) until(t *testing.T, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happened(); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-r.ended:
			r.over = true
			t.Fatalf("%v ended too early: %v\n%s%s", r.cmd.Args, err, r.stdout.String(), r.stderr.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: what was waited for did not happen\n%s%s", r.cmd.Args, r.stdout.String(), r.stderr.String())
		}
	}
}

func (r *running) untilLines(t *testing.T, n int) {
	t.Helper()
	r.until(t, func() bool { return len(r.lines()) >= n })
}

func lines(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		all = append(all, strings.TrimSuffix(line, "\n"))
	}
	return all
}

// output is a buffer that is read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
