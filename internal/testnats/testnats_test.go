//go:build unix

package testnats

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestClusterKeepsWhatWasAcknowledged(t *testing.T) {
	c := NewCluster(t, 3)
	js := c.Connect()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	publish := func(id string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err := js.Publish(ctx, "s", []byte(id), jetstream.WithMsgID(id))
			cancel()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	publish("a")
	leader := c.Leader("S")
	c.Servers[leader].Kill()
	publish("b")
	c.Servers[leader].Start()
	c.StepDown("S", func(l int) bool { return l == leader })
	publish("c")
	s, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 3 {
		t.Errorf("%d messages, want 3", n)
	}
}
