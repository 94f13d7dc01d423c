package jetstreambuffer

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/testnats"
)

// TestAProcessThatOnlyWritesForgetsWhatWasRemoved: readers elsewhere remove what is done. A process that only follows the stream must not remember it without limit.
func TestAProcessThatOnlyWritesForgetsWhatWasRemoved(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	js := testnats.Connect(t, testnats.Server(t, testnats.JetStream("sync_interval: 2m")).DSN())
	state, err := OpenBucket(ctx, js, "test_STATE", naming.Tag{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := Open(ctx, js, Config{Stream: "test", State: state, Shards: 2, Feeds: &Feeds{}})
	if err != nil {
		t.Fatal(err)
	}
	d := opened.(*driver)
	f := d.cfg.Feeds.of(d)
	defer d.cfg.Feeds.release(f)
	last := uint64(0)
	put := func(n int) {
		t.Helper()
		for range n {
			last++
			if _, err := js.PublishMsgAsync(&nats.Msg{Subject: subject("test", int(last%2), 2), Header: nats.Header{messagesHeader: {"1"}}, Data: fmt.Append(nil, last)}); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-js.PublishAsyncComplete():
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
		if complete, err := f.reaches(ctx, last); !complete || err != nil {
			t.Fatalf("the feed does not reach entry %d: %v", last, err)
		}
	}
	const kept = 100
	for range 4 {
		put(tidyEvery - kept)
		if err := d.Trim(ctx, last-kept); err != nil {
			t.Fatal(err)
		}
		put(2 * kept)
	}
	if n := f.size(); n > 2*tidyEvery {
		t.Errorf("%d of %d entries are remembered, and %d are stored", n, last, kept)
	}
	if at, ok := f.at(last); !ok || at.shard != int(last%2) {
		t.Errorf("the last entry is %+v, %v", at, ok)
	}
}
