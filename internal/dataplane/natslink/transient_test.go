package natslink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestErrorsThatGoAwayAreToldFromThoseThatDoNot: to wait for the second kind is to hang without a reason, to end at the first is to fail in a rolling restart.
func TestErrorsThatGoAwayAreToldFromThoseThatDoNot(t *testing.T) {
	t.Parallel()
	api := func(status int, code jetstream.ErrorCode) error {
		return &jetstream.APIError{Code: status, ErrorCode: code}
	}
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"no error", nil, false},
		{"a timeout", nats.ErrTimeout, true},
		{"the end of an attempt", fmt.Errorf("create stream: %w", context.DeadlineExceeded), true},
		{"the end of the run", context.Canceled, false},
		{"nobody answers", nats.ErrNoResponders, true},
		{"a connection that is being re-established", nats.ErrConnectionReconnecting, true},
		{"a connection that was closed here", nats.ErrConnectionClosed, false},
		{"a stream without a leader", fmt.Errorf("stream orders: %w", ErrNoLeader), true},
		{"a stream that does not exist", jetstream.ErrStreamNotFound, false},
		{"a stream with another configuration", api(400, 10058), false},
		{"a server that is overloaded", api(503, 10008), true},
		{"the same for a list of keys", fmt.Errorf("keys of bucket: %w", &nats.APIError{Code: 503, ErrorCode: 10008}), true},
		{"a list of keys at a server without JetStream", &nats.APIError{Code: 503, ErrorCode: 10076}, false},
		{"a store without room", api(500, 10047), true},
		{"too few servers yet", api(400, 10005), true},
		{"a server without JetStream", api(503, 10076), false},
		{"an account without JetStream", api(503, 10039), false},
		{"a wrong password", nats.ErrAuthorization, false},
		{"anything else", errors.New("bad file descriptor"), false},
	} {
		if got := Transient(c.err); got != c.want {
			t.Errorf("%s (%v): goes away: %v, want %v", c.name, c.err, got, c.want)
		}
	}
}

// TestARefusedRequestEndsTheWait: a server answers such a request with nothing, so that it looks like a timeout.
func TestARefusedRequestEndsTheWait(t *testing.T) {
	t.Parallel()
	l := &Link{URL: "nats://broker:4222"}
	if err := l.Final("the stream", nats.ErrTimeout); err != nil {
		t.Errorf("a timeout without a refusal ends the wait: %v", err)
	}
	text := `nats: permissions violation: Permissions Violation for Publish to "$JS.API.STREAM.CREATE.orders"`
	l.denied.Store(&text)
	err := l.Final("the stream", nats.ErrTimeout)
	if err == nil {
		t.Fatal("a refusal does not end the wait")
	}
	for _, want := range []string{"the stream", l.URL, "$JS.API.STREAM.CREATE.orders", "permission"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
	var none *Link
	if none.Refused() != nil || none.Final("the stream", nats.ErrTimeout) != nil {
		t.Error("a connection that is not there has refused something")
	}
}
