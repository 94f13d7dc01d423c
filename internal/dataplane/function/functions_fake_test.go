package function_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
)

// goStream is a map stream as Numaflow's Go SDK serves it, with its way to fail: a handler that panics ends the call only when all other handlers have
// returned, and those cannot, because their results are not taken any more.
type goStream struct {
	mapv1.UnimplementedMapServer
	open   atomic.Int64 // handlers
	broken atomic.Bool
}

// serveGoStream serves in dir until the process is killed.
func serveGoStream(dir string) error {
	path := filepath.Join(dir, "mapstream.sock")
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	mapv1.RegisterMapServer(server, &goStream{})
	info := `{"protocol":"uds","language":"go","version":"v0.12.0","metadata":{"MAP_MODE":"stream-map"}}U+005C__END__`
	if err := os.WriteFile(filepath.Join(dir, "mapper-server-info"), []byte(info), 0o644); err != nil {
		return err
	}
	return server.Serve(l)
}

func (g *goStream) IsReady(context.Context, *emptypb.Empty) (*mapv1.ReadyResponse, error) {
	return &mapv1.ReadyResponse{Ready: true}, nil
}

func (g *goStream) MapFn(stream mapv1.Map_MapFnServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&mapv1.MapResponse{Handshake: &mapv1.Handshake{Sot: true}}); err != nil {
		return err
	}
	failed := make(chan error, 1)
	var sending sync.Mutex
	send := func(r *mapv1.MapResponse) {
		sending.Lock()
		defer sending.Unlock()
		_ = stream.Send(r)
	}
	go func() { // ends with the stream
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			g.open.Add(1)
			go g.handle(r, send, failed)
		}
	}()
	return <-failed
}

func (g *goStream) handle(r *mapv1.MapRequest, send func(*mapv1.MapResponse), failed chan<- error) {
	result := func() {
		send(&mapv1.MapResponse{Id: r.Id, Results: []*mapv1.MapResponse_Result{{Value: r.Request.Value}}})
	}
	end := func() { send(&mapv1.MapResponse{Id: r.Id, Status: &mapv1.TransmissionStatus{Eot: true}}) }
	switch string(r.Request.Value) {
	case "panics":
		result()
		result()
		g.broken.Store(true)
		end() // its deferred close of the channel
		fmt.Fprintln(os.Stderr, "panic inside mapStream handler: boom")
		for g.open.Load() > 1 {
			time.Sleep(time.Millisecond)
		}
		failed <- status.Error(codes.Internal, "UDF_EXECUTION_ERROR(udf): panic: boom")
	case "ends the call":
		failed <- nil
	default:
		time.Sleep(50 * time.Millisecond)
		if g.broken.Load() {
			select {} // its result is not taken
		}
		result()
		end()
		g.open.Add(-1)
	}
}
