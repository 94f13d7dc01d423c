package streamtest

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Direction says which way bytes go.
type Direction int

const (
	ToBackend Direction = 1 << iota // what the client sends
	ToClient                        // what the backend sends

	BothWays = ToBackend | ToClient
)

// BadNet stands between clients and a backend and does to their connections what networks do. Without a fault it passes bytes on
// as they are. All methods may be called at any time, from any goroutine.
//
// A method that lasts, such as Stall, is for all connections, those that are open and those to come, until Heal; [BadNet.New] and
// [BadNet.Open] give the same methods for one of the two.
type BadNet struct {
	Faults

	listener net.Listener
	dial     func() (net.Conn, error)
	done     chan struct{} // closed by Close
	running  sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	links    map[*link]struct{} // open
	ending   map[*link]struct{} // cut, and waiting for the sides to close
	forNew   [2]faults          // what a connection begins with, per way
	refuse   bool
	accepted int
}

// NewBadNet listens on a free port of the loopback interface and connects each client to the backend's address. It is
// closed at the end of the test.
func NewBadNet(t testing.TB, backend string) *BadNet {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("a bad network needs a port: %v", err)
	}
	return NewBadNetOver(t, l, func() (net.Conn, error) { return net.DialTimeout("tcp", backend, 5*time.Second) })
}

// NewBadNetOver is NewBadNet with the listener for the clients, which it closes, and the way to the backend given. With ones in
// memory, such as those of google.golang.org/grpc/test/bufconn, it works in a bubble of testing/synctest; there a reset is a close.
func NewBadNetOver(t testing.TB, clients net.Listener, dial func() (net.Conn, error)) *BadNet {
	t.Helper()
	n := &BadNet{listener: clients, dial: dial, done: make(chan struct{}), links: map[*link]struct{}{}, ending: map[*link]struct{}{}}
	n.Faults = Faults{n: n, open: true, new: true}
	n.running.Go(n.accept)
	t.Cleanup(n.Close)
	return n
}

// Addr is where clients connect to.
func (n *BadNet) Addr() string { return n.listener.Addr().String() }

// Connections returns how many are open, and how many there have been (refused ones too).
func (n *BadNet) Connections() (open, ever int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.links), n.accepted
}

// Open gives the faults for the connections that are open now.
func (n *BadNet) Open() Faults { return Faults{n: n, open: true} }

// New gives the faults for the connections that are still to come.
func (n *BadNet) New() Faults { return Faults{n: n, new: true} }

// Close closes the listener and all connections, and waits for all that the network runs. A second call does nothing.
func (n *BadNet) Close() {
	n.mu.Lock()
	if !n.closed {
		n.closed = true
		close(n.done)
		n.listener.Close()
		for l := range n.links {
			l.cut()
		}
		for l := range n.ending {
			l.close()
		}
	}
	n.mu.Unlock()
	n.running.Wait()
}

func (n *BadNet) accept() {
	for {
		client, err := n.listener.Accept()
		if err != nil {
			select {
			case <-n.done:
				return
			case <-time.After(10 * time.Millisecond): // out of file descriptors, or a client that left
				continue
			}
		}
		n.mu.Lock()
		n.accepted++
		if n.closed || n.refuse {
			n.mu.Unlock()
			reset(client)
			continue
		}
		l := &link{n: n, client: client, cutting: make(chan struct{})}
		for i := range l.way {
			l.way[i] = &way{faults: n.forNew[i], changed: make(chan struct{})}
		}
		n.links[l] = struct{}{}
		n.running.Go(l.run)
		n.mu.Unlock()
	}
}

// Faults are what can be done to the connections they are for. Counts of bytes begin at the call for connections that are
// open, and at their first byte for new ones.
type Faults struct {
	n         *BadNet
	open, new bool
}

// faults is what happens to the bytes that go one way.
type faults struct {
	stalled   bool
	swallow   bool
	cutAfter  int64 // bytes still to pass, 0: no limit; the byte after them is not passed, and the connection ends
	reset     bool  // how it ends
	corruptAt int64 // number of the byte to flip a bit of, from 1; 0: none
	rate      int   // bytes per second; 0: no limit
}

