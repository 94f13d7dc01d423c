package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

// reading is one stream's way through its source. The reader fills current; the sender takes it, and gives it back as spare.
type reading struct {
	config ServerConfig
	req    *streamv1.ReadRequest
	source Source

	target     int // size at which a batch is sent
	maxRecord  int // largest record; target and it together fit what the reader takes
	maxRecords int
	skip       uint64 // records after the token that the reader has already: they are read, and not sent
	cursor     Cursor

	changed chan struct{} // tells the sender to look
	room    chan struct{} // tells the reader that current was taken

	// filling is held while a record is made, which may take its source long. So the sender only tries it, and wants what it did not
	// get.
	filling        sync.Mutex
	current, spare *filling    // spare is nil while it is being sent
	full           bool        // current is to be sent at once
	wanted         atomic.Bool // current is to be sent as soon as the record that is being made is in it

	mu        sync.Mutex // held for moments only, and taken after filling
	mark      token      // the position to name while nothing is sent: never beyond a record that was not
	size      uint64     // how long the stream is, to be sent
	knownSize uint64     // the same, once sent
	ended     bool       // no more will be read
	err       error      // why, nil at the stream's end
}

func newReading(config ServerConfig, req *streamv1.ReadRequest, source Source) *reading {
	r := &reading{
		config: config, req: req, source: source,
		target: config.BatchBytes, maxRecord: config.MaxRecord, maxRecords: int(req.GetMaxBatchRecords()),
		changed: make(chan struct{}, 1), room: make(chan struct{}, 1),
		current: new(filling), spare: new(filling),
	}
	if limit := int(req.GetMaxBatchBytes()); limit > 0 {
		r.target = min(r.target, max(limit/4, 1))
		r.maxRecord = min(r.maxRecord, limit-r.target)
	}
	return r
}

// start checks the position that the reader asks for, and opens the source there.
func (r *reading) start(ctx context.Context) (at token, err error) {
	defer recovered(&err)
	query := Query{Stream: r.req.GetStream(), Params: r.req.GetQuery(), Job: r.req.GetJob()}
	schema := ""
	if s, ok := r.source.(Schema); ok {
		schema = s.Schema(query)
	}
	at.fingerprint = fingerprint(query.Stream, string(query.Params), schema)
	if g, ok := r.source.(Generation); ok {
		name, err := g.Generation(ctx, query)
		if err != nil {
			return at, fmt.Errorf("the source's generation: %w", err)
		}
		at.generation = fingerprint(name)
	}
	if after := r.req.GetAfter(); len(after) > 0 {
		given, err := parseToken(after)
		switch {
		case err != nil:
			return at, err
		case given.fingerprint != at.fingerprint:
			return at, fmt.Errorf("%w (stream %q): finish or cancel the job under the old query, or submit a new job", ErrQueryChanged, query.Stream)
		case given.generation != at.generation:
			return at, fmt.Errorf("%w (stream %q): it was restored or replaced since; submit a new job", ErrGeneration, query.Stream)
		}
		at = given
		query.After = given.key
	}
	if next := r.req.GetNextSeq(); next != 0 {
		if next <= at.seq {
			return at, fmt.Errorf("%w: record %d is asked for after a position that follows record %d", ErrBadToken, next, at.seq)
		}
		r.skip = next - at.seq - 1
	}
	r.current.reset(at)
	r.mark = at
	r.cursor, err = r.source.Open(ctx, query)
	if err == nil && r.cursor == nil {
		err = Halt(errors.New("the source's Open returned neither a cursor nor an error"))
	}
	return at, err
}

// read goes through the source until its end, an error, or ctx's.
func (r *reading) read(ctx context.Context, at token) {
	err := r.records(ctx, at)
	if e := r.close(); err == nil && e != nil {
		err = fmt.Errorf("closing the source: %w", e)
	}
	r.mu.Lock()
	r.ended, r.err = true, err
	r.mu.Unlock()
	signal(r.changed)
}

