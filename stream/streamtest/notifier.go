package streamtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/stream"
)

// NotifierUnderTest is a bus for one test of [RunNotifier].
type NotifierUnderTest struct {
	// Open returns another client of the bus, as another process would have it. The suite closes it.
	Open func(t *testing.T) stream.Notifier
	// Broadcast: each listener gets each notification. Otherwise one of them does.
	Broadcast bool
	// Hold is how long a listener that does not return from wake keeps a notification back from the others; 0: it is not given to others.
	Hold time.Duration
	// SendLimit is how long a Send may take while the bus is unavailable.
	SendLimit time.Duration

	// The rest may be nil; then what needs it is not tested.

	// Stop takes the bus away, and Start brings it back.
	Stop, Start func(t *testing.T)
	// Freeze keeps connections open and answers nothing, until Thaw.
	Freeze, Thaw func(t *testing.T)
	// Cut ends all connections of clients, while the bus stays.
	Cut func(t *testing.T)
	// Garbage puts something onto the bus that is not a notification.
	Garbage func(t *testing.T, text string)
}

// hintPatience is how long the suite waits for what must happen.
const hintPatience = 60 * time.Second

// RunNotifier is the suite that every driver of [stream.Notifier] passes. open is called once per test, and should give it a bus, or a part
// of one, that no other test uses.
func RunNotifier(t *testing.T, open func(t *testing.T) NotifierUnderTest) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, bus *notifierBus)
	}{
		{"Delivered", testNotifierDelivered},
		{"OneWakeAtATime", testNotifierOneWakeAtATime},
		{"BlockedWake", testNotifierBlockedWake},
		{"GivenBack", testNotifierGivenBack},
		{"ManySenders", testNotifierManySenders},
		{"ListenEndsWithContext", testNotifierListenEnds},
		{"Close", testNotifierClose},
		{"SendWithEndedContext", testNotifierSendEnded},
		{"Garbage", testNotifierGarbage},
		{"Cut", testNotifierCut},
		{"Restart", testNotifierRestart},
		{"Away", testNotifierAway},
		{"Frozen", testNotifierFrozen},
	} {
		t.Run(test.name, func(t *testing.T) {
			ours := goleak.IgnoreCurrent()
			t.Cleanup(func() { // after all that the test and open have cleaned up
				deadline := time.Now().Add(20 * time.Second)
				for {
					err := goleak.Find(ours)
					if err == nil {
						return
					}
					if time.Now().After(deadline) {
						t.Errorf("after Close: %v", err)
						return
					}
				}
			})
			test.run(t, &notifierBus{NotifierUnderTest: open(t), t: t})
		})
	}
}

// hintBus is the bus of one test.
type notifierBus struct {
	NotifierUnderTest
	t *testing.T
}

func (b *notifierBus) client() stream.Notifier {
	b.t.Helper()
	h := b.Open(b.t)
	b.t.Cleanup(func() {
		closed := make(chan error, 1)
		go func() { closed <- h.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				b.t.Errorf("Close: %v", err)
			}
		case <-time.After(hintPatience):
			b.t.Errorf("Close did not return within %v", hintPatience)
		}
	})
	return h
}

// hintListener notes the notifications that one Listen was given.
type notifierListener struct {
	t      *testing.T
	cancel context.CancelFunc
	ended  chan error
	// block is what wake does beyond noting; nil: nothing.
	block func(ctx context.Context, h stream.Notification)

	inWake atomic.Int32
	mu     sync.Mutex
	seen   map[stream.Notification]int
	change chan struct{} // closed at the next notification
}

func (b *notifierBus) listen(h stream.Notifier, block func(context.Context, stream.Notification)) *notifierListener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &notifierListener{t: b.t, cancel: cancel, ended: make(chan error, 1), block: block, seen: map[stream.Notification]int{}, change: make(chan struct{})}
	go func() { l.ended <- h.Listen(ctx, l.wake) }()
	b.t.Cleanup(func() { l.end(context.Canceled) })
	return l
}

