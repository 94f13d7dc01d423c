//go:build unix

package redisbuffer_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// relay stands between a client and a server, and is a bad network.
type relay struct {
	listener net.Listener
	target   string
	work     sync.WaitGroup
	answers  atomic.Int64 // pieces that servers have sent

	mu    sync.Mutex
	conns map[net.Conn]bool // of both sides
	// loseReplies says that what the server answers is dropped, and the connection cut after it.
	loseReplies bool
	hold        chan struct{} // what clients send waits until it is closed; nil for no wait
}

func newRelay(t *testing.T, s *testserver.Server) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, target: strings.TrimPrefix(s.DSN(), "redis://"), conns: map[net.Conn]bool{}}
	r.work.Go(r.accept)
	t.Cleanup(func() {
		_ = l.Close()
		r.release()
		r.cut()
		r.work.Wait()
	})
	return r
}

func (r *relay) url() string { return "redis://" + r.listener.Addr().String() }

func (r *relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", r.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		r.mu.Lock()
		r.conns[client], r.conns[server] = true, true
		r.mu.Unlock()
		r.work.Go(func() { r.copy(server, client, false) })
		r.work.Go(func() { r.copy(client, server, true) })
	}
}

func (r *relay) copy(to, from net.Conn, replies bool) {
	defer func() {
		if replies {
			_ = to.Close()
			_ = from.Close()
		} else { // the server still gets what a client sent that has gone, and ends the connection itself
			_ = to.(*net.TCPConn).CloseWrite()
		}
		r.mu.Lock()
		if replies {
			delete(r.conns, from)
			delete(r.conns, to)
		}
		r.mu.Unlock()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if replies {
			r.answers.Add(1)
		}
		r.mu.Lock()
		lose, hold := r.loseReplies, r.hold
		r.mu.Unlock()
		if replies && lose {
			return
		}
		if hold != nil && !replies {
			<-hold
		}
		if _, err := to.Write(buf[:n]); err != nil && err != io.EOF {
			return
		}
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
}

// lose makes the relay drop answers, or not.
func (r *relay) lose(lose bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loseReplies = lose
}

// holdRequests makes what clients send wait until release.
func (r *relay) holdRequests() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = make(chan struct{})
}

func (r *relay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hold != nil {
		close(r.hold)
		r.hold = nil
	}
}

// awaitAnswer waits until the server has sent something since before, although nothing of it may reach a client.
func (r *relay) awaitAnswer(ctx context.Context, t *testing.T, before int64) {
	t.Helper()
	for r.answers.Load() == before {
		if ctx.Err() != nil {
			t.Fatal("the server does not answer the request that was held")
		}
		time.Sleep(time.Millisecond)
	}
}
