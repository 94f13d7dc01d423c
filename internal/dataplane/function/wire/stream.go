// Package wire is a gRPC client for one thing: a long bidirectional stream on a local socket, carrying small messages at the lowest cost.
//
// It writes HTTP/2 frames itself: hundreds of messages leave in one system call, answers are cut out of the read buffer without a copy, and
// no goroutine stands between the caller and the socket. A connection carries one call. See RFC 9113 and the gRPC over HTTP/2 protocol.
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
	"net/url"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
)

const (
	maxFrame    = 1 << 20   // what we let the peer put into one frame
	window      = 16 << 20  // what we let the peer send before we have read it
	maxHeaders  = 256 << 10 // a header block longer than this is an attack or a mistake
	firstWindow = 65535     // RFC 9113 section 6.9.2
	firstFrame  = 16384     // RFC 9113 section 4.2
	readSize    = 64 << 10  // of one read, and of the memory that messages are cut from
	writeSize   = 256 << 10 // of one write
	frameHead   = 9
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

// Stream is one call. Send and CloseSend may be called concurrently with Recv. Somebody must be in Recv for Send to make progress,
// because that is where the peer's permission to send is read.
type Stream struct {
	conn net.Conn
	max  int // of a received message

	sending sync.Mutex // one Send at a time

	mu        sync.Mutex // guards the fields below
	writing   bool       // somebody is in conn.Write, without mu
	control   []byte     // what Recv has to say to the peer meanwhile: it never waits for a Send
	out       []byte     // of Send
	credit    sync.Cond  // of mu: more may be sent, or the stream failed
	connLeft  int64
	left      int64
	peerFirst int64
	peerFrame int
	failed    error

	// The reading side, owned by the caller of Recv.
	buf      []byte // memory that is being filled; messages given out share it, so it is never filled twice
	r, w     int
	data     []byte // of the current DATA frame, not yet cut
	partial  []byte // a message that spans frames
	consumed int
	ended    bool
	headers  map[string]string
	decoder  *hpack.Decoder
	block    []byte // a header block in pieces
	inBlock  bool
	blockEnd bool
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
	s := &Stream{conn: conn, max: maxMessage, connLeft: firstWindow, left: firstWindow, peerFirst: firstWindow, peerFrame: firstFrame}
	s.credit.L = &s.mu
	s.decoder = hpack.NewDecoder(4096, s.header)
	s.decoder.SetMaxStringLength(maxHeaders)
	if err := s.begin(method); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stream) begin(method string) error {
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&b, nil)
	err := errors.Join(
		f.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window},
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: maxFrame}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaders}),
		f.WriteWindowUpdate(0, window-firstWindow),
	)
	var block bytes.Buffer
	h := hpack.NewEncoder(&block)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"user-agent", "levada"}, {"te", "trailers"},
	} {
		err = errors.Join(err, h.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
	}
	err = errors.Join(err, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}))
	if err != nil {
		return err
	}
	_, err = s.conn.Write(b.Bytes())
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
		s.out = s.out[:0]
		for len(b) > 0 && len(s.out) < writeSize {
			n := int(min(int64(len(b)), s.left, s.connLeft, int64(s.peerFrame)))
			if n <= 0 {
				break
			}
			s.out = appendFrameHead(s.out, n, http2.FrameData, 0, 1)
			s.out = append(s.out, b[:n]...)
			b = b[n:]
			s.left -= int64(n)
			s.connLeft -= int64(n)
		}
		if len(b) == 0 && end {
			s.out = appendFrameHead(s.out, 0, http2.FrameData, http2.FlagDataEndStream, 1)
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

func appendFrameHead(b []byte, n int, t http2.FrameType, flags http2.Flags, stream uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags), byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
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

// Buffered reports whether Recv would find bytes without waiting.
func (s *Stream) Buffered() bool { return len(s.data) > 0 || s.w > s.r }

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
			fresh := make([]byte, max(readSize, n+frameHead))
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
	if err := s.fill(frameHead); err != nil {
		return err
	}
	h := s.buf[s.r:]
	n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	kind, flags, stream := http2.FrameType(h[3]), http2.Flags(h[4]), binary.BigEndian.Uint32(h[5:])&(1<<31-1)
	if n > maxFrame {
		return protocolError("a frame of %d bytes", n)
	}
	if err := s.fill(frameHead + n); err != nil {
		return err
	}
	p := s.buf[s.r+frameHead : s.r+frameHead+n : s.r+frameHead+n]
	s.r += frameHead + n
	if s.inBlock && kind != http2.FrameContinuation {
		return protocolError("%v within a header block", kind)
	}
	switch kind {
	case http2.FrameData:
		return s.onData(p, flags, stream)
	case http2.FrameHeaders:
		return s.onHeaders(p, flags, stream)
	case http2.FrameContinuation:
		if !s.inBlock {
			return protocolError("CONTINUATION without HEADERS")
		}
		return s.onFragment(p, flags.Has(http2.FlagContinuationEndHeaders))
	case http2.FrameSettings:
		return s.onSettings(p, flags)
	case http2.FramePing:
		if n != 8 {
			return protocolError("PING of %d bytes", n)
		}
		if flags.Has(http2.FlagPingAck) {
			return nil
		}
		return s.answer(append(appendFrameHead(nil, 8, http2.FramePing, http2.FlagPingAck, 0), p...))
	case http2.FrameWindowUpdate:
		return s.onWindowUpdate(p, stream)
	case http2.FrameRSTStream:
		if n != 4 {
			return protocolError("RST_STREAM of %d bytes", n)
		}
		return resetStatus(http2.ErrCode(binary.BigEndian.Uint32(p)))
	case http2.FrameGoAway:
		if n >= 8 && binary.BigEndian.Uint32(p)&(1<<31-1) < 1 {
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

func resetStatus(code http2.ErrCode) error {
	s := &Status{Code: codes.Internal, Message: "the call was reset: " + code.String()}
	switch code {
	case http2.ErrCodeCancel:
		s.Code = codes.Canceled
	case http2.ErrCodeRefusedStream, http2.ErrCodeNo:
		s.Code = codes.Unavailable
	case http2.ErrCodeEnhanceYourCalm:
		s.Code = codes.ResourceExhausted
	}
	return s
}

func (s *Stream) onData(p []byte, flags http2.Flags, stream uint32) error {
	if stream != 1 || s.ended {
		return protocolError("DATA on stream %d", stream)
	}
	s.consumed += len(p)
	if flags.Has(http2.FlagDataPadded) {
		if len(p) == 0 || int(p[0]) >= len(p) {
			return protocolError("DATA with too much padding")
		}
		p = p[1 : len(p)-int(p[0])]
	}
	s.data = p
	if flags.Has(http2.FlagDataEndStream) {
		s.ended = true
	}
	if s.consumed < window/2 {
		return nil
	}
	var b []byte
	for _, stream := range []uint32{0, 1} {
		b = appendFrameHead(b, 4, http2.FrameWindowUpdate, 0, stream)
		b = binary.BigEndian.AppendUint32(b, uint32(s.consumed))
	}
	s.consumed = 0
	return s.answer(b)
}

func (s *Stream) onHeaders(p []byte, flags http2.Flags, stream uint32) error {
	if stream != 1 {
		return protocolError("HEADERS on stream %d", stream)
	}
	if flags.Has(http2.FlagHeadersPadded) {
		if len(p) == 0 || int(p[0]) >= len(p) {
			return protocolError("HEADERS with too much padding")
		}
		p = p[1 : len(p)-int(p[0])]
	}
	if flags.Has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return protocolError("HEADERS with half a priority")
		}
		p = p[5:]
	}
	s.block, s.inBlock, s.blockEnd = s.block[:0], true, flags.Has(http2.FlagHeadersEndStream)
	s.headers = map[string]string{}
	return s.onFragment(p, flags.Has(http2.FlagHeadersEndHeaders))
}

func (s *Stream) onFragment(p []byte, last bool) error {
	if len(s.block)+len(p) > maxHeaders {
		return protocolError("more than %d bytes of headers", maxHeaders)
	}
	s.block = append(s.block, p...)
	if !last {
		return nil
	}
	s.inBlock = false
	if _, err := s.decoder.Write(s.block); err != nil {
		return protocolError("headers: %v", err)
	}
	if err := s.decoder.Close(); err != nil {
		return protocolError("headers: %v", err)
	}
	if code := s.headers[":status"]; code != "" && code != "200" {
		return &Status{Code: codes.Unavailable, Message: "the server answered with HTTP status " + code}
	}
	s.ended = s.ended || s.blockEnd
	return nil
}

func (s *Stream) header(f hpack.HeaderField) { s.headers[f.Name] = f.Value }

func (s *Stream) onSettings(p []byte, flags http2.Flags) error {
	if flags.Has(http2.FlagSettingsAck) {
		return nil
	}
	if len(p)%6 != 0 {
		return protocolError("SETTINGS of %d bytes", len(p))
	}
	s.mu.Lock()
	for ; len(p) > 0; p = p[6:] {
		value := binary.BigEndian.Uint32(p[2:])
		switch http2.SettingID(binary.BigEndian.Uint16(p)) {
		case http2.SettingInitialWindowSize:
			if value > 1<<31-1 {
				s.mu.Unlock()
				return protocolError("an initial window of %d", value)
			}
			s.left += int64(value) - s.peerFirst
			s.peerFirst = int64(value)
		case http2.SettingMaxFrameSize:
			if value < firstFrame || value > 1<<24-1 {
				s.mu.Unlock()
				return protocolError("a maximum frame of %d", value)
			}
			s.peerFrame = int(min(value, 1<<20))
		}
	}
	s.credit.Broadcast()
	s.mu.Unlock()
	return s.answer(appendFrameHead(nil, 0, http2.FrameSettings, http2.FlagSettingsAck, 0))
}

func (s *Stream) onWindowUpdate(p []byte, stream uint32) error {
	if len(p) != 4 {
		return protocolError("WINDOW_UPDATE of %d bytes", len(p))
	}
	n := int64(binary.BigEndian.Uint32(p) & (1<<31 - 1))
	s.mu.Lock()
	defer s.mu.Unlock()
	left := &s.left
	if stream == 0 {
		left = &s.connLeft
	}
	*left += n
	if n == 0 || *left > 1<<31-1 {
		return protocolError("WINDOW_UPDATE by %d", n)
	}
	s.credit.Broadcast()
	return nil
}

// end turns the trailers into what Recv returns.
func (s *Stream) end() error {
	code, ok := s.headers["grpc-status"]
	if !ok {
		return s.fail(&Status{Code: codes.Unavailable, Message: "the call ended without a status"})
	}
	n, err := strconv.ParseUint(code, 10, 32)
	if err != nil {
		return s.fail(&Status{Code: codes.Unknown, Message: "the call ended with the status " + strconv.Quote(code)})
	}
	if codes.Code(n) == codes.OK {
		_ = s.fail(io.EOF)
		return io.EOF
	}
	status := &Status{Code: codes.Code(n)}
	if status.Message, err = url.PathUnescape(s.headers["grpc-message"]); err != nil {
		status.Message = s.headers["grpc-message"]
	}
	details := s.headers["grpc-status-details-bin"]
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
