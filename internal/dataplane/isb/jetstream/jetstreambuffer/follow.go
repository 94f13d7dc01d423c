package jetstreambuffer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// A process that only writes follows the log by its headers, through a consumer of its own without acknowledgements, and the reader by the key of its saved
// state. Neither touches the reader.

// followLife is how long the server keeps the consumer of a process that was killed.
const followLife = 30 * time.Second

// Follow implements buffer.Usage.
func (d *driver) Follow(ctx context.Context, seq uint64, stored func(uint64, int)) error {
	short, cancel := bounded(ctx)
	defer cancel()
	consumer, err := d.js.OrderedConsumer(short, d.cfg.Stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: seq + 1, HeadersOnly: true, InactiveThreshold: followLife,
	})
	if err != nil {
		return d.classify(ctx, err)
	}
	entries, err := consumer.Messages(jetstream.PullMaxMessages(aheadEntries), jetstream.PullHeartbeat(2*time.Second), jetstream.PullExpiry(30*time.Second))
	if err != nil {
		return d.classify(ctx, err)
	}
	defer entries.Stop()
	for {
		msg, err := entries.Next(jetstream.NextContext(ctx))
		if err != nil {
			return d.classify(ctx, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		n, err := d.messagesOf(ctx, meta.Sequence.Stream, msg.Headers().Get(messagesHeader))
		if err != nil {
			return err
		}
		stored(meta.Sequence.Stream, n)
	}
}

// messagesOf is how many messages an entry counts as: its header says it, or for one of an earlier version its data.
func (d *driver) messagesOf(ctx context.Context, seq uint64, header string) (int, error) {
	if n, err := strconv.Atoi(header); err == nil {
		return n, nil
	}
	e, ok, err := d.get(ctx, seq)
	if err != nil || !ok {
		return 0, err
	}
	return buffer.MessagesIn(e.Data), nil
}

// WatchState implements buffer.Usage.
func (d *driver) WatchState(ctx context.Context, changed func([]byte)) error {
	watch, err := d.cfg.State.Watch(ctx, d.key("seen"))
	if err != nil {
		return fmt.Errorf("watch %s: %w", d.key("seen"), err)
	}
	defer func() { _ = watch.Stop() }()
	for {
		select {
		case entry, ok := <-watch.Updates():
			if !ok {
				return errors.New("the broker ended the watch of the saved state")
			}
			if entry != nil && entry.Operation() == jetstream.KeyValuePut { // nil says that the first value has come
				changed(entry.Value())
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
