package streamtest

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

func testNotifierDelivered(t *testing.T, b *notifierBus) {
	sender, receiver := b.client(), b.client()
	l := b.listen(receiver, nil)
	b.settle(sender, l)
	for _, h := range []stream.Notification{
		{Stream: "users", Job: "1"},
		{Stream: "with a space", Job: "a b  c"},
		{Stream: "Ünï/cødé\n\t%20+&=", Job: `'"; DROP TABLE job --`},
		{Stream: "\x00\xff\xfe", Job: "\x00"},
		{Stream: "only the stream"},
		{Job: "only the job"},
		{},
		{Stream: strings.Repeat("s", 1000), Job: strings.Repeat("j", 1000)},
	} {
		b.send(sender, h)
		await(t, h, l)
	}
	// What is too long for the bus must still wake.
	l.mu.Lock()
	delete(l.seen, stream.Notification{})
	l.mu.Unlock()
	long := stream.Notification{Stream: "users", Job: strings.Repeat("%", 20_000)}
	b.send(sender, long)
	awaitFor(t, "a notification with a very long name wakes", func() bool { return l.has(long) || l.has(stream.Notification{}) })
	// A client may send what it receives itself.
	h := newNotification()
	b.send(receiver, h)
	await(t, h, l)
}

func testNotifierOneWakeAtATime(t *testing.T, b *notifierBus) {
	sender, receiver := b.client(), b.client()
	var calls atomic.Int32
	l := b.listen(receiver, func(ctx context.Context, _ stream.Notification) {
		calls.Add(1)
		select { // long enough for a second call to show
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	})
	b.settle(sender, l)
	for _, h := range b.sendMany(sender, 50) {
		await(t, h, l)
	}
	if calls.Load() < 50 {
		t.Errorf("wake was called %d times for 50 notifications", calls.Load())
	}
}

func testNotifierBlockedWake(t *testing.T, b *notifierBus) {
	sender, stuckClient, freeClient := b.client(), b.client(), b.client()
	release, blocked := make(chan struct{}), make(chan struct{})
	var unblock, once sync.Once
	defer unblock.Do(func() { close(release) })
	stuck := b.listen(stuckClient, func(ctx context.Context, _ stream.Notification) {
		once.Do(func() { close(blocked) })
		select {
		case <-release:
		case <-ctx.Done():
		}
	})
	b.settle(sender, stuck)
	<-blocked
	free := b.listen(freeClient, nil)
	b.settle(sender, free)
	sent := b.sendMany(sender, 100)
	for _, h := range sent {
		await(t, h, free)
	}
	stuck.mu.Lock()
	if n := len(stuck.seen); n != 1 {
		t.Errorf("while wake did not return, its listener was given %d notifications", n)
	}
	stuck.mu.Unlock()
	unblock.Do(func() { close(release) })
	if b.Broadcast {
		for _, h := range sent {
			await(t, h, stuck) // late, but not lost
		}
	} else {
		free.end(context.Canceled)
	}
	b.settle(sender, stuck)
}

func testNotifierGivenBack(t *testing.T, b *notifierBus) {
	if b.Hold == 0 {
		t.Skip("a notification is not given to another listener")
	}
	sender, stuckClient, freeClient := b.client(), b.client(), b.client()
	blocked, release := make(chan stream.Notification, 1), make(chan struct{})
	stuck := b.listen(stuckClient, func(ctx context.Context, h stream.Notification) {
		select {
		case blocked <- h:
		default:
		}
		select {
		case <-release:
		case <-ctx.Done():
		}
	})
	b.settle(sender, stuck)
	held := <-blocked
	free := b.listen(freeClient, nil)
	begin := time.Now()
	await(t, held, free)
	if took := time.Since(begin); took > b.Hold+5*time.Second {
		t.Errorf("another listener was given the notification after %v, where %v was the hold", took, b.Hold)
	}
	// It has no more than that one, also now that it has given that one back.
	for _, h := range b.sendMany(sender, 20) {
		await(t, h, free)
	}
	close(release)
	free.end(context.Canceled)
	b.settle(sender, stuck)
	stuck.end(context.Canceled)
	b.givenBackAtTheEnd(sender)
}

// sendMany sends new notifications.
func (b *notifierBus) sendMany(h stream.Notifier, n int) (sent []stream.Notification) {
	b.t.Helper()
	for range n {
		notification := newNotification()
		sent = append(sent, notification)
		b.send(h, notification)
	}
	return sent
}

// givenBackAtTheEnd: a notification in flight when a listener ends goes to another.
func (b *notifierBus) givenBackAtTheEnd(sender stream.Notifier) {
	again := make(chan stream.Notification, 1)
	stopping := b.listen(b.client(), func(ctx context.Context, h stream.Notification) {
		select {
		case again <- h:
		default:
		}
		<-ctx.Done()
	})
	b.settle(sender, stopping)
	inFlight := <-again
	stopping.end(context.Canceled)
	await(b.t, inFlight, b.listen(b.client(), nil))
}

func testNotifierManySenders(t *testing.T, b *notifierBus) {
	receiver := b.client()
	first, second := b.listen(receiver, nil), b.listen(b.client(), nil)
	senders := []stream.Notifier{b.client(), b.client(), receiver}
	b.settle(senders[0], first)
	b.settle(senders[0], second)
	var all []stream.Notification
	var sending sync.WaitGroup
	for i := range 16 {
		var mine []stream.Notification
		for range 20 {
			mine = append(mine, newNotification())
		}
		all = append(all, mine...)
		sending.Go(func() {
			for _, h := range mine {
				b.send(senders[i%len(senders)], h)
			}
		})
	}
	sending.Wait()
	for _, h := range all {
		await(t, h, first, second)
	}
	if b.Broadcast {
		for _, h := range all {
			await(t, h, first)
			await(t, h, second)
		}
	}
}

func testNotifierGarbage(t *testing.T, b *notifierBus) {
	if b.Garbage == nil {
		t.Skip("there is no way to put garbage onto the bus")
	}
	client := b.client()
	var wrong atomic.Int32
	l := b.listen(client, func(_ context.Context, h stream.Notification) {
		if h.Stream != "users" && h != (stream.Notification{}) {
			wrong.Add(1)
		}
	})
	b.settle(client, l)
	for _, text := range []string{"nothing", "a b c", "%zz %", strings.Repeat("x", 7000), "\x01\x02\x03", "{}"} {
		b.Garbage(t, text)
		h := newNotification()
		b.send(client, h)
		await(t, h, l)
	}
	if n := wrong.Load(); n > 0 {
		t.Errorf("garbage woke the listener %d times", n)
	}
}
