package jetstreambuffer_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testnats"
)

const shards = 3

// openShardsAt opens all shards of the partition at a broker, as a new process would. They are closed, without saving, when the test ends.
func openShardsAt(t *testing.T, url string, replicas int) ([]*buffer.Partition, jetstream.JetStream) {
	t.Helper()
	js := testnats.Connect(t, url)
	state, err := jetstreambuffer.OpenBucket(within(t), js, "test_STATE", naming.Tag{}, replicas, nil)
	if err != nil {
		t.Fatal(err)
	}
	driver, err := jetstreambuffer.Open(within(t), js, jetstreambuffer.Config{Stream: stream, State: state, Replicas: replicas, Shards: shards, Feeds: &jetstreambuffer.Feeds{}})
	if err != nil {
		t.Fatal(err)
	}
	var drivers []buffer.Driver
	for n := range shards {
		d := driver.(buffer.Sharded).Shard(n)
		t.Cleanup(func() { _ = d.Close() })
		drivers = append(drivers, d)
	}
	all, err := buffer.OpenShards(within(t), drivers, buffer.Options{Name: "test"})
	if err != nil {
		t.Fatalf("open shards: %v", err)
	}
	ctx, cancel := context.WithCancel(within(t))
	var running sync.WaitGroup
	for _, p := range all {
		running.Go(func() {
			if err := p.Run(ctx); err != nil { // what it returns ends a pipeline; without it nothing watches the cursor
				t.Errorf("the upkeep of a shard has ended: %v", err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return all, js
}

// putShards writes one block for each position, to the shard that is its rest.
func putShards(t *testing.T, all []*buffer.Partition, lo, hi uint64) {
	t.Helper()
	for pos := lo; pos <= hi; pos++ {
		var e flow.Encoder
		e.Reset(pos)
		e.Append(&flow.Message{ID: fmt.Sprint(pos), Pos: pos, Value: make([]byte, 3000)})
		w, err := all[0].WriteTo(within(t), int(pos%shards), &flow.Block{Lane: "a/0", Lo: pos, Hi: pos, Watermark: flow.NoWatermark}, &e)
		if err == nil {
			err = w.Wait(within(t))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// takeShards reads the positions lo to hi, each from its shard and in order.
func takeShards(t *testing.T, all []*buffer.Partition, lo, hi uint64) {
	t.Helper()
	var reading sync.WaitGroup
	for n, p := range all {
		reading.Go(func() {
			for pos := lo; pos <= hi; pos++ {
				if int(pos%shards) != n {
					continue
				}
				if ids, err := take(within(t), p, 1); err != nil || ids[0] != fmt.Sprint(pos) {
					t.Errorf("shard %d gives %v (%v), want %d", n, ids, err, pos)
					return
				}
			}
		})
	}
	reading.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// TestShardsReadWhatOneReplicaLost: a damaged replica leads, so that neither the cursors nor the consumer of headers give some blocks. Each shard reads its own from the others, and none takes a
// block of another one for damage.
func TestShardsReadWhatOneReplicaLost(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	all, _ := openShardsAt(t, c.URL(), 3)
	putShards(t, all, 1, 90)
	takeShards(t, all, 1, 9)
	for _, p := range all {
		if err := p.Close(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	victim := (c.Leader(stream) + 1) % 3
	c.Servers[victim].Kill()
	damage(t, c.Store(victim), []float64{1. / 3, 1. / 2, 0.9, 0.99, 0.999})
	c.Servers[victim].Start()
	c.StepDown(stream, func(leader int) bool { return leader == victim })
	all, _ = openShardsAt(t, c.URL(), 3)
	if n := all[0].Writer.Pending(); n != 81 {
		t.Errorf("%d pending, want 81", n)
	}
	c.StepDown(stream, func(leader int) bool { return leader == victim })
	takeShards(t, all, 10, 90)
	putShards(t, all, 91, 99)
	takeShards(t, all, 91, 99)
}

// TestShardsReadOnWithoutTheirConsumers: the server loses every consumer of the stream, as it does when it restarts. Shards go on, and miss nothing.
func TestShardsReadOnWithoutTheirConsumers(t *testing.T) {
	s := testnats.Server(t)
	all, js := openShardsAt(t, s.DSN(), 1)
	putShards(t, all, 1, 9)
	takeShards(t, all, 1, 9)
	log, err := js.Stream(within(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	for name := range log.ConsumerNames(within(t)).Name() {
		if err := log.DeleteConsumer(within(t), name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	putShards(t, all, 10, 30)
	takeShards(t, all, 10, 30)
	t.Logf("they go on after %v", time.Since(begun).Round(time.Millisecond))
}

// TestABlockThatIsLostEverywhereStopsEveryShard: nothing shows which shard it was of.
func TestABlockThatIsLostEverywhereStopsEveryShard(t *testing.T) {
	s := testnats.Server(t)
	all, js := openShardsAt(t, s.DSN(), 1)
	putShards(t, all, 1, 12)
	log, err := js.Stream(within(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.DeleteMsg(within(t), 5); err != nil {
		t.Fatal(err)
	}
	state, err := js.KeyValue(within(t), "test_STATE")
	if err != nil {
		t.Fatal(err)
	}
	driver, err := jetstreambuffer.Open(within(t), js, jetstreambuffer.Config{Stream: stream, State: state})
	if err != nil {
		t.Fatal(err)
	}
	for n := range shards {
		d := driver.(buffer.Sharded).Shard(n)
		p, err := buffer.OpenShard(within(t), d, n, shards, buffer.Options{Name: "test"})
		if err == nil {
			_, err = take(within(t), p, 4)
		}
		if !errors.Is(err, buffer.ErrGap) {
			t.Errorf("shard %d: %v, want %v", n, err, buffer.ErrGap)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