// Cut ends the connections in the normal way, toward both sides (FIN). There is nothing that it does to new ones; see Refuse.
func (f Faults) Cut() { f.end((*link).cut) }

// Reset ends the connections by force, toward both sides (RST): what was on its way is lost.
func (f Faults) Reset() { f.end((*link).reset) }

func (f Faults) end(how func(*link)) {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if f.open {
		for l := range f.n.links {
			how(l)
		}
	}
}

// Stall holds back the bytes that go that way, until Resume. Nothing is lost: senders are blocked once all buffers are full. What
// was being passed on when it is called may still arrive.
func (f Faults) Stall(d Direction) { f.set(d, func(w *faults) { w.stalled = true }) }

// Resume ends Stall.
func (f Faults) Resume() { f.set(BothWays, func(w *faults) { w.stalled = false }) }

// Blackhole takes the bytes that go that way and throws them away, ends of connections included: neither side notices.
// Connections that have lost bytes are reset by Heal, as what they would carry on with is not what was sent.
func (f Faults) Blackhole(d Direction) { f.set(d, func(w *faults) { w.swallow = true }) }

// CutAfter cuts each connection once it has passed on so many bytes that way.
func (f Faults) CutAfter(d Direction, bytes int64) {
	f.set(d, func(w *faults) { w.cutAfter, w.reset = bytes+1, false })
}

// ResetAfter resets each connection once it has passed on so many bytes that way.
func (f Faults) ResetAfter(d Direction, bytes int64) {
	f.set(d, func(w *faults) { w.cutAfter, w.reset = bytes+1, true })
}

// Corrupt flips one bit of the byte with that number, from 0, of each connection.
func (f Faults) Corrupt(d Direction, at int64) { f.set(d, func(w *faults) { w.corruptAt = at + 1 }) }

// SlowRate passes on at most so many bytes per second, each way of each connection for itself. 0: as fast as it goes.
func (f Faults) SlowRate(bytesPerSecond int) {
	f.set(BothWays, func(w *faults) { w.rate = bytesPerSecond })
}

// Refuse resets new connections as soon as they are made, or no longer. For open ones it does nothing.
func (f Faults) Refuse(refuse bool) {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if f.new {
		f.n.refuse = refuse
	}
}

// Heal ends all faults that last.
func (f Faults) Heal() {
	f.Refuse(false)
	f.set(BothWays, func(w *faults) { *w = faults{} })
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if f.open {
		for l := range f.n.links {
			if l.way[0].lost || l.way[1].lost {
				l.reset()
			}
		}
	}
}

func (f Faults) set(d Direction, change func(*faults)) {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	for i, direction := range []Direction{ToBackend, ToClient} {
		if d&direction == 0 {
			continue
		}
		if f.new {
			change(&f.n.forNew[i])
		}
		if !f.open {
			continue
		}
		for l := range f.n.links {
			w := l.way[i]
			change(&w.faults)
			close(w.changed)
			w.changed = make(chan struct{})
		}
	}
}

// link is a client's connection and the one to the backend that belongs to it.
type link struct {
	n       *BadNet
	client  net.Conn
	way     [2]*way       // to the backend, to the client
	cutting chan struct{} // closed when the link is to end

	// Guarded by n.mu.
	backend net.Conn
	ended   bool
}

// way is one way of a link. Its fields are guarded by n.mu.
type way struct {
	faults
	changed chan struct{} // closed when the faults have changed
	lost    bool          // bytes, or the end, were swallowed
}

// run connects to the backend and passes bytes on until both ways have ended.
func (l *link) run() {
	defer l.forget()
	backend, err := l.n.dial()
	l.n.mu.Lock()
	if err != nil || l.ended {
		l.endLocked(true)
		l.n.mu.Unlock()
		if err == nil {
			reset(backend)
		}
		return
	}
	l.backend = backend
	l.n.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() { l.pass(l.way[1], l.client, backend) })
	l.pass(l.way[0], backend, l.client)
	back.Wait()
	l.cutNow()
}

func (l *link) forget() {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	l.close()
	delete(l.n.links, l)
	delete(l.n.ending, l)
}

// close closes both connections. n.mu is held.
func (l *link) close() {
	l.client.Close()
	if l.backend != nil {
		l.backend.Close()
	}
}

