package stream_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// Zero is the default of a limit, so that "none" and "without end" need values of their own: a job that must not put any record into
// quarantine could only be had with OnBad, and one without a limit only by guessing a large number.
func TestMaxBadNoneAndUnlimited(t *testing.T) {
	for name, test := range map[string]struct {
		worker, handle, job int
		reason              stream.Reason
		bad                 uint64
	}{
		"the job's none":             {0, 0, stream.None, stream.ReasonTooManyBad, 0},
		"the worker's none":          {stream.None, 0, 0, stream.ReasonTooManyBad, 0},
		"the stream's none":          {0, stream.None, 0, stream.ReasonTooManyBad, 0},
		"the job's own, not none":    {stream.None, 0, 5, stream.ReasonTooManyBad, 5},
		"the default":                {0, 0, 0, stream.ReasonTooManyBad, 100},
		"the job's without limit":    {stream.None, 0, stream.Unlimited, "", 150},
		"the worker's without limit": {stream.Unlimited, 0, 0, "", 150},
		"the stream's without limit": {stream.None, stream.Unlimited, 0, "", 150},
	} {
		t.Run(name, func(t *testing.T) {
			withProducer(t, stream.Slice(numbers(150)...), func(l *lab) {
				l.config.MaxBad, l.config.CommitRecords = test.worker, 1
				worker, err := stream.NewWorker(l.config)
				must(t, err)
				must(t, worker.HandleWith("s", l.store.Sink(func(_ context.Context, b *stream.Batch) (func(), error) {
					for _, r := range b.Records {
						b.Skip(r, errors.New("refused"))
					}
					return func() {}, nil
				}), stream.HandleOptions{MaxBad: test.handle}))
				l.run(worker)
				job := l.end(l.submit(stream.Job{Stream: "s", MaxBad: test.job}).ID, time.Hour)
				state := stream.Completed
				if test.reason != "" {
					state = stream.Failed
				}
				l.is(job, state, test.reason)
				if job.Progress.Bad != test.bad {
					t.Errorf("%d records in quarantine, want %d", job.Progress.Bad, test.bad)
				}
			})
		})
	}
}

// A value that is neither a limit nor one of the names for none and without end is a mistake, and the error says what could have been meant.
func TestNegativeLimitsNameWhatToSayInstead(t *testing.T) {
	_, err := stream.NewServer(stream.ServerConfig{BatchDelay: -1})
	if err == nil || !strings.Contains(err.Error(), "ServerConfig.BatchDelay") || !strings.Contains(err.Error(), "stream.AtOnce") {
		t.Errorf("BatchDelay -1: %v", err)
	}
	_, err = stream.NewWorker(stream.WorkerConfig{Store: newLab(t, nil).store, Dial: stream.NewConnections("passthrough:///x").Dial, MaxBad: -2})
	if err == nil || !strings.Contains(err.Error(), "WorkerConfig.MaxBad is -2") || !strings.Contains(err.Error(), "stream.None") {
		t.Errorf("MaxBad -2: %v", err)
	}
}

// Zero is 1 ms, so that a live tail which must not wait at all needs a value of its own.
func TestBatchDelayAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := make(chan []byte)
		source := opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			return cursor{next: func(ctx context.Context) ([]byte, error) {
				select {
				case key := <-feed:
					return key, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}}, nil
		})
		p := startProducer(t, stream.ServerConfig{BatchDelay: stream.AtOnce}, "s", source)
		conn, err := p.connections(t).Dial(t.Context(), stream.Job{})
		must(t, err)
		in := read(t, streamv1.NewStreamClient(conn), &streamv1.ReadRequest{})
		for _, key := range []string{"a", "b", "c"} {
			since := time.Now()
			feed <- []byte(key)
			for {
				f, err := in.Recv()
				must(t, err)
				if f.GetBatch().GetCount() > 0 {
					break
				}
			}
			if took := time.Since(since); took > 0 {
				t.Errorf("record %s came after %v", key, took)
			}
		}
	})
}
