package stream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
)

// replica is a producer, and how many streams it serves.
type replica struct {
	*stream.Server
	grpc *grpc.Server
	addr *net.TCPAddr
}

// startReplica serves an endless stream on an address of the loopback interface.
func startReplica(t *testing.T, listener net.Listener, age time.Duration) *replica {
	t.Helper()
	r := &replica{Server: valid(stream.NewServer(stream.ServerConfig{MaxStreamAge: age, Logger: quiet})), grpc: grpc.NewServer()}
	r.addr, _ = listener.Addr().(*net.TCPAddr)
	r.Handle("numbers", &counted{n: 1 << 30, at: func(ctx context.Context, seq int) error {
		if !sleep(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
		return nil
	}})
	r.Register(r.grpc)
	done := make(chan struct{})
	go func() { defer close(done); r.grpc.Serve(listener) }()
	t.Cleanup(func() { r.grpc.Stop(); <-done })
	return r
}

// keepReading keeps a reader on the stream until the test ends.
func keepReading(t *testing.T, conns *stream.Connections, readers int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range readers {
		r, err := stream.NewReader(stream.ReaderConfig{Dial: conns.Dial, Stream: "numbers", Logger: quiet}, stream.Checkpoint{})
		must(t, err)
		all.Go(func() {
			for {
				if _, err := r.Next(ctx); err != nil {
					r.Close()
					return
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); all.Wait() })
}

// Readers behind a name find the replicas that are added to it: when a stream was ended for its age, the name is resolved again. On one
// connection the old addresses would be used until one of them fails.
func TestReadersFindNewReplicasOfAName(t *testing.T) {
	first := startReplica(t, listenOn(t, "127.0.0.1:0"), 2*time.Second)
	second := startReplica(t, listenOn(t, fmt.Sprintf("127.0.0.2:%d", first.addr.Port)), 2*time.Second)
	name := startDNS(t)
	name.set(first.addr.IP)
	conns := stream.NewConnections(fmt.Sprintf("dns://%s/producer.test:%d", name.addr, first.addr.Port), grpc.WithTransportCredentials(insecure.NewCredentials()))
	t.Cleanup(func() { conns.Close() })
	keepReading(t, conns, 6)
	eventually(t, "all readers are on the first replica", func() bool { return first.Open() == 6 })
	name.set(first.addr.IP, second.addr.IP)
	eventually(t, "some readers are on the new replica", func() bool { return second.Open() >= 2 })
	name.set(second.addr.IP)
	eventually(t, "all readers are on the replica that is left", func() bool { return first.Open() == 0 && second.Open() == 6 })
}

// A virtual address, such as that of a Kubernetes service, spreads connections: readers find new replicas behind it only with new ones.
func TestReadersFindNewReplicasBehindAVirtualAddress(t *testing.T) {
	first, second := startReplica(t, listenOn(t, "127.0.0.1:0"), 2*time.Second), startReplica(t, listenOn(t, "127.0.0.1:0"), 2*time.Second)
	var both atomic.Bool
	var n, dialled atomic.Int64
	conns := stream.NewConnections("passthrough:///service", insecureTo(func(ctx context.Context, _ string) (net.Conn, error) {
		dialled.Add(1)
		to := first
		if both.Load() && n.Add(1)%2 == 1 {
			to = second
		}
		return new(net.Dialer).DialContext(ctx, "tcp", to.addr.String())
	})...)
	t.Cleanup(func() { conns.Close() })
	keepReading(t, conns, 6)
	eventually(t, "all readers are on the first replica", func() bool { return first.Open() == 6 })
	both.Store(true)
	eventually(t, "some readers are on the new replica", func() bool { return second.Open() >= 1 })
	if n := dialled.Load(); n > 60 {
		t.Errorf("%d connections were made for 6 readers", n)
	}
}

// Streams that end by themselves never drain, and new replicas are found all the same.
func TestReadersOfShortStreamsFindNewReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(10)...))
		var dialled atomic.Int64
		conns := stream.NewConnections("passthrough:///service", insecureTo(func(ctx context.Context, _ string) (net.Conn, error) {
			dialled.Add(1)
			return p.listener.DialContext(ctx)
		})...)
		defer conns.Close()
		for range 60 {
			r, err := stream.NewReader(stream.ReaderConfig{Dial: conns.Dial, Stream: "s", Logger: quiet}, stream.Checkpoint{})
			must(t, err)
			for err == nil {
				_, err = r.Next(t.Context())
			}
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			r.Close()
			time.Sleep(30 * time.Second)
		}
		if n := dialled.Load(); n < 4 || n > 10 {
			t.Errorf("%d connections were made within half an hour", n)
		}
	})
}

