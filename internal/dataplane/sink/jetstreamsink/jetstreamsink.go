// Package jetstreamsink publishes messages to a stream, which must exist, and waits until they are stored there.
//
// Delivery is at least once, and once within the stream's duplicate window: each message carries its id as Nats-Msg-Id, so what is written
// again while the server remembers the id is stored once. A pause longer than the window, which is 2 minutes unless the stream says otherwise, can
// make duplicates; they have the same Nats-Msg-Id.
package jetstreamsink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a sink. The zero value of a field is its default.
type Config struct {
	// Conn is the connection, which the sink does not close. Required. It should reconnect for ever (nats.MaxReconnects(-1)).
	Conn *nats.Conn
	// Subject to publish to. Required, without wildcards.
	Subject string
	// Stream must be the one that holds Subject. By default it is whichever does.
	Stream string
	// MaxPending is how many messages may wait for their confirmation, over all lanes. Default 4096: beyond that the server is no faster.
	MaxPending int
	// AckTimeout is how long a confirmation may take. Default 10 s.
	AckTimeout time.Duration
}

func (c Config) withDefaults() Config {
	c.MaxPending = cmp.Or(c.MaxPending, 4096)
	c.AckTimeout = cmp.Or(c.AckTimeout, 10*time.Second)
	return c
}

// Writer is the sink.
type Writer struct {
	cfg Config
	js  jetstream.JetStream
}

// New checks that the stream is there. Errors name the field and what to do.
func New(ctx context.Context, cfg Config) (*Writer, error) {
	cfg = cfg.withDefaults()
	if cfg.Conn == nil {
		return nil, errors.New("conn: required, the connection to NATS")
	}
	if cfg.Subject == "" || strings.ContainsAny(cfg.Subject, "*> \t\r\n") {
		return nil, fmt.Errorf("subject: %q is none to publish to; give one without wildcards and spaces, for instance orders.new", cfg.Subject)
	}
	js, err := jetstream.New(cfg.Conn, jetstream.WithPublishAsyncMaxPending(cfg.MaxPending), jetstream.WithPublishAsyncTimeout(cfg.AckTimeout))
	if err != nil {
		return nil, fmt.Errorf("conn: %w", err)
	}
	name, err := js.StreamNameBySubject(ctx, cfg.Subject)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("subject: no stream holds %q; make one first, for instance: nats stream add --subjects %s", cfg.Subject, cfg.Subject)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the stream of %s: %w", cfg.Subject, err)
	}
	if cfg.Stream != "" && cfg.Stream != name {
		return nil, fmt.Errorf("stream: %q does not hold subject %q, which belongs to %q; correct one of the two", cfg.Stream, cfg.Subject, name)
	}
	cfg.Stream = name
	return &Writer{cfg, js}, nil
}

// Write implements sink.Writer. Messages that the stream would never take have failed for good; any other trouble fails the block, which is then
// published again under the same ids.
func (w *Writer) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var results []sink.Result
	failed := func(i int, err error) {
		if results == nil {
			results = make([]sink.Result, len(b.Messages))
		}
		results[i] = sink.Result{Status: sink.Failed, Error: fmt.Sprintf("publish %d bytes to %s: %v", b.Messages[i].Size(), w.cfg.Subject, err)}
	}
	var trouble error
	acks := make([]jetstream.PubAckFuture, len(b.Messages))
	for i := range b.Messages {
		// The stall is the back-pressure of MaxPending: as long as confirmations may take, it is no fault.
		ack, err := w.js.PublishMsgAsync(w.message(&b.Messages[i]), jetstream.WithStallWait(w.cfg.AckTimeout))
		if permanent(err) {
			failed(i, err)
		} else if err != nil {
			trouble = err
			break
		}
		acks[i] = ack
	}
	// All are awaited even if one fails: the caller's retry shall not overtake what is still on its way.
	for i, ack := range acks {
		if ack == nil {
			continue
		}
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			if permanent(err) {
				failed(i, err)
			} else {
				trouble = cmp.Or(trouble, err)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if trouble != nil {
		return nil, fmt.Errorf("publish to %s in stream %s: %w", w.cfg.Subject, w.cfg.Stream, trouble)
	}
	return results, nil
}

// errTooLarge is the server's code for a message above the stream's max_msg_size.
const errTooLarge jetstream.ErrorCode = 10054

// permanent says that the message itself is refused, today and tomorrow.
func permanent(err error) bool {
	if errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadHeaderMsg) {
		return true
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.ErrorCode == errTooLarge
}

func (w *Writer) message(m *flow.Message) *nats.Msg {
	header := nats.Header{}
	for name, value := range m.Headers.All {
		// A header that came from another stream must not command this one: an expected sequence, a rollup.
		if _, ok := header[name]; !ok && !reserved(name) {
			header[name] = []string{value}
		}
	}
	if m.ID != "" {
		header[jetstream.MsgIDHeader] = []string{m.ID}
	}
	header[jetstream.ExpectedStreamHeader] = []string{w.cfg.Stream}
	return &nats.Msg{Subject: w.cfg.Subject, Header: header, Data: m.Value}
}

func reserved(name string) bool { return len(name) >= 5 && strings.EqualFold(name[:5], "Nats-") }

// Close implements sink.Writer.
func (w *Writer) Close(context.Context) error {
	w.js.CleanupPublisher()
	return nil
}

var _ sink.Writer = (*Writer)(nil)
