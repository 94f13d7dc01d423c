// Package fakeh2 is an HTTP/2 server (h2c) that answers gRPC calls as no real server does on demand: it resets, says GOAWAY, cuts connections and messages,
// and forgets statuses, each by a script that the call names. It counts what it was asked, so that a call that was sent twice is seen.
package fakeh2

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// IDHeader is the request header that tells calls apart: every attempt of one call carries the same value.
const IDHeader = "call-id"

// Path is the :path of a call that is to be answered by a script.
func Path(script string) string { return "/levada.test.Fake/" + script }

// settleTimeout bounds the wait for the peer to have read what was sent.
const settleTimeout = 2 * time.Second

// Server plays scripts. Make one with Listen.
type Server struct {
	listener net.Listener
	scripts  map[string]Script
	serving  sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	conns    map[*conn]struct{}
	attempts map[string]int // by call id
}

// Listen serves on a TCP address, as "127.0.0.1:0", until Close.
func Listen(address string) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l, scripts: map[string]Script{}, conns: map[*conn]struct{}{}, attempts: map[string]int{}}
	for _, script := range Scripts() {
		s.scripts[script.Name] = script
	}
	s.serving.Go(s.accept)
	return s, nil
}

// Addr is host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Attempts is how many requests with this call id have arrived: with all of their headers if the script is Early, else to their end.
func (s *Server) Attempts(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempts[id]
}

// Close ends all connections, and returns when nothing runs any more.
func (s *Server) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.tcp.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
	return err
}

func (s *Server) accept() {
	for {
		tcp, err := s.listener.Accept()
		if err != nil {
			return
		}
		c := &conn{server: s, tcp: tcp.(*net.TCPConn), framer: http2.NewFramer(tcp, tcp), acks: map[[8]byte]chan struct{}{},
			streams: map[uint32]*exchange{}, initial: 65535, window: 65535, gone: make(chan struct{})}
		c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		c.encoder = hpack.NewEncoder(&c.block)
		c.moved = sync.NewCond(&c.mu)
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = tcp.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.serving.Go(func() {
			c.serve()
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.conns, c)
		})
	}
}

// begin counts an attempt of a call and returns its number, the first is 1.
func (s *Server) begin(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts[id]++
	return s.attempts[id]
}

// conn is a connection. One goroutine reads; those of the scripts write, under mu.
type conn struct {
	server *Server
	tcp    *net.TCPConn
	gone   chan struct{} // closed when nothing can be read any more

	mu      sync.Mutex
	framer  *http2.Framer
	encoder *hpack.Encoder
	block   strings.Builder // what encoder has made
	acks    map[[8]byte]chan struct{}
	pings   byte
	streams map[uint32]*exchange
	initial int64 // window of a new stream
	window  int64 // of the connection
	moved   *sync.Cond
	ended   bool
}

func (c *conn) serve() {
	var playing sync.WaitGroup
	defer playing.Wait()
	defer func() {
		_ = c.tcp.Close()
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
		c.moved.Broadcast()
		close(c.gone)
	}()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.tcp, preface); err != nil || string(preface) != http2.ClientPreface {
		return
	}
	c.write(func(f *http2.Framer) error { return f.WriteSettings() })
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			var stream http2.StreamError
			if errors.As(err, &stream) {
				continue
			}
			return
		}
		if x := c.take(frame); x != nil {
			playing.Go(x.play)
		}
	}
}

// take acts on a frame, and returns the request that it makes ready to be answered, if it does.
func (c *conn) take(frame http2.Frame) *exchange {
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if frame.IsAck() {
			break
		}
		c.mu.Lock()
		if v, ok := frame.Value(http2.SettingInitialWindowSize); ok {
			for _, x := range c.streams {
				x.window += int64(v) - c.initial
			}
			c.initial = int64(v)
		}
		c.mu.Unlock()
		c.moved.Broadcast()
		c.write((*http2.Framer).WriteSettingsAck)
	case *http2.PingFrame:
		if !frame.IsAck() {
			c.write(func(f *http2.Framer) error { return f.WritePing(true, frame.Data) })
			break
		}
		c.mu.Lock()
		if ack, ok := c.acks[frame.Data]; ok {
			close(ack)
			delete(c.acks, frame.Data)
		}
		c.mu.Unlock()
	case *http2.WindowUpdateFrame:
		c.mu.Lock()
		if x := c.streams[frame.StreamID]; x != nil {
			x.window += int64(frame.Increment)
		} else if frame.StreamID == 0 {
			c.window += int64(frame.Increment)
		}
		c.mu.Unlock()
		c.moved.Broadcast()
	case *http2.RSTStreamFrame:
		c.mu.Lock()
		if x := c.streams[frame.StreamID]; x != nil {
			x.reset = true
		}
		c.mu.Unlock()
		c.moved.Broadcast()
	case *http2.MetaHeadersFrame:
		return c.request(frame)
	case *http2.DataFrame:
		if n := frame.Length; n > 0 {
			c.write(func(f *http2.Framer) error {
				return errors.Join(f.WriteWindowUpdate(0, n), f.WriteWindowUpdate(frame.StreamID, n))
			})
		}
		if x := c.streams[frame.StreamID]; frame.StreamEnded() && x != nil && !x.script.Early {
			return x
		}
	}
	return nil
}

func (c *conn) request(frame *http2.MetaHeadersFrame) *exchange {
	if c.streams[frame.StreamID] != nil { // trailers
		return nil
	}
	name := frame.PseudoValue("path")
	script, ok := c.server.scripts[strings.TrimPrefix(name, Path(""))]
	if !ok {
		script = Script{Early: true, play: func(x *exchange) {
			x.only("grpc-status", "12", "grpc-message", fmt.Sprintf("there is no script for %q", name))
		}}
	}
	x := &exchange{conn: c, id: frame.StreamID, script: script}
	for _, f := range frame.Fields {
		if f.Name == IDHeader {
			x.call = f.Value
		}
	}
	c.mu.Lock()
	x.window = c.initial
	c.streams[x.id] = x
	c.mu.Unlock()
	if frame.StreamEnded() || script.Early {
		return x
	}
	return nil
}

// write sends frames as one. Errors are the peer's business: it has gone, and reading ends, too.
func (c *conn) write(frames func(*http2.Framer) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = frames(c.framer)
}
