package streamtest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

func testNotifierListenEnds(t *testing.T, b *notifierBus) {
	client := b.client()
	idle := b.listen(client, nil)
	b.settle(client, idle)
	idle.end(context.Canceled)

	blocked := make(chan struct{})
	var once sync.Once
	busy := b.listen(client, func(ctx context.Context, _ stream.Notification) {
		once.Do(func() { close(blocked) })
		<-ctx.Done()
	})
	b.settle(client, busy)
	<-blocked
	busy.end(context.Canceled)

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := client.Listen(ended, func(context.Context, stream.Notification) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("Listen with an ended context returned %v", err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := client.Listen(short, func(context.Context, stream.Notification) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Listen until a deadline returned %v", err)
	}
}

func testNotifierClose(t *testing.T, b *notifierBus) {
	client, other := b.Open(t), b.client()
	l := b.listen(client, nil)
	otherListener := b.listen(other, nil)
	b.settle(other, l)
	b.settle(other, otherListener)
	sending := sendUntilError(client)
	if err := client.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case err := <-l.ended:
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("after Close, Listen returned %v", err)
		}
		close(l.ended)
	case <-time.After(10 * time.Second):
		t.Error("Listen did not return within 10 s after Close")
	}
	sending.Wait() // each ends with an error
	if err := client.Send(context.Background(), newNotification()); err == nil {
		t.Error("Send after Close returned no error")
	}
	if err := client.Listen(context.Background(), func(context.Context, stream.Notification) {}); err == nil {
		t.Error("Listen after Close returned no error")
	}
	if err := client.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
	b.settle(other, otherListener) // others are not touched
}

// sendUntilError sends in several goroutines until that fails. It returns when one has sent.
func sendUntilError(client stream.Notifier) *sync.WaitGroup {
	sending := new(sync.WaitGroup)
	started := make(chan struct{}, 8)
	for range 8 {
		sending.Go(func() {
			for {
				if err := client.Send(context.Background(), newNotification()); err != nil {
					return
				}
				select {
				case started <- struct{}{}:
				default:
				}
			}
		})
	}
	<-started
	return sending
}

func testNotifierSendEnded(t *testing.T, b *notifierBus) {
	client := b.client()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := client.Send(ended, newNotification()); !errors.Is(err, context.Canceled) {
		t.Errorf("Send with an ended context returned %v, want %v", err, context.Canceled)
	}
	b.send(client, newNotification())
}
