// Package rabbitnotify sends notifications through RabbitMQ. Each notification goes to one listener: the first that has room.
//
// All share one quorum queue. A notification is persistent and confirmed by the broker; it is acknowledged when the worker has tried to claim.
// A worker without room keeps one notification back, and gives it back to the broker after a while, so that no acknowledgement waits for as
// long as a stream lasts.
//
// RabbitMQ 3.10 leaves a quorum queue without a leader, for good, if it is killed within a second after the queue was made. Sends then fail, and
// jobs are only found by the workers' poll, until the queue is deleted; the next Send or Listen makes it again.
package rabbitnotify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/notifybus"
)

// DefaultQueue is the name of the queue that is used if no other is set.
const DefaultQueue = "levada.stream.notifications"

// Notifier is a [stream.Notifier] on a RabbitMQ broker.
type Notifier struct {
	life        notifybus.Lifecycle
	url         string
	queue       string
	tls         *tls.Config
	log         *slog.Logger
	sendTimeout time.Duration
	hold        time.Duration
	keep        time.Duration

	// publishing holds the right to change publisher, and to publish: a channel of AMQP is not for two goroutines at once. The confirmation is awaited
	// without it, so that many notifications can be under way.
	publishing chan struct{}
	// publisher is the session for sending; nil before the first Send and after one that failed.
	publisher *publisher
}

var _ stream.Notifier = (*Notifier)(nil)

// Option changes a default.
type Option func(*Notifier)

// WithQueue sets the queue's name. Default: DefaultQueue.
func WithQueue(name string) Option { return func(h *Notifier) { h.queue = name } }

// WithTLS is for amqps URLs. Default: the system's roots, and the URL's host.
func WithTLS(c *tls.Config) Option { return func(h *Notifier) { h.tls = c } }

// WithLogger sets where losses of the connection and messages that are not notifications are reported. Default: slog.Default().
func WithLogger(l *slog.Logger) Option { return func(h *Notifier) { h.log = l } }

// WithSendTimeout sets how long Send tries. Default 5 s.
func WithSendTimeout(d time.Duration) Option { return func(h *Notifier) { h.sendTimeout = d } }

// WithHold sets how long a worker without room keeps a notification back before another may have it. Default 30 s. It must be shorter than the
// broker's consumer timeout, which is 30 min unless configured otherwise.
func WithHold(d time.Duration) Option { return func(h *Notifier) { h.hold = d } }

// WithKeep sets how long the broker keeps a notification that nobody takes. Default 1 min: the workers' own poll has found the job by then.
func WithKeep(d time.Duration) Option { return func(h *Notifier) { h.keep = d } }

// New takes an AMQP URL. A broker that cannot be reached yet is not an error, since workers start without notifications, too; one that refuses
// us, or has the queue with other settings, is.
func New(ctx context.Context, url string, opts ...Option) (*Notifier, error) {
	h := &Notifier{
		url: url, queue: DefaultQueue, log: slog.Default(), sendTimeout: 5 * time.Second, hold: 30 * time.Second, keep: time.Minute,
		publishing: make(chan struct{}, 1),
	}
	for _, o := range opts {
		o(h)
	}
	if _, err := amqp.ParseURI(url); err != nil {
		return nil, fmt.Errorf("rabbitnotify: the URL of the broker, as in amqp://user:password@host:5672/vhost: %w", err)
	}
	if h.sendTimeout <= 0 || h.hold <= 0 || h.keep < time.Millisecond || h.queue == "" {
		return nil, fmt.Errorf("rabbitnotify: the send timeout (%v), the hold (%v), the time to keep (%v) and the queue's name (%q) must not be empty",
			h.sendTimeout, h.hold, h.keep, h.queue)
	}
	ctx, cancel := context.WithTimeout(ctx, h.sendTimeout)
	defer cancel()
	s, err := h.open(ctx)
	if refused(err) {
		return nil, fmt.Errorf("rabbitnotify: %w", err)
	}
	if err != nil {
		h.log.Warn("notification broker unreachable, retrying", "error", err)
		return h, nil
	}
	s.close()
	return h, nil
}

// refused reports whether the broker does not want us or our queue, rather than being away.
func refused(err error) bool {
	var said *amqp.Error
	if !errors.As(err, &said) {
		return errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrSASL) || errors.Is(err, amqp.ErrVhost)
	}
	switch said.Code {
	case amqp.AccessRefused, amqp.NotAllowed, amqp.PreconditionFailed, amqp.ResourceLocked:
		return true
	}
	return false
}

// session is a connection with one channel, on which the queue was declared.
type session struct {
	raw     net.Conn
	conn    *amqp.Connection
	channel *amqp.Channel
	closing sync.Once
}

