package matrix

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// relay passes TCP connections on to a backend, and does to them what networks do.
type relay struct {
	listener net.Listener
	backend  string

	mu     sync.Mutex
	closed bool
	pairs  map[*pair]struct{}
	frozen bool
	thaw   chan struct{}
	gone   []int64 // when connections were ended by the backend
}

// pair is a connection from the proxy and the one to the backend.
type pair struct{ proxy, backend *net.TCPConn }

func startRelay(t *testing.T, backend string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, backend: backend, pairs: map[*pair]struct{}{}, thaw: make(chan struct{})}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			proxy, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { r.serve(proxy.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		r.closed = true
		close(r.thaw)
		r.mu.Unlock()
		r.reset()
		serving.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.listener.Addr().String() }

func (r *relay) serve(proxy *net.TCPConn) {
	conn, err := net.Dial("tcp", r.backend)
	if err != nil {
		cut(proxy) // as if nobody listened
		return
	}
	p := &pair{proxy: proxy, backend: conn.(*net.TCPConn)}
	r.mu.Lock()
	r.pairs[p] = struct{}{}
	closed := r.closed
	r.mu.Unlock()
	if closed {
		cut(p.proxy)
		cut(p.backend)
	}
	var both sync.WaitGroup
	both.Go(func() { r.copy(p.backend, p.proxy, false) })
	both.Go(func() { r.copy(p.proxy, p.backend, true) })
	both.Wait()
	p.proxy.Close()
	p.backend.Close()
	r.mu.Lock()
	delete(r.pairs, p)
	r.mu.Unlock()
}

// copy passes bytes on, and then the end, as it came: FIN or RST.
func (r *relay) copy(to, from *net.TCPConn, fromBackend bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		r.mu.Lock()
		frozen := r.frozen
		if err != nil && fromBackend && !frozen {
			r.gone = append(r.gone, now())
		}
		r.mu.Unlock()
		if frozen {
			<-r.thaw
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				cut(from)
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = to.CloseWrite()
			return
		case err != nil:
			cut(to)
			return
		}
	}
}

func cut(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// all does something to every pair, and returns the time before.
func (r *relay) all(do func(*pair)) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := now()
	for p := range r.pairs {
		do(p)
	}
	return at
}

// reset ends the connections with a TCP RST on both sides. New ones are let through, as after fin.
func (r *relay) reset() int64 { return r.all(func(p *pair) { cut(p.proxy); cut(p.backend) }) }

// fin ends the connections with a FIN on both sides.
func (r *relay) fin() int64 {
	return r.all(func(p *pair) { _ = p.proxy.CloseWrite(); _ = p.backend.CloseWrite() })
}

// freeze stops the copying, without an end and for new connections, too.
func (r *relay) freeze() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = true
	return now()
}

// goneBy is when the backend last ended a connection before a time, or 0.
func (r *relay) goneBy(at int64) (last int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, gone := range r.gone {
		if gone <= at {
			last = max(last, gone)
		}
	}
	return last
}

// nobody are addresses at which there is no gRPC server.
var nobody = map[string]func(*testing.T) string{
	"refuse": refuse,
	"noth2": func(t *testing.T) string { // HTTP/1.1 only
		s := httptest.NewServer(http.NotFoundHandler())
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	},
	"drop": func(t *testing.T) string { return listen(t, func(c net.Conn) { c.Close() }) },
	"hold": func(t *testing.T) string { return listen(t, func(net.Conn) {}) },
}

// listen accepts connections, and closes them when the test ends.
func listen(t *testing.T, accepted func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			accepted(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String()
}

// refuse is an address that is taken, and at which nobody listens.
func refuse(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", bound.(*unix.SockaddrInet4).Port)
}
