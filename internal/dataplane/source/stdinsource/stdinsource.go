// Package stdinsource reads messages from the standard input, or another stream that can be read once, to its end.
//
// What was read and is not yet durable in the next buffer is lost if the process dies: a pipe cannot be read again. That is at most what
// is in flight. A failure that the process survives loses nothing. Put what must not be lost into a file, and use the file source.
package stdinsource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/records"
)

// Config of a source. The zero value of a field is its default.
type Config struct {
	// In is what to read, usually os.Stdin. Required. If it can be closed, Close closes it: that ends a read that waits.
	In io.Reader
	// Format is records.Lines by default.
	Format records.Format
	// NoHeader says that the first record of a CSV stream does not name the columns: messages are arrays then, not objects.
	NoHeader bool
	// Delimiter of CSV fields, and what becomes of malformed records; see records.Config.
	Delimiter   byte
	OnMalformed records.Policy
	// Logger gets what is skipped, and Skipped counts it. Default: no logger.
	Logger  *slog.Logger
	Skipped func(records, bytes int)
	// MaxRecord is the largest line or record in bytes. Default 16 MiB.
	MaxRecord int
	// Partition names the stream in positions and message ids. Default "stdin".
	Partition string
	// Positions remembers which run this is. Required.
	Positions source.Positions
}

// runBits: a run has positions for 16 TiB, and there may be a million runs.
const runBits = 44

// Reader is the source.
type Reader struct {
	cfg   Config
	base  uint64 // positions of this run come after it
	split *records.Splitter
	sort  records.Triage
	warn  sync.Once
	last  uint64
	eof   bool

	// The goroutine that reads owns Room between ask and got: a read of a pipe or a terminal cannot be called off.
	ask     chan []byte
	got     chan result
	asked   bool
	closing chan struct{}
	close   sync.Once
	stopped chan struct{}
}

type result struct {
	n   int
	err error
}

const stride = 64 << 10

// New begins a run. Its positions come after those of all runs before, of which some may be in flight still.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	if cfg.Partition == "" {
		cfg.Partition = "stdin"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.In == nil {
		return nil, errors.New("in: required, what to read")
	}
	if cfg.Positions == nil {
		return nil, errors.New("positions: required, where to remember the run")
	}
	split, err := records.New(records.Config{Format: cfg.Format, NoHeader: cfg.NoHeader, Delimiter: cfg.Delimiter, OnMalformed: cfg.OnMalformed, MaxRecord: cfg.MaxRecord})
	if err != nil {
		return nil, err
	}
	run, err := nextRun(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r := &Reader{
		cfg: cfg, base: run << runBits, split: split, sort: records.Triage{Policy: cfg.OnMalformed, Logger: cfg.Logger, Skipped: cfg.Skipped},
		ask: make(chan []byte), got: make(chan result, 1), closing: make(chan struct{}), stopped: make(chan struct{}),
	}
	go r.pump()
	return r, nil
}

type saved struct {
	Run uint64 `json:"run"`
}

// nextRun counts the run before any of its positions is given away.
func nextRun(ctx context.Context, cfg Config) (uint64, error) {
	b, err := cfg.Positions.Load(ctx, cfg.Partition)
	if err != nil {
		return 0, fmt.Errorf("load position of %s: %w", cfg.Partition, err)
	}
	s := saved{}
	if b != nil {
		if err := json.Unmarshal(b, &s); err != nil {
			return 0, fmt.Errorf("saved position of %s: %q is none of this source: %w", cfg.Partition, b, err)
		}
		s.Run++
	}
	if s.Run >= 1<<(64-runBits) {
		return 0, fmt.Errorf("saved position of %s: no positions are left after %d runs; use another partition name", cfg.Partition, s.Run)
	}
	if b, err = json.Marshal(s); err != nil {
		return 0, err
	}
	if err := cfg.Positions.Save(ctx, cfg.Partition, b); err != nil {
		return 0, fmt.Errorf("save position of %s: %w", cfg.Partition, err)
	}
	return s.Run, nil
}

// pump reads when it is asked to.
func (r *Reader) pump() {
	defer close(r.stopped)
	for {
		select {
		case <-r.closing:
			return
		case room := <-r.ask:
			n, err := r.cfg.In.Read(room)
			r.got <- result{n, err}
		}
	}
}

// Read implements source.Reader.
func (r *Reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		messages, bad, err := r.split.Cut(limit, time.Now().UnixNano(), r.eof)
		broken := r.sort.Sort(bad, r.at)
		if len(messages) > 0 {
			for i := range messages {
				messages[i].Pos += r.base
			}
			b := &source.Batch{Partition: r.cfg.Partition, Lo: r.base + r.last + 1, Hi: r.base + r.split.Offset(), Stride: stride, Messages: messages, Broken: broken}
			r.last = r.split.Offset()
			r.warn.Do(func() { records.WarnDelimiter(r.cfg.Logger, r.cfg.Partition, r.cfg.Delimiter, r.split.Suspect()) })
			return b, nil
		}
		if fault, ok := errors.AsType[*records.Error](err); ok {
			return nil, records.Fatal(r.at(fault), err)
		}
		if len(bad) > 0 {
			continue // what was skipped
		}
		if r.eof {
			r.sort.Close()
			return nil, io.EOF
		}
		if err := r.more(ctx); err != nil {
			return nil, err
		}
	}
}

// at says where a record is, for people.
func (r *Reader) at(e *records.Error) string { return fmt.Sprintf("%s:%d", r.cfg.Partition, e.Line+1) }

// more waits for the next bytes.
func (r *Reader) more(ctx context.Context) error {
	if !r.asked {
		select {
		case r.ask <- r.split.Room():
			r.asked = true
		case <-r.closing:
			return errors.New("source is closed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case got := <-r.got:
		r.asked = false
		r.split.Fed(got.n)
		if got.err == io.EOF {
			r.eof = true
		} else if got.err != nil {
			return fmt.Errorf("read %s: %w", r.cfg.Partition, got.err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ack implements source.Reader. There is nothing to remember: a stream cannot be read again.
func (r *Reader) Ack(context.Context, *source.Batch) error { return nil }

// Pending implements source.Reader. The number is unknown.
func (r *Reader) Pending(context.Context) (int64, error) { return -1, nil }

// Close implements source.Reader. A read that waits for a terminal, or for anything else that cannot be closed, ends with the process; Close does
// not wait for it longer than ctx lasts.
func (r *Reader) Close(ctx context.Context) error {
	var err error
	r.close.Do(func() {
		close(r.closing)
		if c, ok := r.cfg.In.(io.Closer); ok {
			err = c.Close()
		}
		select {
		case <-r.stopped:
		case <-ctx.Done():
			err = errors.Join(err, ctx.Err())
		}
	})
	return err
}

var _ source.Reader = (*Reader)(nil)
