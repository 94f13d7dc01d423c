package stream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/stream"
)

// A stream whose jobs are heavy needed a worker of its own to have a limit of its own.
func TestStreamsHaveLimitsOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "heavy", stream.Slice(numbered(3)...))
		must(t, p.server.Handle("light", stream.Slice(numbered(3)...)))
		l := newLab(t, p.connections(t).Dial)
		l.config.MaxJobs = 10
		worker, err := stream.NewWorker(l.config)
		must(t, err)
		var mu sync.Mutex
		now, most, largest := map[string]int{}, map[string]int{}, map[string]int{}
		sink := l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			mu.Lock()
			name := b.Job.Stream
			now[name]++
			most[name], largest[name] = max(most[name], now[name]), max(largest[name], len(b.Records))
			mu.Unlock()
			sleep(ctx, time.Second)
			mu.Lock()
			now[name]--
			mu.Unlock()
			return nil, ctx.Err()
		})
		must(t, worker.HandleWith("heavy", sink, stream.HandleOptions{MaxJobs: 2, CommitRecords: 1}))
		must(t, worker.Handle("light", sink))
		for i := range 8 {
			l.submit(stream.Job{ID: fmt.Sprint("heavy", i), Stream: "heavy"})
			l.submit(stream.Job{ID: fmt.Sprint("light", i), Stream: "light"})
		}
		l.run(worker)
		for i := range 8 {
			l.is(l.end(fmt.Sprint("heavy", i), time.Hour), stream.Completed, "")
			l.is(l.end(fmt.Sprint("light", i), time.Hour), stream.Completed, "")
		}
		if most["heavy"] != 2 || most["light"] < 5 || largest["heavy"] != 1 || largest["light"] < 2 {
			t.Errorf("at once %v jobs, in a batch %v records; want 2 of heavy with 1 record, and more of light", most, largest)
		}
		if err := worker.HandleWith("x", sink, stream.HandleOptions{MaxBad: -2}); err == nil || !strings.Contains(err.Error(), "MaxBad is -2") || !strings.Contains(err.Error(), "stream.None") {
			t.Errorf("a negative option: %v", err)
		}
	})
}

// NoProgress and MaxRecord of HandleOptions were accepted and ignored: the job waited for the worker's 24 h, and a record within the stream's limit went
// into quarantine.
func TestEachLimitOfAStreamIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "fails", stream.Slice(numbered(3)...))
		must(t, p.server.Handle("large", stream.Slice(stream.Record{Key: []byte("k"), Value: make([]byte, 500<<10)})))
		l := newLab(t, p.connections(t).Dial)
		l.config.MaxRecord = 1 << 10
		worker, err := stream.NewWorker(l.config)
		must(t, err)
		must(t, worker.HandleWith("fails", l.store.Sink(func(context.Context, *stream.Batch) (func(), error) {
			return nil, errors.New("no")
		}), stream.HandleOptions{NoProgress: time.Minute}))
		must(t, worker.HandleWith("large", l.store.Sink(nil), stream.HandleOptions{MaxRecord: 1 << 20}))
		l.submit(stream.Job{ID: "fails", Stream: "fails"})
		l.submit(stream.Job{ID: "large", Stream: "large"})
		l.run(worker)
		l.is(l.end("fails", time.Hour), stream.Failed, stream.ReasonNoProgress)
		job := l.end("large", time.Hour)
		l.is(job, stream.Completed, "")
		if job.Progress.Bad != 0 {
			t.Errorf("%d records are in quarantine, want none: %v", job.Progress.Bad, l.aside("large"))
		}
	})
}
