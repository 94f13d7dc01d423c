package grpclife_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// faults is an HTTP/2 server that does with each request what a script says, as no sane gRPC server would, but proxies do.
type faults struct {
	mu       sync.Mutex
	attempts int      // requests that came in whole, or began to if early
	bodies   []string // of each attempt, the messages one after the other
	script   func(attempt int, s *faultyStream)
	wrap     func(net.Conn) net.Conn // of the client's side; may be nil
	early    bool                    // run the script at HEADERS, not when the request is complete
}

type faultyStream struct {
	id     uint32
	conn   net.Conn
	framer *http2.Framer
	body   bytes.Buffer
}

func (s *faultyStream) headers(end bool, fields ...string) {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.SetMaxDynamicTableSize(0) // a table would have to outlive this stream
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
}

func (s *faultyStream) begin() {
	s.headers(false, ":status", "200", "content-type", "application/grpc")
}

func (s *faultyStream) message(text string) {
	b, _ := proto.Marshal(wrapperspb.String(text))
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	s.data(string(frame), false)
}

func (s *faultyStream) data(raw string, end bool) { _ = s.framer.WriteData(s.id, end, []byte(raw)) }

// status ends the stream, as trailers or, if nothing went before, as the only frame.
func (s *faultyStream) status(code, text string, more ...string) {
	s.headers(true, append([]string{"grpc-status", code, "grpc-message", text}, more...)...)
}

func (s *faultyStream) only(code, text string, more ...string) {
	s.headers(true, append([]string{":status", "200", "content-type", "application/grpc", "grpc-status", code, "grpc-message", text}, more...)...)
}

func (s *faultyStream) reset(code http2.ErrCode) { _ = s.framer.WriteRSTStream(s.id, code) }

func (s *faultyStream) goAway(last uint32) {
	_ = s.framer.WriteGoAway(last, http2.ErrCodeNo, []byte("max_age"))
}

func (s *faultyStream) well() {
	s.begin()
	s.message("well")
	s.status("0", "")
}

func (f *faults) start(t *testing.T, client ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { f.serve(conn) })
		}
	})
	conn := dial(t, func() (net.Conn, error) {
		c, err := listener.Dial()
		if err == nil && f.wrap != nil {
			c = f.wrap(c)
		}
		return c, err
	}, client...)
	t.Cleanup(func() {
		conn.Close()
		listener.Close()
		serving.Wait()
	})
	return conn
}

func (f *faults) serve(conn net.Conn) {
	defer conn.Close()
	if _, err := io.CopyN(io.Discard, conn, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(conn, conn)
	if framer.WriteSettings() != nil {
		return
	}
	streams := map[uint32]*faultyStream{}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = framer.WritePing(true, frame.Data)
			}
		case *http2.HeadersFrame:
			s := &faultyStream{id: frame.StreamID, conn: conn, framer: framer}
			streams[s.id] = s
			if f.early {
				f.act(s)
			}
		case *http2.DataFrame:
			s := streams[frame.StreamID]
			s.body.Write(frame.Data())
			if frame.StreamEnded() && !f.early {
				f.act(s)
			}
		}
	}
}

func (f *faults) act(s *faultyStream) {
	f.mu.Lock()
	f.attempts++
	n := f.attempts
	var body string
	for b := s.body.Bytes(); len(b) >= 5; {
		size := binary.BigEndian.Uint32(b[1:])
		m := new(text)
		_ = proto.Unmarshal(b[5:5+size], m)
		body += m.GetValue()
		b = b[5+size:]
	}
	f.bodies = append(f.bodies, body)
	f.mu.Unlock()
	f.script(n, s)
}

func (f *faults) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attempts
}
