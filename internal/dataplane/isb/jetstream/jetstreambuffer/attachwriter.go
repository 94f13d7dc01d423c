package jetstreambuffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// AttachWriter opens the stream of a partition for writing, as it is. It creates and configures nothing: that is for the reader's process, since two that create
// one stream at the same time could each remove the state that the other has saved. The error is buffer.ErrNotCreated for a stream that its reader will create, and
// buffer.ErrMissing for one that was there and is lost.
func AttachWriter(ctx context.Context, js jetstream.JetStream, cfg Config) (buffer.WriterDriver, error) {
	d, err := Attach(ctx, js, cfg)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, notThere(ctx, js, cfg)
	}
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, cfg.Stream)
	if err == nil {
		_, err = cfg.Tag.Check(cfg.Stream, stream.CachedInfo().Config.Metadata)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// notThere says what it means that a stream does not exist.
func notThere(ctx context.Context, js jetstream.JetStream, cfg Config) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	key := stateKey(cfg.Stream, "made")
	made, err := cfg.State.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return fmt.Errorf("stream %s: %w", cfg.Stream, buffer.ErrNotCreated)
	case err != nil:
		return err
	case bytes.HasSuffix(made.Value(), []byte(madeInMemory)):
		return fmt.Errorf("stream %s: %w: it was in the memory of the broker, which has restarted", cfg.Stream, buffer.ErrNotCreated)
	}
	// The note is written after the stream is created, so it may have been created since it was looked for.
	if _, err := js.Stream(ctx, cfg.Stream); err == nil {
		return fmt.Errorf("stream %s: %w", cfg.Stream, buffer.ErrNotCreated)
	}
	return fmt.Errorf("stream %s: %w, though it was created before: its messages are lost with it unless it is restored from a copy of the store", cfg.Stream, buffer.ErrMissing)
}
