package function

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// sourcePipe reads a user-defined source and acknowledges to it, over two streams. See source.v1 in section 3.3 of the contract.
type sourcePipe struct {
	socket     string
	maxMessage int
	reading    *wire.Stream

	acking sync.Mutex
	acks   *wire.Stream

	mu       sync.Mutex
	reads    time.Time // when the call of Read that is under way began
	asks     time.Time // the same of Ack
	progress uint64
}

// sotRead and sotAck are the handshakes.
var sotRead, sotAck = mark(2), mark(2)

func openSource(ctx context.Context, socket string, maxMessage int) (*sourcePipe, error) {
	reading, err := openStream(ctx, socket, "/source.v1.Source/ReadFn", sotRead, maxMessage)
	if err != nil {
		return nil, err
	}
	acks, err := openStream(ctx, socket, "/source.v1.Source/AckFn", sotAck, maxMessage)
	if err != nil {
		reading.Close()
		return nil, err
	}
	return &sourcePipe{socket: socket, maxMessage: maxMessage, reading: reading, acks: acks}, nil
}

// Call is not what sources are for.
func (s *sourcePipe) Call(context.Context, []flow.Message, *Part) ([]Outcome, []int, error) {
	return nil, nil, unusable{fmt.Errorf("a source was called as a function")}
}

func (s *sourcePipe) Oldest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads.IsZero() || !s.asks.IsZero() && s.asks.Before(s.reads) {
		return s.asks
	}
	return s.reads
}

// note remembers in at that a call is under way, until the function that it returns is called.
func (s *sourcePipe) note(at *time.Time) (over func()) {
	set := func(t time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		*at = t
	}
	set(time.Now())
	return func() { set(time.Time{}) }
}

func (s *sourcePipe) Progress() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.progress
}

func (s *sourcePipe) Close() {
	s.reading.Close()
	s.acks.Close()
}

// offset is a message's name at its source.
type offset struct {
	bytes     []byte
	partition int32
}

func (o offset) append(b []byte) []byte {
	b = append(appendField(b, 1, len(o.bytes)), o.bytes...)
	if o.partition != 0 {
		b = binary.AppendUvarint(append(b, 2<<3), uint64(int64(o.partition)))
	}
	return b
}

