package standalone_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

// broken is an output that takes nothing.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("the output takes nothing") }

const intoLog = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  vertices:
    - {name: in, source: {file: {path: data.txt}}}
    - {name: out, sink: {log: {}}}
  edges: [{from: in, to: out}]
`

// TestMessagesInTheBrokersMemoryAreCountedWhenKeptAndWhenLost ends a run whose buffer is in the memory of a broker, and restarts the broker: the end of the run said that
// the messages were kept, and the next start said how many blocks were lost, of which nobody knows how many messages they held.
func TestMessagesInTheBrokersMemoryAreCountedWhenKeptAndWhenLost(t *testing.T) {
	nats := testnats.Server(t)
	s := newSite(t)
	s.write(t, "data.txt", numbered("line", 500)...)
	s.cfg.NATS, s.cfg.Stdout = nats.DSN(), broken{}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	started := make(chan *standalone.Running, 1)
	var end *standalone.Result
	s.cfg.Started, s.cfg.Ended = func(r *standalone.Running) { started <- r }, func(r *standalone.Result) { end = r }
	ended := make(chan error, 1)
	go func() { ended <- s.runUntil(ctx, t, intoLog+inMemory) }()
	r := <-started
	if !strings.Contains(r.Durability, "memory") {
		t.Errorf("durability %q", r.Durability)
	}
	for pending := int64(0); pending < 500; <-time.After(20 * time.Millisecond) {
		pending = 0
		for _, v := range r.Pipelines[0].Counts() {
			pending = max(pending, v.Pending)
		}
		if ctx.Err() != nil {
			t.Fatal("the messages do not reach the buffer", s.logs)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if p := end.Pipelines[0]; p.Buffered != 500 || p.InMemory != 500 || p.Lost != 0 {
		t.Errorf("%d in buffers, %d of them in memory, %d lost", p.Buffered, p.InMemory, p.Lost)
	}

	nats.Restart(testserver.Fast)
	metrics := ""
	s.cfg.Started = func(r *standalone.Running) {
		res, err := http.Get("http://" + r.Address + "/metrics") // of this process
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		b, _ := io.ReadAll(res.Body)
		metrics = string(b)
	}
	s.must(t, intoLog+inMemory)
	if n := strings.Count(s.logs.String(), "messages_lost=500"); n != 1 || strings.Count(s.logs.String(), "stream in memory lost") != 1 {
		t.Errorf("the loss is said %d times: %s", n, s.logs)
	}
	if want := `levada_buffer_lost_messages_total{buffer="default-p-out-0",namespace="default"} 500`; !strings.Contains(metrics, want) {
		t.Errorf("no %s in %s", want, metrics)
	}
}

// TestRestartOfABrokerWithBuffersInMemoryIsALoss restarts the broker under a run: the run ends with an error, and does not say that the messages are kept.
func TestRestartOfABrokerWithBuffersInMemoryIsALoss(t *testing.T) {
	nats := testnats.Server(t)
	s := newSite(t)
	s.write(t, "data.txt", numbered("line", 300)...)
	s.cfg.NATS, s.cfg.Stdout = nats.DSN(), broken{}
	started := make(chan *standalone.Running, 1)
	var end *standalone.Result
	s.cfg.Started, s.cfg.Ended = func(r *standalone.Running) { started <- r }, func(r *standalone.Result) { end = r }
	ended := make(chan error, 1)
	go func() { ended <- s.run(t, intoLog+inMemory) }()
	r := <-started
	for pending, deadline := int64(0), time.Now().Add(30*time.Second); pending < 300; <-time.After(20 * time.Millisecond) {
		for _, v := range r.Pipelines[0].Counts() {
			pending = max(pending, v.Pending)
		}
		if time.Now().After(deadline) {
			t.Fatal("the messages do not reach the buffer", s.logs)
		}
	}
	nats.Restart(testserver.Fast)
	if err := <-ended; err == nil {
		t.Error("the loss of a buffer is not an error")
	}
	if p := end.Pipelines[0]; p.Lost != 300 || p.Buffered != 0 || p.InMemory != 0 {
		t.Errorf("%d lost, %d in buffers, %d in memory", p.Lost, p.Buffered, p.InMemory)
	}
	s.cfg.Started, s.cfg.Ended = nil, nil
	s.must(t, intoLog+inMemory)
	if !strings.Contains(s.logs.String(), "messages_lost=300") {
		t.Errorf("%s", s.logs)
	}
}
