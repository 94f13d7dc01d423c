package streamcmd

import (
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/stream"
)

// endWithin is how long a producer that has sent all records of a job may take to say that these were all. It has none to say if it follows
// a file or a table by now.
const endWithin = 5 * time.Second

// unreachableAfter is how many attempts in a row may fail: unlike a job, a person does not wait until a producer is there again.
const unreachableAfter = 8

// readAgain reads a job's stream from the start, as far as the job has come. Of a complete job it also reads what has come since.
func readAgain(ctx context.Context, conns *stream.Connections, job stream.Job, upTo stream.Checkpoint) iter.Seq2[stream.Record, error] {
	return func(yield func(stream.Record, error) bool) {
		if upTo.Seq == 0 {
			return
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		r, err := newVerifyReader(conns, job, cancel)
		if err != nil {
			yield(stream.Record{}, err)
			return
		}
		defer r.Close()
		for at := uint64(0); ; {
			d, err := r.Next(ctx)
			if err == io.EOF || ctx.Err() != nil && at >= upTo.Seq {
				return
			}
			if err != nil {
				yield(stream.Record{}, fmt.Errorf("ask the producer again: %w", err))
				return
			}
			for _, record := range d.Records {
				if !yield(record, nil) {
					return
				}
				if at = record.Seq; at == upTo.Seq {
					if !upTo.Done {
						return
					}
					time.AfterFunc(endWithin, func() { cancel(nil) })
				}
			}
		}
	}
}

// newVerifyReader opens the job's stream. It calls giveUp when the producer cannot be reached.
func newVerifyReader(conns *stream.Connections, job stream.Job, giveUp context.CancelCauseFunc) (*stream.Reader, error) {
	var failures atomic.Int32 // in a row
	return stream.NewReader(stream.ReaderConfig{
		Dial: conns.Dial, Stream: job.Stream, Target: job.Target, Query: job.Query, Name: job.ID, Logger: slog.New(slog.DiscardHandler),
		MaxRecord: 63 << 20, // whatever the job's worker may have taken
		Retry:     stream.Backoff{Min: 200 * time.Millisecond, Max: time.Second}, NoProgress: stream.Never, DeniedGrace: stream.AtOnce,
		Observe: func(e stream.Event) {
			switch e.Kind {
			case stream.EventCommitted:
				failures.Store(0)
			case stream.EventRetry:
				if failures.Add(1) > unreachableAfter {
					giveUp(e.Err)
				}
			}
		},
	}, stream.Checkpoint{})
}
