package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/discovery"
	"github.com/levada-io/levada/internal/proxy/wheel"
)

const (
	firstBackoff = 100 * time.Millisecond // after a connect that failed
	lastBackoff  = 5 * time.Second
	prefaceTime  = 10 * time.Second // that an endpoint which took the connection may take to say its first SETTINGS
	idleBack     = time.Minute      // after which a connection that is one of several and has no streams is closed
	maxDials     = 4                // to an endpoint at the same time
	shareTime    = time.Minute      // after which a connection for large headers alone is tried again
)

var errNoStreams = errors.New("it allows no streams (MAX_CONCURRENT_STREAMS 0)")

var errPreface = errors.New("it took the connection and did not say that it speaks HTTP/2")

// endpoint is one address of a backend, and the connections to it. Its lock is below those of fronts, and above those of backs.
type endpoint struct {
	cluster *cluster
	address string
	waits   atomic.Int32 // calls that wait, to be read without the lock
	fails   atomic.Bool  // connecting failed last, and it is not yet time to try again
	calls   *openCalls   // that were given to it and have not left it; shared with its former incarnations

	unhealthy atomic.Bool // by active checks
	calm      atomic.Bool // it has closed a connection for too many PINGs

	// mu guards what follows. It comes after a front's lock and before a back's. Invariant: a back is in conns of one pool, or in retired, or has ended; waits is the number of
	// calls in both pools' waiting.
	mu        sync.Mutex
	main      pool
	large     pool    // for calls with large headers, which would keep the others waiting: a header waits for no window
	retired   []*back // that only serve those streams which they have
	last      error   // of connecting
	retryAt   int64
	backoff   time.Duration
	redial    wheel.Timer // for those who wait while it is too early to try again
	share     int64       // until when calls with large headers use the main pool, since connecting once more failed
	checked   checked
	unchecked context.CancelFunc // ends the active checks; nil if there are none
	removed   bool               // it is not one of the backend's endpoints any more
}

// pool is the connections for some of the calls to an endpoint, whose lock guards it.
type pool struct {
	conns   []*back // that take streams
	dialing int
	waiting []ref // for a connection with room, in the order in which they came
}

// poolOf is where the call belongs. Where the number of connections is limited, all share them, and so they do where no second one can be made.
func (e *endpoint) poolOf(s *stream) *pool {
	if !large(s.call.sent) || e.cluster.proxy.now() < e.share || e.cluster.config().MaxConnections > 0 {
		return &e.main
	}
	return &e.large
}

func newEndpoint(c *cluster, address string) *endpoint {
	e := &endpoint{cluster: c, address: address, calls: c.proxy.callCounts.of(c, address)}
	e.redial.Init(func(int64) {
		e.cluster.proxy.tick()
		e.mu.Lock()
		e.dial()
		e.mu.Unlock()
	})
	return e
}

// assign gives the call to a connection, or makes it wait for one. The lock of the stream's front is held.
func (e *endpoint) assign(s *stream, w *wakeups) {
	e.mu.Lock()
	p := e.poolOf(s)
	b, tooLarge := p.taken(s)
	// Otherwise the call goes elsewhere at once: a connection that fails again would cost it the whole connect timeout.
	if b == nil && !tooLarge && e.connectable() {
		if s.waiting == e {
			e.drop(s) // it waits already, at the place that it had when somebody took it from there to be assigned
		}
		s.waiting = e
		p.waiting = append(p.waiting, ref{s, s.id})
		e.waits.Add(1)
		if b, _ = p.taken(s); b == nil { // room that came before waits said that somebody waits
			e.dial()
			e.mu.Unlock()
			return
		}
		p.waiting = p.waiting[:len(p.waiting)-1]
		e.waits.Add(-1)
	}
	err := e.last
	e.mu.Unlock()
	switch {
	case b != nil:
		s.dispatched(w)
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
	e.drop(s)
}

// drop is forget with mu held.
func (e *endpoint) drop(s *stream) {
	for _, p := range e.pools() {
		if i := slices.Index(p.waiting, ref{s, s.id}); i >= 0 {
			p.waiting = slices.Delete(p.waiting, i, i+1)
			e.waits.Add(-1)
		}
	}
}

func (e *endpoint) pools() [2]*pool { return [...]*pool{&e.main, &e.large} }

// works reports whether the pool has a connection that takes streams, if perhaps not now. The endpoint's lock is held.
func (p *pool) works() bool {
	return slices.ContainsFunc(p.conns, func(b *back) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.peer.streams > 0 && !b.draining && !b.closing && b.err == nil
	})
}