func (l *notifierListener) wake(ctx context.Context, h stream.Notification) {
	if n := l.inWake.Add(1); n != 1 {
		l.t.Errorf("wake is called %d times at once", n)
	}
	defer l.inWake.Add(-1)
	l.mu.Lock()
	l.seen[h]++
	close(l.change)
	l.change = make(chan struct{})
	l.mu.Unlock()
	if l.block != nil {
		l.block(ctx, h)
	}
}

// end ends Listen, if that was not done already, and expects its error.
func (l *notifierListener) end(want error) {
	l.t.Helper()
	l.cancel()
	select {
	case err, first := <-l.ended:
		if first && !errors.Is(err, want) {
			l.t.Errorf("Listen returned %v, want %v", err, want)
		}
		if first {
			close(l.ended)
		}
	case <-time.After(10 * time.Second):
		l.t.Error("Listen did not return within 10 s after its context ended")
	}
}

func (l *notifierListener) has(h stream.Notification) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[h] > 0
}

// await waits until one of the listeners has been given the notification.
func await(t *testing.T, h stream.Notification, among ...*notifierListener) {
	t.Helper()
	awaitFor(t, fmt.Sprintf("notification %q reaches a listener", h), func() bool {
		for _, l := range among {
			if l.has(h) {
				return true
			}
		}
		return false
	})
}

func awaitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(hintPatience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("this did not happen within %v: %s", hintPatience, what)
		}
	}
}

var hintNumber atomic.Int64

// newNotification makes a notification that no other is like.
func newNotification() stream.Notification {
	return stream.Notification{Stream: "users", Job: fmt.Sprintf("job-%d", hintNumber.Add(1))}
}

func (b *notifierBus) send(h stream.Notifier, notification stream.Notification) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hintPatience)
	defer cancel()
	if err := h.Send(ctx, notification); err != nil {
		b.t.Errorf("Send(%q): %v", notification, err)
	}
}

// settle sends new notifications, whose sends may fail, until each listener has been given one of them: then all are connected.
func (b *notifierBus) settle(h stream.Notifier, listeners ...*notifierListener) {
	b.t.Helper()
	deadline := time.Now().Add(hintPatience)
	var sent []stream.Notification
	var last error
	for {
		missing := 0
		for _, l := range listeners {
			got := false
			for _, notification := range sent {
				got = got || l.has(notification)
			}
			if !got {
				missing++
			}
		}
		if missing == 0 && len(sent) > 0 {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%d of %d listeners were given none of %d notifications within %v (last error of Send: %v)", missing, len(listeners), len(sent), hintPatience, last)
		}
		notification := newNotification()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := h.Send(ctx, notification); err != nil {
			last = err
		} else {
			sent = append(sent, notification)
		}
		cancel()
		time.Sleep(20 * time.Millisecond)
	}
}

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
	var sent []stream.Notification
	for range 50 {
		h := newNotification()
		sent = append(sent, h)
		b.send(sender, h)
	}
	for _, h := range sent {
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
	var sent []stream.Notification
	for range 100 {
		h := newNotification()
		sent = append(sent, h)
		b.send(sender, h)
	}
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
	var sent []stream.Notification
	for range 20 {
		h := newNotification()
		sent = append(sent, h)
		b.send(sender, h)
	}
	for _, h := range sent {
		await(t, h, free)
	}
	close(release)
	free.end(context.Canceled)
	b.settle(sender, stuck)
	// A notification in flight when a listener ends goes to another.
	again := make(chan stream.Notification, 1)
	stopping := b.listen(b.client(), func(ctx context.Context, h stream.Notification) {
		select {
		case again <- h:
		default:
		}
		<-ctx.Done()
	})
	stuck.end(context.Canceled)
	b.settle(sender, stopping)
	inHand := <-again
	stopping.end(context.Canceled)
	await(t, inHand, b.listen(b.client(), nil))
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
	var sending sync.WaitGroup
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

func testNotifierSendEnded(t *testing.T, b *notifierBus) {
	client := b.client()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := client.Send(ended, newNotification()); !errors.Is(err, context.Canceled) {
		t.Errorf("Send with an ended context returned %v, want %v", err, context.Canceled)
	}
	b.send(client, newNotification())
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
