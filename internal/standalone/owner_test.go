package standalone_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	service "github.com/levada-io/levada/internal/dataplane/isb/jetstream"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testnats"
)

// A dead letter that is replayed from another host, where the run's data directory is not, leaves the reader of the running process alone: its consumer is
// neither deleted nor recreated, and the message comes.
func TestReplayFromElsewhereLeavesTheRunningReaderAlone(t *testing.T) {
	server := testnats.Server(t)
	js := testnats.Connect(t, server.DSN())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	owner := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "words", Incarnation: "abc"}
	state, err := jetstreambuffer.OpenBucket(ctx, js, owner.State(), naming.Tag{Owner: owner, Role: naming.RoleState}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	stream := owner.Buffer("cat", 0)
	driver, err := jetstreambuffer.Open(ctx, js, jetstreambuffer.Config{Stream: stream, State: state, Tag: naming.Tag{Owner: owner, Role: naming.RoleBuffer, Vertex: "cat"}})
	if err != nil {
		t.Fatal(err)
	}
	reader, err := buffer.Open(ctx, driver, buffer.Options{Name: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	storage, err := service.OpenLetters(ctx, js, owner.DeadLetters(), naming.Tag{Owner: owner, Role: naming.RoleDeadLetters}, 1)
	if err != nil {
		t.Fatal(err)
	}
	letters := deadletter.New(storage, owner.Name, nil)
	if err := letters.Put(ctx, "cat", &flow.Message{ID: "in/1", Pos: 1, Value: []byte("hello")}, &deadletter.Failure{Reason: "error"}); err != nil {
		t.Fatal(err)
	}
	// The reader is in the middle of its work.
	var e flow.Encoder
	e.Reset(1)
	e.Append(&flow.Message{ID: "in/0", Pos: 1, Value: []byte("first")})
	w, err := reader.Write(ctx, &flow.Block{Lane: "in/0", Lo: 1, Hi: 1}, &e)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Read(ctx); err != nil {
		t.Fatal(err)
	}
	consumers := func() map[string]time.Time {
		found, err := js.Stream(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]time.Time{}
		list := found.ListConsumers(ctx)
		for c := range list.Info() {
			all[c.Name] = c.Created
		}
		return all
	}
	before := consumers()
	elsewhere, err := standalone.OpenDeadLetters(ctx, t.TempDir(), standalone.Broker{NATS: server.DSN()})
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	page, err := elsewhere.Page(ctx, standalone.LetterQuery{Limit: 10})
	if err != nil || len(page.Letters) != 1 {
		t.Fatal(page, err)
	}
	if err := elsewhere.Replay(ctx, "words", page.Letters[0].Name); err != nil {
		t.Fatal(err)
	}
	after := consumers()
	for name, created := range before {
		if !after[name].Equal(created) {
			t.Errorf("consumer %s was deleted or recreated", name)
		}
	}
	d, err := reader.Read(ctx)
	if err != nil || string(d.Block.Messages[0].Value) != "hello" {
		t.Fatal(d, err)
	}
}

// A run whose pipeline another process took over while it could not renew its lease stops with an error that names that process, and saves nothing more.
func TestRunStopsWhenAnotherProcessTookThePipelineOver(t *testing.T) {
	server := testnats.Server(t)
	js := testnats.Connect(t, server.DSN())
	s := newSite(t)
	s.cfg.NATS = server.DSN()
	s.write(t, "data.txt", "one", "two")
	manifest := `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: words}
spec:
  vertices:
    - {name: in, source: {file: {path: data.txt, follow: true}}}
    - {name: out, sink: {file: {path: out.txt}}}
  edges: [{from: in, to: out}]
`
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	started := make(chan struct{})
	s.cfg.Started = func(*standalone.Running) { close(started) }
	ended := make(chan error, 1)
	go func() { ended <- s.runUntil(ctx, t, manifest) }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	kv, err := js.KeyValue(ctx, naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "words"}.State())
	if err != nil {
		t.Fatal(err)
	}
	other, err := json.Marshal(ownership.Owner{Instance: "other", Host: "elsewhere", PID: 7, Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(ctx, "owner", other); err != nil {
		t.Fatal(err)
	}
	err = <-ended
	if !errors.Is(err, ownership.ErrLost) || !strings.Contains(err.Error(), "process 7 on host elsewhere") {
		t.Errorf("it ended with %v\n%s", err, s.logs)
	}
	entry, err := kv.Get(ctx, "owner")
	if err != nil || string(entry.Value()) != string(other) {
		t.Errorf("the record of the new owner was changed: %v", err)
	}
	var settled struct{ Settled bool }
	if entry, err := kv.Get(ctx, "settled"); err != nil || json.Unmarshal(entry.Value(), &settled) != nil || settled.Settled {
		t.Errorf("the end was noted as an orderly one: %v", err)
	}
}
