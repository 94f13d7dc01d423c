// Package natsnotify sends notifications through NATS JetStream, in this process or elsewhere. Each notification goes to one listener: the first that
// has room.
package natsnotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/notifybus"
)

// DefaultStream is the name of the JetStream stream that is used if no other is set.
const DefaultStream = "LEVADA_NOTIFICATIONS"

// consumerName is that of the one consumer, whose messages all listeners share.
const consumerName = "workers"

// Notifier is a [stream.Notifier] on a JetStream stream. It makes the stream if it is not there; one that is there stays as it is.
type Notifier struct {
	life        notifybus.Lifecycle
	conn        *nats.Conn
	js          jetstream.JetStream
	stream      jetstream.StreamConfig
	log         *slog.Logger
	sendTimeout time.Duration
	hold        time.Duration
}

var _ stream.Notifier = (*Notifier)(nil)

// Option changes a default.
type Option func(*Notifier)

// WithStream sets the name of the stream. Its subject is "levada.notifications." and that name. Default: DefaultStream.
func WithStream(name string) Option { return func(h *Notifier) { h.stream.Name = name } }

// WithReplicas sets how many servers of a cluster keep a notification. Default 1.
func WithReplicas(n int) Option { return func(h *Notifier) { h.stream.Replicas = n } }

// WithLogger sets where losses of the connection and messages that are not notifications are reported. Default: slog.Default().
func WithLogger(l *slog.Logger) Option { return func(h *Notifier) { h.log = l } }

// WithSendTimeout sets how long Send tries. Default 5 s.
func WithSendTimeout(d time.Duration) Option { return func(h *Notifier) { h.sendTimeout = d } }

// WithHold sets how long a worker without room keeps a notification back before another may have it. Default 30 s.
func WithHold(d time.Duration) Option { return func(h *Notifier) { h.hold = d } }

// WithKeep sets how long a notification is kept that no worker takes. Default 1 min: the workers' own poll has found the job by then.
func WithKeep(d time.Duration) Option { return func(h *Notifier) { h.stream.MaxAge = d } }

// New takes a connection, which stays open at Close. It should reconnect indefinitely (nats.MaxReconnects(-1)): once it is closed, Send and Listen
// fail. A server that cannot be reached yet is not an error, since workers start without notifications, too; one that refuses to make the stream is.
func New(ctx context.Context, nc *nats.Conn, opts ...Option) (*Notifier, error) {
	h := &Notifier{
		conn: nc, log: slog.Default(), sendTimeout: 5 * time.Second, hold: 30 * time.Second,
		stream: jetstream.StreamConfig{
			Name: DefaultStream, Description: "Jobs of resumable streams that may be due", Retention: jetstream.WorkQueuePolicy,
			Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld, MaxAge: time.Minute, MaxMsgs: 100_000, Replicas: 1,
		},
	}
	for _, o := range opts {
		o(h)
	}
	if h.sendTimeout <= 0 || h.hold <= 0 || h.stream.MaxAge < 100*time.Millisecond || h.stream.Replicas < 1 {
		return nil, fmt.Errorf("natsnotify: the send timeout (%v) and the hold (%v) must be greater than 0, the time to keep (%v) 100 ms or more, the replicas (%d) 1 or more",
			h.sendTimeout, h.hold, h.stream.MaxAge, h.stream.Replicas)
	}
	h.stream.Subjects = []string{h.subject()}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("natsnotify: %w", err)
	}
	h.js = js
	ctx, cancel := context.WithTimeout(ctx, h.sendTimeout)
	defer cancel()
	if _, err := h.consumer(ctx); err != nil {
		if refused(err) {
			return nil, fmt.Errorf("natsnotify: stream %q: %w", h.stream.Name, err)
		}
		h.log.Warn("notification server unreachable, retrying", "error", err)
	}
	return h, nil
}

func (h *Notifier) subject() string { return "levada.notifications." + h.stream.Name }

// refused reports whether the server does not want us or our stream, rather than being away.
func refused(err error) bool {
	var said *jetstream.APIError
	if errors.As(err, &said) {
		return said.Code != 503 // which is what it says while it starts or has no leader
	}
	return errors.Is(err, jetstream.ErrInvalidStreamName) || errors.Is(err, jetstream.ErrJetStreamNotEnabled) ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrAuthorization)
}

