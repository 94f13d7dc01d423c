package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/frame"
	"github.com/levada-io/levada/internal/proxy/wheel"
)

const (
	firstBackoff = 100 * time.Millisecond // after a connect that failed
	lastBackoff  = 5 * time.Second
	prefaceTime  = 10 * time.Second // that an endpoint which took the connection may take to say its first SETTINGS
	idleBack     = time.Minute      // after which a connection that is one of several and has no streams is closed
	maxDials     = 4                // to an endpoint at the same time
)

var errNoStreams = errors.New("it allows no streams (MAX_CONCURRENT_STREAMS 0)")

var errPreface = errors.New("it took the connection and did not say that it speaks HTTP/2")

// endpoint is one address of a backend, and the connections to it. Its lock is below those of fronts, and above those of backs.
type endpoint struct {
	cluster *cluster
	address string
	waits   atomic.Int32 // len(waiting), to be read without the lock
	fails   atomic.Bool  // connecting failed last, and it is not yet time to try again

	mu      sync.Mutex
	conns   []*back // that take streams
	retired []*back // that only serve those which they have
	dialing int
	waiting []*stream
	last    error // of connecting
	retryAt int64
	backoff time.Duration
	redial  wheel.Timer // for those who wait while it is too early to try again
	removed bool        // it is not one of the backend's endpoints any more
}

func newEndpoint(c *cluster, address string) *endpoint {
	e := &endpoint{cluster: c, address: address}
	e.redial.Init(func(int64) {
		e.cluster.proxy.tick()
		e.mu.Lock()
		e.dial()
		e.mu.Unlock()
	})
	return e
}

// assign gives the call to a connection, or makes it wait for one. The lock of the stream's front is held.
func (e *endpoint) assign(s *stream, w *wakes) {
	e.mu.Lock()
	b, tooLarge := e.taken(s)
	if b == nil && !tooLarge && e.connectable() {
		s.waiting = e
		e.waiting = append(e.waiting, s)
		e.waits.Store(int32(len(e.waiting)))
		if b, _ = e.taken(s); b == nil { // room that came before waits said that somebody waits
			e.dial()
			e.mu.Unlock()
			return
		}
		e.waiting = e.waiting[:len(e.waiting)-1]
		e.waits.Store(int32(len(e.waiting)))
	}
	err := e.last
	e.mu.Unlock()
	switch {
	case b != nil:
		s.placed(w)
	case tooLarge:
		s.end(failure(codes.ResourceExhausted, reasonHeaderSize, http.StatusRequestHeaderFieldsTooLarge, "the request has more headers than %s takes", e.address), w)
	default:
		s.notConnected(err, w)
	}
}

// forget takes a call from those that wait.
func (e *endpoint) forget(s *stream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.Index(e.waiting, s); i >= 0 {
		e.waiting = slices.Delete(e.waiting, i, i+1)
		e.waits.Store(int32(len(e.waiting)))
	}
}

// taken tries the connections. The one that was tried first last time is the one with room, mostly. mu is held.
func (e *endpoint) taken(s *stream) (b *back, tooLarge bool) {
	for i, b := range e.conns {
		if b.tooLarge(s) {
			return nil, true
		}
		if b.take(s) {
			if i > 0 {
				e.conns[0], e.conns[i] = b, e.conns[0]
			}
			return b, false
		}
	}
	return nil, false
}

// connectable reports whether a connection may come. mu is held.
func (e *endpoint) connectable() bool {
	return e.dialing > 0 || len(e.conns) > 0 || e.last == nil || e.cluster.proxy.wheel.Now() >= e.retryAt
}

// dial makes connections for the calls that wait, as many as it takes by the peer's limit. mu is held.
func (e *endpoint) dial() {
	limit := e.cluster.config().MaxConnections
	per := 100 // streams that a connection takes, as long as no endpoint has said so: RFC 9113 recommends at least that
	if len(e.conns) > 0 {
		b := e.conns[0]
		b.mu.Lock()
		per = int(max(min(b.peer.streams, 1<<20), 1))
		b.mu.Unlock()
	}
	for e.dialing < maxDials && len(e.waiting) > e.dialing*per && (limit == 0 || len(e.conns)+e.dialing < limit) {
		if e.last != nil && e.dialing > 0 {
			return
		}
		if e.last != nil && e.cluster.proxy.wheel.Now() < e.retryAt {
			e.cluster.proxy.wheel.Set(&e.redial, e.retryAt)
			return
		}
		e.dialing++
		e.cluster.proxy.background.Go(e.connect)
	}
}

