// Package udsource is a user-defined source as a source.Reader.
package udsource

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/function/client"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// Source is a user-defined source as a source.Reader.
type Source struct {
	Function *function.Function
	// Timeout is how long the source may wait for messages (limits.readTimeout).
	Timeout time.Duration
}

// Read implements source.Reader.
func (s *Source) Read(ctx context.Context, limit int) (*source.Batch, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, emptyPause) {
		var messages []flow.Message
		var offsets []client.Offset
		err := s.Function.Source(ctx, func(c *client.Source) (err error) {
			messages, offsets, err = c.Read(ctx, limit, s.Timeout)
			return err
		})
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil, err
		case errors.Is(err, function.ErrStart):
			return nil, &source.PermanentError{Err: err}
		default:
			return nil, fmt.Errorf("user-defined source: %w", err)
		}
		if len(messages) > 0 {
			return &source.Batch{Partition: "0", ByID: true, Messages: messages, Token: &handed{offsets: offsets, acked: make([]bool, len(offsets))}}, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// emptyPause is how long to wait at most before a source is asked again that had nothing. Many do not wait themselves: they have nothing as long as the
// last batch is not acknowledged, and say so at once.
const emptyPause = 20 * time.Millisecond

// Ack implements source.Reader.
func (s *Source) Ack(ctx context.Context, b *source.Batch) error {
	return s.AckPart(ctx, b, 0, len(b.Messages))
}

// handed are the offsets of a batch, and which of them were acknowledged: each is acknowledged once.
type handed struct {
	offsets []client.Offset
	acked   []bool
}

// AckPart implements source.PartAcker.
func (s *Source) AckPart(ctx context.Context, b *source.Batch, from, to int) error {
	h := b.Token.(*handed)
	var offsets []client.Offset
	for i := from; i < to; i++ {
		if !h.acked[i] {
			offsets = append(offsets, h.offsets[i])
		}
	}
	if len(offsets) == 0 {
		return nil
	}
	err := s.Function.Source(ctx, func(c *client.Source) error { return c.Ack(ctx, offsets) })
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("user-defined source: acknowledge: %w", err)
	}
	for i := from; i < to; i++ {
		h.acked[i] = true
	}
	return nil
}

// Pending implements source.Reader.
func (s *Source) Pending(ctx context.Context) (int64, error) {
	c, err := s.Function.SourceClient(ctx)
	if err != nil {
		return -1, err
	}
	return c.Pending(ctx)
}

// Close implements source.Reader.
func (s *Source) Close(context.Context) error { return nil }