// queue returns the stream, which it makes if it is not there.
func (h *Notifier) queue(ctx context.Context) (jetstream.Stream, error) {
	s, err := h.js.Stream(ctx, h.stream.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = h.js.CreateStream(ctx, h.stream)
	}
	return s, err
}

func (h *Notifier) consumer(ctx context.Context) (jetstream.Consumer, error) {
	s, err := h.queue(ctx)
	if err != nil {
		return nil, err
	}
	return s.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: consumerName, AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
		// A notification is returned after hold. The server must not give it to another before.
		AckWait: h.hold + 10*time.Second,
		// Each listener has one at most. This bounds what listeners that died hold, and must be more than there are workers.
		MaxAckPending: 1000, MaxWaiting: 5000,
		MaxDeliver: -1, // MaxAge of the stream is what ends it
	})
}

// Send stores the notification in the stream.
func (h *Notifier) Send(ctx context.Context, notification stream.Notification) error {
	text := []byte(notifybus.Encode(notification))
	return h.life.Send(ctx, h.sendTimeout, refused, func(ctx context.Context) error {
		_, err := h.js.Publish(ctx, h.subject(), text, jetstream.WithExpectStream(h.stream.Name))
		if errors.Is(err, jetstream.ErrNoStreamResponse) { // it was deleted, or the server has just started
			_, remade := h.queue(ctx)
			err = errors.Join(err, remade)
		}
		return err
	})
}

// Listen calls wake for each notification that the server gives to this listener.
func (h *Notifier) Listen(ctx context.Context, wake func(context.Context, stream.Notification)) error {
	return h.life.Receive(ctx, notifybus.Sessions{
		Listen: func(ctx context.Context, listening func()) error { return h.consume(ctx, listening, wake) },
		Final: func(error) error {
			if h.conn.IsClosed() { // by its owner: it does not connect again
				return fmt.Errorf("notifications: %w", nats.ErrConnectionClosed)
			}
			return nil
		},
		Log: h.log, Lost: "notifications interrupted, reconnecting",
	})
}

const (
	// pull is how long one request for a message lasts.
	pull = 30 * time.Second
	// heartbeat is how often the server says that it still has our request. After twice that time without a heartbeat, as after its restart,
	// a new request is made.
	heartbeat = 2 * time.Second
)

// consume takes one notification after the other, until the server fails.
func (h *Notifier) consume(ctx context.Context, listening func(), wake func(context.Context, stream.Notification)) error {
	opening, cancel := context.WithTimeout(ctx, h.sendTimeout)
	consumer, err := h.consumer(opening)
	cancel()
	if err != nil {
		return err
	}
	listening()
	for ctx.Err() == nil {
		waiting, cancel := context.WithTimeout(ctx, pull)
		msg, err := consumer.Next(jetstream.FetchContext(waiting), jetstream.FetchHeartbeat(heartbeat))
		cancel()
		switch {
		case err == nil:
			h.handle(ctx, msg, wake)
		case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded): // nothing came
		default:
			return err
		}
	}
	return ctx.Err()
}

// handle calls wake and settles the message: with an acknowledgement when wake has returned, or, when that takes too long, by giving it
// back. An acknowledgement that is lost costs a second delivery.
func (h *Notifier) handle(ctx context.Context, msg jetstream.Msg, wake func(context.Context, stream.Notification)) {
	notification, err := notifybus.Decode(string(msg.Data()))
	if err != nil {
		h.log.Warn("notification not decodable, dropped", "error", err)
		_ = msg.Term() // it will never be one
		return
	}
	late := time.AfterFunc(h.hold, func() { _ = msg.Nak() })
	wake(ctx, notification)
	switch {
	case !late.Stop(): // given back
	case ctx.Err() != nil:
		_ = msg.Nak() // wake may have returned for that reason, and another worker may have room
	default:
		_ = msg.Ack()
	}
}

// Close ends all that still runs. Each Listen returns an error. The connection stays open.
func (h *Notifier) Close() error {
	h.life.Close()
	return nil
}
