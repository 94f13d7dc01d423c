// Package jetstreamsink publishes messages to a stream, which must exist, and waits until they are stored there.
//
// Delivery is at least once, and once within the stream's duplicate window: each message carries the name of the sink and its own id as Nats-Msg-Id, so
// what is written again while the server remembers the id is stored once, and what another sink writes is another message. A pause longer than the window, which is 2 minutes unless the stream says otherwise, can
// make duplicates; they have the same Nats-Msg-Id.
package jetstreamsink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a sink. The zero value of a field is its default.
type Config struct {
	// Conn is the connection, which the sink does not close. Required. It should reconnect indefinitely (nats.MaxReconnects(-1)).
	Conn *nats.Conn
	// Subject to publish to. Required, without wildcards.
	Subject string
	// Stream must be the one that holds Subject. By default it is whichever does.
	Stream string
	// Writer names this sink among all that publish to the stream, whatever pipeline they are of: it begins each Nats-Msg-Id. Two sinks of one name
	// would take each other's messages for their own.
	Writer string
	// Duplicates is called with the number of messages that the stream already had when this process first published them. Logger gets a warning, too.
	Duplicates func(messages int)
	Logger     *slog.Logger
	// MaxPending is how many messages may wait for their confirmation, over all lanes. Default 4096: beyond that the server is no faster.
	MaxPending int
	// AckTimeout is how long a confirmation may take. Default 10 s.
	AckTimeout time.Duration
}

func (c Config) withDefaults() Config {
	c.MaxPending = cmp.Or(c.MaxPending, 4096)
	c.AckTimeout = cmp.Or(c.AckTimeout, 10*time.Second)
	if c.Duplicates == nil {
		c.Duplicates = func(int) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Writer is the sink.
type Writer struct {
	cfg        Config
	js         jetstream.JetStream
	duplicates duplicates
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
	w := &Writer{cfg: cfg, js: js}
	w.duplicates.cfg = &w.cfg
	return w, nil
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
		results[i] = sink.Result{Status: sink.Failed, Permanent: true, Error: fmt.Sprintf("publish %d bytes to %s: %v", b.Messages[i].Size(), w.cfg.Subject, err)}
	}
	var trouble error
	var duplicates []int
	acks := make([]jetstream.PubAckFuture, len(b.Messages))
	for i := range b.Messages {
		// The stall is the back-pressure of MaxPending: as long as confirmations may take, it is not a fault.
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
		case stored := <-ack.Ok():
			if stored.Duplicate {
				duplicates = append(duplicates, i)
			}
		case err := <-ack.Err():
			if permanent(err) {
				failed(i, err)
			} else {
				trouble = cmp.Or(trouble, err)
			}
		case <-ctx.Done():
			w.duplicates.failed(b)
			return nil, ctx.Err()
		}
	}
	if trouble != nil {
		w.duplicates.failed(b)
		return nil, fmt.Errorf("publish to %s in stream %s: %w", w.cfg.Subject, w.cfg.Stream, trouble)
	}
	w.duplicates.settled(b, duplicates)
	return results, nil
}

// The server's codes for a message above the stream's max_msg_size, and for headers above what a stream stores.
const (
	errTooLarge       jetstream.ErrorCode = 10054
	errHeaderTooLarge jetstream.ErrorCode = 10097
)

// permanent says that the message itself is refused, today and tomorrow.
func permanent(err error) bool {
	if errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadHeaderMsg) {
		return true
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == errTooLarge || api.ErrorCode == errHeaderTooLarge)
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
		id := m.ID
		if w.cfg.Writer != "" {
			id = w.cfg.Writer + "/" + id
		}
		header[jetstream.MsgIDHeader] = []string{id}
	}
	header[jetstream.ExpectedStreamHeader] = []string{w.cfg.Stream}
	return &nats.Msg{Subject: w.cfg.Subject, Header: header, Data: m.Value}
}

func reserved(name string) bool { return len(name) >= 5 && strings.EqualFold(name[:5], "Nats-") }

// Close implements sink.Writer.
func (w *Writer) Close(context.Context) error {
	w.duplicates.close()
	w.js.CleanupPublisher()
	return nil
}

var _ sink.Writer = (*Writer)(nil)
