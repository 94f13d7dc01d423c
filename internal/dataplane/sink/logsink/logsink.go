// Package logsink writes a line for each message, for people to look at.
//
// Delivery is at least once: what is written again after a crash is in the log again.
package logsink

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a sink.
type Config struct {
	// Out is where lines go. Required. It gets one Write for each block.
	Out io.Writer
	// Prefix comes before each line, for instance the vertex's name and a space.
	Prefix string
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
		w.buf = appendLine(append(w.buf, w.cfg.Prefix...), &b.Messages[i])
	}
	_, err := w.cfg.Out.Write(w.buf)
	return nil, err
}

// Close implements sink.Writer. It leaves Out open.
func (w *Writer) Close(context.Context) error { return nil }

// appendLine keeps the words that Numaflow's users and their tests search for.
func appendLine(b []byte, m *flow.Message) []byte {
	b = appendText(append(b, "Payload - "...), m.Value)
	b = append(b, " Keys - ["...)
	for i, k := range m.Keys {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendText(b, []byte(k))
	}
	b = append(b, "] EventTime - "...)
	b = strconv.AppendInt(b, m.EventTime/1e6, 10)
	b = append(b, " Headers - {"...)
	first := true
	for name, value := range m.Headers.All {
		if !first {
			b = append(b, ", "...)
		}
		first = false
		b = appendText(b, []byte(name))
		b = append(b, ": "...)
		b = appendText(b, []byte(value))
	}
	b = append(b, "} ID - "...)
	b = appendText(b, []byte(m.ID))
	return append(b, '\n')
}

// appendText writes control characters as in Go, so that a message is one line and cannot pretend to be another, nor command a terminal.
func appendText(b, text []byte) []byte {
	from := 0
	for i := 0; i < len(text); {
		if c := text[i]; c >= ' ' && c < 0x7f {
			i++
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		if (r != utf8.RuneError || size > 1) && strconv.IsPrint(r) {
			i += size
			continue
		}
		b = append(b, text[from:i]...)
		if r == utf8.RuneError && size == 1 {
			const digits = "0123456789abcdef"
			b = append(b, '\\', 'x', digits[text[i]>>4], digits[text[i]&15])
		} else {
			quoted := strconv.QuoteRune(r)
			b = append(b, quoted[1:len(quoted)-1]...)
		}
		i += size
		from = i
	}
	return append(b, text[from:]...)
}

var _ sink.Writer = (*Writer)(nil)