func (r *reading) records(ctx context.Context, at token) error {
	bookmark, _ := r.cursor.(ProgressKeyer)
	last := clone(at.key)
	for {
		key, err := r.next(ctx)
		switch {
		case err == io.EOF: // and nothing that wraps it: a panic with it, or a broken connection below, is not an end
			if r.skip > 0 {
				return Halt(fmt.Errorf("%w: the stream ended %d records before the position that the reader has", ErrGone, r.skip))
			}
			return nil
		case err != nil:
			return err
		case key == nil && bookmark != nil:
			r.passed(bookmark.ProgressKey())
			continue
		case len(key) == 0:
			return fmt.Errorf("%w: an empty key came after %q", ErrOrder, last)
		case len(key) > maxKey:
			return Halt(fmt.Errorf("the key of record %d has %d bytes, and %d are allowed: keys travel in every position", r.position()+1, len(key), maxKey))
		case bytes.Compare(key, last) <= 0:
			return fmt.Errorf("%w: %q came after %q", ErrOrder, key, last)
		}
		last = append(last[:0], key...)
		wait, err := r.add(last)
		if err != nil {
			return err
		}
		if wait {
			select {
			case <-r.room:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// maxKey bounds keys, in bytes: each position holds one.
const maxKey = 16 << 10

func (r *reading) position() uint64 {
	r.filling.Lock()
	defer r.filling.Unlock()
	return r.current.position.seq
}

func (r *reading) next(ctx context.Context) (key []byte, err error) {
	defer recovered(&err)
	return r.cursor.Next(ctx)
}

func (r *reading) close() (err error) {
	defer recovered(&err)
	return r.cursor.Close()
}

// add puts the record that the cursor stands on into the current batch. It reports whether to wait until that was taken.
func (r *reading) add(key []byte) (full bool, err error) {
	r.filling.Lock()
	defer r.made()
	bad, err := r.current.add(r.cursor, key, r.maxRecord)
	if err != nil {
		return false, err
	}
	if bad != nil {
		r.bad(r.current.position.seq, key, bad)
	}
	if r.skip > 0 {
		r.skip--
		at := r.current.position
		r.current.reset(at)
		return false, nil
	}
	r.full = len(r.current.raw) >= r.target || r.maxRecords > 0 && r.current.count >= r.maxRecords || r.isWanted()
	return r.full, nil
}

// made unlocks filling, and wakes the sender if there is a reason to. It does so afterwards: before, the sender would find filling locked.
func (r *reading) made() {
	tell := r.full || r.current.count == 1
	r.filling.Unlock()
	if tell || r.wanted.Load() {
		signal(r.changed)
	}
}

func (r *reading) isWanted() bool { return r.wanted.Load() && r.wanted.Swap(false) }

func (r *reading) bad(seq uint64, key []byte, why error) {
	stack := ""
	if p, ok := errors.AsType[*PanicError](why); ok {
		stack = string(p.Stack)
	}
	r.config.Logger.Error("record could not be encoded, reported to the reader", "stream", r.req.GetStream(), "record", seq, "key", fmt.Sprintf("%q", key), "error", why, "stack", stack)
	if r.config.OnBad != nil {
		r.config.OnBad(r.req.GetStream(), seq, key, why)
	}
}

// passed records that the source has searched up to key and found nothing.
func (r *reading) passed(key []byte) {
	r.filling.Lock()
	defer r.made()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current.count == 0 && r.skip == 0 && bytes.Compare(key, r.mark.key) > 0 {
		r.mark = r.current.position
		r.mark.key = clone(key)
	}
}

func (r *reading) askSize(ctx context.Context, sizer Sizer) {
	defer func() {
		if p := recover(); p != nil {
			r.config.Logger.Warn("the source's Size panicked", "stream", r.req.GetStream(), "panic", p)
		}
	}()
	size, err := sizer.Size(ctx, Query{Stream: r.req.GetStream(), Params: r.req.GetQuery(), Job: r.req.GetJob()})
	if err != nil {
		if ctx.Err() == nil {
			r.config.Logger.Warn("the source's size is not known", "stream", r.req.GetStream(), "error", err)
		}
		return
	}
	r.mu.Lock()
	r.size, r.knownSize = size, size
	r.mu.Unlock()
	signal(r.changed)
}

// take gives the sender what is to be sent now: a batch, the stream's size if that is new, and once no record is left, the
// stream's end or why it broke. With flush also a batch that is not full.
func (r *reading) take(flush bool) (batch *filling, size uint64, end *token, err error) {
	free := r.tryFilling(flush)
	if free {
		defer r.filling.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	size, r.size = r.size, 0
	if !free {
		return nil, size, nil, nil
	}
	flush = r.isWanted() || flush
	if r.current.count > 0 && (r.full || flush || r.ended) {
		batch, r.current, r.spare = r.current, r.spare, nil
		r.current.reset(batch.position)
		r.mark = batch.position
		r.mark.key = clone(batch.position.key)
		if r.full {
			r.full = false
			signal(r.room)
		}
	}
	if r.ended {
		if r.err != nil {
			return batch, 0, nil, r.err
		}
		return batch, 0, &r.current.position, nil
	}
	return batch, size, nil, nil
}

// tryFilling locks filling, unless a record is being made. With flush, the batch is then given out with that record.
func (r *reading) tryFilling(flush bool) bool {
	if r.filling.TryLock() {
		return true
	}
	if flush {
		r.wanted.Store(true)
		return r.filling.TryLock() // else its holder checks wanted later
	}
	return false
}

// give returns a batch that was sent. spare is the sender's alone.
func (r *reading) give(batch *filling) { r.spare = batch }

// pending reports whether there may be records that were not asked for yet.
func (r *reading) pending() bool {
	if !r.filling.TryLock() {
		return !r.wanted.Load()
	}
	defer r.filling.Unlock()
	return r.current.count > 0 && !r.full
}

// markNow returns the mark to send while there is nothing else to send.
func (r *reading) markNow() *streamv1.Frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Until it has sent something, the mark names the position that the reader gave, which may lie before what it wants.
	return markFrame(r.mark, max(r.mark.seq+1, r.req.GetNextSeq()), r.knownSize)
}

func markFrame(at token, next, size uint64) *streamv1.Frame {
	return &streamv1.Frame{Frame: &streamv1.Frame_Mark{Mark: &streamv1.Mark{Token: at.appendTo(nil), NextSeq: next, Size: size}}}
}

func drainFrame(reason string, after time.Duration) *streamv1.Frame {
	return &streamv1.Frame{Frame: &streamv1.Frame_Drain{Drain: &streamv1.Drain{Reason: reason, RetryAfter: durationpb.New(after)}}}
}

// signal wakes a goroutine that waits on a channel with room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
