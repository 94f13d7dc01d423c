package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How often a short pipeline runs to its end; `make faults` sets LEDGER_ENDS=1000.
var shortEnds = fromEnv("LEDGER_ENDS", 15)

const monoManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: MonoVertex
metadata:
  name: ledger
  annotations: {levada.io/processing-timeout: 20s}
spec:
  limits: {readBatchSize: 100, rateLimit: {max: %[1]d}}
  source: {file: {path: in.txt}}
  udf: {container: {command: [%[2]s]}}
  sink: {file: {path: out.txt}}
`

// TestMonoVertexLedger is TestLedger without buffers: what is not in the file yet is read from the source again.
func TestMonoVertexLedger(t *testing.T) {
	run := &killing{lines: ledgerLines, functions: true}
	run.start(t, fmt.Sprintf(monoManifest, max(1000, ledgerLines/(2*ledgerKills)), program(t, "cat")))
	run.toTheEnd(t)
	run.check(t, plain, nothing)
}

const twoSinksManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: ledger}
spec:
  limits: {readBatchSize: 100}
  vertices:
    - name: in
      limits: {rateLimit: {max: %d}}
      source: {file: {path: in.txt}}
    - name: a
      partitions: 2
      sink: {jetstream: {url: BROKER, stream: FAN, subject: fan.a}}
    - name: b
      sink: {jetstream: {url: BROKER, stream: FAN, subject: fan.b}}
  edges:
    - {from: in, to: a}
    - {from: in, to: b}
`

// TestTwoSinksIntoOneStreamLedger kills levada and the broker while two sinks write the same messages into two subjects of one stream, whose window of duplicates is
// longer than the run: each subject has each line once.
func TestTwoSinksIntoOneStreamLedger(t *testing.T) {
	run := &killing{lines: ledgerLines / 8, external: true} // this sink writes one message at a time
	run.prepare = func(t *testing.T) {
		js := connect(t, run.nats)
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "FAN", Subjects: []string{"fan.*"}, Duplicates: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	run.start(t, fmt.Sprintf(twoSinksManifest, max(500, run.lines/(2*ledgerKills))))
	run.toTheEnd(t)
	js := connect(t, run.nats)
	for _, subject := range []string{"fan.a", "fan.b"} {
		if a := newAccount(run.lines, stored(t, js, "FAN", subject), plain, nothing); !a.exact() {
			t.Errorf("%s, of %d lines: %v", subject, run.lines, a)
		}
	}
}

func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(url, nats.MaxReconnects(-1))
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

// stored reads all messages of a subject of a stream.
func stored(t *testing.T, js jetstream.JetStream, stream, subject string) func(yield func(string)) {
	return func(yield func(string)) {
		t.Helper()
		consumer, err := js.OrderedConsumer(t.Context(), stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
		if err != nil {
			t.Fatal(err)
		}
		for left := -1; left != 0; {
			batch, err := consumer.Fetch(1000, jetstream.FetchMaxWait(2*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for m := range batch.Messages() {
				yield(string(m.Data()))
				meta, err := m.Metadata()
				if err != nil {
					t.Fatal(err)
				}
				n, left = n+1, int(meta.NumPending)
			}
			if n == 0 {
				return
			}
		}
	}
}

const slowManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: ledger}
spec:
  vertices:
    - name: in
      source: {file: {path: in.txt}}
    - name: slow
      limits: {concurrency: 4}
      udf: {container: {command: [%s, %s, 20ms, "0"]}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: slow}
    - {from: slow, to: out}
`

// TestSlowFunctionLedger kills a pipeline whose function takes 20 ms for a message and four at a time, which is much less between two kills than a block holds.
// What was done before a kill stays done, so that the pipeline comes to its end; and lines come out all the time.
func TestSlowFunctionLedger(t *testing.T) {
	const perSecond = 4 * 1000 / 20
	run := &killing{lines: max(1500, ledgerLines/20), functions: true}
	// Between two starts there is time for what is started to do something, and less than a block of 500 messages takes.
	run.between = time.Second
	run.start(t, fmt.Sprintf(slowManifest, self(t), slowProgram))
	begun := time.Now()
	run.toTheEnd(t)
	run.check(t, plain, nothing)
	kills, _ := run.levada.counts()
	if most := time.Duration(3*run.lines/perSecond)*time.Second + time.Duration(kills+run.functionKills)*2*time.Second; time.Since(begun) > most {
		t.Errorf("%d lines took %v, which is more than %v: work is done again and again", run.lines, time.Since(begun), most)
	}
}

// TestShortPipelinesEnd runs a pipeline of a few lines to its end again and again: each time it ends with 0, and then everything is in the file.
func TestShortPipelinesEnd(t *testing.T) {
	for i := range shortEnds {
		dir := t.TempDir()
		lines := 1 + (i*37)%400
		l := newLedger(t, dir, lines, plain)
		file := filepath.Join(dir, "pipeline.yaml")
		if err := os.WriteFile(file, fmt.Appendf(nil, manifest, 1+(i*13)%100, 1+i%4, program(t, "cat"), 1_000_000), 0o644); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		begun := time.Now()
		out, err := exec.CommandContext(ctx, program(t, "levada"), "run", file, "--data", filepath.Join(dir, "data"), "--log-format", "text").CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("run %d of %d ended with %v after %v:\n%s", i+1, shortEnds, err, time.Since(begun), last(out, 4000))
		}
		if a := l.account(t, plain, nothing); !a.exact() {
			t.Fatalf("run %d of %d ended with 0, of %d lines: %v\n%s", i+1, shortEnds, lines, a, last(out, 4000))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTopologyChangeLedger changes the number of partitions and a vertex's name while messages are in flight. Levada refuses to start and names the vertex; with
// --drain-old it finishes what the old topology has, goes on with the new one, and each line comes out once, through kills.
func TestTopologyChangeLedger(t *testing.T) {
	run := &killing{lines: ledgerLines, functions: true}
	before := fmt.Sprintf(manifest, 100, 4, program(t, "cat"), max(1000, ledgerLines/(2*ledgerKills)))
	run.start(t, before)
	run.working(t)
	release := run.levada.hold()
	after := strings.ReplaceAll(strings.ReplaceAll(before, "name: cat", "name: copy"), "to: cat", "to: copy")
	after = strings.ReplaceAll(strings.ReplaceAll(after, "from: cat", "from: copy"), "partitions: 4", "partitions: 1")
	run.write(t, after)
	out, err := exec.CommandContext(t.Context(), program(t, "levada"), "run", run.file, "--data", run.data, "--quiet", "--log-format", "text").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "cat") || !strings.Contains(string(out), "--drain-old") {
		t.Fatalf("a pipeline whose vertex and partitions changed with messages in flight was not refused in words: %v\n%s", err, last(out, 4000))
	}
	run.flags = []string{"--drain-old"}
	release()
	run.toTheEnd(t)
	run.check(t, plain, nothing)
}
