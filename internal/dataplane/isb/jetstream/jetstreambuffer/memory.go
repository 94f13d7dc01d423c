package jetstreambuffer

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// madeInMemory follows the time in the note that a stream in memory was created.
const madeInMemory = " memory"

// noteMade remembers that the stream was made.
func (d *driver) noteMade(ctx context.Context) error {
	note := time.Now().UTC().Format(time.RFC3339)
	if d.memory {
		note += madeInMemory
	}
	if d.shards > 1 {
		// A version that knows no shards stops at it, and does not read the stream as one.
		if _, err := d.cfg.State.Put(ctx, d.key("seen"), buffer.DividedState()); err != nil {
			return err
		}
	}
	_, err := d.cfg.State.Put(ctx, d.key("made"), []byte(note))
	return err
}

// Volatile implements buffer.Volatile.
func (d *driver) Volatile() bool { return d.memory }

// SavePending implements buffer.Volatile.
func (d *driver) SavePending(ctx context.Context, messages int) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := d.fence(ctx); err != nil {
		return err
	}
	return d.putState(ctx, d.key("pending"), []byte(strconv.Itoa(messages)))
}

// sayLost says what was in a stream that the broker's memory has lost, as far as the saved state knows.
func (d *driver) sayLost(ctx context.Context) {
	lost := buffer.Loss{Stream: d.cfg.Stream, Messages: -1}
	keys, err := keysOfShards(ctx, d.cfg.State, d.cfg.Stream)
	if err != nil {
		lost.Err = err
	}
	seen, pending := []string{d.key("seen")}, []string{d.key("pending")}
	for _, key := range keys { // of a stream with shards, that of the whole is a mark
		if n, ok := strings.CutPrefix(key, d.key("seen")+"."); ok {
			if seen[0] == d.key("seen") {
				seen, pending = nil, nil
			}
			seen, pending = append(seen, key), append(pending, d.key("pending")+"."+n)
		}
	}
	for _, key := range seen {
		state, err := d.cfg.State.Get(ctx, key)
		if err == nil {
			var floor, last uint64
			floor, last, err = buffer.SavedBounds(state.Value())
			lost.Blocks = max(lost.Blocks, last-min(floor, last))
		}
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
			lost.Err = err
		}
	}
	for _, key := range pending {
		if pending, err := d.cfg.State.Get(ctx, key); err == nil {
			if n, err := strconv.Atoi(string(pending.Value())); err == nil {
				lost.Messages = max(0, lost.Messages) + n
			}
		}
	}
	if d.cfg.Lost != nil {
		d.cfg.Lost(lost)
		return
	}
	lost.Log(d.cfg.Logger)
}
