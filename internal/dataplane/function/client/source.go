package client

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
	"github.com/levada-io/levada/internal/flow"
)

// Source is the Caller of a user-defined source. It reads and acknowledges, over two streams. See source.v1 in section 3.3 of the contract.
type Source struct {
	socket     string
	maxMessage int
	reading    *wire.Stream

	acking  chan struct{} // has room for 1, taken during an Ack: a request and its answer are a pair on acks
	acks    *wire.Stream
	ackless atomic.Bool // acks was closed because a context ended

	mu       sync.Mutex
	reads    time.Time // when the call of Read that is under way began; zero without one
	asks     time.Time // the same of Ack
	progress uint64    // messages that were read
}

// sotRead and sotAck are the handshakes.
var sotRead, sotAck = mark(2), mark(2)

func openSource(ctx context.Context, socket string, maxMessage int) (*Source, error) {
	reading, err := openStream(ctx, socket, "/source.v1.Source/ReadFn", sotRead, maxMessage)
	if err != nil {
		return nil, err
	}
	acks, err := openStream(ctx, socket, "/source.v1.Source/AckFn", sotAck, maxMessage)
	if err != nil {
		reading.Close()
		return nil, err
	}
	return &Source{socket: socket, maxMessage: maxMessage, reading: reading, acking: make(chan struct{}, 1), acks: acks}, nil
}

// Call implements Caller. It is not what sources are for.
func (s *Source) Call(context.Context, []flow.Message, *Part) ([]Outcome, []int, error) {
	return nil, nil, Unusable{fmt.Errorf("a source was called as a function")}
}

// Oldest implements Caller.
func (s *Source) Oldest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads.IsZero() || !s.asks.IsZero() && s.asks.Before(s.reads) {
		return s.asks
	}
	return s.reads
}

// note remembers in at that a call is under way, until the function that it returns is called.
func (s *Source) note(at *time.Time) (over func()) {
	set := func(t time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		*at = t
	}
	set(time.Now())
	return func() { set(time.Time{}) }
}

// Progress implements Caller.
func (s *Source) Progress() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.progress
}

// Close implements Caller.
func (s *Source) Close() {
	s.reading.Close()
	s.acks.Close()
}

// Offset is a message's name at its source.
type Offset struct {
	bytes     []byte
	partition int32
}

func (o Offset) append(b []byte) []byte {
	b = append(appendField(b, 1, len(o.bytes)), o.bytes...)
	if o.partition != 0 {
		b = binary.AppendUvarint(append(b, 2<<3), uint64(int64(o.partition)))
	}
	return b
}

// Read asks for up to limit messages, which the source may wait for. It ends the stream when ctx ends: what had been sent is not acknowledged, and comes
// again from the next one.
func (s *Source) Read(ctx context.Context, limit int, timeout time.Duration) ([]flow.Message, []Offset, error) {
	messages, offsets, err := s.read(ctx, limit, timeout)
	var status *wire.Status
	if err != nil && ctx.Err() == nil && !errors.As(err, &status) && !errors.Is(err, io.EOF) {
		err = &ProtocolError{fmt.Sprintf("the function answered against the contract: %v", err)}
	}
	return messages, offsets, err
}

func (s *Source) read(ctx context.Context, limit int, timeout time.Duration) ([]flow.Message, []Offset, error) {
	defer context.AfterFunc(ctx, s.reading.Close)()
	defer s.note(&s.reads)()
	var request []byte
	request = binary.AppendUvarint(append(request, 1<<3), uint64(limit))
	request = binary.AppendUvarint(append(request, 2<<3), uint64(timeout.Milliseconds()))
	frame := wire.AppendPrefix(nil, sizeBytes(len(request)))
	if err := s.reading.Send(append(appendField(frame, 1, len(request)), request...)); err != nil {
		return nil, nil, err
	}
	var messages []flow.Message
	var offsets []Offset
	for {
		msg, err := s.reading.Recv()
		if err != nil {
			return nil, nil, err
		}
		result, end, err := readResponse(msg)
		if err != nil {
			return nil, nil, err
		}
		if end {
			s.mu.Lock()
			s.progress += uint64(len(messages))
			s.mu.Unlock()
			return messages, offsets, nil
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

// readResponse takes a ReadResponse apart: a result, or a status, which is the last answer to a read or a failure.
func readResponse(b []byte) (result []byte, end bool, err error) {
	var status []byte
	err = fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		switch f {
		case 1:
			result = v
		case 2:
			status = v
		}
		return nil
	})
	if err == nil && status != nil {
		end, err = readStatus(status)
	}
	return result, end, err
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

func decodeSourced(b []byte) (m flow.Message, o Offset, err error) {
	hasTime := false
	err = fields(b, func(f protowire.Number, v []byte, _ uint64) (err error) {
		switch f {
		case 1:
			m.Value = v
		case 2:
			o, err = decodeOffset(v)
		case 3:
			hasTime = true
			m.EventTime, err = decodeTimestamp(v)
		case 4:
			m.Keys = append(m.Keys, text(v))
		case 5:
			m.Headers, err = decodeHeader(m.Headers, v)
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

func decodeOffset(b []byte) (o Offset, err error) {
	err = fields(b, func(f protowire.Number, v []byte, n uint64) error {
		switch f {
		case 1:
			o.bytes = v
		case 2:
			o.partition = int32(n)
		}
		return nil
	})
	return o, err
}

// decodeHeader appends an entry of a map of strings.
func decodeHeader(headers flow.Headers, b []byte) (flow.Headers, error) {
	var name, value string
	err := fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		switch f {
		case 1:
			name = text(v)
		case 2:
			value = text(v)
		}
		return nil
	})
	return flow.AppendHeader(headers, name, value), err
}

// Ack acknowledges, one call after the other. The stream ends when ctx does while this call has it.
func (s *Source) Ack(ctx context.Context, offsets []Offset) error {
	select {
	case s.acking <- struct{}{}:
		defer func() { <-s.acking }()
	case <-ctx.Done(): // another acknowledgement has the stream, and goes on
		return context.Cause(ctx)
	}
	defer context.AfterFunc(ctx, func() {
		s.ackless.Store(true)
		s.acks.Close()
	})()
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

// CannotAck reports whether the stream for acknowledgements was ended by the end of a context.
func (s *Source) CannotAck() bool { return s.ackless.Load() }

// Pending is how many messages the source has; -1 if that is not known.
func (s *Source) Pending(ctx context.Context) (int64, error) {
	answer, err := wire.Call(ctx, s.socket, "/source.v1.Source/PendingFn", nil, 1<<20)
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
