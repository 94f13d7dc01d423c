// Package natssource subscribes to a subject of core NATS, in a queue group so that pods share the messages.
//
// Delivery is at most once: core NATS knows no acknowledgement. What comes while nobody listens, what exceeds the queue and what is in flight
// when the process dies is lost. Use the jetstream source where that matters.
package natssource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a source. The zero value of a field is its default.
type Config struct {
	// Conn is the connection, which the source does not close. Required. It should reconnect indefinitely (nats.MaxReconnects(-1)).
	Conn *nats.Conn
	// Subject to subscribe to, with wildcards if you like. Required.
	Subject string
	// Queue is the group that shares the messages. Default: none, so every pod gets every message.
	Queue string
	// QueueMessages and QueueBytes bound what waits here; above either, messages are dropped and counted. Default 65536 and 64 MiB.
	QueueMessages, QueueBytes int
	// Logger gets a warning about dropped messages. Default: none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.QueueMessages = cmp.Or(c.QueueMessages, 65536)
	c.QueueBytes = cmp.Or(c.QueueBytes, 64<<20)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return c
}

// IDHeader names the message if its publisher sent it, as the nats sink does; a repetition is then counted once.
const IDHeader = "X-Numaflow-Id"

// Reader is the source.
type Reader struct {
	cfg     Config
	sub     *nats.Subscription
	dropped int // as last logged; only Read uses it

	close    sync.Once
	closeErr error
}

// New subscribes. Errors name the field and what to do.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	cfg = cfg.withDefaults()
	if cfg.Conn == nil {
		return nil, errors.New("conn: required, the connection to NATS")
	}
	if cfg.QueueMessages < 0 || cfg.QueueBytes < 0 {
		return nil, fmt.Errorf("queueMessages %d and queueBytes %d must not be negative", cfg.QueueMessages, cfg.QueueBytes)
	}
	sub, err := cfg.Conn.QueueSubscribeSync(cfg.Subject, cfg.Queue)
	if err != nil {
		return nil, fmt.Errorf("subject %q, queue %q: %w", cfg.Subject, cfg.Queue, err)
	}
	if err := sub.SetPendingLimits(cfg.QueueMessages, cfg.QueueBytes); err != nil {
		return nil, errors.Join(err, sub.Unsubscribe())
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := cfg.Conn.FlushWithContext(ctx); err != nil { // what is published from now on comes
		return nil, errors.Join(fmt.Errorf("subscribe to %s: %w", cfg.Subject, err), sub.Unsubscribe())
	}
	return &Reader{cfg: cfg, sub: sub}, nil
}

// Read implements source.Reader.
func (r *Reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	first, err := r.next(ctx)
	if err != nil {
		return nil, err
	}
	waiting, _, err := r.sub.Pending()
	if err != nil {
		waiting = 0 // it was closed meanwhile; what we have is ours all the same
	}
	now := time.Now().UnixNano()
	b := &source.Batch{Partition: r.cfg.Subject, ByID: true, Messages: make([]flow.Message, 0, min(limit, waiting+1))}
	b.Messages = append(b.Messages, message(first, now))
	for len(b.Messages) < limit && len(b.Messages) <= waiting {
		m, err := r.sub.NextMsg(time.Second) // at once: nobody else takes from it
		if err != nil {
			break
		}
		b.Messages = append(b.Messages, message(m, now))
	}
	if dropped, err := r.sub.Dropped(); err == nil && dropped > r.dropped {
		r.cfg.Logger.Warn("messages were dropped because they came faster than they could be processed",
			"subject", r.cfg.Subject, "dropped", dropped-r.dropped, "in all", dropped)
		r.dropped = dropped
	}
	return b, nil
}

func (r *Reader) next(ctx context.Context) (*nats.Msg, error) {
	for {
		m, err := r.sub.NextMsgWithContext(ctx)
		switch {
		case err == nil:
			return m, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, nats.ErrSlowConsumer): // said once for each time it begins to drop; the count is logged with the next batch
		default:
			return nil, fmt.Errorf("read from %s: %w", r.cfg.Subject, err)
		}
	}
}

func message(in *nats.Msg, now int64) flow.Message {
	m := flow.Message{ID: in.Header.Get(IDHeader), Value: in.Data, EventTime: now, Ingested: now}
	if m.ID == "" {
		m.ID = nuid.Next()
	}
	for name, values := range in.Header {
		if name == IDHeader {
			continue
		}
		for _, value := range values {
			m.Headers = flow.AppendHeader(m.Headers, name, value)
		}
	}
	return m
}

// Dropped is how many messages were dropped because the queue was full.
func (r *Reader) Dropped() (int, error) { return r.sub.Dropped() }

// Ack implements source.Reader. There is nobody to tell.
func (r *Reader) Ack(context.Context, *source.Batch) error { return nil }

// Pending implements source.Reader. It is unknown what will be published.
func (r *Reader) Pending(context.Context) (int64, error) { return -1, nil }

// Close implements source.Reader.
func (r *Reader) Close(context.Context) error {
	r.close.Do(func() {
		if waiting, _, err := r.sub.Pending(); err == nil && waiting > 0 {
			r.cfg.Logger.Warn("messages that had arrived and were not read yet are dropped: core NATS cannot redeliver them", "subject", r.cfg.Subject, "dropped", waiting)
		}
		if err := r.sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
			r.closeErr = err
		}
	})
	return r.closeErr
}

var _ source.Reader = (*Reader)(nil)
