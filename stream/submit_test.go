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

// sentNotifications keeps what is sent.
type sentNotifications struct {
	stream.Notifier
	sent []stream.Notification
	send func(context.Context) error
}

func (h *sentNotifications) Send(ctx context.Context, notification stream.Notification) error {
	h.sent = append(h.sent, notification)
	if h.send != nil {
		return h.send(ctx)
	}
	return nil
}

// TestSubmitSendsANotification: without one a job waits for a worker's poll. A job that is not due, or already at work, has no use for it.
func TestSubmitSendsANotification(t *testing.T) {
	ctx := t.Context()
	store, notifier := memstore.New(), &sentNotifications{}
	submit := func(job stream.Job, want ...stream.Notification) {
		t.Helper()
		notifier.sent = nil
		status, err := stream.Submit(ctx, store, notifier, job)
		if err != nil || status.ID == "" {
			t.Errorf("submit %+v: %+v, error %v", job, status, err)
		}
		for i := range want {
			want[i].Job = status.ID
		}
		if !slices.Equal(notifier.sent, want) {
			t.Errorf("submit %+v sent %v, want %v", job, notifier.sent, want)
		}
	}
	submit(stream.Job{Stream: "users", DedupeKey: "k"}, stream.Notification{Stream: "users"})
	submit(stream.Job{Stream: "users", DedupeKey: "k"}, stream.Notification{Stream: "users"}) // the first caller may have died before its notification
	submit(stream.Job{Stream: "users", NotBefore: time.Now().Add(time.Hour)})
	if got, err := store.Claim(ctx, stream.Claim{Owner: stream.Owner{Incarnation: "w"}, Streams: []string{"users"}, TTL: time.Hour, Max: 1}); err != nil || len(got) != 1 {
		t.Fatalf("claimed %v, error %v", got, err)
	}
	submit(stream.Job{Stream: "users", DedupeKey: "k"})
	if _, err := stream.Submit(ctx, store, nil, stream.Job{Stream: "users"}); err != nil {
		t.Errorf("without notifications: %v", err)
	}
	notifier.sent = nil
	if _, err := stream.Submit(ctx, store, notifier, stream.Job{}); err == nil || len(notifier.sent) > 0 {
		t.Errorf("a job without a stream: error %v, notifications %v", err, notifier.sent)
	}
}

// TestSubmitSucceedsWithoutItsNotification: the job is in the store, so an error would have the caller submit it again.
func TestSubmitSucceedsWithoutItsNotification(t *testing.T) {
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
		job, err := stream.Submit(ctx, store, &sentNotifications{send: send}, stream.Job{Stream: "users"})
		if err != nil || ctx.Err() != nil {
			t.Errorf("%s: %v, %v", name, err, ctx.Err())
		}
		cancel()
		if got, err := store.Get(t.Context(), job.ID); err != nil || got.State != stream.Ready {
			t.Errorf("%s: the job is %+v, %v", name, got, err)
		}
		if !strings.Contains(logs.String(), "notification not sent") || !strings.Contains(logs.String(), job.ID) {
			t.Errorf("%s: the log says %q", name, &logs)
		}
	}
}
