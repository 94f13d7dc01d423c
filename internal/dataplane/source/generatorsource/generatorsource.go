// Package generatorsource makes messages: a number of them in each period, in every pod.
//
// The position of a message is its number, which goes on where it was left; so what was not acknowledged before a crash is made again under
// the same position, with the content of the new moment.
package generatorsource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/position"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a source. The zero value of a field is its default.
type Config struct {
	// RPU is how many messages there are in each Duration. Default 5.
	RPU int64
	// Duration is the time between two bursts. Default 1 s. What a slow reader missed is not made up for.
	Duration time.Duration
	// MsgSize is what a payload has at least, in bytes: {"id":...,"value":...}, and a padding if that is shorter. Default 8.
	MsgSize int
	// KeyCount is how many keys take turns. Default 0: messages have no key.
	KeyCount int
	// Value is the number in each payload. Default: the time of its making, in Unix nanoseconds.
	Value *uint64
	// Jitter is how much an event time lies before the making, at most. Default 0.
	Jitter time.Duration
	// ValueBlob, if not nil, is each payload.
	ValueBlob []byte
	// Count ends the source after that many messages over all its runs. Default 0: it never ends.
	Count uint64
	// Partition tells pods apart, in positions, ids and keys: usually the replica's number. Default "0".
	Partition string
	// Positions remembers the last number. Required.
	Positions source.Positions
	// SaveEvery is how often at most it is saved. Default 100 ms.
	SaveEvery time.Duration
}

func (c Config) withDefaults() Config {
	c.RPU = cmp.Or(c.RPU, 5)
	c.Duration = cmp.Or(c.Duration, time.Second)
	c.MsgSize = cmp.Or(c.MsgSize, 8)
	c.Partition = cmp.Or(c.Partition, "0")
	c.SaveEvery = cmp.Or(c.SaveEvery, position.Every)
	return c
}

func (c Config) validate() error {
	switch {
	case c.Positions == nil:
		return errors.New("positions: required, where to remember the last number")
	case c.RPU < 0:
		return fmt.Errorf("rpu: %d is negative; give the number of messages in each duration", c.RPU)
	case c.Duration < 0:
		return fmt.Errorf("duration: %v is negative; give a time such as 1s", c.Duration)
	case c.MsgSize < 0 || c.MsgSize > maxSize:
		return fmt.Errorf("msgSize: %d bytes; give at least 0 and at most %d", c.MsgSize, maxSize)
	case c.KeyCount < 0:
		return fmt.Errorf("keyCount: %d is negative; give 0 for no keys", c.KeyCount)
	case c.Jitter < 0:
		return fmt.Errorf("jitter: %v is negative; give a time such as 5s", c.Jitter)
	}
	return nil
}

const maxSize = 64 << 20

// Reader is the source.
type Reader struct {
	cfg    Config
	saver  *position.Saver
	closed atomic.Bool
	keys   [][]string

	// Only Read uses these.
	last uint64    // the number of the message given last
	due  time.Time // of the next burst
	left int64     // messages of this burst
}

// New goes on after the last number saved. Errors name the field and what to do.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r := &Reader{cfg: cfg}
	b, err := cfg.Positions.Load(ctx, cfg.Partition)
	if err != nil {
		return nil, fmt.Errorf("load position of generator %s: %w", cfg.Partition, err)
	}
	if b != nil {
		if r.last, err = strconv.ParseUint(string(b), 10, 64); err != nil {
			return nil, fmt.Errorf("saved position of generator %s: %q is none of this source: %w", cfg.Partition, b, err)
		}
	}
	r.saver = &position.Saver{
		Store: cfg.Positions, Partition: cfg.Partition, Every: cfg.SaveEvery,
		Encode: func(n uint64) ([]byte, error) { return strconv.AppendUint(nil, n, 10), nil },
	}
	for i := range cfg.KeyCount {
		r.keys = append(r.keys, []string{fmt.Sprintf("key-%d-%s", i, cfg.Partition)})
	}
	return r, nil
}

