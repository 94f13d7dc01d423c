// Package wire is a gRPC client for one thing: a long bidirectional stream on a local socket, carrying small messages at the lowest cost.
//
// It works on the frames of package frame: hundreds of messages leave in one system call, responses are slices of the read buffer, and no
// goroutine stands between the caller and the socket. A connection carries one call, on stream 1. See RFC 9113 and the gRPC over HTTP/2 protocol.
package wire

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
)

const (
	maxFrame   = 1 << 20   // largest frame that the peer may send
	window     = 16 << 20  // bytes that the peer may send before they are read here
	maxHeaders = 256 << 10 // longest header block, encoded
	maxList    = 512 << 10 // and decoded: Huffman's code saves at most three bits of eight
	readSize   = 64 << 10  // of one read, and of the memory that messages are cut from
	writeSize  = 256 << 10 // of one write
	stream     = 1         // the only stream of a connection
	// Prefix is the length of what stands before each message: a flag and the length.
	Prefix = 5
)

// Status is how a call ended when it did not end well.
type Status struct {
	Code    codes.Code
	Message string
	// Details is the encoded google.rpc.Status that came with it, if any.
	Details []byte
}

func (s *Status) Error() string { return fmt.Sprintf("%v: %s", s.Code, s.Message) }

// Stream is one call. Send and CloseSend may be called concurrently with Recv. Send makes progress only while another goroutine is in Recv,
// which reads the peer's window updates.
//
// Locks: sending before mu. Neither is held during conn.Read; during conn.Write only sending is.
type Stream struct {
	conn net.Conn
	max  int // of a received message

	// sending makes Send exclusive: the bytes of one call leave together, in order.
	sending sync.Mutex

	// mu guards the fields of this block.
	mu sync.Mutex
	// writing is set while a goroutine is in conn.Write, which it calls without mu. Invariant: at most one is.
	writing bool
	// control holds the frames of Recv that wait for the Write in progress, which sends them when it returns: Recv never waits for a Send.
	// Invariant: empty while nothing is being written, and no longer than maxControl.
	control []byte
	// out is the buffer of the Send that has sending.
	out []byte
	// credit is signalled when a window has grown, a Write has returned, or the call has failed.
	credit sync.Cond
	// connLeft and left are the windows that the peer grants to the connection and to the stream, less what was sent. left may be negative after
	// SETTINGS made it smaller. peerFirst is the INITIAL_WINDOW_SIZE that left includes.
	connLeft, left, peerFirst int64
	peerFrame                 int // longest DATA frame that the peer takes
	// failed is how the call has ended. It is set once, and conn is closed with it.
	failed error

	// What follows belongs to the goroutine that is in Recv.

	// buf[r:w] was read and not yet parsed. Messages share the memory before r, so it is never written again: a full buf is replaced.
	buf  []byte
	r, w int
	// data is the rest of the current DATA frame; partial, if not nil, is a message that began in an earlier one. Invariant: no frame is read
	// while data holds a whole message.
	data, partial []byte
	consumed      int // bytes of DATA frames that are not given back to the peer's windows yet
	ended         bool
	reader        *header.Reader
	block         *header.Set // the last block: the trailers once ended
	inBlock       bool        // HEADERS came, and no CONTINUATION with END_HEADERS yet
	blockEnd      bool        // that block ends the stream
	blockLen      int         // bytes of it that came
}

// Dial connects to address ("unix:///path", a path, or host:port) and begins a call of the method, "/package.Service/Method".
// Received messages may have up to maxMessage bytes.
func Dial(ctx context.Context, address, method string, maxMessage int) (*Stream, error) {
	network := "tcp"
	if path, ok := bytes.CutPrefix([]byte(address), []byte("unix://")); ok {
		network, address = "unix", string(path)
	} else if len(address) > 0 && address[0] == '/' {
		network = "unix"
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return NewStream(conn, method, maxMessage)
}

// NewStream begins a call on a new connection, which it owns from then on.
func NewStream(conn net.Conn, method string, maxMessage int) (*Stream, error) {
	s := &Stream{conn: conn, max: maxMessage, connLeft: frame.DefaultWindow, left: frame.DefaultWindow, peerFirst: frame.DefaultWindow,
		peerFrame: frame.DefaultMaxFrame, reader: header.NewReader(frame.DefaultTableSize, maxList)}
	s.credit.L = &s.mu
	s.reader.KeepStatus()
	if err := s.begin(method); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stream) begin(method string) error {
	b := frame.AppendSettings([]byte(frame.Preface),
		frame.Setting{ID: frame.EnablePush, Value: 0}, frame.Setting{ID: frame.InitialWindowSize, Value: window},
		frame.Setting{ID: frame.MaxFrameSize, Value: maxFrame}, frame.Setting{ID: frame.MaxHeaderListSize, Value: maxHeaders})
	b = frame.AppendWindowUpdate(b, 0, window-frame.DefaultWindow)
	block := header.NewWriter(frame.DefaultTableSize).Fields([]header.Field{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method}, {Name: ":authority", Value: "localhost"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "levada"}, {Name: "te", Value: "trailers"},
	})
	_, err := s.conn.Write(frame.AppendHeaders(b, stream, block, false, frame.DefaultMaxFrame))
	return err
}

