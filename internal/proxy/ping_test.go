package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/levada-io/levada/internal/h2/frame"
)

// pipes is a listener whose connections are in the process, so that they work in virtual time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error { l.once.Do(func() { close(l.done) }); return nil }

func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// dial connects with a latency each way.
func (l *pipes) dial(running *sync.WaitGroup, latency time.Duration) net.Conn {
	near, farNear := net.Pipe()
	nearFar, far := net.Pipe()
	running.Go(func() { carry(farNear, nearFar, latency) })
	running.Go(func() { carry(nearFar, farNear, latency) })
	l.conns <- far
	return near
}

// carry delivers what it reads after the latency, in order.
func carry(from, to net.Conn, latency time.Duration) {
	type parcel struct {
		b  []byte
		at time.Time
	}
	road := make(chan parcel, 1000)
	var delivering sync.WaitGroup
	defer delivering.Wait()
	delivering.Go(func() {
		defer func() { _ = to.Close() }()
		for p := range road {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.b); err != nil {
				_ = from.Close()
			}
		}
	})
	defer close(road)
	for {
		b := make([]byte, 32<<10)
		n, err := from.Read(b)
		if n > 0 {
			road <- parcel{b[:n], time.Now().Add(latency)}
		}
		if err != nil {
			return
		}
	}
}

// virtual is a proxy in virtual time with one client and one connection to a gRPC server.
func virtual(t *testing.T, latency time.Duration, options []string, handler grpc.StreamHandler) (c *wire, b *back, stop func()) {
	t.Helper()
	server := grpc.NewServer(grpc.UnknownServiceHandler(handler))
	behind := newPipes()
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(behind) })
	p, err := New(parse(t, oneBackend("127.0.0.1:1", options...)), Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { p.wheel.Run(ctx) })
	x := p.state.Load().clusters["one"]
	x.update([]string{"pipe"})
	e := x.set.Backends()[0].Of
	// What endpoint.connection does, without TCP.
	b = &back{endpoint: e, streams: map[uint32]*stream{}, next: 1}
	b.init(p, behind.dial(&running, latency), 64<<10)
	b.watch.Init(b.checkHealth)
	hello := frame.AppendSettings([]byte(frame.Preface), frame.Setting{ID: frame.EnablePush, Value: 0}, frame.Setting{ID: frame.InitialWindowSize, Value: firstWindow})
	if _, err := b.nc.Write(frame.AppendWindowUpdate(hello, 0, connWindow-frame.DefaultWindow)); err != nil {
		t.Fatal(err)
	}
	if err := b.greet(); err != nil {
		t.Fatal(err)
	}
	b.idleSince, b.quiet = b.now, b.now
	e.mu.Lock()
	e.main.conns = append(e.main.conns, b)
	e.mu.Unlock()
	running.Go(b.run)
	near, far := net.Pipe()
	running.Go(func() { p.listeners[0].serve(far) })
	c = callOver(t, near)
	return c, b, func() {
		c.close()
		b.kill(errors.New("the test is over"))
		server.Stop()
		cancel()
		running.Wait()
	}
}

// TestGentlePings: an hour of silence on an open stream makes no gRPC server with default settings say GOAWAY (too_many_pings), whatever the interval, and
// whatever was said before the silence.
func TestGentlePings(t *testing.T) {
	say := func(gaps ...time.Duration) grpc.StreamHandler {
		return func(_ any, s grpc.ServerStream) error {
			for _, gap := range gaps {
				time.Sleep(gap)
				if err := s.SendMsg(&emptypb.Empty{}); err != nil {
					return err
				}
			}
			for {
				if err := s.RecvMsg(&emptypb.Empty{}); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		}
	}
	const latency = 100 * time.Millisecond
	for name, test := range map[string]struct {
		interval string
		handler  grpc.StreamHandler
	}{
		"silent from the start":       {"5s", say()},
		"one message":                 {"5s", say(time.Second)},
		"a message from time to time": {"5s", say(20*time.Second, 4*time.Minute, 6*time.Minute, time.Second)},
		// The server sends at 5 s less half a latency: its message and the PING cross.
		"crossing":             {"5s", say(0, 5*time.Second+latency/2)},
		"crossing again":       {"5s", say(0, 5*time.Second+latency/2, 5*time.Second+latency/2, 5*time.Second+latency/2)},
		"an interval of 1 s":   {"1s", say(time.Second)},
		"an interval of 30 s":  {"30s", say(time.Second)},
		"an interval of 2 min": {"2m", say(time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, b, stop := virtual(t, latency, []string{"backend: ping: {interval: " + test.interval + ", timeout: 5s, gentle: true}", "listener: keepalive: {interval: 0s}"}, test.handler)
				defer stop()
				id := c.begin(false)
				time.Sleep(time.Hour)
				b.mu.Lock()
				pings := b.pings
				b.mu.Unlock()
				if !c.open() || c.seen(func(e *event) bool { return e.end || e.kind == http2.FrameRSTStream }) > 0 {
					t.Fatalf("after an hour of silence the stream has ended: %v", c.events)
				}
				if pings < 5 {
					t.Errorf("only %d pings in an hour", pings)
				}
				c.data(id, nil, true)
				if got := c.end(id).status(); got != "0" {
					t.Errorf("ended with %s", got)
				}
			})
		})
	}
}