// Read implements source.Reader.
func (r *Reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.closed.Load() {
		return nil, errors.New("generator is closed")
	}
	if r.cfg.Count > 0 && r.last >= r.cfg.Count {
		return nil, io.EOF
	}
	if r.left == 0 {
		if err := r.wait(ctx); err != nil {
			return nil, err
		}
	}
	n := uint64(min(int64(limit), r.left))
	if r.cfg.Count > 0 {
		n = min(n, r.cfg.Count-r.last)
	}
	r.left -= int64(n)
	b := &source.Batch{Partition: r.cfg.Partition, Lo: r.last + 1, Hi: r.last + n, Messages: r.make(int(n))}
	r.last = b.Hi
	return b, nil
}

// wait waits for the next burst.
func (r *Reader) wait(ctx context.Context) error {
	if wait := time.Until(r.due); wait > 0 {
		if err := r.saver.Idle(ctx); err != nil {
			return fmt.Errorf("save position of generator %s: %w", r.cfg.Partition, err)
		}
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.due = r.due.Add(r.cfg.Duration)
	if now := time.Now(); r.due.Before(now) { // the first burst, or one that the reader was too slow for
		r.due = now.Add(r.cfg.Duration)
	}
	r.left = r.cfg.RPU
	return nil
}

// make makes n messages, whose payloads share one piece of memory.
func (r *Reader) make(n int) []flow.Message {
	messages := make([]flow.Message, n)
	now := time.Now().UnixNano()
	var slab []byte
	if r.cfg.ValueBlob == nil {
		slab = make([]byte, 0, n*max(r.cfg.MsgSize+len(`,"padding":""`), 64+len(r.cfg.Partition)))
	}
	for i := range messages {
		m := &messages[i]
		m.Pos = r.last + 1 + uint64(i)
		m.EventTime, m.Ingested = now, now
		if r.cfg.Jitter > 0 {
			m.EventTime -= rand.Int64N(int64(r.cfg.Jitter))
		}
		if len(r.keys) > 0 {
			m.Keys = r.keys[(m.Pos-1)%uint64(len(r.keys))]
		}
		if r.cfg.ValueBlob != nil {
			m.Value = r.cfg.ValueBlob
			continue
		}
		start := len(slab)
		slab = r.payload(slab, m.Pos, now)
		m.Value = slab[start:len(slab):len(slab)]
	}
	return messages
}

func (r *Reader) payload(b []byte, number uint64, now int64) []byte {
	start := len(b)
	b = append(b, `{"id":`...)
	b = strconv.AppendQuote(b, r.cfg.Partition)
	b = append(b[:len(b)-1], '-')
	b = strconv.AppendUint(b, number, 10)
	b = append(b, `","value":`...)
	if r.cfg.Value != nil {
		b = strconv.AppendUint(b, *r.cfg.Value, 10)
	} else {
		b = strconv.AppendInt(b, now, 10)
	}
	if missing := r.cfg.MsgSize - (len(b) - start) - len("}"); missing > 0 {
		b = append(b, `,"padding":"`...)
		for range missing - len(`,"padding":""`) {
			b = append(b, 'x')
		}
		b = append(b, '"')
	}
	return append(b, '}')
}

// Ack implements source.Reader.
func (r *Reader) Ack(ctx context.Context, b *source.Batch) error { return r.saver.Ack(ctx, b.Hi) }

// Pending implements source.Reader: there is no outside where messages could wait.
func (r *Reader) Pending(context.Context) (int64, error) { return -1, nil }

// Close implements source.Reader.
func (r *Reader) Close(ctx context.Context) error {
	if r.closed.Swap(true) {
		return nil
	}
	return r.saver.Flush(ctx)
}

var _ source.Reader = (*Reader)(nil)
