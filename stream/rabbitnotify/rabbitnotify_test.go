package rabbitnotify

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

var queues atomic.Int64

func newQueue() string { return fmt.Sprintf("notifications-%d", queues.Add(1)) }

func quiet() Option { return WithLogger(slog.New(slog.DiscardHandler)) }

// through returns the URL with another address.
func through(t *testing.T, dsn, address string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = address
	return u.String()
}

func host(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func TestConformance(t *testing.T) {
	server := testserver.RabbitMQServer(t)
	// A quorum queue that was made in the last second before its broker is killed has no leader afterwards, indefinitely (RabbitMQ 3.10). So
	// the queues are older than a restart in good order.
	ch := channel(t, server.DSN())
	unused := make(chan string, 20)
	for range cap(unused) {
		queue := newQueue()
		if _, err := ch.QueueDeclare(queue, true, false, false, false, queueArguments()); err != nil {
			t.Fatal(err)
		}
		unused <- queue
	}
	server.Restart(testserver.Fast)
	how := []testserver.How{testserver.Killed, testserver.Fast}
	stops := 0
	streamtest.RunNotifier(t, func(t *testing.T) streamtest.NotifierUnderTest {
		queue := <-unused
		network := streamtest.NewBadNet(t, host(t, server.DSN()))
		return streamtest.NotifierUnderTest{
			Open: func(t *testing.T) stream.Notifier {
				h, err := New(t.Context(), through(t, server.DSN(), network.Addr()), WithQueue(queue), WithHold(500*time.Millisecond), WithSendTimeout(2*time.Second), quiet())
				if err != nil {
					t.Fatal(err)
				}
				return h
			},
			Hold: 500 * time.Millisecond, SendLimit: 2 * time.Second,
			Stop:    func(*testing.T) { server.Stop(how[stops%len(how)]); stops++ },
			Start:   func(*testing.T) { server.Start() },
			Freeze:  func(*testing.T) { server.Freeze() },
			Thaw:    func(*testing.T) { server.Thaw() },
			Cut:     func(*testing.T) { network.Open().Reset() },
			Garbage: func(t *testing.T, text string) { publish(t, server.DSN(), queue, text) },
		}
	})
}

func channel(t *testing.T, dsn string) *amqp.Channel {
	t.Helper()
	c, err := amqp.Dial(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func publish(t *testing.T, dsn, queue, text string) {
	t.Helper()
	if err := channel(t, dsn).PublishWithContext(t.Context(), "", queue, true, false, amqp.Publishing{Body: []byte(text)}); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dsn string, opts ...Option) *Notifier {
	t.Helper()
	h, err := New(t.Context(), dsn, append(opts, quiet())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestMessage(t *testing.T) {
	dsn := testserver.RabbitMQ(t)
	queue := newQueue()
	h := open(t, dsn, WithQueue(queue), WithKeep(time.Hour))
	if err := h.Send(t.Context(), stream.Notification{Stream: "users", Job: "a b"}); err != nil {
		t.Fatal(err)
	}
	d, ok, err := channel(t, dsn).Get(queue, true)
	if err != nil || !ok {
		t.Fatalf("a sent notification is not in the queue (ok %v, error %v)", ok, err)
	}
	if got, want := string(d.Body), "users a+b"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if d.DeliveryMode != amqp.Persistent || d.Expiration != "3600000" {
		t.Errorf("delivery mode %d, expiration %q; want persistent, and 3600000 ms", d.DeliveryMode, d.Expiration)
	}
}

func TestNotificationsThatNoWorkerTakesGoAway(t *testing.T) {
	dsn := testserver.RabbitMQ(t)
	queue := newQueue()
	h := open(t, dsn, WithQueue(queue), WithKeep(100*time.Millisecond))
	if err := h.Send(t.Context(), stream.Notification{Stream: "users", Job: "1"}); err != nil {
		t.Fatal(err)
	}
	ch := channel(t, dsn)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if q.Messages == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d notifications are still there 30 s after their time", q.Messages)
		}
	}
}

// Without the queue the broker confirms a message all the same, and drops it.
func TestQueueDeleted(t *testing.T) {
	dsn := testserver.RabbitMQ(t)
	queue := newQueue()
	h := open(t, dsn, WithQueue(queue))
	woken := make(chan stream.Notification, 100)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); <-ended }()
	notification := stream.Notification{Stream: "users", Job: "before"}
	if err := h.Send(t.Context(), notification); err != nil {
		t.Fatal(err)
	}
	if _, err := channel(t, dsn).QueueDelete(queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	notification.Job = "sent while there is no queue"
	if err := h.Send(t.Context(), notification); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- h.Listen(ctx, func(_ context.Context, h stream.Notification) { woken <- h }) }()
	expect(t, woken, notification)
	// While somebody listens.
	if _, err := channel(t, dsn).QueueDelete(queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	notification.Job = "after"
	if err := h.Send(t.Context(), notification); err != nil {
		t.Fatal(err)
	}
	expect(t, woken, notification)
}

func expect(t *testing.T, woken <-chan stream.Notification, want stream.Notification) {
	t.Helper()
	select {
	case got := <-woken:
		if got != want {
			t.Errorf("woken with %q, want %q", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("not woken with %q within 30 s", want)
	}
}

// A message that is no notification is not handed out again and again.
func TestGarbageIsTakenOffTheQueue(t *testing.T) {
	dsn := testserver.RabbitMQ(t)
	queue := newQueue()
	h := open(t, dsn, WithQueue(queue))
	for _, text := range []string{"nothing", "%% %%", strings.Repeat("x", 100_000)} {
		publish(t, dsn, queue, text)
	}
	notification := stream.Notification{Stream: "users", Job: "1"}
	if err := h.Send(t.Context(), notification); err != nil {
		t.Fatal(err)
	}
	woken := make(chan stream.Notification, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Listen(ctx, func(_ context.Context, h stream.Notification) { woken <- h }) }()
	expect(t, woken, notification)
	cancel()
	<-ended
	if d, ok, err := channel(t, dsn).Get(queue, true); ok || err != nil {
		t.Errorf("left on the queue: %q (error %v)", d.Body, err)
	}
}

func TestNewRefuses(t *testing.T) {
	dsn := testserver.RabbitMQ(t)
	other := newQueue()
	if _, err := channel(t, dsn).QueueDeclare(other, false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		url, want string
		opts      []Option
	}{
		"no URL":        {"localhost", "amqp://user:password@host:5672/vhost", nil},
		"password":      {strings.Replace(dsn, "guest:guest", "guest:wrong", 1), "", nil},
		"virtual host":  {dsn + "nowhere", "", nil},
		"another queue": {dsn, other, []Option{WithQueue(other)}},
		"no queue":      {dsn, "queue's name", []Option{WithQueue("")}},
		"no hold":       {dsn, "hold (0s)", []Option{WithHold(0)}},
	} {
		h, err := New(t.Context(), c.url, append(c.opts, quiet())...)
		if err == nil {
			_ = h.Close()
			t.Errorf("%s: New returned no error", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "rabbitnotify: ") {
			t.Errorf("%s: error %q does not say %q", name, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("users 1"))
	f.Add([]byte("%zz %"))
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := decode(amqp.Delivery{Body: body})
		if err != nil && h != (stream.Notification{}) {
			t.Errorf("decode(%q) = %q with error %v", body, h, err)
		}
	})
}
