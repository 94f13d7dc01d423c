package jetstreambuffer

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// Remove deletes the stream of a partition for good, with what the state knows of it. The note that it was created goes first: a crash after that leaves a stream
// that is adopted, never a note without one, which would count as a loss.
func Remove(ctx context.Context, js jetstream.JetStream, state jetstream.KeyValue, stream string) error {
	if err := state.Purge(ctx, stateKey(stream, "made")); err != nil {
		return err
	}
	if err := js.DeleteStream(ctx, stream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	keys, err := keysOfShards(ctx, state, stream)
	if err != nil {
		return err
	}
	for _, key := range append(keys, stateKey(stream, "seen")) {
		if err := state.Purge(ctx, key); err != nil {
			return err
		}
	}
	return nil
}
