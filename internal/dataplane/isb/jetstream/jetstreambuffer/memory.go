package jetstreambuffer

import (
	"context"
	"errors"
	"strconv"
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
	state, err := d.cfg.State.Get(ctx, d.key("seen"))
	if err == nil {
		var floor, last uint64
		floor, last, err = buffer.SavedBounds(state.Value())
		lost.Blocks = last - min(floor, last)
	}
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		lost.Err = err
	}
	if pending, err := d.cfg.State.Get(ctx, d.key("pending")); err == nil {
		if n, err := strconv.Atoi(string(pending.Value())); err == nil {
			lost.Messages = n
		}
	}
	if d.cfg.Lost != nil {
		d.cfg.Lost(lost)
		return
	}
	lost.Log(d.cfg.Logger)
}
