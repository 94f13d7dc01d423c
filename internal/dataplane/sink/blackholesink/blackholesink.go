// Package blackholesink counts messages and drops them. What is written again after a crash is counted again.
package blackholesink

import (
	"context"
	"sync/atomic"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a sink: there is nothing to configure.
type Config struct{}

// Writer is the sink.
type Writer struct {
	messages, bytes atomic.Int64
}

// New returns a sink. It never fails.
func New(Config) (*Writer, error) { return &Writer{}, nil }

// Write implements sink.Writer.
func (w *Writer) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	size := 0
	for i := range b.Messages {
		size += b.Messages[i].Size()
	}
	w.messages.Add(int64(len(b.Messages)))
	w.bytes.Add(int64(size))
	return nil, nil
}

// Dropped is how many messages and bytes of payload there were.
func (w *Writer) Dropped() (messages, bytes int64) { return w.messages.Load(), w.bytes.Load() }

// Close implements sink.Writer.
func (w *Writer) Close(context.Context) error { return nil }

var _ sink.Writer = (*Writer)(nil)
