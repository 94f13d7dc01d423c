// Package health asks a gRPC server how it is: grpc.health.v1.
package health

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// Result of a check.
type Result uint8

const (
	// Serving: the server says that it serves.
	Serving Result = iota
	// NotServing: the server says that it does not, or does not know the service.
	NotServing
	// Unimplemented: the server works, and has no service for checks.
	Unimplemented
	// Failed: there was no answer in time, or an error.
	Failed
)

// Results are all there are, in their order.
var Results = [...]Result{Serving, NotServing, Unimplemented, Failed}

// String is the result as a label of metrics.
func (r Result) String() string {
	return [...]string{"serving", "not_serving", "unimplemented", "failed"}[r]
}

// Checker checks one server. It keeps a connection from one check to the next, but not after one that failed: a server that is reached by a new connection works, and
// one that is not does not. It is for one goroutine.
type Checker struct {
	// Dial makes a connection over which HTTP/2 can be spoken, with TLS if the server wants it.
	Dial func(context.Context) (net.Conn, error)
	// Authority of the calls.
	Authority string

	conn *grpc.ClientConn
}

// Check asks for the service; "" is the server as a whole. The error says why the result is not Serving.
func (c *Checker) Check(ctx context.Context, service string, timeout time.Duration) (Result, error) {
	if c.conn == nil {
		conn, err := grpc.NewClient("passthrough:///"+c.Authority, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.Dial(ctx) }),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(c.Authority), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithNoProxy(),
			grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10), grpc.WithUserAgent("levada-proxy"), grpc.WithIdleTimeout(0))
		if err != nil {
			return Failed, err
		}
		c.conn = conn
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := healthv1.NewHealthClient(c.conn).Check(ctx, &healthv1.HealthCheckRequest{Service: service}, grpc.MaxCallRecvMsgSize(4<<10))
	switch code := status.Code(err); {
	case err == nil && answer.GetStatus() == healthv1.HealthCheckResponse_SERVING:
		return Serving, nil
	case err == nil:
		return NotServing, fmt.Errorf("it says %v", answer.GetStatus())
	case code == codes.NotFound:
		return NotServing, fmt.Errorf("it does not know the service %q (healthCheck.service)", service)
	case code == codes.Unimplemented:
		return Unimplemented, err
	}
	c.Close()
	return Failed, err
}

// Close ends the connection.
func (c *Checker) Close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}
