// Package natssink publishes messages to a subject of core NATS.
//
// Between this sink and the server delivery is at least once: Write returns when the server has read the messages, and writing again
// publishes again; the header X-Numaflow-Id tells repetitions apart. Behind the server it is at most once: who does not listen at the moment misses
// them, which nobody reports. Use the jetstream sink where messages must be kept.
package natssink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a sink.
type Config struct {
	// Conn is the connection, which the sink does not close. Required. It should reconnect indefinitely (nats.MaxReconnects(-1)).
	Conn *nats.Conn
	// Subject to publish to. Required, without wildcards.
	Subject string
	// Writer names this sink among all that publish to the subject, whatever pipeline they are of: it begins the id in the header, by which readers
	// drop what they have seen.
	Writer string
	// Timeout is how long the server may take to read a block. Default 10 s.
	Timeout time.Duration
}

func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	return c
}

// IDHeader carries the id of a message.
const IDHeader = "X-Numaflow-Id"

// ErrReconnected means that the connection was re-established during a write, so that it is unknown what the server received.
var ErrReconnected = errors.New("the connection was lost on the way")

// Writer is the sink.
type Writer struct{ cfg Config }

// New returns a sink. The error names the field.
func New(cfg Config) (*Writer, error) {
	if cfg.Conn == nil {
		return nil, errors.New("conn: required, the connection to NATS")
	}
	if cfg.Subject == "" || strings.ContainsAny(cfg.Subject, "*> \t\r\n") {
		return nil, fmt.Errorf("subject: %q is none to publish to; give one without wildcards and spaces, for instance orders.new", cfg.Subject)
	}
	return &Writer{cfg.withDefaults()}, nil
}

// Write implements sink.Writer. Messages that the server would never take have failed for good.
func (w *Writer) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	before := w.cfg.Conn.Stats().Reconnects
	results, err := w.publish(b)
	if err != nil {
		return nil, fmt.Errorf("publish to %s: %w", w.cfg.Subject, err)
	}
	if err := w.cfg.Conn.FlushWithContext(ctx); err != nil {
		return nil, fmt.Errorf("publish to %s: %w", w.cfg.Subject, err)
	}
	// A server that refuses a message sends the error before it answers the flush, and no other call returns it: without this the message would be lost silently.
	if err := w.cfg.Conn.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return nil, fmt.Errorf("publish to %s: %w: give the user the permission to publish to it", w.cfg.Subject, err)
	}
	if w.cfg.Conn.Stats().Reconnects != before {
		return nil, fmt.Errorf("publish to %s: %w", w.cfg.Subject, ErrReconnected) // the flush speaks for the new connection only
	}
	return results, nil
}

// publish hands the messages to the client, which sends them in the background. The results are nil if none has failed.
func (w *Writer) publish(b *flow.Block) (results []sink.Result, err error) {
	for i := range b.Messages {
		err := w.cfg.Conn.PublishMsg(w.message(&b.Messages[i]))
		switch {
		case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadHeaderMsg):
			if results == nil {
				results = make([]sink.Result, len(b.Messages))
			}
			results[i] = sink.Result{Status: sink.Failed, Permanent: true, Error: fmt.Sprintf("publish %d bytes to %s: %v", b.Messages[i].Size(), w.cfg.Subject, err)}
		case err != nil:
			return nil, err
		}
	}
	return results, nil
}

func (w *Writer) message(m *flow.Message) *nats.Msg {
	header := nats.Header{}
	for name, value := range m.Headers.All {
		if _, ok := header[name]; !ok {
			header[name] = []string{value}
		}
	}
	if m.ID != "" {
		id := m.ID
		if w.cfg.Writer != "" {
			id = w.cfg.Writer + "/" + id
		}
		header[IDHeader] = []string{id}
	}
	return &nats.Msg{Subject: w.cfg.Subject, Header: header, Data: m.Value}
}

// Close implements sink.Writer.
func (w *Writer) Close(context.Context) error { return nil }

var _ sink.Writer = (*Writer)(nil)