// open makes a session within ctx.
func (h *Notifier) open(ctx context.Context) (*session, error) {
	s := &session{}
	// The library's calls know no context, and a broker that hangs answers none of them: the end of ctx ends the connection.
	var unblock func() bool
	dial := func(network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		s.raw = limitedConn{c, h.sendTimeout}
		unblock = context.AfterFunc(ctx, func() { _ = c.Close() })
		return s.raw, nil
	}
	fail := func(err error) (*session, error) {
		if unblock != nil {
			unblock()
		}
		s.close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		return nil, err
	}
	var err error
	name := amqp.Table{"connection_name": "levada notifications", "product": "levada"}
	if s.conn, err = amqp.DialConfig(h.url, amqp.Config{Dial: dial, TLSClientConfig: h.tls.Clone(), Heartbeat: 10 * time.Second, Properties: name}); err != nil {
		return fail(err)
	}
	if s.channel, err = s.conn.Channel(); err != nil {
		return fail(err)
	}
	if _, err = s.channel.QueueDeclare(h.queue, true, false, false, false, queueArguments()); err != nil {
		return fail(fmt.Errorf("quorum queue %q: %w", h.queue, err))
	}
	if !unblock() {
		return fail(context.Cause(ctx))
	}
	return s, nil
}

// queueArguments are those of the queue; a broker refuses a declaration with others.
func queueArguments() amqp.Table { return amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum} }

// limitedConn fails a write that the broker does not take: it may have stopped reading, because its memory or disk is full.
type limitedConn struct {
	net.Conn
	limit time.Duration
}