// connect makes a connection and serves it to its end.
func (e *endpoint) connect() {
	b, err := e.connection()
	e.cluster.proxy.tick()
	e.mu.Lock()
	e.dialing--
	if err != nil {
		e.failed(err)
		waiting := e.waiting
		if e.dialing > 0 || len(e.conns) > 0 {
			waiting = nil // another connection serves them
		} else {
			e.waiting = nil
			e.waits.Store(0)
		}
		e.mu.Unlock()
		e.cluster.proxy.log.Debug("no connection to a backend", "backend", e.cluster.name, "endpoint", e.address, "error", err)
		e.cluster.stats.connectFailed.Add(1)
		var w wakes
		for _, s := range waiting {
			s.front.mu.Lock()
			if s.open && s.waiting == e {
				s.notConnected(err, &w)
			}
			s.front.mu.Unlock()
			w.flush()
		}
		return
	}
	if b.peer.streams > 0 {
		e.last, e.backoff = nil, 0
		e.fails.Store(false)
	} else { // another connection would be no better
		e.failed(errNoStreams)
	}
	if !b.draining {
		e.conns = append(e.conns, b)
	}
	removed := e.removed
	e.mu.Unlock()
	if removed {
		e.drain()
	}
	e.cluster.stats.connections.Add(1)
	e.cluster.stats.connected.Add(1)
	defer e.cluster.stats.connections.Add(-1)
	var w wakes
	e.serveWaiting(&w)
	w.flush()
	if e.cluster.proxy.hold(b) {
		b.run()
		e.cluster.proxy.release(b)
	} else {
		_ = b.nc.Close()
		e.gone(b, errClosed)
	}
}

// failed notes that connecting has come to nothing. mu is held.
func (e *endpoint) failed(err error) {
	e.last = err
	e.backoff = min(max(2*e.backoff, firstBackoff), lastBackoff)
	e.retryAt = e.cluster.proxy.wheel.Now() + int64(e.backoff)
	e.fails.Store(true)
}

