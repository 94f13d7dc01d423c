package faults

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// relay passes TCP connections on to a target, and can cut them, refuse new ones, or pass nothing on for a while.
type relay struct {
	target   string
	listener net.Listener

	mu      sync.Mutex
	open    map[net.Conn]bool
	refuse  bool
	stalled chan struct{} // nil, or closed at the end of a stall
	cuts    int
	done    sync.WaitGroup
}

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{target: target, listener: l, open: map[net.Conn]bool{}}
	r.done.Go(r.accept)
	t.Cleanup(func() {
		_ = l.Close()
		r.stall(false)
		r.cut()
		r.done.Wait()
	})
	return r
}

func (r *relay) address() string { return r.listener.Addr().String() }

func (r *relay) accept() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.done.Go(func() { r.pass(near) })
	}
}

func (r *relay) pass(near net.Conn) {
	if !r.add(near) {
		return
	}
	defer r.remove(near)
	far, err := net.DialTimeout("tcp", r.target, 5*time.Second)
	if err != nil || !r.add(far) {
		return
	}
	defer r.remove(far)
	var both sync.WaitGroup
	for _, c := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			// One side that ends ends the other.
			defer r.remove(c[0])
			defer r.remove(c[1])
			r.copy(c[1], c[0])
		})
	}
	both.Wait()
}

func (r *relay) copy(to io.Writer, from io.Reader) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		r.mu.Lock()
		stalled := r.stalled
		r.mu.Unlock()
		if stalled != nil {
			<-stalled
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *relay) add(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse {
		_ = c.Close()
		return false
	}
	r.open[c] = true
	return true
}

func (r *relay) remove(c net.Conn) {
	r.mu.Lock()
	delete(r.open, c)
	r.mu.Unlock()
	_ = c.Close()
}

// cut resets all connections, in the middle of whatever is on them.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.open) > 0 {
		r.cuts++
	}
	for c := range r.open {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
	clear(r.open)
}

// shut cuts all connections and refuses new ones, or takes them again.
func (r *relay) shut(shut bool) {
	r.mu.Lock()
	r.refuse = shut
	r.mu.Unlock()
	if shut {
		r.cut()
	}
}

// stall keeps connections open and passes nothing on, as a network that drops packets.
func (r *relay) stall(stall bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case stall && r.stalled == nil:
		r.stalled = make(chan struct{})
	case !stall && r.stalled != nil:
		close(r.stalled)
		r.stalled = nil
	}
}
