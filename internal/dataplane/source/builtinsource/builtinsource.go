// Package builtinsource has the sources that Levada brings along, equivalents of the sample sources of Numaflow. The package catalogue names them.
package builtinsource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/position"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/flow/metadata"
)

// counter is a source of the numbers from 0. Number n has the position n+1 and always the same content but for its times, so what comes again
// after a crash is known downstream.
type counter struct {
	opt       Options
	partition string
	count     uint64 // how many there are; 0: no end
	metadata  bool
	saver     *position.Saver // nil: it does not remember

	begun  bool // only Read uses these two
	last   uint64
	closed atomic.Bool
}

// Options say what a source runs for. The zero value of each field is allowed.
type Options struct {
	// Vertex is the name of the vertex, for errors.
	Vertex string
	// Partition is the name of its one partition. Default "0".
	Partition string
	// Positions remembers how far the source is. Default: it begins at 0 with each process, under the same positions.
	Positions source.Positions
}

// Counted is how many messages Metadata has.
const Counted = 100

// Simple counts: 0, 1, 2 and so on, without an end.
func Simple(opt Options) source.Reader { return newCounter(opt) }

// Metadata counts from 0 to 99, each number with user metadata, and then ends.
func Metadata(opt Options) source.Reader {
	c := newCounter(opt)
	c.count, c.metadata = Counted, true
	return c
}

func newCounter(opt Options) *counter {
	c := &counter{opt: opt, partition: cmp.Or(opt.Partition, "0")}
	if opt.Positions != nil {
		c.saver = &position.Saver{
			Store: opt.Positions, Partition: c.partition, Every: position.Every,
			Encode: func(n uint64) ([]byte, error) { return strconv.AppendUint(nil, n, 10), nil },
		}
	}
	return c
}

// Read implements source.Reader.
func (c *counter) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.closed.Load() {
		return nil, errors.New("the source is closed")
	}
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	n := uint64(max(limit, 1))
	if c.count > 0 {
		if c.last >= c.count {
			return nil, io.EOF
		}
		n = min(n, c.count-c.last)
	}
	now := time.Now().UnixNano()
	b := &source.Batch{Partition: c.partition, Lo: c.last + 1, Hi: c.last + n, Messages: make([]flow.Message, n)}
	var values []byte // of all messages
	for i := range b.Messages {
		number := c.last + uint64(i)
		start := len(values)
		values = strconv.AppendUint(values, number, 10)
		m := &b.Messages[i]
		*m = flow.Message{Pos: number + 1, Value: values[start:len(values):len(values)], EventTime: now, Ingested: now}
		m.Headers = flow.AppendHeader(nil, "x-txn-id", c.transaction(number))
		if c.metadata {
			user := metadata.Groups{}
			user.Set("simple-source", "txn-id", []byte(c.transaction(number)))
			m.Metadata = metadata.WithUser(nil, user)
		}
	}
	c.last = b.Hi
	return b, nil
}

func (c *counter) begin(ctx context.Context) error {
	if c.begun || c.saver == nil {
		return nil
	}
	saved, err := c.opt.Positions.Load(ctx, c.partition)
	if err != nil {
		return fmt.Errorf("load position of source %s: %w", c.opt.Vertex, err)
	}
	if saved != nil {
		if c.last, err = strconv.ParseUint(string(saved), 10, 64); err != nil {
			return &source.PermanentError{Err: fmt.Errorf("saved position of source %s: %q is none of this source: %w", c.opt.Vertex, saved, err)}
		}
	}
	c.begun = true
	return nil
}

// transaction is an id in the form of a UUID (version 8, made by rules of our own) that belongs to the number.
func (c *counter) transaction(number uint64) string {
	seed := number
	for _, letter := range []byte(c.partition) {
		seed = mix(seed ^ uint64(letter)<<56)
	}
	high, low := mix(seed+1), mix(seed+2)
	high = high&^0xf000 | 0x8000
	low = low&^(3<<62) | 1<<63
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", high>>32, high>>16&0xffff, high&0xffff, low>>48, low&(1<<48-1))
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Ack implements source.Reader.
func (c *counter) Ack(ctx context.Context, b *source.Batch) error {
	if c.saver == nil {
		return nil
	}
	return c.saver.Ack(ctx, b.Hi)
}

// AckPart implements source.PartAcker.
func (c *counter) AckPart(ctx context.Context, b *source.Batch, _, to int) error {
	if c.saver == nil {
		return nil
	}
	return c.saver.Ack(ctx, b.EndOf(to))
}

// Pending implements source.Reader. There is always more, so the number says nothing.
func (c *counter) Pending(context.Context) (int64, error) { return -1, nil }

// Close implements source.Reader.
func (c *counter) Close(ctx context.Context) error {
	if c.closed.Swap(true) || c.saver == nil {
		return nil
	}
	return c.saver.Flush(ctx)
}

var _ source.Reader = (*counter)(nil)
