package natsstore_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/shard/natsstore"
	"github.com/levada-io/levada/internal/dataplane/shard/storetest"
	"github.com/levada-io/levada/internal/testnats"
)

var buckets int

func open(t *testing.T, js jetstream.JetStream, replicas int) *natsstore.Store {
	t.Helper()
	buckets++
	name := fmt.Sprintf("B%d", buckets)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: name, Replicas: replicas}); err != nil {
		t.Fatal(err)
	}
	s, err := natsstore.Open(ctx, js, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestConformance runs in buckets that were made without a TTL for single records, as those of earlier versions are.
func TestConformance(t *testing.T) {
	js := testnats.Connect(t, testnats.Server(t).DSN())
	storetest.Run(t, storetest.Options{Expires: true}, func(t *testing.T) shard.Store { return open(t, js, 1) })
}

func TestConformanceOfACluster(t *testing.T) {
	js := testnats.NewCluster(t, 3).Connect()
	storetest.Run(t, storetest.Options{Expires: true}, func(t *testing.T) shard.Store { return open(t, js, 3) })
}

// TestAConflictInAClusterIsAConflict: while a write is on its way to the replicas the broker answers with another code than afterwards.
func TestAConflictInAClusterIsAConflict(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	s := open(t, c.Connect(), 3)
	const writers = 8
	var revision uint64
	for range 30 {
		revisions, errs := make([]uint64, writers), make([]error, writers)
		var writing sync.WaitGroup
		for w := range writers {
			writing.Go(func() {
				revisions[w], errs[w] = s.Write(t.Context(), "shards.v.key", []byte{byte(w)}, revision, time.Minute)
			})
		}
		writing.Wait()
		succeeded := 0
		for w, err := range errs {
			switch {
			case err == nil:
				succeeded, revision = succeeded+1, revisions[w]
			case !errors.Is(err, shard.ErrConflict):
				t.Fatalf("not a conflict: %v", err)
			}
		}
		if succeeded != 1 {
			t.Fatalf("%d writers succeeded at once", succeeded)
		}
	}
}
