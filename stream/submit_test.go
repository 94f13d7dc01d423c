package stream_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// sentHints keeps what is sent.
type sentHints struct {
	stream.Hints
	sent []stream.Hint
	send func(context.Context) error
}

func (h *sentHints) Send(ctx context.Context, hint stream.Hint) error {
	h.sent = append(h.sent, hint)
	if h.send != nil {
		return h.send(ctx)
	}
	return nil
}

// TestSubmitSendsAHint: without one a job waits for a worker's sweep. A job that is not due, or already at work, has no use for it.
func TestSubmitSendsAHint(t *testing.T) {
	ctx := t.Context()
	store, hints := memstore.New(), &sentHints{}
	submit := func(job stream.Job, want ...stream.Hint) {
		t.Helper()
		hints.sent = nil
		status, err := stream.Submit(ctx, store, hints, job)
		if err != nil || status.ID == "" {
			t.Errorf("submit %+v: %+v, error %v", job, status, err)
		}
		for i := range want {
			want[i].Job = status.ID
		}
		if !slices.Equal(hints.sent, want) {
			t.Errorf("submit %+v sent %v, want %v", job, hints.sent, want)
		}
	}
	submit(stream.Job{Stream: "users", DedupeKey: "k"}, stream.Hint{Stream: "users"})
	submit(stream.Job{Stream: "users", DedupeKey: "k"}, stream.Hint{Stream: "users"}) // the first caller may have died before its hint
	submit(stream.Job{Stream: "users", NotBefore: time.Now().Add(time.Hour)})
	if got, err := store.Claim(ctx, stream.Claim{Owner: stream.Owner{Incarnation: "w"}, Streams: []string{"users"}, TTL: time.Hour, Max: 1}); err != nil || len(got) != 1 {
		t.Fatalf("claimed %v, error %v", got, err)
	}
	submit(stream.Job{Stream: "users", DedupeKey: "k"})
	if _, err := stream.Submit(ctx, store, nil, stream.Job{Stream: "users"}); err != nil {
		t.Errorf("without hints: %v", err)
	}
	hints.sent = nil
	if _, err := stream.Submit(ctx, store, hints, stream.Job{}); err == nil || len(hints.sent) > 0 {
		t.Errorf("a job without a stream: error %v, hints %v", err, hints.sent)
	}
}

// TestSubmitSucceedsWithoutItsHint: the job is in the store, so an error would have the caller submit it again.
func TestSubmitSucceedsWithoutItsHint(t *testing.T) {
	var logs bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logs, nil)))
	defer slog.SetDefault(before)
	store := memstore.New()
	for name, send := range map[string]func(context.Context) error{
		"an error":  func(context.Context) error { return errors.New("the bus is down") },
		"no answer": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		logs.Reset()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		job, err := stream.Submit(ctx, store, &sentHints{send: send}, stream.Job{Stream: "users"})
		if err != nil || ctx.Err() != nil {
			t.Errorf("%s: %v, %v", name, err, ctx.Err())
		}
		cancel()
		if got, err := store.Get(t.Context(), job.ID); err != nil || got.State != stream.Ready {
			t.Errorf("%s: the job is %+v, %v", name, got, err)
		}
		if !strings.Contains(logs.String(), "hint not sent") || !strings.Contains(logs.String(), job.ID) {
			t.Errorf("%s: the log says %q", name, &logs)
		}
	}
}
