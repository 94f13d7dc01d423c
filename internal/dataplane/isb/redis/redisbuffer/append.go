package redisbuffer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// Records that are submitted while others are on their way go together in the next request: a server that syncs its file does so once for all of them.

// Bounds of one request.
const (
	sendRecords = 256
	sendBytes   = 4 << 20
)

// sender sends records in the order in which they were submitted, one request at a time.
type sender struct {
	d *driver

	mu      sync.Mutex
	queue   []*receipt
	sending bool // a goroutine of the link sends what is in queue
}

// receipt is a record on its way. Its result is written before done is closed.
type receipt struct {
	d      *driver
	record buffer.Record
	done   chan struct{}

	seq       uint64
	duplicate bool
	err       error
}

// Submit implements buffer.Appender.
func (d *driver) Submit(_ context.Context, r buffer.Record) buffer.Receipt {
	out := &receipt{d: d, record: r, done: make(chan struct{})}
	if err := d.refusal(r); err != nil {
		out.settle(0, false, err)
		return out
	}
	s := &d.sender
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, out)
	if !s.sending {
		s.sending = true
		d.link.Go(s.run)
	}
	return out
}

// refusal is why a record is not even sent.
func (d *driver) refusal(r buffer.Record) error {
	if len(r.Data) > maxEntry {
		return fmt.Errorf("%w: %d bytes, and the most is %d", buffer.ErrTooLarge, len(r.Data), maxEntry)
	}
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	if closed {
		return buffer.ErrClosed
	}
	if d.cfg.Room != nil {
		if err := d.cfg.Room(); err != nil {
			return fmt.Errorf("%w: %w", buffer.ErrFull, err)
		}
	}
	return nil
}

// Wait implements buffer.Receipt. A request that is not answered ends by itself, so that the record is the caller's again afterwards.
func (r *receipt) Wait(ctx context.Context) (uint64, bool, error) {
	select {
	case <-r.done:
		return r.seq, r.duplicate, r.err
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
}

func (r *receipt) settle(seq uint64, duplicate bool, err error) {
	r.seq, r.duplicate, r.err = seq, duplicate, err
	r.record.Data = nil
	close(r.done)
}

// run sends what is in the queue until it is empty.
func (s *sender) run() {
	for loaded := false; ; {
		batch := s.take()
		if batch == nil {
			return
		}
		loaded = s.send(batch, loaded)
	}
}

// take returns the records of the next request; nil ends the sender.
func (s *sender) take() []*receipt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.sending, s.queue = false, nil
		return nil
	}
	n, size := 0, 0
	for n < len(s.queue) && n < sendRecords && (n == 0 || size+len(s.queue[n].record.Data) <= sendBytes) {
		size += len(s.queue[n].record.Data)
		n++
	}
	batch := s.queue[:n:n]
	s.queue = s.queue[n:]
	return batch
}

// send makes one request and settles its records. loaded says that the server has the script; it returns whether it has it now. A server that was restarted, or
// that took over as master, does not: the records are sent again with it.
func (s *sender) send(batch []*receipt, loaded bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	commands := s.request(ctx, batch, !loaded)
	if loaded && redis.HasErrorPrefix(commands[0].Err(), "NOSCRIPT") {
		commands = s.request(ctx, batch, true)
	}
	ok := true
	for i, c := range commands {
		seq, duplicate, err := result(c)
		ok = ok && err == nil
		batch[i].settle(seq, duplicate, s.d.classify(err))
	}
	return ok
}

// request sends the records in one pipeline, the script itself with the first of them if whole.
func (s *sender) request(ctx context.Context, batch []*receipt, whole bool) []*redis.Cmd {
	d := s.d
	pipe := d.link.Client.Pipeline()
	keys := []string{d.keys.log, d.keys.heads, d.keys.meta, d.keys.ids0, d.keys.ids1}
	commands := make([]*redis.Cmd, len(batch))
	window := strconv.FormatInt(d.cfg.Duplicates.Microseconds(), 10)
	for i, r := range batch {
		args := []any{d.incarnation, r.record.ID, r.record.Data, headerOf(r.record), r.record.Messages, window, d.cfg.MaxBlocks, d.cfg.MaxBytes}
		if whole && i == 0 {
			commands[i] = appendScript.Eval(ctx, pipe, keys, args...)
		} else {
			commands[i] = appendScript.EvalSha(ctx, pipe, keys, args...)
		}
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	return commands
}

func result(c *redis.Cmd) (seq uint64, duplicate bool, err error) {
	said, err := c.Int64Slice()
	if err != nil {
		return 0, false, err
	}
	if len(said) != 2 || said[0] <= 0 {
		return 0, false, errors.New("unexpected answer to an append")
	}
	return uint64(said[0]), said[1] == 1, nil
}

// The header of an entry is "BASE AFTER MICROSECONDS", the first two in base 36. The server adds when it stored the entry.

func headerOf(r buffer.Record) string {
	b := strconv.AppendUint(nil, r.Base, 36)
	b = append(b, ' ')
	b = strconv.AppendUint(b, r.After, 36)
	return string(append(b, ' '))
}

// parseHeader reads a header. One that is malformed gives zeros.
func parseHeader(h string, e *buffer.Entry) {
	var base, after string
	var micros int64
	if n, _ := fmt.Sscan(h, &base, &after, &micros); n != 3 {
		return
	}
	e.Base, _ = strconv.ParseUint(base, 36, 64)
	e.After, _ = strconv.ParseUint(after, 36, 64)
	e.Stored = time.UnixMicro(micros)
}
