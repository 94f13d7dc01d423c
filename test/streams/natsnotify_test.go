// Package streams tests drivers of streams with servers that their modules do not depend on.
package streams

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/natsnotify"
	"github.com/levada-io/levada/stream/streamtest"
)

func quiet() natsnotify.Option { return natsnotify.WithLogger(slog.New(slog.DiscardHandler)) }

func options() []natsnotify.Option {
	return []natsnotify.Option{natsnotify.WithHold(500 * time.Millisecond), natsnotify.WithSendTimeout(2 * time.Second), quiet()}
}

func start(t *testing.T, cfg broker.Config) *broker.Broker {
	t.Helper()
	b, err := broker.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return b
}

// open makes notifications on a connection of their own, which ends with the test.
func open(t *testing.T, connect func() (*nats.Conn, error), opts ...natsnotify.Option) *natsnotify.Notifier {
	t.Helper()
	nc, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	h, err := natsnotify.New(t.Context(), nc, append(options(), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestConformanceInProcess(t *testing.T) {
	streamtest.RunNotifier(t, func(t *testing.T) streamtest.NotifierUnderTest {
		b := start(t, broker.Config{Dir: t.TempDir(), SyncInterval: time.Minute})
		return streamtest.NotifierUnderTest{
			Open: func(t *testing.T) stream.Notifier {
				return open(t, func() (*nats.Conn, error) { return b.Connect() })
			},
			Hold: 500 * time.Millisecond, SendLimit: 2 * time.Second,
			Garbage: func(t *testing.T, text string) {
				nc, err := b.Connect()
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				publish(t, nc, natsnotify.DefaultStream, text)
			},
		}
	})
}

func TestConformanceOverTheNetwork(t *testing.T) {
	streamtest.RunNotifier(t, func(t *testing.T) streamtest.NotifierUnderTest {
		cfg := broker.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}
		running := start(t, cfg)
		u, err := url.Parse(running.URL())
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listen = u.Host // for the next starts
		network := streamtest.NewBadNet(t, u.Host)
		connect := func() (*nats.Conn, error) {
			return nats.Connect("nats://"+network.Addr(), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.IgnoreDiscoveredServers(),
				nats.ReconnectWait(50*time.Millisecond), nats.PingInterval(time.Second), nats.Timeout(time.Second), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		}
		return streamtest.NotifierUnderTest{
			Open: func(t *testing.T) stream.Notifier { return open(t, connect) },
			Hold: 500 * time.Millisecond, SendLimit: 2 * time.Second,
			Stop:  func(*testing.T) { running.Stop() },
			Start: func(t *testing.T) { running = start(t, cfg) },
			Freeze: func(*testing.T) {
				network.New().Stall(streamtest.BothWays)
				network.Open().Stall(streamtest.BothWays)
			},
			Thaw: func(*testing.T) {
				network.New().Resume()
				network.Open().Resume()
			},
			Cut: func(*testing.T) { network.Open().Reset() },
		}
	})
}

func publish(t *testing.T, nc *nats.Conn, queue, text string) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "levada.notifications."+queue, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func connectTo(t *testing.T, b *broker.Broker) *nats.Conn {
	t.Helper()
	nc, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// awaitEmpty waits until the stream, which holds one message, holds none.
func awaitEmpty(t *testing.T, nc *nats.Conn, name string) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.State.LastSeq != 1 {
			t.Fatalf("the stream has had %d messages, want 1", info.State.LastSeq)
		}
		if info.State.Msgs == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the message is still in the stream after 30 s")
		}
	}
}

func TestStreamEmpties(t *testing.T) {
	nc := connectTo(t, start(t, broker.Config{Dir: t.TempDir()}))
	for name, c := range map[string]struct {
		keep   time.Duration
		text   string
		listen bool
	}{
		"taken":   {time.Hour, "users 1", true},
		"garbage": {time.Hour, "garbage", true},
		"too old": {200 * time.Millisecond, "users 1", false},
	} {
		t.Run(name, func(t *testing.T) {
			queue := strings.ReplaceAll(name, " ", "-")
			h, err := natsnotify.New(t.Context(), nc, append(options(), natsnotify.WithKeep(c.keep), natsnotify.WithStream(queue))...)
			if err != nil {
				t.Fatal(err)
			}
			publish(t, nc, queue, c.text)
			if c.listen {
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- h.Listen(ctx, func(context.Context, stream.Notification) {}) }()
				defer func() { cancel(); <-ended }()
			}
			awaitEmpty(t, nc, queue)
		})
	}
}

func TestStreamDeleted(t *testing.T) {
	nc := connectTo(t, start(t, broker.Config{Dir: t.TempDir()}))
	h, err := natsnotify.New(t.Context(), nc, options()...)
	if err != nil {
		t.Fatal(err)
	}
	woken := make(chan stream.Notification, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Listen(ctx, func(_ context.Context, h stream.Notification) { woken <- h }) }()
	defer func() { cancel(); <-ended }()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, job := range []string{"1", "2", "3"} {
		want := stream.Notification{Stream: "users", Job: job}
		if err := h.Send(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-woken:
			if got != want {
				t.Errorf("woken with %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("not woken with %q within 30 s", want)
		}
		if err := js.DeleteStream(t.Context(), natsnotify.DefaultStream); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConnectionClosedForGood(t *testing.T) {
	nc := connectTo(t, start(t, broker.Config{Dir: t.TempDir()}))
	h, err := natsnotify.New(t.Context(), nc, options()...)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Listen(t.Context(), func(context.Context, stream.Notification) {}) }()
	nc.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, nats.ErrConnectionClosed) {
			t.Errorf("Listen returned %v, want %v", err, nats.ErrConnectionClosed)
		}
	case <-time.After(30 * time.Second):
		t.Error("Listen did not return within 30 s after the connection was closed for good")
	}
	begin := time.Now()
	if err := h.Send(t.Context(), stream.Notification{}); !errors.Is(err, nats.ErrConnectionClosed) || time.Since(begin) > time.Second {
		t.Errorf("Send returned %v after %v", err, time.Since(begin))
	}
	if _, err := natsnotify.New(t.Context(), nc, quiet()); err == nil {
		t.Error("natsnotify.New with a closed connection returned no error")
	}
}

func TestNewRefuses(t *testing.T) {
	nc := connectTo(t, start(t, broker.Config{Dir: t.TempDir()}))
	for name, o := range map[string]natsnotify.Option{
		"replicas without a cluster": natsnotify.WithReplicas(3), "no replica": natsnotify.WithReplicas(0), "name": natsnotify.WithStream("a.b c"), "no hold": natsnotify.WithHold(0), "keep": natsnotify.WithKeep(0),
	} {
		if js, err := jetstream.New(nc); err != nil {
			t.Fatal(err)
		} else if _, err := js.Stream(t.Context(), natsnotify.DefaultStream); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Fatalf("the stream was made in spite of an error (%v), and would be used as it is", err)
		}
		if _, err := natsnotify.New(t.Context(), nc, append(options(), o)...); err == nil || !strings.HasPrefix(err.Error(), "natsnotify: ") {
			t.Errorf("%s: natsnotify.New returned %v", name, err)
		}
	}
}
