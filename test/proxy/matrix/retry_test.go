package matrix

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/test/proxy/fakeh2"
)

// A client's own retry policy acts on an answer that is one HEADERS frame and no other: what the proxy says before a backend answered must be such a one.
func TestRetryPolicy(t *testing.T) {
	path := chosenPath(t)
	if path != levada && path != "direct" {
		t.Skipf("SKIPPED for %s: what others make of the policy is not compared", path)
	}
	backend, err := fakeh2.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	const policy = `{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":2,"initialBackoff":"0.01s","maxBackoff":"0.01s","backoffMultiplier":1,
		"retryableStatusCodes":["UNAVAILABLE"]}}]}`
	conn, err := grpc.NewClient("passthrough:///"+open(t, path, backend.Addr(), usual).addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(policy), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, script := range []string{"fin-pre", "tcprst-pre", "goaway-pre-then-fin", "trailers-only-14"} {
		t.Run(script, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), fakeh2.IDHeader, script), timely)
			defer cancel()
			question, reply := []byte("ask"), []byte(nil)
			err := conn.Invoke(ctx, fakeh2.Path(script), &question, &reply)
			if attempts := backend.Attempts(script); status.Code(err) != codes.Unavailable || attempts != 2 {
				t.Errorf("%v after %d attempts, want UNAVAILABLE after 2", err, attempts)
			}
		})
	}
}
