package streamtest

import (
	"context"
	"errors"
	"fmt"
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

// notifierPatience is how long the suite waits for what must happen.
const notifierPatience = 60 * time.Second

// notifierTests are the checks of RunNotifier.
var notifierTests = []struct {
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
}

// RunNotifier is the suite that every driver of [stream.Notifier] passes. open is called once per test, and should give it a bus, or a part
// of one, that no other test uses.
func RunNotifier(t *testing.T, open func(t *testing.T) NotifierUnderTest) {
	for _, test := range notifierTests {
		t.Run(test.name, func(t *testing.T) {
			ours := goleak.IgnoreCurrent()
			t.Cleanup(func() { findLeaks(t, ours) }) // after all that the test and open have cleaned up
			test.run(t, &notifierBus{NotifierUnderTest: open(t), t: t})
		})
	}
}

// findLeaks waits for goroutines that end after Close, and fails for those that do not.
func findLeaks(t *testing.T, ours goleak.Option) {
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := goleak.Find(ours)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after Close: %v", err)
			return
		}
	}
}

// notifierBus is the bus of one test.
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
		case <-time.After(notifierPatience):
			b.t.Errorf("Close did not return within %v", notifierPatience)
		}
	})
	return h
}

// notifierListener notes the notifications that one Listen was given.
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
	for deadline := time.Now().Add(notifierPatience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("this did not happen within %v: %s", notifierPatience, what)
		}
	}
}

var notificationNumber atomic.Int64

// newNotification makes a notification that no other is like.
func newNotification() stream.Notification {
	return stream.Notification{Stream: "users", Job: fmt.Sprintf("job-%d", notificationNumber.Add(1))}
}

func (b *notifierBus) send(h stream.Notifier, notification stream.Notification) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), notifierPatience)
	defer cancel()
	if err := h.Send(ctx, notification); err != nil {
		b.t.Errorf("Send(%q): %v", notification, err)
	}
}

// settle sends new notifications, whose sends may fail, until each listener has been given one of them: then all are connected.
func (b *notifierBus) settle(h stream.Notifier, listeners ...*notifierListener) {
	b.t.Helper()
	deadline := time.Now().Add(notifierPatience)
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
			b.t.Fatalf("%d of %d listeners were given none of %d notifications within %v (last error of Send: %v)", missing, len(listeners), len(sent), notifierPatience, last)
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