// dialing is how many connections are being made. mu is held.
func (e *endpoint) dialing() int { return e.main.dialing + e.large.dialing }

// open is how many connections take streams. mu is held.
func (e *endpoint) open() int { return len(e.main.conns) + len(e.large.conns) }

// other is the pool that p is not.
func (e *endpoint) other(p *pool) *pool {
	if p == &e.main {
		return &e.large
	}
	return &e.main
}

// takeWaiting returns the calls that wait, which do not any more. mu is held.
func (e *endpoint) takeWaiting(p *pool) []ref {
	waiting := p.waiting
	p.waiting = nil
	e.waits.Add(-int32(len(waiting)))
	return waiting
}

// taken tries the connections. The one that was tried first last time is the one with room, mostly. The endpoint's lock is held.
func (p *pool) taken(s *stream) (b *back, tooLarge bool) {
	for i, b := range p.conns {
		if b.tooLarge(s) {
			return nil, true
		}
		if b.take(s) {
			if i > 0 {
				p.conns[0], p.conns[i] = b, p.conns[0]
			}
			return b, false
		}
	}
	return nil, false
}

// connectable reports whether a connection may come. mu is held.
func (e *endpoint) connectable() bool {
	return e.dialing() > 0 || e.open() > 0 || e.last == nil || e.cluster.proxy.wheel.Now() >= e.retryAt
}

// dial makes connections for the calls that wait, as many as it takes by the peer's limit. mu is held.
func (e *endpoint) dial() {
	for _, p := range e.pools() {
		e.dialFor(p)
	}
}

// dialFor makes connections for one pool. mu is held. None is made while one takes streams, if perhaps only once it has written what waits.
func (e *endpoint) dialFor(p *pool) {
	if len(p.waiting) == 0 || slices.ContainsFunc(p.conns, (*back).willHaveRoom) {
		return
	}
	limit := e.cluster.config().MaxConnections
	per := 100 // streams that a connection takes, as long as no endpoint has said so: RFC 9113 recommends at least that
	if len(p.conns) > 0 {
		b := p.conns[0]
		b.mu.Lock()
		per = int(max(min(b.peer.streams, 1<<20), 1))
		b.mu.Unlock()
	}
	for p.dialing < maxDials && len(p.waiting) > p.dialing*per && (limit == 0 || len(p.conns)+p.dialing < limit) {
		// After a failure one attempt at a time: many would only find out the same.
		if e.last != nil && p.dialing > 0 {
			return
		}
		if e.last != nil && e.cluster.proxy.wheel.Now() < e.retryAt {
			e.cluster.proxy.wheel.Set(&e.redial, e.retryAt)
			return
		}
		p.dialing++
		e.cluster.proxy.background.Go(func() { e.connect(p) })
	}
}

