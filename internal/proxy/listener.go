package proxy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/config"
)

// http1 answers those who do not speak HTTP/2.
const http1 = "HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"

const http1Text = "This is a proxy for gRPC: it speaks HTTP/2 only, with prior knowledge (h2c) or over TLS by ALPN (h2).\n"

// listener is an address at which clients connect. A reload changes its terms, for those who come then.
type listener struct {
	proxy *Proxy
	terms atomic.Pointer[terms] // for connections that come from now on; a reload replaces it
	slots slots

	// Guarded by the proxy's lock.
	socket net.Listener // nil before it is open
	shared bool         // reusePort was set when it was opened: another process may listen there
}

// terms are what the connections of a listener have. Those that are open keep theirs.
type terms struct {
	config    *config.Listener
	tls       *listenerTLS // nil for none
	forwarded *forwarding
	of        *listener
}

func newTerms(p *Proxy, c *config.Listener) (*terms, error) {
	t := &terms{config: c, forwarded: newForwarding(&c.Forwarded)}
	if c.TLS != nil {
		var err error
		if t.tls, err = newListenerTLS(p.log.With("listener", c.Address), c.TLS); err != nil {
			return nil, fmt.Errorf("listener %s: %w", c.Address, err)
		}
	}
	return t, nil
}

func newListener(p *Proxy, c *config.Listener) (*listener, error) {
	t, err := newTerms(p, c)
	if err != nil {
		return nil, err
	}
	l := &listener{proxy: p}
	l.adopt(t)
	return l, nil
}

// adopt makes the terms those of all who come from now on.
func (l *listener) adopt(t *terms) {
	t.of = l
	l.terms.Store(t)
	l.slots.allow(t.config.MaxConnections)
}

// accept serves those who connect, until the socket is closed.
func (l *listener) accept(socket net.Listener) {
	for {
		l.slots.take()
		l.proxy.accepts(1)
		nc, err := socket.Accept()
		if err != nil {
			l.proxy.accepts(-1)
			l.slots.giveBack()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// No descriptors, for one: those who are served already go on, and leave some.
			l.proxy.log.Warn("accept", "address", l.terms.Load().config.Address, "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		nc = newRawSocket(nc)
		l.proxy.greet(nc)
		l.proxy.accepts(-1) // after that: a drain that waits for the last ones must not miss it
		l.proxy.background.Go(func() {
			l.serve(nc)
			l.slots.giveBack()
		})
	}
}

// slots bound how many connections are open. Who waits for one when the socket is closed gets one when a connection ends, and finds the socket closed.
type slots struct {
	mu    sync.Mutex
	freed sync.Cond
	taken int
	limit int // 0 is none
}

func (s *slots) allow(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freed.L = &s.mu
	s.limit = limit
	s.freed.Broadcast()
}

func (s *slots) take() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.limit > 0 && s.taken >= s.limit {
		s.freed.Wait()
	}
	s.taken++
}

func (s *slots) giveBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	s.freed.Signal()
}

// serve is the reading goroutine of a client's connection.
func (l *listener) serve(nc net.Conn) {
	p, t := l.proxy, l.terms.Load()
	if !p.greet(nc) {
		_ = nc.Close()
		return
	}
	raw := nc
	nc, first, err := t.greet(nc)
	p.greeted(raw)
	if err != nil {
		p.log.Debug("no HTTP/2 with a client", "client", raw.RemoteAddr().String(), "error", err)
		_ = nc.Close()
		return
	}
	_ = nc.SetWriteDeadline(time.Time{})
	f := &front{listener: t, streams: map[uint32]*stream{}, stallTimeout: t.config.StallTimeout, limit: uint32(t.config.MaxStreams)}
	f.init(p, nc, int(t.config.MaxHeaderBytes))
	f.heavy = p.heavy
	f.forwarded, f.origin = t.forwarded, originOf(nc)
	if f.origin.tls != nil {
		f.origin.by = uriNames(t.tls.shown(f.origin.tls.ServerName))
	}
	f.accepted = f.now
	f.budget.set(t.config.Abuse.Burst, t.config.Abuse.PerSecond, f.now)
	f.watch.Init(f.checkHealth)
	// Until the client has read what it is allowed, it may send what RFC 9113 allows.
	f.allowed, f.announced = firstWindow, p.window.Load()
	f.unacked[0].delta = f.announced - firstWindow
	f.out = frame.AppendSettings(f.out, frame.Setting{ID: frame.MaxConcurrentStreams, Value: f.limit}, frame.Setting{ID: frame.InitialWindowSize, Value: uint32(f.announced)},
		frame.Setting{ID: frame.MaxHeaderListSize, Value: uint32(t.config.MaxHeaderBytes)})
	f.out = frame.AppendWindowUpdate(f.out, 0, connWindow-frame.DefaultWindow)
	if !p.enter(f) {
		_ = nc.Close()
		return
	}
	f.mu.Lock()
	f.setWindow(p.window.Load(), 0) // which may have changed before it was noted
	f.mu.Unlock()
	p.wheel.Set(&f.watch, f.now+int64(f.watchEvery()))
	if f.retired { // it has come through a listener that was about to go
		f.sendGoAway()
	}
	f.run(first)
	p.wheel.Stop(&f.watch)
	p.leave(f)
}