// cut and reset end the link; n.mu is held.
func (l *link) cut()   { l.endLocked(false) }
func (l *link) reset() { l.endLocked(true) }

func (l *link) cutNow() {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	l.cut()
}

func (l *link) resetNow() {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	l.reset()
}

// endPatience is how long a connection that was cut waits for the other side to close.
const endPatience = time.Second

func (l *link) endLocked(byForce bool) {
	if l.ended {
		return
	}
	l.ended = true
	close(l.cutting)
	delete(l.n.links, l)
	l.n.ending[l] = struct{}{}
	for _, c := range []net.Conn{l.client, l.backend} {
		half, canHalf := c.(interface{ CloseWrite() error })
		switch {
		case c == nil:
		case byForce:
			reset(c)
		case canHalf && l.backend != nil:
			// Closing a connection that holds unread bytes would reset it, so pass reads on for a while.
			half.CloseWrite()
			c.SetWriteDeadline(time.Now())
			c.SetReadDeadline(time.Now().Add(endPatience))
		default:
			c.Close()
		}
	}
}

// reset closes a connection so that the other side sees it reset, where the kind of connection knows that.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

const badNetChunk = 32 << 10

// pass passes bytes on, one way, until that way ends.
func (l *link) pass(w *way, to, from net.Conn) {
	buf := make([]byte, badNetChunk)
	for {
		n, err := from.Read(buf)
		if n > 0 && !l.deliver(w, to, buf[:n]) {
			_, _ = io.Copy(io.Discard, from)
			return
		}
		if err != nil {
			l.finish(w, to, err)
			return
		}
	}
}

// deliver passes on some bytes, and reports false if the link has ended.
func (l *link) deliver(w *way, to net.Conn, b []byte) bool {
	for len(b) > 0 {
		f, ok := l.gate(w)
		if !ok {
			return false
		}
		n := len(b)
		if f.rate > 0 {
			n = min(n, max(1, f.rate/50)) // 20 ms worth of bytes
		}
		cutHere := false
		if f.cutAfter > 0 && !f.swallow && int64(n) >= f.cutAfter-1 {
			n, cutHere = int(f.cutAfter-1), true
		}
		l.count(w, b[:n], f.swallow)
		if !f.swallow && n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				l.resetNow()
				return false
			}
		}
		b = b[n:]
		if cutHere {
			if f.reset {
				l.resetNow()
			} else {
				l.cutNow()
			}
			return false
		}
		if f.rate > 0 && !f.swallow && !l.sleep(time.Duration(n)*time.Second/time.Duration(f.rate)) {
			return false
		}
	}
	return true
}

// gate waits while the way is stalled.
func (l *link) gate(w *way) (faults, bool) {
	for {
		l.n.mu.Lock()
		f, changed := w.faults, w.changed
		l.n.mu.Unlock()
		if !f.stalled {
			return f, true
		}
		select {
		case <-changed:
		case <-l.cutting:
			return f, false
		}
	}
}

// count moves the counters on by the bytes that are about to be passed on, and flips the bit that is due.
func (l *link) count(w *way, b []byte, swallowed bool) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if swallowed {
		w.lost = true
		return
	}
	n := int64(len(b))
	if w.cutAfter > 0 {
		w.cutAfter = max(1, w.cutAfter-n)
	}
	switch {
	case w.corruptAt == 0:
	case w.corruptAt <= n:
		b[w.corruptAt-1] ^= 1 << 4
		w.corruptAt = 0
	default:
		w.corruptAt -= n
	}
}

func (l *link) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.cutting:
		return false
	}
}

// finish tells the other side how this one ended, unless nothing gets there.
func (l *link) finish(w *way, to net.Conn, err error) {
	f, ok := l.gate(w)
	if !ok {
		return
	}
	if f.swallow {
		l.n.mu.Lock()
		w.lost = true
		l.n.mu.Unlock()
		<-l.cutting // the other side believes that all is well, until its own patience or Heal ends it
		return
	}
	half, canHalf := to.(interface{ CloseWrite() error })
	switch {
	case !errors.Is(err, io.EOF):
		l.resetNow()
	case canHalf:
		half.CloseWrite()
	default:
		l.cutNow()
	}
}