func (c limitedConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// closePatience is how long the broker has to close the connection.
const closePatience = time.Second

// close ends the session. Every call returns when it has ended.
func (s *session) close() {
	s.closing.Do(func() {
		if s.conn != nil {
			_ = s.conn.CloseDeadline(time.Now().Add(closePatience))
		}
		if s.raw != nil {
			_ = s.raw.Close()
		}
	})
}

// publisher is a session for sending.
type publisher struct {
	*session
	// nextID is the id of the last message. It is changed with Notifier.publishing held.
	nextID    uint64
	confirmed atomic.Int64 // how many messages: a session on which this stands still is given up
	stuck     atomic.Bool  // it must not be used any more: the next write opens another
	questions chan question
	done      sync.WaitGroup
	over      chan struct{} // closed when nothing answers requests any more
}

// question asks whether the message of that number was returned. It is asked once, after the confirmation.
type question struct {
	id     string
	answer chan bool
}

func (h *Notifier) openPublisher(ctx context.Context) (*publisher, error) {
	s, err := h.open(ctx)
	if err != nil {
		return nil, err
	}
	unblock := context.AfterFunc(ctx, func() { _ = s.raw.Close() })
	err = s.channel.Confirm(false)
	if !unblock() || err != nil {
		s.close()
		return nil, errors.Join(context.Cause(ctx), err)
	}
	p := &publisher{session: s, questions: make(chan question), over: make(chan struct{})}
	returns := s.channel.NotifyReturn(make(chan amqp.Return, 64))
	p.done.Go(func() { p.collect(returns) })
	return p, nil
}

// collect notes returned messages until the channel is closed. The broker returns a message before it confirms it; so what is asked after
// the confirmation is answered once all that came in before was noted.
func (p *publisher) collect(returns <-chan amqp.Return) {
	defer close(p.over)
	returned := map[string]bool{}
	for {
		select {
		case r, open := <-returns:
			if !open {
				return
			}
			returned[r.MessageId] = true
		case q := <-p.questions:
			for waiting := true; waiting; {
				select {
				case r, open := <-returns:
					if waiting = open; !open {
						break
					}
					returned[r.MessageId] = true
				default:
					waiting = false
				}
			}
			q.answer <- returned[q.id]
			delete(returned, q.id)
		}
	}
}

// wasReturned reports whether the message found no queue. ok is false if the session ended, so that it is unknown.
func (p *publisher) wasReturned(id string) (returned, ok bool) {
	q := question{id, make(chan bool, 1)}
	select {
	case p.questions <- q:
		return <-q.answer, true
	case <-p.over:
		return false, false
	}
}

func (p *publisher) close() {
	p.session.close()
	p.done.Wait()
}

// Send hands the notification to the broker, and returns when the broker has it on disk. What is not confirmed is sent again, on a new connection,
// until the send timeout is over; so a notification may arrive twice.
func (h *Notifier) Send(ctx context.Context, notification stream.Notification) error {
	text := notifybus.Encode(notification)
	return h.life.Send(ctx, h.sendTimeout, refused, func(ctx context.Context) error { return h.publish(ctx, text) })
}

// publish sends once, and waits for the confirmation.
func (h *Notifier) publish(ctx context.Context, text string) error {
	select {
	case h.publishing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("another notification is being sent: %w", context.Cause(ctx))
	}
	p, id, confirmation, err := h.write(ctx, text)
	<-h.publishing
	if err != nil {
		return err
	}
	if err := p.await(ctx, confirmation, h.sendTimeout/3); err != nil {
		return err
	}
	returned, known := p.wasReturned(id)
	switch {
	case !known:
		return errors.New("the connection was lost")
	case returned:
		// The queue was deleted. A new session declares it.
		p.giveUp()
		return fmt.Errorf("there is no queue %q any more", h.queue)
	case !confirmation.Acked():
		return errors.New("the broker refused the notification, or the connection was lost")
	}
	return nil
}

// write writes the message, on a new session if the old one is not usable. The caller holds publishing.
func (h *Notifier) write(ctx context.Context, text string) (p *publisher, id string, _ *amqp.DeferredConfirmation, err error) {
	if h.publisher != nil && (h.publisher.stuck.Load() || h.publisher.conn.IsClosed() || h.publisher.channel.IsClosed()) {
		h.publisher.close()
		h.publisher = nil
	}
	if h.publisher == nil {
		if h.publisher, err = h.openPublisher(ctx); err != nil {
			h.publisher = nil
			return nil, "", nil, err
		}
	}
	p = h.publisher
	p.nextID++
	id = strconv.FormatUint(p.nextID, 10)
	confirmation, err := p.channel.PublishWithDeferredConfirm("", h.queue, true, false, amqp.Publishing{
		DeliveryMode: amqp.Persistent, ContentType: "text/plain", MessageId: id, Type: "levada.notification", Body: []byte(text),
		Expiration: strconv.FormatInt(h.keep.Milliseconds(), 10),
	})
	if err != nil {
		h.publisher = nil
		p.close()
		return nil, "", nil, err
	}
	return p, id, confirmation, nil
}

// await waits for the confirmation. A session on which nothing at all is confirmed for as long as patience is given up: the
// broker may have restarted behind a proxy, or have met the channel before the queue had a leader.
func (p *publisher) await(ctx context.Context, confirmation *amqp.DeferredConfirmation, patience time.Duration) error {
	look := time.NewTicker(patience)
	defer look.Stop()
	for before := p.confirmed.Load(); ; before = p.confirmed.Load() {
		select {
		case <-confirmation.Done():
			if confirmation.Acked() {
				p.confirmed.Add(1)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the broker did not confirm: %w", context.Cause(ctx))
		case <-look.C:
			if p.confirmed.Load() == before {
				p.giveUp()
				return fmt.Errorf("the broker confirmed nothing for %v", patience)
			}
		}
	}
}

// giveUp makes the next write open another session.
func (p *publisher) giveUp() {
	p.stuck.Store(true)
	_ = p.raw.Close()
}

// Listen calls wake for each notification that the broker gives to this listener, over a connection of its own.
func (h *Notifier) Listen(ctx context.Context, wake func(context.Context, stream.Notification)) error {
	return h.life.Receive(ctx, notifybus.Sessions{
		Listen: func(ctx context.Context, listening func()) error { return h.consume(ctx, listening, wake) },
		Log:    h.log, Lost: "notification connection lost, reconnecting",
	})
}

// consume listens on one connection until it fails.
func (h *Notifier) consume(ctx context.Context, listening func(), wake func(context.Context, stream.Notification)) error {
	opening, cancel := context.WithTimeout(ctx, h.sendTimeout)
	s, err := h.open(opening)
	cancel()
	if err != nil {
		return err
	}
	defer s.close()
	defer context.AfterFunc(ctx, s.close)() // unblocks all calls below
	if err := s.channel.Qos(1, 0, false); err != nil {
		return err
	}
	for {
		const consumer = "notifier"
		deliveries, err := s.channel.Consume(h.queue, consumer, false, false, false, false, nil)
		if err != nil {
			return err
		}
		listening()
		for d := range deliveries {
			if err := h.handle(ctx, s, consumer, d, wake); err != nil {
				return err
			}
		}
		if ctx.Err() != nil || s.channel.IsClosed() {
			return errors.New("the broker closed the connection")
		}
		// The queue is gone, or handle has cancelled the consumer since it was without room. The declaration tells.
		if _, err := s.channel.QueueDeclare(h.queue, true, false, false, false, queueArguments()); err != nil {
			return err
		}
	}
}

// handle calls wake and settles the delivery: with an acknowledgement when wake has returned, or, when that takes too long, by
// giving it back. Then the consumer is cancelled first, or the broker would hand us the next one at once.
func (h *Notifier) handle(ctx context.Context, s *session, consumer string, d amqp.Delivery, wake func(context.Context, stream.Notification)) error {
	notification, err := decode(d)
	if err != nil {
		h.log.Warn("notification not decodable, dropped", "error", err)
		return d.Ack(false) // it will never be one
	}
	var once sync.Once
	var settled error
	late := time.AfterFunc(h.hold, func() {
		once.Do(func() {
			settled = s.channel.Cancel(consumer, false)
			if settled == nil {
				settled = d.Nack(false, true)
			}
		})
	})
	defer late.Stop()
	wake(ctx, notification)
	once.Do(func() {
		if ctx.Err() != nil {
			settled = d.Nack(false, true) // wake may have returned for that reason, and another worker may have room
			return
		}
		settled = d.Ack(false)
	})
	return settled
}

func decode(d amqp.Delivery) (stream.Notification, error) { return notifybus.Decode(string(d.Body)) }

// Close ends all that still runs. Each Listen returns an error.
func (h *Notifier) Close() error {
	if h.life.Close() && h.publisher != nil { // nothing is publishing any more
		h.publisher.close()
		h.publisher = nil
	}
	return nil
}