// connect makes a connection for the pool and serves it to its end.
func (e *endpoint) connect(p *pool) {
	b, err := e.connection()
	e.cluster.proxy.tick()
	e.mu.Lock()
	p.dialing--
	refused, level := err, slog.LevelDebug
	if err == nil && b.peer.streams == 0 {
		refused = errNoStreams // another connection would be no better
	}
	var shared, lost []ref
	switch {
	case refused == nil:
		if e.last != nil {
			e.cluster.proxy.log.Info("connected to a backend again", "backend", e.cluster.name, "endpoint", e.address)
		}
		e.last, e.backoff = nil, 0
		e.fails.Store(false)
	case !p.works() && (e.other(p).works() || p == &e.large && e.main.dialing > 0): // the endpoint serves the others, or may do so soon, so these can share
		e.share = e.cluster.proxy.wheel.Now() + int64(shareTime)
		e.main.conns, e.large.conns = append(e.main.conns, e.large.conns...), nil
		shared = append(e.takeWaiting(p), e.takeWaiting(&e.large)...)
	default:
		if e.last == nil { // the first of many
			level = slog.LevelWarn
		}
		e.failed(refused)
		if err != nil && p.dialing == 0 && len(p.conns) == 0 { // or another connection serves them
			lost = e.takeWaiting(p)
		}
	}
	switch {
	case err != nil:
		e.dial() // for those who still wait, when it is time
	case !b.draining:
		p.conns = append(p.conns, b)
	}
	removed := e.removed
	e.mu.Unlock()
	// After the endpoint's lock was released: each takes the locks of fronts, which come first.
	e.each(shared, e.assign)
	e.each(lost, func(s *stream, w *wakeups) { s.notConnected(err, w) })
	if err != nil {
		e.cluster.proxy.log.Log(context.Background(), level, "no connection to a backend", "backend", e.cluster.name, "endpoint", e.address, "error", err)
		e.cluster.stats.connectFailed.Add(1)
		return
	}
	if removed {
		e.drain()
	}
	e.cluster.stats.connections.Add(1)
	e.cluster.stats.connected.Add(1)
	defer e.cluster.stats.connections.Add(-1)
	var w wakeups
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

// each does something with calls that have waited here, with the lock of each one's front, if they still do.
func (e *endpoint) each(waiting []ref, do func(*stream, *wakeups)) {
	var w wakeups
	for _, r := range waiting {
		r.s.front.mu.Lock()
		if r.current() && r.s.waiting == e {
			do(r.s, &w)
		}
		r.s.front.mu.Unlock()
		w.flush()
	}
}

// failed notes that connecting has come to nothing. mu is held.
// The wait doubles with each failure in a row, from firstBackoff to lastBackoff.
// After a success connect makes it 0.
func (e *endpoint) failed(err error) {
	e.cluster.doubt()
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
	nc, err := e.reach(ctx)
	if err != nil {
		return nil, err
	}
	b := &back{endpoint: e, streams: map[uint32]*stream{}, next: 1, since: time.Now()}
	maxList := int(config.MaxResponseHeaderBytes)
	b.init(p, nc, maxList)
	b.reader.KeepStatus()
	b.watch.Init(b.checkHealth)
	b.announced = p.window.Load()
	// The client's connection preface: RFC 9113 section 3.4. Without ENABLE_PUSH 0 an endpoint may push (section 8.4).
	hello := frame.AppendSettings([]byte(frame.Preface), frame.Setting{ID: frame.EnablePush, Value: 0}, frame.Setting{ID: frame.InitialWindowSize, Value: uint32(b.announced)},
		frame.Setting{ID: frame.MaxHeaderListSize, Value: uint32(maxList)})
	// SETTINGS change the windows of streams only, so the connection's is made larger by a WINDOW_UPDATE: RFC 9113 section 6.9.2.
	hello = frame.AppendWindowUpdate(hello, 0, connWindow-frame.DefaultWindow)
	patience := prefaceTime
	if e.cluster.anotherThan(e) { // that may be better: the calls that wait here can go there
		patience = config.ConnectTimeout
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	// The deadline in the past ends a read or write in progress when the proxy ends: neither knows of a context.
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

// reach makes a connection over which HTTP/2 can be spoken: TCP and TLS.
func (e *endpoint) reach(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{
		// The kernel finds out about a peer that vanished even where we may not ask it by PING.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3},
	}
	network, address := discovery.Dial(e.address)
	if network == "tcp" {
		dialer.Control = lostAfter
	}
	nc, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	nc = newRawSocket(nc)
	if t := e.cluster.tls.Load(); t != nil {
		if nc, err = (*t).client(ctx, nc, e.address); err != nil {
			return nil, err
		}
	}
	return nc, nil
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
	if err := b.onFrame(b, h, payload); err != nil {
		return fmt.Errorf("%w: %w", errPreface, err)
	}
	b.woken = wakeups{} // the writer does not run yet; it will find what there is
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
func (e *endpoint) serveWaiting(w *wakeups) {
	for {
		e.mu.Lock()
		next, ok := e.nextWaiting()
		if !ok {
			e.dial()
			e.mu.Unlock()
			return
		}
		e.mu.Unlock()
		// The endpoint's lock was released before: fronts come first in the order. The call may have ended in between.
		next.s.front.mu.Lock()
		if next.current() && next.s.waiting == e {
			e.assign(next.s, w)
		}
		next.s.front.mu.Unlock()
	}
}

// nextWaiting returns a call for which there is room now, if there is one. mu is held.
func (e *endpoint) nextWaiting() (next ref, ok bool) {
	for _, p := range e.pools() {
		if len(p.waiting) == 0 || !slices.ContainsFunc(p.conns, (*back).hasRoom) {
			continue
		}
		next = p.waiting[0]
		if p.waiting = p.waiting[1:]; len(p.waiting) == 0 {
			p.waiting = nil
		}
		e.waits.Add(-1)
		return next, true
	}
	return ref{}, false
}

// hasRoom reports whether the connection takes a stream now.
func (b *back) hasRoom() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open() && len(b.out) <= maxHeads
}

// willHaveRoom reports whether the connection takes a stream now, or once it has written what waits.
func (b *back) willHaveRoom() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open()
}

// open reports whether the peer allows one more stream. mu is held.
func (b *back) open() bool {
	return !b.draining && !b.closing && b.err == nil && uint32(len(b.streams)) < b.peer.streams && b.next <= frame.MaxStream-2
}

// retire takes a connection from those that get new streams.
func (e *endpoint) retire(b *back, code frame.Code, text string) {
	e.mu.Lock()
	if e.without(b) {
		e.retired = append(e.retired, b)
	}
	e.mu.Unlock()
	if code != frame.NoError {
		e.cluster.proxy.log.Warn("a backend closes its connection", "backend", e.cluster.name, "endpoint", e.address, "code", code.String(), "text", text)
	}
	b.woken.endpoints = append(b.woken.endpoints, e)
}

// without takes a connection from its pool, and reports whether it was there. mu is held.
func (e *endpoint) without(b *back) bool {
	for _, p := range e.pools() {
		if i := slices.Index(p.conns, b); i >= 0 {
			p.conns = slices.Delete(p.conns, i, i+1)
			return true
		}
	}
	return false
}

// gone: the connection has ended.
func (e *endpoint) gone(b *back, err error) {
	e.mu.Lock()
	e.without(b)
	e.retired = slices.DeleteFunc(e.retired, func(other *back) bool { return other == b })
	e.dial()
	e.mu.Unlock()
	e.cluster.doubt()
	e.cluster.proxy.log.Debug("a connection to a backend has ended", "backend", e.cluster.name, "endpoint", e.address, "error", err)
}

// surplus reports whether the connection is not needed, since there is another. A back's lock is held, so e's cannot be waited for.
func (e *endpoint) surplus(b *back) bool {
	// The endpoint's lock comes before the back's in the order, so waiting could be a deadlock. false only means that the connection stays open for longer.
	if !e.mu.TryLock() {
		return false
	}
	defer e.mu.Unlock()
	if len(e.main.conns) == 1 && e.main.conns[0] == b || !e.without(b) {
		return false
	}
	e.retired = append(e.retired, b)
	return true
}

// drain closes the connections as their streams end, because the endpoint is not one of the backend's any more.
func (e *endpoint) drain() {
	e.mu.Lock()
	e.removed = true
	if e.unchecked != nil {
		e.unchecked()
	}
	var conns []*back
	var waiting []ref
	for _, p := range e.pools() {
		conns = append(conns, p.conns...)
		p.conns = nil
		waiting = append(waiting, e.takeWaiting(p)...)
	}
	e.retired = append(e.retired, conns...)
	e.mu.Unlock()
	for _, b := range conns {
		b.mu.Lock()
		b.draining = true
		if len(b.streams) == 0 && !b.closing {
			b.closeAfterOut(0, frame.NoError, "")
			b.wakeWriterLocked()
		}
		b.mu.Unlock()
	}
	e.each(waiting, func(s *stream, w *wakeups) {
		s.forget(balance.Ignored, w)
		s.dispatch(w)
	})
}

// usable reports whether a call may be given to the endpoint, as far as is known.
func (e *endpoint) usable() bool {
	if !e.fails.Load() {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last == nil || e.dialing() == 0 && e.cluster.proxy.wheel.Now() >= e.retryAt
}