func (s *sourcePipe) read(limit int, timeout time.Duration) ([]flow.Message, []offset, error) {
	defer s.note(&s.reads)()
	var request []byte
	request = binary.AppendUvarint(append(request, 1<<3), uint64(limit))
	request = binary.AppendUvarint(append(request, 2<<3), uint64(timeout.Milliseconds()))
	frame := wire.AppendPrefix(nil, sizeBytes(len(request)))
	if err := s.reading.Send(append(appendField(frame, 1, len(request)), request...)); err != nil {
		return nil, nil, err
	}
	var messages []flow.Message
	var offsets []offset
	for {
		msg, err := s.reading.Recv()
		if err != nil {
			return nil, nil, err
		}
		var result, status []byte
		err = fields(msg, func(f protowire.Number, v []byte, _ uint64) error {
			switch f {
			case 1:
				result = v
			case 2:
				status = v
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		if status != nil {
			end, err := readStatus(status)
			if err != nil {
				return nil, nil, err
			}
			if end {
				s.mu.Lock()
				s.progress += uint64(len(messages))
				s.mu.Unlock()
				return messages, offsets, nil
			}
		}
		if result == nil {
			continue
		}
		m, o, err := decodeSourced(result)
		if err != nil {
			return nil, nil, err
		}
		messages, offsets = append(messages, m), append(offsets, o)
	}
}

func readStatus(b []byte) (end bool, err error) {
	var code uint64
	var why string
	err = fields(b, func(f protowire.Number, v []byte, n uint64) error {
		switch f {
		case 1:
			end = n != 0
		case 2:
			code = n
		case 4:
			why = text(v)
		}
		return nil
	})
	if err == nil && code != 0 {
		err = fmt.Errorf("it answered a read with the failure %d: %s", code, why)
	}
	return end, err
}

func decodeSourced(b []byte) (m flow.Message, o offset, err error) {
	hasTime := false
	err = fields(b, func(f protowire.Number, v []byte, _ uint64) (err error) {
		switch f {
		case 1:
			m.Value = v
		case 2:
			err = fields(v, func(f protowire.Number, v []byte, n uint64) error {
				switch f {
				case 1:
					o.bytes = v
				case 2:
					o.partition = int32(n)
				}
				return nil
			})
		case 3:
			hasTime = true
			m.EventTime, err = decodeTimestamp(v)
		case 4:
			m.Keys = append(m.Keys, text(v))
		case 5:
			var name, value string
			err = fields(v, func(f protowire.Number, v []byte, _ uint64) error {
				switch f {
				case 1:
					name = text(v)
				case 2:
					value = text(v)
				}
				return nil
			})
			m.Headers = flow.AppendHeader(m.Headers, name, value)
		case 6:
			m.Metadata, err = userMetadata(v)
		}
		return err
	})
	switch {
	case err != nil:
	case len(o.bytes) == 0:
		err = fmt.Errorf("the source gave a message without an offset")
	case !hasTime:
		err = fmt.Errorf("the source gave a message without an event time")
	}
	m.ID = strconv.Itoa(int(o.partition)) + "-" + base64.RawURLEncoding.EncodeToString(o.bytes)
	return m, o, err
}

func (s *sourcePipe) ack(offsets []offset) error {
	s.acking.Lock()
	defer s.acking.Unlock()
	defer s.note(&s.asks)()
	var request []byte
	for _, o := range offsets {
		b := o.append(nil)
		request = append(appendField(request, 1, len(b)), b...)
	}
	frame := wire.AppendPrefix(nil, sizeBytes(len(request)))
	if err := s.acks.Send(append(appendField(frame, 1, len(request)), request...)); err != nil {
		return err
	}
	_, err := s.acks.Recv()
	return err
}

// Source is a user-defined source as a source.Reader.
type Source struct {
	Function *Function
	// Timeout is how long the source may wait for messages (limits.readTimeout).
	Timeout time.Duration
}

// Read implements source.Reader.
func (s *Source) Read(ctx context.Context, limit int) (*source.Batch, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, emptyPause) {
		w, err := s.Function.worker(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			return nil, &source.PermanentError{Err: err}
		}
		p := w.caller.(*sourcePipe)
		stop := context.AfterFunc(ctx, p.reading.Close) // what it had sent is not acknowledged, and comes again
		messages, offsets, err := p.read(limit, s.Timeout)
		stop()
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			var status *wire.Status
			if !errors.As(err, &status) && !errors.Is(err, io.EOF) {
				err = &protocolError{fmt.Sprintf("the function answered against the contract: %v", err)}
			}
			failure := s.Function.autopsy(ctx, w, err)
			w.finish()
			return nil, fmt.Errorf("user-defined source: %s", failure.Error)
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

// handed are the offsets of a batch, and which of them were acknowledged: a source is told of each once.
type handed struct {
	offsets []offset
	acked   []bool
}

// AckPart implements source.PartAcker.
func (s *Source) AckPart(ctx context.Context, b *source.Batch, from, to int) error {
	h := b.Token.(*handed)
	var offsets []offset
	for i := from; i < to; i++ {
		if !h.acked[i] {
			offsets = append(offsets, h.offsets[i])
		}
	}
	if len(offsets) == 0 {
		return nil
	}
	w, err := s.Function.worker(ctx)
	if err != nil {
		return err
	}
	p := w.caller.(*sourcePipe)
	stop := context.AfterFunc(ctx, p.acks.Close)
	defer stop()
	if err := p.ack(offsets); err != nil {
		if ctx.Err() != nil {
			w.finish()
			return context.Cause(ctx)
		}
		// A stream that broke takes no more acknowledgements, even where the process lives on.
		failure := s.Function.autopsy(ctx, w, err)
		w.finish()
		return fmt.Errorf("user-defined source: acknowledge: %s", failure.Error)
	}
	for i := from; i < to; i++ {
		h.acked[i] = true
	}
	return nil
}

// Nack implements source.Reader. The vertex keeps the message: it holds the whole batch until all of it is done.
func (s *Source) Nack(context.Context, *source.Batch, int, time.Duration) bool { return false }

// Pending implements source.Reader.
func (s *Source) Pending(ctx context.Context) (int64, error) {
	w, err := s.Function.worker(ctx)
	if err != nil {
		return -1, err
	}
	answer, err := wire.Call(ctx, w.socket, "/source.v1.Source/PendingFn", nil, 1<<20)
	if err != nil {
		return -1, err
	}
	var count int64
	err = fields(answer, func(f protowire.Number, v []byte, _ uint64) error {
		return fields(v, func(f protowire.Number, _ []byte, n uint64) error {
			if f == 1 {
				count = int64(n)
			}
			return nil
		})
	})
	return max(count, -1), err
}

// Close implements source.Reader.
func (s *Source) Close(context.Context) error { return nil }
