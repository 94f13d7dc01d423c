package natslink

import (
	"context"
	"errors"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// transientCodes are the errors of the JetStream API that go away by themselves: leaders are elected, servers come back, room is made.
var transientCodes = []jetstream.ErrorCode{
	10004, // incomplete results
	10005, // no suitable peers for placement: some servers are not there yet
	10007, // JetStream cluster not assigned to this server
	10008, // JetStream system temporarily unavailable
	10009, // JetStream cluster can not handle request
	10023, // insufficient resources
	10028, // insufficient memory resources
	10047, // insufficient storage resources
	10118, // stream is offline
	10119, // consumer is offline
	10158, // duplicate message id is in process
}

// notEnabled are the errors of a server or an account without JetStream. They have the code of what goes away, and do not.
var notEnabled = []jetstream.ErrorCode{10035, 10039, 10076}

// ErrNoLeader means that a stream has no leader now.
var ErrNoLeader = errors.New("stream has no leader")

// transientAnswer reports whether an answer of the API, with its status, goes away.
func transientAnswer(status int, code jetstream.ErrorCode) bool {
	return (status == 503 || status == 408) && !slices.Contains(notEnabled, code) || slices.Contains(transientCodes, code)
}

// Transient reports whether an error says only that the broker cannot answer now.
func Transient(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return transientAnswer(api.Code, api.ErrorCode)
	}
	// Watches and lists of keys in a bucket are made with the older part of the client, which has a type of its own.
	if api, ok := errors.AsType[*nats.APIError](err); ok {
		return transientAnswer(api.Code, jetstream.ErrorCode(api.ErrorCode))
	}
	return slices.ContainsFunc([]error{
		nats.ErrReconnectBufExceeded, nats.ErrConnectionReconnecting, nats.ErrDisconnected, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrNoServers,
		nats.ErrStaleConnection, jetstream.ErrNoStreamResponse, jetstream.ErrNoHeartbeat, jetstream.ErrServerShutdown, jetstream.ErrMsgIteratorClosed, context.DeadlineExceeded, ErrNoLeader,
		nats.ErrStreamNotFound, // of a watch on an open bucket: its server has started and has not loaded the bucket yet. A missing stream is jetstream.ErrStreamNotFound
	}, func(away error) bool { return errors.Is(err, away) })
}
