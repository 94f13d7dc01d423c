package standalone_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/testnats"
)

// All that a pipeline stores has the replicas that were asked for, also after that number was changed.
func TestReplicasOfAllThatAPipelineStores(t *testing.T) {
	cluster := testnats.NewCluster(t, 3)
	js := cluster.Connect()
	s := newSite(t)
	s.cfg.NATS = cluster.URL()
	owner := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "p"}
	payloads := naming.Payloads(owner.DeadLetters())
	lines := 0
	for _, replicas := range []int{1, 3, 1} {
		s.cfg.Replicas = replicas
		lines += 100
		s.write(t, "data.txt", numbered("line", lines)...)
		s.must(t, pipelineFile("p", "out"))
		if got := s.lines(t, "out.txt"); len(got) != lines {
			t.Fatalf("%d lines of %d", len(got), lines)
		}
		if replicas == 1 && lines == 100 { // as if a dead letter had needed it
			if _, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: payloads}); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{owner.Buffer("out", 0), owner.DeadLetters(), naming.KVStream(owner.State()), naming.ObjectStream(payloads)} {
			stream, err := js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if got := stream.CachedInfo().Config.Replicas; got != replicas {
				t.Errorf("stream %s has %d replicas instead of %d", name, got, replicas)
			}
			consumers := stream.ListConsumers(t.Context())
			for c := range consumers.Info() {
				if c.Config.AckPolicy == jetstream.AckNonePolicy {
					continue // a cursor keeps nothing: it is created again where it is lost
				}
				if got := c.Config.Replicas; got != replicas && got != 0 {
					t.Errorf("consumer %s has %d replicas instead of %d", c.Name, got, replicas)
				}
			}
		}
	}
	if n := strings.Count(s.logs.String(), `msg="replicas changed"`); n != 2 {
		t.Errorf("the change is logged %d times: %s", n, s.logs)
	}
}

func TestMoreReplicasThanServersIsOneError(t *testing.T) {
	for _, stored := range []bool{false, true} {
		s := newSite(t)
		s.cfg.NATS, _ = startBroker(t)
		s.write(t, "data.txt", "line")
		if stored {
			s.must(t, pipelineFile("p", "out"))
		}
		s.cfg.Replicas = 3
		begun := time.Now()
		err := s.run(t, pipelineFile("p", "out"))
		if err == nil || !strings.Contains(err.Error(), "--replicas") || !strings.Contains(err.Error(), "3 replicas") || time.Since(begun) > 20*time.Second {
			t.Errorf("stored before %v, after %v: %v", stored, time.Since(begun), err)
		}
	}
	s := newSite(t) // the broker in this process
	s.cfg.Replicas = 3
	s.write(t, "data.txt", "line")
	if err := s.run(t, pipelineFile("p", "out")); err == nil || !strings.Contains(err.Error(), "--nats") {
		t.Error(err)
	}
}
