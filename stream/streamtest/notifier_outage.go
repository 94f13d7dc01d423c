package streamtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

func testNotifierCut(t *testing.T, b *notifierBus) {
	if b.Cut == nil {
		t.Skip("connections cannot be cut")
	}
	sender, receiver := b.client(), b.client()
	l := b.listen(receiver, nil)
	b.settle(sender, l)
	for range 3 {
		b.Cut(t)
		b.settle(sender, l)
	}
}

func testNotifierRestart(t *testing.T, b *notifierBus) {
	if b.Stop == nil {
		t.Skip("the bus cannot be stopped")
	}
	sender, receiver := b.client(), b.client()
	l := b.listen(receiver, nil)
	b.settle(sender, l)
	// Sends go on all the while.
	ctx, cancel := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	for range 4 {
		sending.Go(func() {
			for ctx.Err() == nil {
				_ = sender.Send(ctx, newNotification()) // some fail
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	defer sending.Wait()
	defer cancel()
	b.Stop(t)
	b.Start(t)
	b.settle(sender, l)
}

func testNotifierAway(t *testing.T, b *notifierBus) {
	if b.Stop == nil {
		t.Skip("the bus cannot be stopped")
	}
	sender, receiver := b.client(), b.client()
	l := b.listen(receiver, nil)
	b.settle(sender, l)
	b.Stop(t)
	b.sendFails(sender)
	// Listen ends also while it reconnects.
	second := b.listen(receiver, nil)
	b.sendFails(receiver)
	second.end(context.Canceled)
	// So does Close.
	third := b.Open(t)
	done := make(chan error, 1)
	go func() { done <- third.Listen(context.Background(), func(context.Context, stream.Notification) {}) }()
	if err := third.Close(); err != nil {
		t.Errorf("Close while the bus is unavailable: %v", err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("Listen returned nil after Close")
		}
	case <-time.After(10 * time.Second):
		t.Error("Listen did not return within 10 s after Close")
	}
	// A client that was made while the bus was away works, once it is back.
	late := b.client()
	lateListener := b.listen(late, nil)
	b.Start(t)
	b.settle(sender, l)
	l.end(context.Canceled)
	b.settle(late, lateListener)
}

func testNotifierFrozen(t *testing.T, b *notifierBus) {
	if b.Freeze == nil {
		t.Skip("the bus cannot be frozen")
	}
	sender, receiver := b.client(), b.client()
	l := b.listen(receiver, nil)
	b.settle(sender, l)
	b.Freeze(t)
	thaw := sync.OnceFunc(func() { b.Thaw(t) })
	defer thaw()
	b.sendFails(sender)
	second := b.listen(receiver, nil)
	second.end(context.Canceled)
	thaw()
	b.settle(sender, l)
}

// sendFails expects errors in bounded time, with and without a deadline of the caller, and from many callers at once.
func (b *notifierBus) sendFails(h stream.Notifier) {
	b.t.Helper()
	var sending sync.WaitGroup
	defer sending.Wait()
	for _, limit := range []time.Duration{0, 0, 200 * time.Millisecond, 200 * time.Millisecond} {
		sending.Go(func() {
			ctx, most := context.Background(), b.SendLimit
			if limit > 0 {
				short, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				ctx, most = short, limit
			}
			begin := time.Now()
			if err := h.Send(ctx, newNotification()); err == nil {
				b.t.Error("Send to a bus that is away returned no error")
			}
			if took := time.Since(begin); took > most+5*time.Second {
				b.t.Errorf("Send took %v, where %v was the limit", took, most)
			}
		})
	}
}
