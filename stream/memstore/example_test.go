package memstore_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// A store is what a test of a handler looks into: jobs, checkpoints and quarantine. The store's clock is that of package time, so all of this works in a
// testing/synctest bubble, without waiting.
func Example() {
	ctx := context.Background()
	store := memstore.New()
	sink := store.Sink(func(_ context.Context, b *stream.Batch) (keep func(), err error) {
		for _, r := range b.Records {
			if len(r.Value) == 0 {
				b.Skip(r, fmt.Errorf("record %d has no value", r.Seq))
			}
		}
		return nil, nil
	})
	if _, err := store.Submit(ctx, stream.Job{ID: "copy-users", Stream: "users"}); err != nil {
		log.Fatal(err)
	}
	claimed, err := store.Claim(ctx, stream.Claim{Owner: stream.Self(), Streams: []string{"users"}, TTL: time.Minute, Max: 1})
	if err != nil {
		log.Fatal(err)
	}
	lease := claimed[0].Lease()
	checkpoint, err := sink.Fence(ctx, lease)
	if err != nil {
		log.Fatal(err)
	}
	next := checkpoint
	next.Seq = 2
	batch := &stream.Batch{Job: claimed[0].Job, Epoch: lease.Epoch, Records: []stream.Record{{Seq: 1, Key: []byte("1"), Value: []byte("Ada")}, {Seq: 2, Key: []byte("2")}}}
	if err := sink.Commit(ctx, stream.NewCommit(lease, checkpoint, next, batch)); err != nil {
		log.Fatal(err)
	}
	rows, err := sink.Quarantined(ctx, "copy-users", 0)
	fmt.Println(rows[0].Seq, rows[0].Error, err)
	// Output: 2 record 2 has no value <nil>
}