// AppendPrefix begins a message of n bytes in a buffer for Send.
func AppendPrefix(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0), uint32(n))
}

// Send sends whole messages, each with its prefix. b may be used again once it returned.
func (s *Stream) Send(b []byte) error { return s.send(b, false) }

// CloseSend says that no more messages will come.
func (s *Stream) CloseSend() error { return s.send(nil, true) }

func (s *Stream) send(b []byte, end bool) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for s.failed == nil && (s.writing || len(b) > 0 && min(s.left, s.connLeft) <= 0) {
			s.credit.Wait()
		}
		if s.failed != nil {
			return s.failed
		}
		b = s.appendData(b)
		if len(b) == 0 && end {
			s.out = frame.AppendData(s.out, stream, nil, true)
		}
		if len(s.out) > 0 {
			if err := s.write(s.out); err != nil {
				return err
			}
		}
		if len(b) == 0 {
			return nil
		}
	}
}

// appendData puts as much of b as the windows and the size of a write allow into out, as DATA, and returns the rest. mu and sending are held.
func (s *Stream) appendData(b []byte) (rest []byte) {
	s.out = s.out[:0]
	for len(b) > 0 && len(s.out) < writeSize {
		n := int(min(int64(len(b)), s.left, s.connLeft, int64(s.peerFrame)))
		if n <= 0 {
			break
		}
		s.out = frame.AppendData(s.out, stream, b[:n], false)
		b = b[n:]
		s.left -= int64(n)
		s.connLeft -= int64(n)
	}
	return b
}

// write writes b, and then what Recv has queued. mu is held, but not during the writing itself.
func (s *Stream) write(b []byte) error {
	s.writing = true
	defer func() {
		s.writing = false
		s.credit.Broadcast()
	}()
	for len(b) > 0 {
		s.mu.Unlock()
		_, err := s.conn.Write(b)
		s.mu.Lock()
		if err != nil {
			return s.failLocked(&Status{Code: codes.Unavailable, Message: "the connection broke while sending: " + err.Error()})
		}
		b, s.control = s.control, nil
	}
	return nil
}

// maxControl bounds what a peer can make us queue that sends pings and does not read the answers.
const maxControl = 64 << 10

// answer sends a small frame without waiting for a Send that is under way.
func (s *Stream) answer(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		return s.failed
	case !s.writing:
		return s.write(b)
	case len(s.control)+len(b) > maxControl:
		return protocolError("it does not read, and asks for answers")
	}
	s.control = append(s.control, b...)
	return nil
}

func (s *Stream) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failLocked(err)
}

func (s *Stream) failLocked(err error) error {
	if s.failed == nil {
		s.failed = err
		s.credit.Broadcast()
		_ = s.conn.Close()
	}
	return s.failed
}

// Close ends the call at once. Send and Recv that are under way return an error.
func (s *Stream) Close() {
	_ = s.fail(&Status{Code: codes.Canceled, Message: "closed here"})
}

// SetDeadline makes Recv fail after t; the zero time takes that back.
func (s *Stream) SetDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// Recv returns the next message. The memory is the caller's for good. At the end it returns io.EOF when the call ended well, or a *Status.
func (s *Stream) Recv() ([]byte, error) {
	for {
		if msg, ok, err := s.cut(); ok || err != nil {
			return msg, err
		}
		if s.ended {
			return nil, s.end()
		}
		if err := s.readFrame(); err != nil {
			var status *Status
			if !errors.As(err, &status) {
				status = &Status{Code: codes.Unavailable, Message: "the connection broke: " + err.Error()}
			}
			return nil, s.fail(status)
		}
	}
}

// cut takes a message off the data that is there.
func (s *Stream) cut() (msg []byte, ok bool, err error) {
	if s.partial == nil {
		if len(s.data) == 0 {
			return nil, false, nil
		}
		if len(s.data) >= Prefix {
			n, err := s.length(s.data)
			if err != nil {
				return nil, false, err
			}
			if len(s.data) >= Prefix+n {
				msg = s.data[Prefix : Prefix+n : Prefix+n]
				s.data = s.data[Prefix+n:]
				return msg, true, nil
			}
		}
		s.partial = append(make([]byte, 0, max(2*len(s.data), 512)), s.data...)
		s.data = nil
		return nil, false, nil
	}
	if missing := Prefix - len(s.partial); missing > 0 {
		k := min(missing, len(s.data))
		s.partial, s.data = append(s.partial, s.data[:k]...), s.data[k:]
		if k < missing {
			return nil, false, nil
		}
	}
	n, err := s.length(s.partial)
	if err != nil {
		return nil, false, err
	}
	k := min(Prefix+n-len(s.partial), len(s.data))
	s.partial, s.data = append(s.partial, s.data[:k]...), s.data[k:]
	if len(s.partial) < Prefix+n {
		return nil, false, nil
	}
	msg, s.partial = s.partial[Prefix:], nil
	return msg, true, nil
}