// connection makes one: TCP, TLS, and the first SETTINGS of both sides.
func (e *endpoint) connection() (*back, error) {
	p, config := e.cluster.proxy, e.cluster.config()
	ctx, cancel := context.WithTimeout(p.dialing, config.ConnectTimeout)
	defer cancel()
	dialer := net.Dialer{
		// The kernel finds out about a peer that vanished even where we may not ask it by PING.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3},
		Control:         lostAfter,
	}
	nc, err := dialer.DialContext(ctx, "tcp", e.address)
	if err != nil {
		return nil, err
	}
	nc = newRawSocket(nc)
	if t := e.cluster.tls.Load(); t != nil {
		if nc, err = (*t).client(ctx, nc, e.address); err != nil {
			return nil, err
		}
	}
	b := &back{endpoint: e, streams: map[uint32]*stream{}, next: 1, since: time.Now()}
	b.init(p, nc, maxResponseHeaders)
	b.watch.Init(b.look)
	hello := frame.AppendSettings([]byte(frame.Preface), frame.Setting{ID: frame.EnablePush, Value: 0}, frame.Setting{ID: frame.InitialWindowSize, Value: firstWindow},
		frame.Setting{ID: frame.MaxHeaderListSize, Value: maxResponseHeaders})
	hello = frame.AppendWindowUpdate(hello, 0, connWindow-frame.DefaultWindow)
	patience := prefaceTime
	if e.cluster.anotherThan(e) { // that may be better: the calls that wait here can go there
		patience = config.ConnectTimeout
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	stop := context.AfterFunc(p.dialing, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err = nc.Write(hello); err == nil {
		err = b.greet()
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	b.idleSince, b.quiet = b.now, b.now
	b.mu.Lock()
	b.watchBy(b.now + int64(idleBack))
	b.mu.Unlock()
	return b, nil
}

// greet reads the endpoint's first frame, which has to be SETTINGS.
func (b *back) greet() error {
	head := make([]byte, frame.HeaderLen)
	if err := readFull(b.nc, head); err != nil {
		return fmt.Errorf("%w: %w", errPreface, err)
	}
	h := frame.ParseHeader(head)
	if h.Type != frame.Settings || h.Has(frame.Ack) || h.Length > 16*6*4 {
		return errPreface
	}
	payload := make([]byte, h.Length)
	if err := readFull(b.nc, payload); err != nil {
		return fmt.Errorf("%w: %w", errPreface, err)
	}
	if err := b.dispatch(b, h, payload); err != nil {
		return fmt.Errorf("%w: %w", errPreface, err)
	}
	b.woken = wakes{} // the writer does not run yet; it will find what there is
	return nil
}

func readFull(nc net.Conn, p []byte) error {
	for n := 0; n < len(p); {
		m, err := nc.Read(p[n:])
		if err != nil {
			return err
		}
		n += m
	}
	return nil
}

// serveWaiting gives calls that wait to connections that have room.
func (e *endpoint) serveWaiting(w *wakes) {
	for {
		e.mu.Lock()
		if len(e.waiting) == 0 || !slices.ContainsFunc(e.conns, (*back).hasRoom) {
			if len(e.waiting) > 0 {
				e.dial()
			}
			e.mu.Unlock()
			return
		}
		s := e.waiting[0]
		if e.waiting = e.waiting[1:]; len(e.waiting) == 0 {
			e.waiting = nil
		}
		e.waits.Store(int32(len(e.waiting)))
		e.mu.Unlock()
		s.front.mu.Lock()
		if s.open && s.waiting == e {
			e.assign(s, w)
		}
		s.front.mu.Unlock()
	}
}

func (b *back) hasRoom() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.draining && !b.closing && b.err == nil && uint32(len(b.streams)) < b.peer.streams
}

// retire takes a connection from those that get new streams.
func (e *endpoint) retire(b *back, code frame.Code, text string) {
	e.mu.Lock()
	if i := slices.Index(e.conns, b); i >= 0 {
		e.conns = slices.Delete(e.conns, i, i+1)
		e.retired = append(e.retired, b)
	}
	e.mu.Unlock()
	if code != frame.NoError {
		e.cluster.proxy.log.Warn("a backend closes its connection", "backend", e.cluster.name, "endpoint", e.address, "code", code.String(), "text", text)
	}
	b.woken.endpoints = append(b.woken.endpoints, e)
}

// gone: the connection has ended.
func (e *endpoint) gone(b *back, err error) {
	e.mu.Lock()
	e.conns = slices.DeleteFunc(e.conns, func(other *back) bool { return other == b })
	e.retired = slices.DeleteFunc(e.retired, func(other *back) bool { return other == b })
	if len(e.waiting) > 0 {
		e.dial()
	}
	e.mu.Unlock()
	e.cluster.proxy.log.Debug("a connection to a backend has ended", "backend", e.cluster.name, "endpoint", e.address, "error", err)
}

// surplus reports whether the connection is not needed, since there is another. A back's lock is held, so e's cannot be waited for.
func (e *endpoint) surplus(b *back) bool {
	if !e.mu.TryLock() {
		return false
	}
	defer e.mu.Unlock()
	i := slices.Index(e.conns, b)
	if i < 0 || len(e.conns) == 1 {
		return false
	}
	e.conns = slices.Delete(e.conns, i, i+1)
	e.retired = append(e.retired, b)
	return true
}

// drain closes the connections as their streams end, because the endpoint is not one of the backend's any more.
func (e *endpoint) drain() {
	e.mu.Lock()
	e.removed = true
	conns := e.conns
	e.retired, e.conns = append(e.retired, conns...), nil
	waiting := e.waiting
	e.waiting = nil
	e.waits.Store(0)
	e.mu.Unlock()
	for _, b := range conns {
		b.mu.Lock()
		b.draining = true
		if len(b.streams) == 0 && !b.closing {
			b.closeAfterOut(0, frame.NoError, "")
			b.rouse()
		}
		b.mu.Unlock()
	}
	var w wakes
	for _, s := range waiting {
		s.front.mu.Lock()
		if s.open && s.waiting == e {
			s.forget(balance.Ignored)
			s.place(&w)
		}
		s.front.mu.Unlock()
		w.flush()
	}
}

// usable reports whether a call may be given to the endpoint, as far as is known.
func (e *endpoint) usable() bool {
	if !e.fails.Load() {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last == nil || e.dialing == 0 && e.cluster.proxy.wheel.Now() >= e.retryAt
}
