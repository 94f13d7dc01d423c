package fakeh2_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/test/proxy/fakeh2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call plays a script to grpc-go and returns what became of it.
func call(t *testing.T, script string, size int) (s *status.Status, received, attempts int) {
	t.Helper()
	server, err := fakeh2.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+server.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), fakeh2.IDHeader, script), 10*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, fakeh2.Path(script), grpc.ForceCodec(text{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.SendMsg(strings.Repeat("q", size)), stream.CloseSend()); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	var message string
	for err = stream.RecvMsg(&message); err == nil; err = stream.RecvMsg(&message) {
		received++
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	attempts = server.Attempts(script)
	if err := errors.Join(conn.Close(), server.Close()); err != nil {
		t.Error(err)
	}
	return status.Convert(err), received, attempts
}

// text is a codec for messages that are strings.
type text struct{}

func (text) Name() string                    { return "proto" }
func (text) Marshal(v any) ([]byte, error)   { return []byte(v.(string)), nil }
func (text) Unmarshal(b []byte, v any) error { *v.(*string) = string(b); return nil }

func TestScripts(t *testing.T) {
	for _, c := range []struct {
		script             string
		code               codes.Code
		messages, attempts int
	}{
		{"double-goaway-then-status", codes.FailedPrecondition, 2, 1},
		{"goaway-unprocessed-retry", codes.OK, 1, 2},
		{"goaway-unprocessed-noclose-retry", codes.OK, 1, 2},
		{"refused-retry", codes.OK, 1, 2},
		{"refused-after-headers", codes.Unavailable, 0, 2}, // which grpc-go sends again, though an answer had begun
		{"rst-mid-8", codes.Canceled, 1, 1},
		{"tcprst-pre", codes.Unavailable, 0, 1},
		{"fin-mid-big-message", codes.Unavailable, 1, 1},
		{"badframe-mid", codes.Unavailable, 1, 1},
		{"early-status-rst", codes.ResourceExhausted, 0, 1},
		{"http-404", codes.Unimplemented, 0, 1},
		{"msg-then-status5-tcprst", codes.NotFound, 1, 1},
	} {
		t.Run(c.script, func(t *testing.T) {
			s, messages, attempts := call(t, c.script, 200_000) // more than the windows have at first
			if s.Code() != c.code || messages != c.messages || attempts != c.attempts {
				t.Errorf("%v (%s), %d messages, %d attempts; want %v, %d, %d", s.Code(), s.Message(), messages, attempts, c.code, c.messages, c.attempts)
			}
		})
	}
}

func TestNoSuchScript(t *testing.T) {
	s, _, _ := call(t, "no-such", 1)
	if s.Code() != codes.Unimplemented || !strings.Contains(s.Message(), `no script for "/levada.test.Fake/no-such"`) {
		t.Errorf("%v: %s", s.Code(), s.Message())
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range fakeh2.Scripts() {
		if seen[s.Name] {
			t.Errorf("there are two scripts called %s", s.Name)
		}
		seen[s.Name] = true
	}
	if len(seen) < 69 {
		t.Errorf("%d scripts, want 69 or more", len(seen))
	}
}
