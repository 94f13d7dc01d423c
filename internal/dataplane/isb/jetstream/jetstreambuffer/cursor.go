package jetstreambuffer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// The cursor is a consumer without acknowledgements, in the memory of one server. It never decides what was read or done, only a way to be given
// what is stored: it is made again behind the last entry whenever it fails, gives nothing in time, or skips something, as after a reconnect.

// Read-ahead: entries that the client asks for before they are needed.
const (
	aheadEntries = 256
	aheadBytes   = 2 << 20
)

// requestTimeout bounds what one call asks of the broker. The caller retries. A request can vanish with the server or the leader that got it,
// and the client library waits for as long as the caller's context has a deadline.
const requestTimeout = 5 * time.Second

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTimeout)
}

// cursorLife is how long the server keeps a cursor that nobody asks, of a process that was killed for instance.
const cursorLife = 2 * time.Minute

func (d *driver) Resume(ctx context.Context, after uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next, d.lastStored = after+1, time.Time{}
	d.dropReader()
	if d.shards > 1 {
		return nil
	}
	// Earlier versions read through a durable consumer.
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := d.js.DeleteConsumer(ctx, d.cfg.Stream, d.cfg.Stream); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return err
	}
	return nil
}

// Reset implements buffer.Cursor. The client library would notice that the server has lost the cursor, but only in a call of Next that is longer than two heartbeats.
func (d *driver) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropReader()
}

// dropReader lets go of the cursor. mu is held.
func (d *driver) dropReader() {
	if d.reader != nil {
		d.reader.Stop()
		d.reader = nil
	}
}

// open returns the cursor, which it makes if there is none.
func (d *driver) cursor(ctx context.Context) (jetstream.MessagesContext, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, buffer.ErrClosed
	}
	if d.reader != nil {
		return d.reader, nil
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	stream, err := d.js.Stream(ctx, d.cfg.Stream)
	if err != nil {
		return nil, err
	}
	info := stream.CachedInfo()
	switch {
	case !info.Created.Equal(d.created):
		return nil, fmt.Errorf("%w: it was made again at %v while it was in use", buffer.ErrMissing, info.Created)
	case info.State.LastSeq+1 < d.next:
		// A leader that was just elected has all that was given: reads are of what a majority stores.
		return nil, fmt.Errorf("%w: block %d was read, and the last one is now %d", buffer.ErrLostEnd, d.next-1, info.State.LastSeq)
	}
	if err := d.sameAsRead(ctx, info.State.FirstSeq); err != nil {
		return nil, err
	}
	consumer, err := d.js.CreateConsumer(ctx, d.cfg.Stream, jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: cursorLife,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: d.next, FilterSubject: d.reads.subject, HeadersOnly: d.reads.headersOnly,
	})
	if err != nil {
		return nil, err
	}
	d.reader, err = consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(aheadEntries, d.reads.bytes), jetstream.PullExpiry(30*time.Second), jetstream.PullHeartbeat(2*time.Second))
	d.fresh = true
	return d.reader, err
}

// sameAsRead returns buffer.ErrLostEnd if another entry is stored now where the last one was that the cursor gave. mu is held.
func (d *driver) sameAsRead(ctx context.Context, first uint64) error {
	last := d.lastSeq
	if d.lastStored.IsZero() || last < first {
		return nil
	}
	e, ok, err := d.get(ctx, last)
	if err != nil || !ok || e.Stored.Equal(d.lastStored) {
		return err
	}
	return fmt.Errorf("%w: block %d was read, and another one was stored there at %v", buffer.ErrLostEnd, last, e.Stored)
}

func (d *driver) Next(ctx context.Context) (buffer.Entry, error) {
	m, err := d.nextMessage(ctx)
	return m.Entry, err
}

// reads is what a cursor reads, and how many bytes ahead.
type reads struct {
	subject     string // empty for all
	headersOnly bool
	bytes       int
}

// message is an entry with what only the driver knows of it.
type message struct {
	buffer.Entry
	subject  string
	messages string // what the header says
}

// nextMessage is Next.
func (d *driver) nextMessage(ctx context.Context) (message, error) {
	for {
		reader, err := d.cursor(ctx)
		if err != nil {
			return message{}, d.classify(ctx, err)
		}
		msg, err := reader.Next(jetstream.NextContext(ctx))
		if err != nil {
			if ctx.Err() != nil {
				return message{}, ctx.Err()
			}
			d.mu.Lock()
			again := !d.fresh // it worked for a while: a new one may work at once
			d.dropReader()
			d.mu.Unlock()
			if again {
				continue
			}
			return message{}, d.classify(ctx, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return message{}, err
		}
		e := entryOf(meta.Sequence.Stream, msg.Data(), msg.Headers(), meta.Timestamp)
		d.mu.Lock()
		switch {
		case d.reader != reader || e.Seq < d.next:
			d.mu.Unlock()
			continue
		case e.Seq > d.next && !d.fresh && d.reads.subject == "": // a shard's cursor skips what is of others; see shardDriver.own
			// What lies between was given to a connection that broke, perhaps.
			d.dropReader()
			d.mu.Unlock()
			continue
		}
		d.next, d.lastStored, d.lastSeq, d.fresh = e.Seq+1, e.Stored, e.Seq, false
		d.mu.Unlock()
		return message{e, msg.Subject(), msg.Headers().Get(messagesHeader)}, nil
	}
}

func (d *driver) Bounds(ctx context.Context) (buffer.Bounds, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	stream, err := d.js.Stream(ctx, d.cfg.Stream)
	if err != nil {
		return buffer.Bounds{}, d.classify(ctx, err)
	}
	state := stream.CachedInfo().State
	b := buffer.Bounds{First: state.FirstSeq, Last: state.LastSeq}
	if state.Msgs == 0 {
		b.First = state.LastSeq + 1
	}
	return b, nil
}

// scanPatience is how long a scan waits for the next entry. What does not come is not there for the cursor, as after damage of the replica that leads: the caller
// looks for it. A broker that is only slow costs some requests more.
const scanPatience = 2 * time.Second

func (d *driver) Scan(ctx context.Context, seq uint64, visit func(buffer.Entry) error) error {
	bounds, err := d.Bounds(ctx)
	if err != nil || bounds.Last < seq || bounds.First > bounds.Last {
		return err
	}
	return d.scan(ctx, bounds, seq, visit)
}

// scan is Scan up to the end of bounds, which are not empty.
func (d *driver) scan(ctx context.Context, bounds buffer.Bounds, seq uint64, visit func(buffer.Entry) error) error {
	short, cancel := bounded(ctx)
	defer cancel()
	consumer, err := d.js.OrderedConsumer(short, d.cfg.Stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(seq, bounds.First), InactiveThreshold: 30 * time.Second, FilterSubjects: d.reads.filter(),
	})
	if err != nil {
		return err
	}
	entries, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(aheadEntries, d.reads.bytes))
	if err != nil {
		return err
	}
	defer entries.Stop()
	for {
		short, cancel := context.WithTimeout(ctx, scanPatience)
		msg, err := entries.Next(jetstream.NextContext(short))
		cancel()
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("%w for %v, and the last one is %d", buffer.ErrStalled, scanPatience, bounds.Last)
			}
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Stream > bounds.Last {
			return nil
		}
		if err := visit(entryOf(meta.Sequence.Stream, msg.Data(), msg.Headers(), meta.Timestamp)); err != nil {
			return err
		}
		// The last ones may be damaged and never come, so what is left counts as well as the sequence.
		if meta.Sequence.Stream == bounds.Last || meta.NumPending == 0 {
			return nil
		}
	}
}
