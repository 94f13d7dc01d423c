package stream_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// A handler that calls another service for each record cannot do a thousand of them within its time: it gets fewer, and comes to the end.
func TestASlowHandlerGetsFewerRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3000
		p := startProducer(t, stream.ServerConfig{MaxStreamAge: -1}, "numbers", stream.Slice(numbers(n)...))
		store := memstore.New()
		conns := p.connections(t)
		calls, largest, done := 0, 0, map[uint64]int{}
		worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, HandlerTimeout: 10 * time.Second, CommitRecords: 1000,
			NoProgress: stream.AtOnce, ReleaseAfterFailures: 1, IdleTimeout: time.Hour, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		worker.Handle("numbers", stream.AtLeastOnce(store.Sink(nil), func(ctx context.Context, b *stream.Batch) error {
			calls++
			if b.Records[0].Seq > 2000 {
				largest = max(largest, len(b.Records))
			}
			for _, r := range b.Records {
				if r.Seq < 2000 && !sleep(ctx, 100*time.Millisecond) {
					return context.Cause(ctx)
				}
				done[r.Seq]++
			}
			return nil
		}))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- worker.Run(ctx) }()
		job, err := store.Submit(ctx, stream.Job{Stream: "numbers"})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for !job.State.Final() && time.Since(begun) < time.Hour {
			time.Sleep(time.Second)
			if job, err = store.Get(ctx, job.ID); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if job.State != stream.Completed || job.Progress.Bad != 0 {
			t.Fatalf("the job is %s: %s", job.State, job.LastError)
		}
		for seq := uint64(1); seq <= n; seq++ {
			if done[seq] == 0 || done[seq] > 5 {
				t.Errorf("record %d was handed over %d times", seq, done[seq])
			}
		}
		if calls > 400 {
			t.Errorf("%d calls: once it knows how many are in time it should not try again and again with more", calls)
		}
		if largest < 200 {
			t.Errorf("no call had more than %d records when the handler was quick again", largest)
		}
	})
}