// A connection that swallows everything is given up with the first stream on it that falls silent, without any ping.
func TestASilentConnectionIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{MaxStreamAge: -1}, "s", &counted{n: 100, at: func(ctx context.Context, _ int) error {
			if !sleep(ctx, time.Second) {
				return ctx.Err()
			}
			return nil
		}})
		made := make(chan *simConn, 10)
		conns := stream.NewConnections("passthrough:///any", insecureTo(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := p.listener.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			c := &simConn{Conn: conn, gone: make(chan struct{})}
			made <- c
			return c, nil
		})...)
		defer conns.Close()
		l := newLab(t, conns.Dial)
		l.start("s", l.store.Sink(l.table.handle))
		job := l.submit(stream.Job{Stream: "s"})
		l.await("10 rows", time.Minute, func() bool { return l.table.len() >= 10 })
		first := <-made
		first.silent.Store(true)
		at := time.Now()
		l.await("more rows", 5*time.Minute, func() bool { return l.table.len() >= 15 })
		if took := time.Since(at); took > 40*time.Second {
			t.Errorf("it took %v to go on", took)
		}
		l.is(l.end(job.ID, 10*time.Minute), stream.Completed, "")
		if len(made) != 1 {
			t.Errorf("%d connections were made beside the first", len(made))
		}
		first.release()
		for len(made) > 0 {
			(<-made).release()
		}
	})
}

// A gRPC server with the policy that it has by default closes no connection, however slow the handlers are and however little it sends
// meanwhile: too many pings would end the streams of all jobs.
func TestNoServerClosesAConnectionForItsPings(t *testing.T) {
	for name, commit := range map[string]time.Duration{"commits of 10 s": 10 * time.Second, "commits of 50 s": 50 * time.Second, "commits of 20 min": 20 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startProducer(t, stream.ServerConfig{MaxStreamAge: -1}, "s", &counted{n: 200_000, size: 60})
				l := newLab(t, p.connections(t).Dial)
				l.config.HandlerTimeout, l.config.CommitRecords = time.Hour, 100
				l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
					sleep(ctx, commit)
					return nil, ctx.Err()
				}))
				l.submit(stream.Job{Stream: "s"})
				time.Sleep(max(time.Hour, 10*commit))
				if cuts := l.seen(stream.EventDisconnected); len(cuts) > 0 {
					t.Errorf("%d cuts, the first: %v", len(cuts), cuts[0].Err)
				}
				if len(l.seen(stream.EventCommitted)) < 5 {
					t.Error("the job did not go on")
				}
			})
		})
	}
}

func listenOn(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	must(t, err)
	return l
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after two minutes: not %s", what)
		}
	}
}

// dnsServer is a name server that answers every question for addresses with those of the moment.
type dnsServer struct {
	addr  string
	mu    sync.Mutex
	hosts []net.IP
}

func startDNS(t *testing.T) *dnsServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	d := &dnsServer{addr: conn.LocalAddr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4<<10)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}, Questions: m.Questions}
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				d.mu.Lock()
				for _, ip := range d.hosts {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte(ip.To4())}})
				}
				d.mu.Unlock()
			}
			if answer, err := m.Pack(); err == nil {
				conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return d
}

func (d *dnsServer) set(hosts ...net.IP) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts = hosts
}
