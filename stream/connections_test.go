package stream_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// Jobs that name ever new targets do not make the connections ever more, and none is closed that is used, or is about to be.
func TestConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		p := onWire(t, scripted{read: func(_ *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
			if err := out.Send(&streamv1.Frame{}); err != nil {
				return err
			}
			<-end
			return nil
		}}, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}))
		conns := stream.NewConnections("", insecureTo(func(ctx context.Context, _ string) (net.Conn, error) { return p.listener.DialContext(ctx) })...)
		defer conns.Close()
		all := map[*grpc.ClientConn]bool{}
		dial := func(target string) *grpc.ClientConn {
			t.Helper()
			got, err := conns.Dial(t.Context(), stream.Job{Target: "passthrough:///" + target})
			must(t, err)
			conn := got.(*grpc.ClientConn)
			all[conn] = true
			return conn
		}
		read := func(conn *grpc.ClientConn) grpc.ServerStreamingClient[streamv1.Frame] {
			t.Helper()
			in, err := streamv1.NewStreamClient(conn).Read(t.Context(), &streamv1.ReadRequest{})
			must(t, err)
			_, err = in.Recv()
			must(t, err)
			return in
		}
		newTargets := func() {
			t.Helper()
			before := len(all)
			for i := range 100 {
				dial(fmt.Sprint("new", before+i))
			}
		}

		used := dial("used")
		in := read(used)
		newTargets()
		time.Sleep(59 * time.Second)
		fresh := dial("fresh")
		for range 8 {
			newTargets()
			time.Sleep(30 * time.Second)
			if fresh != dial("fresh") {
				t.Fatal("a connection was closed less than a minute after it was asked for")
			}
		}
		open := 0
		for conn := range all {
			if conn.GetState() != connectivity.Shutdown {
				open++
			}
		}
		if open > 302 { // those of the last minute, and the one that is used
			t.Errorf("%d connections of %d are still open", open, len(all))
		}
		if used != dial("used") {
			t.Error("a connection that is used was closed")
		}
		close(end)
		if _, err := in.Recv(); err != io.EOF {
			t.Errorf("the stream ended with %v", err)
		}
		time.Sleep(61 * time.Second)
		newTargets()
		if again := dial("used"); again == used {
			t.Error("a connection whose stream has ended is kept indefinitely")
		} else {
			read(again)
		}
	})
}