func (s *Stream) length(b []byte) (int, error) {
	n := binary.BigEndian.Uint32(b[1:])
	switch {
	case b[0] != 0:
		return 0, s.fail(&Status{Code: codes.Internal, Message: "received a compressed message, which was not asked for"})
	case int64(n) > int64(s.max):
		return 0, s.fail(&Status{Code: codes.ResourceExhausted, Message: fmt.Sprintf("received a message of %d bytes, at most %d are allowed (NUMAFLOW_GRPC_MAX_MESSAGE_SIZE)", n, s.max)})
	}
	return int(n), nil
}

// fill makes sure that n bytes are in the buffer.
func (s *Stream) fill(n int) error {
	for s.w-s.r < n {
		if len(s.buf)-s.r < n || s.w == len(s.buf) {
			fresh := make([]byte, max(readSize, n+frame.HeaderLen))
			s.w = copy(fresh, s.buf[s.r:s.w])
			s.buf, s.r = fresh, 0
		}
		k, err := s.conn.Read(s.buf[s.w:])
		s.w += k
		if err != nil && s.w-s.r < n {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

func (s *Stream) readFrame() error {
	if err := s.fill(frame.HeaderLen); err != nil {
		return err
	}
	h := frame.ParseHeader(s.buf[s.r:])
	if h.Length > maxFrame {
		return protocolError("a frame of %d bytes", h.Length)
	}
	whole := frame.HeaderLen + h.Length
	if err := s.fill(whole); err != nil {
		return err
	}
	p := s.buf[s.r+frame.HeaderLen : s.r+whole : s.r+whole]
	s.r += whole
	if s.inBlock && h.Type != frame.Continuation {
		return protocolError("%v within a header block", h.Type)
	}
	switch h.Type {
	case frame.Data:
		return s.onData(h, p)
	case frame.Headers:
		return s.onHeaders(h, p)
	case frame.Continuation:
		if !s.inBlock {
			return protocolError("CONTINUATION without HEADERS")
		}
		return s.onFragment(p, h.Has(frame.EndHeaders))
	case frame.Settings:
		return s.onSettings(h, p)
	case frame.Ping:
		return s.onPing(h, p)
	case frame.WindowUpdate:
		return s.onWindowUpdate(h, p)
	case frame.Reset:
		if h.Length != 4 {
			return protocolError("RST_STREAM of %d bytes", h.Length)
		}
		return resetStatus(frame.Code(binary.BigEndian.Uint32(p)))
	case frame.GoAway:
		if h.Length >= 8 && binary.BigEndian.Uint32(p)&frame.MaxStream < stream {
			return &Status{Code: codes.Unavailable, Message: "the server is going away and did not take the call"}
		}
		return nil
	default:
		return nil // unknown frames are to be ignored, RFC 9113 section 4.1
	}
}

func protocolError(format string, v ...any) error {
	return &Status{Code: codes.Internal, Message: "the peer does not speak HTTP/2: " + fmt.Sprintf(format, v...)}
}

func resetStatus(code frame.Code) error {
	s := &Status{Code: codes.Internal, Message: "the call was reset: " + code.String()}
	switch code {
	case frame.Cancel:
		s.Code = codes.Canceled
	case frame.RefusedStream, frame.NoError:
		s.Code = codes.Unavailable
	case frame.EnhanceYourCalm:
		s.Code = codes.ResourceExhausted
	}
	return s
}

func (s *Stream) onData(h frame.Header, p []byte) error {
	if h.Stream != stream || s.ended {
		return protocolError("DATA on stream %d", h.Stream)
	}
	p, err := frame.Unpad(h, p)
	if err != nil {
		return protocolError("%v", err)
	}
	s.data = p
	s.ended = h.Has(frame.EndStream)
	if s.consumed += h.Length; s.consumed < window/2 {
		return nil
	}
	b := frame.AppendWindowUpdate(frame.AppendWindowUpdate(nil, 0, s.consumed), stream, s.consumed)
	s.consumed = 0
	return s.answer(b)
}

func (s *Stream) onHeaders(h frame.Header, p []byte) error {
	if h.Stream != stream {
		return protocolError("HEADERS on stream %d", h.Stream)
	}
	p, err := frame.Unpad(h, p)
	if err != nil {
		return protocolError("%v", err)
	}
	if h.Has(frame.Prioritized) {
		if len(p) < 5 {
			return protocolError("HEADERS with half a priority")
		}
		p = p[5:]
	}
	s.inBlock, s.blockEnd, s.blockLen = true, h.Has(frame.EndStream), 0
	s.reader.Begin()
	return s.onFragment(p, h.Has(frame.EndHeaders))
}

// onFragment takes a part of a header block.
func (s *Stream) onFragment(p []byte, last bool) error {
	if s.blockLen += len(p); s.blockLen > maxHeaders {
		return protocolError("more than %d bytes of headers", maxHeaders)
	}
	if err := s.reader.Piece(p); err != nil {
		return protocolError("headers: %v", err)
	}
	if !last {
		return nil
	}
	s.inBlock = false
	block, err := s.reader.End()
	if err != nil {
		return protocolError("headers: %v", err)
	}
	// What a proxy must refuse is harmless here, so Response().Err does not matter: a status message may end in a space.
	if status := block.Response().Status; status != 0 && status != http.StatusOK {
		return &Status{Code: codes.Unavailable, Message: "the server answered with HTTP status " + strconv.Itoa(status)}
	}
	s.block = block
	s.ended = s.ended || s.blockEnd
	return nil
}

func (s *Stream) onSettings(h frame.Header, p []byte) error {
	if h.Has(frame.Ack) {
		return nil
	}
	s.mu.Lock()
	err := frame.EachSetting(p, func(setting frame.Setting) error {
		switch setting.ID {
		case frame.InitialWindowSize:
			s.left += int64(setting.Value) - s.peerFirst
			s.peerFirst = int64(setting.Value)
		case frame.MaxFrameSize:
			s.peerFrame = int(min(setting.Value, 1<<20))
		}
		return nil
	})
	s.credit.Broadcast()
	s.mu.Unlock()
	if err != nil {
		return protocolError("%v", err)
	}
	return s.answer(frame.AppendSettingsAck(nil))
}

func (s *Stream) onPing(h frame.Header, p []byte) error {
	if h.Length != 8 {
		return protocolError("PING of %d bytes", h.Length)
	}
	if h.Has(frame.Ack) {
		return nil
	}
	return s.answer(frame.AppendPing(nil, true, binary.BigEndian.Uint64(p)))
}

func (s *Stream) onWindowUpdate(h frame.Header, p []byte) error {
	if h.Length != 4 {
		return protocolError("WINDOW_UPDATE of %d bytes", h.Length)
	}
	n := int64(binary.BigEndian.Uint32(p) & frame.MaxWindow)
	s.mu.Lock()
	defer s.mu.Unlock()
	left := &s.left
	if h.Stream == 0 {
		left = &s.connLeft
	}
	*left += n
	if n == 0 || *left > frame.MaxWindow {
		return protocolError("WINDOW_UPDATE by %d", n)
	}
	s.credit.Broadcast()
	return nil
}

// end turns the trailers into what Recv returns.
func (s *Stream) end() error {
	if s.block == nil || !s.block.Response().HasCode {
		return s.fail(&Status{Code: codes.Unavailable, Message: "the call ended without a status"})
	}
	r := s.block.Response()
	switch {
	case r.Code < 0:
		return s.fail(&Status{Code: codes.Unknown, Message: "the call ended with the status " + strconv.Quote(r.CodeText)})
	case codes.Code(r.Code) == codes.OK:
		_ = s.fail(io.EOF)
		return io.EOF
	}
	status := &Status{Code: codes.Code(r.Code)}
	var err error
	if status.Message, err = url.PathUnescape(r.Message); err != nil {
		status.Message = r.Message
	}
	details, _ := s.block.Get("grpc-status-details-bin")
	if status.Details, err = base64.RawStdEncoding.DecodeString(details); err != nil {
		status.Details, _ = base64.StdEncoding.DecodeString(details)
	}
	return s.fail(status)
}

// Call makes a unary call on a connection of its own and returns the answer.
func Call(ctx context.Context, address, method string, request []byte, maxMessage int) ([]byte, error) {
	s, err := Dial(ctx, address, method, maxMessage)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	sent := make(chan error, 1)
	go func() {
		sent <- errors.Join(s.Send(append(AppendPrefix(nil, len(request)), request...)), s.CloseSend())
	}()
	answer, err := s.Recv()
	if err == nil {
		if _, end := s.Recv(); !errors.Is(end, io.EOF) {
			err = end
		}
	}
	s.Close()
	<-sent
	if ctx.Err() != nil && err != nil {
		return nil, context.Cause(ctx)
	}
	return answer, err
}
