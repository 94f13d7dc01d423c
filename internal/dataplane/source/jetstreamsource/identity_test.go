package jetstreamsource_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/jetstreamsource"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
	"github.com/levada-io/levada/internal/flow"
)

func (s *server) recreate(t *testing.T) {
	t.Helper()
	must(t, s.js.DeleteStream(t.Context(), "IN"))
	_, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "IN", Subjects: []string{"in.*"}})
	must(t, err)
}

// ids reads n messages and returns what a pipeline calls them. It acknowledges them if asked to.
func ids(t *testing.T, r *jetstreamsource.Reader, n int, ack bool) (all []string, batches []*source.Batch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(all) < n {
		b, err := r.Read(ctx, n-len(all))
		if ctx.Err() != nil {
			t.Fatalf("%d of %d messages came: %v", len(all), n, err)
		}
		if err != nil {
			continue // it goes away
		}
		batches = append(batches, b)
		for i := range b.Messages {
			all = append(all, flow.RootID(flow.SourceLane("in", b.Partition, "x"), b.Messages[i].ID))
		}
		if ack {
			must(t, r.Ack(ctx, b))
		}
	}
	return all, batches
}

// A stream that was deleted and created again counts from 1 again. Its messages are others than those with the same numbers before.
func TestRecreatedStreamHasOtherIDs(t *testing.T) {
	t.Run("between two runs", func(t *testing.T) {
		s := start(t)
		s.publish(t, "in.a", 0, 10)
		r := open(t, jetstreamsource.Config{Conn: s.conn})
		before, _ := ids(t, r, 10, true)
		must(t, r.Close(t.Context()))
		s.recreate(t)
		s.publish(t, "in.a", 0, 10)
		after, _ := ids(t, open(t, jetstreamsource.Config{Conn: s.conn}), 10, true)
		for _, id := range after {
			if slices.Contains(before, id) {
				t.Fatalf("%s names two messages", id)
			}
		}
	})
	t.Run("while it is read", func(t *testing.T) {
		s := start(t)
		s.publish(t, "in.a", 0, 10)
		r := open(t, jetstreamsource.Config{Conn: s.conn})
		before, batches := ids(t, r, 10, false) // in flight
		s.recreate(t)
		s.publish(t, "in.a", 0, 10)
		after, _ := ids(t, r, 10, false)
		for _, id := range after {
			if slices.Contains(before, id) {
				t.Fatalf("%s names two messages", id)
			}
		}
		// What was in flight is acknowledged to nobody: the sequences are those of the new messages, which are not done.
		for _, b := range batches {
			must(t, r.Ack(t.Context(), b))
		}
		consumer, err := s.js.Consumer(t.Context(), "IN", "c")
		must(t, err)
		if n := consumer.CachedInfo().NumAckPending; n != 10 {
			t.Errorf("%d messages of the new stream are in flight, want 10", n)
		}
	})
}

// A server that loses its newest messages gives their sequences to others. Those were dropped as duplicates of what had been read before.
func TestMessagesAfterALostEndHaveOtherIDs(t *testing.T) {
	s := start(t)
	s.publish(t, "in.a", 0, 5)
	s.broker.Stop()
	older := t.TempDir()
	must(t, os.CopyFS(older, os.DirFS(s.dir)))
	s.restart(t)
	s.publish(t, "in.a", 5, 10)
	before, _ := ids(t, open(t, jetstreamsource.Config{Conn: s.conn}), 10, false) // in flight
	s.broker.Stop()
	must(t, os.RemoveAll(s.dir))
	must(t, os.CopyFS(s.dir, os.DirFS(older)))
	s.restart(t)
	s.publish(t, "in.a", 20, 25) // with sequences 6 to 10 again
	after, _ := ids(t, open(t, jetstreamsource.Config{Conn: s.conn, Consumer: "d", Stream: "IN"}), 10, false)
	if !slices.Equal(after[:5], before[:5]) {
		t.Errorf("the same messages had other ids: %v, %v", before[:5], after[:5])
	}
	for _, id := range after[5:] {
		if slices.Contains(before, id) {
			t.Errorf("%s names two messages", id)
		}
	}
}

// An acknowledgement to a stream that is gone does not hold up the vertex.
func TestDeletedStreamIsAcknowledgedToNobody(t *testing.T) {
	s := start(t)
	s.publish(t, "in.a", 0, 3)
	r := open(t, jetstreamsource.Config{Conn: s.conn})
	_, batches := ids(t, r, 3, false)
	must(t, s.js.DeleteStream(t.Context(), "IN"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	for _, b := range batches {
		must(t, r.Ack(ctx, b))
	}
}

// memory is a source.Positions.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (p *memory) Load(_ context.Context, key string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m[key], nil
}

func (p *memory) Save(_ context.Context, key string, b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.m[key] = b
	return nil
}

// Stores from before creation times were part of ids know the messages of the stream by its plain name. They keep it until the stream is another one.
func TestOldStoreKeepsTheIDsOfItsStream(t *testing.T) {
	s := start(t)
	cfg := jetstreamsource.Config{Conn: s.conn, OldNames: &memory{m: map[string][]byte{}}}
	partition := func() string {
		t.Helper()
		s.publish(t, "in.a", 0, 1)
		r := open(t, cfg)
		b := read(t, r, 1)
		must(t, r.Ack(t.Context(), b))
		must(t, r.Close(t.Context()))
		return b.Partition
	}
	for range 2 {
		if p := partition(); p != "IN" {
			t.Errorf("partition %s", p)
		}
	}
	s.recreate(t)
	first, second := partition(), partition()
	if first == "IN" || first != second || !strings.HasPrefix(first, "IN.") {
		t.Errorf("of the new stream: %s, then %s", first, second)
	}
}

// The old name of a consumer named neither namespace nor where the pipeline's name ends.
func TestOldConsumerIsAdoptedByOneOwner(t *testing.T) {
	s := start(t)
	s.publish(t, "in.a", 0, 10)
	old := jetstreamsource.Config{Conn: s.conn, Stream: "IN", Consumer: "numaflow-p-in-IN"}
	r := open(t, old)
	if got := readAll(t, r, 4); len(got) != 4 {
		t.Fatal(got)
	}
	must(t, r.Close(t.Context()))

	owned := func(namespace string) jetstreamsource.Config {
		o := naming.Owner{Namespace: namespace, Kind: naming.Pipeline, Name: "p"}
		return jetstreamsource.Config{
			Conn: s.conn, Stream: "IN", Consumer: o.Consumer("in"), OldConsumer: old.Consumer, Tag: naming.Tag{Owner: o, Role: naming.RoleConsumer, Vertex: "in"},
		}
	}
	for range 2 { // adopted, and found again
		r := open(t, owned("one"))
		if got := readAll(t, r, 1); got[0] == sourcetest.Payload(0) {
			t.Fatalf("%s again, though it was acknowledged", got[0])
		}
		must(t, r.Close(t.Context()))
	}
	if got := readAll(t, open(t, owned("two")), 10); got[0] != sourcetest.Payload(0) {
		t.Errorf("another owner begins with %s", got[0])
	}
	must(t, s.js.DeleteConsumer(t.Context(), "IN", old.Consumer))
	foreign := owned("three")
	foreign.Consumer, foreign.OldConsumer = owned("two").Consumer, ""
	if _, err := jetstreamsource.New(t.Context(), foreign); err == nil || !strings.Contains(err.Error(), "two/p") || !strings.Contains(err.Error(), "three/p") {
		t.Errorf("a consumer of somebody else: %v", err)
	}
}
