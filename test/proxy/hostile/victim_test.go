package hostile

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/test/proxy/hostile/target"
)

// honest starts the backend of the victim, which counts its calls: it sends each message back, and 1 MiB for each to Large.
func honest(t *testing.T) (addr string, calls *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", target.Backend())
	if err != nil {
		t.Fatal(err)
	}
	calls = new(atomic.Int64)
	megabyte := wrapperspb.Bytes(make([]byte, 1<<20))
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		calls.Add(1)
		method, _ := grpc.MethodFromServerStream(stream)
		for {
			m := new(wrapperspb.BytesValue)
			if err := stream.RecvMsg(m); err != nil {
				return nil // what does not end well is an attack
			}
			if strings.HasSuffix(method, "/Large") {
				m = megabyte
			}
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
	}))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String(), calls
}

// victim is a client that does nothing wrong: it makes calls at a fixed rate, whether or not the ones before have been answered.
type victim struct {
	conn *grpc.ClientConn
	stop context.CancelFunc
	all  sync.WaitGroup

	mu     sync.Mutex
	took   []time.Duration
	failed []error
}

// perSecond is the victim's rate.
const perSecond = 200

func dial(t *testing.T, proxy *target.Proxy) *grpc.ClientConn {
	t.Helper()
	secret := insecure.NewCredentials()
	if proxy.Cert != "" {
		var err error
		if secret, err = credentials.NewClientTLSFromFile(proxy.Cert, "localhost"); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := grpc.NewClient(proxy.Addr, grpc.WithTransportCredentials(secret))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// call makes one call of the victim.
func call(conn *grpc.ClientConn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	in, out := wrapperspb.Bytes(make([]byte, 100)), new(wrapperspb.BytesValue)
	if err := conn.Invoke(ctx, Honest+"Echo", in, out); err != nil {
		return err
	}
	if len(out.Value) != len(in.Value) {
		return fmt.Errorf("%d bytes came back of %d", len(out.Value), len(in.Value))
	}
	return nil
}

func startVictim(conn *grpc.ClientConn) *victim {
	ctx, stop := context.WithCancel(context.Background())
	v := &victim{conn: conn, stop: stop}
	v.all.Go(func() {
		tick := time.NewTicker(time.Second / perSecond)
		defer tick.Stop()
		for due := time.Now(); ; due = due.Add(time.Second / perSecond) {
			for time.Now().Before(due) { // a tick that was lost is made up for: the rate is fixed
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
			if ctx.Err() != nil {
				return
			}
			v.all.Go(func() {
				err := call(conn, 10*time.Second)
				took := time.Since(due) // since it should have been sent: no wait is left out
				v.mu.Lock()
				defer v.mu.Unlock()
				v.took = append(v.took, took)
				if err != nil {
					v.failed = append(v.failed, err)
				}
			})
		}
	})
	return v
}

// end stops the calls and waits for their answers.
func (v *victim) end() (p99 time.Duration, calls int, failed []error) {
	v.stop()
	v.all.Wait()
	slices.Sort(v.took)
	return v.took[len(v.took)*99/100], len(v.took), v.failed
}

// lure calls the malicious backend until ctx ends, one call at a time over the victim's connection and seven over the other one, and counts the statuses.
func lure(ctx context.Context, conn, others *grpc.ClientConn) map[string]int {
	var mu sync.Mutex
	var all sync.WaitGroup
	codes := map[string]int{}
	for i := range 8 {
		all.Go(func() {
			conn := conn
			if i > 0 {
				conn = others
			}
			for ctx.Err() == nil {
				in, out := wrapperspb.Bytes(make([]byte, 100)), new(wrapperspb.BytesValue)
				limited, cancel := context.WithTimeout(ctx, time.Second)
				err := conn.Invoke(limited, target.EvilPath+"Call", in, out)
				cancel()
				if ctx.Err() != nil {
					return
				}
				mu.Lock()
				codes[status.Code(err).String()]++
				mu.Unlock()
				sleep(ctx, 10*time.Millisecond)
			}
		})
	}
	all.Wait()
	return codes
}
