package jetstreambuffer

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// MayWrite returns an error if the broker does not answer a write to the stream of a driver of this package: a user without the permission gets no answer, and a write would be
// tried again without end. Nothing is stored, because the message names another stream.
func MayWrite(ctx context.Context, opened buffer.WriterDriver) error {
	d, ok := opened.(*driver)
	if !ok {
		return nil
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	m := &nats.Msg{Subject: subject(d.cfg.Stream, 0, d.shards)}
	_, err := d.js.PublishMsg(ctx, m, jetstream.WithExpectStream(d.cfg.Stream+"_"), jetstream.WithRetryAttempts(0))
	if _, answered := errors.AsType[*jetstream.APIError](err); !answered && err != nil {
		return fmt.Errorf("write to stream %s: %w", d.cfg.Stream, err)
	}
	return nil
}
