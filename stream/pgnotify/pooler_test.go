package pgnotify

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// Notifications through a pooler in transaction mode never came, and nothing said so.
func TestListeningThroughPgBouncerIsRefused(t *testing.T) {
	dsn := testserver.Postgres(t)
	transactions := testserver.PgBouncer(t, dsn, "transaction")
	if _, err := New(t.Context(), transactions.DSN(), quiet()); !errors.Is(err, ErrPooler) {
		t.Errorf("error %v, want ErrPooler", err)
	}
	// A pooler that does not answer at the start is found out by Listen.
	transactions.Stop(testserver.Fast)
	h, err := New(t.Context(), transactions.DSN(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	transactions.Start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Listen(ctx, func(context.Context, stream.Notification) {}); !errors.Is(err, ErrPooler) {
		t.Errorf("Listen returned %v, want ErrPooler", err)
	}
}

// In session mode a client has its server connection to itself, and notifications come.
func TestListeningThroughPgBouncerInSessionMode(t *testing.T) {
	h, err := New(t.Context(), testserver.PgBouncer(t, testserver.Postgres(t), "session").DSN(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want := stream.Notification{Stream: "users", Job: "a"}
	go func() { // until the listener listens, notifications are lost
		for ctx.Err() == nil {
			_ = h.Send(ctx, want)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	came := false
	err = h.Listen(ctx, func(_ context.Context, got stream.Notification) {
		if got == want {
			came = true
			cancel()
		}
	})
	if !came {
		t.Errorf("no notification came, error %v", err)
	}
}
