//go:build unix

package jetstream_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/isbtest"
	service "github.com/levada-io/levada/internal/dataplane/isb/jetstream"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

// TestConformanceOnCluster: three servers, on which everything has three replicas. Cases take a cluster that no other one uses, and leave it empty.
func TestConformanceOnCluster(t *testing.T) {
	const clusters = 2
	free := make(chan *testnats.Cluster, clusters)
	for range clusters {
		free <- testnats.NewCluster(t, 3)
	}
	isbtest.Run(t, func(t *testing.T) isbtest.Harness {
		c := <-free
		js := c.Connect()
		t.Cleanup(func() {
			empty(t, js)
			free <- c
		})
		return isbtest.Harness{
			Connect: func(t *testing.T) isb.Service {
				s, err := service.Connect(t.Context(), service.Config{URL: c.URL()})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Restart: func(*testing.T) {
				for _, s := range c.Servers {
					s.Stop(testserver.Killed)
				}
				for _, s := range c.Servers {
					s.Start()
				}
				c.WaitReady()
			},
			Lose: func(t *testing.T, stream string) {
				if err := js.DeleteStream(t.Context(), stream); err != nil {
					t.Fatal(err)
				}
			},
			Duplicates: duplicates,
			ForgetIDs:  func(*testing.T) { <-time.After(3 * duplicates) }, // the servers' window has passed, by their own clocks
			Cursors:    func(t *testing.T, name string) []string { return consumers(t, js, name) },
		}
	})
}

// consumers are the names of those of a stream.
func consumers(t *testing.T, js jetstream.JetStream, name string) (names []string) {
	stream, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	list := stream.ConsumerNames(t.Context())
	for name := range list.Name() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// empty checks that all that a case has stored has three replicas, and removes it.
func empty(t *testing.T, js jetstream.JetStream) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	streams := js.ListStreams(ctx)
	var names []string
	for info := range streams.Info() {
		names = append(names, info.Config.Name)
		if info.Config.Replicas != 3 {
			t.Errorf("stream %s has %d replicas", info.Config.Name, info.Config.Replicas)
		}
	}
	if err := streams.Err(); err != nil {
		t.Error(err)
	}
	for _, name := range names {
		if err := js.DeleteStream(ctx, name); err != nil {
			t.Error(err)
		}
	}
}
