// Package stdoutsink writes messages to the standard output, for a shell's pipe.
//
// Delivery is at least once: what is written again after a crash comes out again, and after a write that failed in its middle a line may be
// cut. Use the file sink where each message must be there once.
package stdoutsink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/render"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a sink.
type Config struct {
	// Out is where messages go, usually os.Stdout. Required. It gets one Write for each block.
	Out io.Writer
	// Format is render.Raw by default.
	Format render.Format
}

// Writer is the sink.
type Writer struct {
	cfg Config
	mu  sync.Mutex
	buf []byte
}

// New returns a sink. The error names the field.
func New(cfg Config) (*Writer, error) {
	if cfg.Out == nil {
		return nil, errors.New("out: required, where to write")
	}
	var err error
	if cfg.Format, err = render.Parse(cfg.Format); err != nil {
		return nil, err
	}
	return &Writer{cfg: cfg}, nil
}

// Write implements sink.Writer.
func (w *Writer) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(b.Messages) == 0 {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = w.buf[:0]
	for i := range b.Messages {
		w.buf = w.cfg.Format.Append(w.buf, &b.Messages[i])
	}
	if _, err := w.cfg.Out.Write(w.buf); err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	return nil, nil
}

// Close implements sink.Writer. It leaves Out open.
func (w *Writer) Close(context.Context) error { return nil }

var _ sink.Writer = (*Writer)(nil)