// greet makes the handshake, and returns what followed the preface.
func (t *terms) greet(nc net.Conn) (net.Conn, []byte, error) {
	_ = nc.SetDeadline(time.Now().Add(t.config.HandshakeTimeout))
	if t.tls != nil {
		secure, err := t.tls.server(nc)
		if err != nil {
			return nc, nil, err
		}
		nc = secure
	}
	first, err := preface(nc)
	return nc, first, err
}

// preface reads the beginning of a connection, and returns what follows its preface. A client of HTTP/1 gets an answer in HTTP/1, any other a GOAWAY.
func preface(nc net.Conn) ([]byte, error) {
	first := make([]byte, 0, 512)
	for {
		n, err := nc.Read(first[len(first):cap(first)])
		if err != nil {
			return nil, err
		}
		first = first[:len(first)+n]
		if n := min(len(first), len(frame.Preface)); string(first[:n]) == frame.Preface[:n] {
			if n == len(frame.Preface) {
				return first[n:], nil
			}
			continue
		}
		line, _, whole := bytes.Cut(first, []byte("\n"))
		if !whole && len(first) < cap(first) {
			continue
		}
		if bytes.Contains(line, []byte(" HTTP/1")) {
			_, err = fmt.Fprintf(nc, http1, len(http1Text), http1Text)
		} else {
			_, err = nc.Write(frame.AppendGoAway(frame.AppendSettings(nil), 0, frame.ProtocolError, "no preface of HTTP/2"))
		}
		return nil, cmp.Or(err, errNoPreface)
	}
}

var errNoPreface = errors.New("the connection does not begin with the preface of HTTP/2")

// greet notes a connection that is in its handshake.
func (p *Proxy) greet(nc net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.greeting[nc] = struct{}{}
	}
	return !p.closed
}

// accepts counts those who wait for a client, or have got one that is not among those that are greeted yet.
func (p *Proxy) accepts(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepting += n
}

func (p *Proxy) greeted(nc net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.greeting, nc)
}

// enter notes a connection, unless the proxy is about to stop.
func (p *Proxy) enter(f *front) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.fronts[f] = struct{}{}
	f.retired = p.leaving || !slices.Contains(p.listeners, f.listener.of)
	f.number = uint64(p.stats.accepted.Add(1))
	p.stats.fronts.Add(1)
	return true
}

func (p *Proxy) leave(f *front) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.fronts, f)
	p.stats.fronts.Add(-1)
}

// run serves the connection until it ends.
func (f *front) run(first []byte) {
	written := make(chan struct{})
	go func() { defer close(written); f.write(f) }()
	var err error
	if first, err = f.greet(first); err == nil {
		_ = f.nc.SetReadDeadline(time.Time{})
		err = f.read(f, first)
	}
	reason := clientDisconnected
	f.mu.Lock()
	var broken frame.Error
	if errors.As(err, &broken) && f.err == nil {
		reason = clientProtocolError
		if broken.Code == frame.EnhanceYourCalm {
			f.proxy.stats.overBudgetConnections.Add(1)
			f.proxy.warn("connection closed, its abuse budget is used up twice over", "client", f.nc.RemoteAddr().String(), "openStreams", len(f.streams), "error", err)
		} else {
			f.proxy.log.Debug("a client breaks the protocol", "client", f.nc.RemoteAddr().String(), "error", err)
		}
		f.closeAfterOut(f.last, broken.Code, broken.Reason)
		f.err = err
		f.wakeWriterLocked()
	} else {
		f.fail(err)
	}
	var w wakeups
	for _, s := range f.streams {
		s.cancelled(frame.Cancel, reason, &w)
	}
	f.mu.Unlock()
	w.flush()
	_ = f.nc.SetWriteDeadline(time.Now().Add(time.Second))
	<-written
	f.close(reason == clientProtocolError)
}

// greet checks that what follows the preface is SETTINGS, and returns what was read.
func (f *front) greet(first []byte) ([]byte, error) {
	for len(first) < frame.HeaderLen {
		more := make([]byte, 512)
		n, err := f.nc.Read(more)
		if err != nil {
			return nil, err
		}
		first = append(first, more[:n]...)
	}
	if h := frame.ParseHeader(first); h.Type != frame.Settings || h.Has(frame.Ack) {
		return nil, frame.Error{Code: frame.ProtocolError, Reason: "a preface without SETTINGS"}
	}
	return first, nil
}
