package stream_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// connectionNumbers tells the connections of a server apart.
type connectionNumbers struct{ n atomic.Int64 }

type connectionKey struct{}

func (s *connectionNumbers) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connectionKey{}, s.n.Add(1))
}
func (s *connectionNumbers) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return ctx
}
func (s *connectionNumbers) HandleConn(context.Context, stats.ConnStats) {}
func (s *connectionNumbers) HandleRPC(context.Context, stats.RPCStats)   {}

// A producer does not take the certificate any more that a worker's old connection was made with. The first denial replaces the connection, once for all
// jobs; a stream that the old one carries goes on to its end.
func TestADenialReplacesTheConnectionAndCutsNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var denied atomic.Bool
		source := &counted{n: 300, at: func(ctx context.Context, _ int) error {
			if !sleep(ctx, time.Second) {
				return ctx.Err()
			}
			return nil
		}}
		real := valid(stream.NewServer(stream.ServerConfig{MaxStreamAge: -1, Logger: quiet}))
		real.Handle("s", stream.Slice(numbers(10)...))
		real.Handle("long", source)
		conns := &connectionNumbers{}
		p := onWire(t, scripted{read: func(req *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
			if n := out.Context().Value(connectionKey{}).(int64); n == 1 && denied.Load() {
				return status.Error(codes.Unauthenticated, "the certificate has expired")
			}
			return real.Read(req, out)
		}}, grpc.StatsHandler(conns))
		c := p.connections(t)
		l := newLab(t, c.Dial)
		l.config.Refresh = c.Refresh
		worker, err := stream.NewWorker(l.config)
		must(t, err)
		worker.Handle("s", l.store.Sink(l.table.handle))
		worker.Handle("long", l.store.Sink(nil))
		l.run(worker)
		long := l.submit(stream.Job{Stream: "long"})
		time.Sleep(time.Minute)
		denied.Store(true)
		var jobs []stream.Status
		for range 5 {
			jobs = append(jobs, l.submit(stream.Job{Stream: "s"}))
		}
		for _, job := range jobs {
			l.is(l.end(job.ID, 20*time.Second), stream.Completed, "")
		}
		l.is(l.end(long.ID, 5*time.Minute), stream.Completed, "")
		if conns.n.Load() > 3 {
			t.Errorf("%d connections were made", conns.n.Load())
		}
		for _, cut := range l.seen(stream.EventDisconnected) {
			if cut.Job.ID == long.ID {
				t.Errorf("the stream on the old connection was cut: %v", cut.Err)
			}
		}
	})
}
