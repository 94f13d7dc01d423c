package demo

import (
	"io"
	"net"
	"sync"
)

// cuttingProxy stands between the services, so that connections can be cut.
type cuttingProxy struct {
	listener net.Listener
	backend  string
	all      sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

func newCuttingProxy(backend string) (*cuttingProxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &cuttingProxy{listener: l, backend: backend, conns: map[net.Conn]bool{}}
	p.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.all.Go(func() { p.pass(conn) })
		}
	})
	return p, nil
}

func (p *cuttingProxy) address() string { return p.listener.Addr().String() }

// pass connects a client to the producer, or lets it see a refused connection.
func (p *cuttingProxy) pass(client net.Conn) {
	server, err := net.Dial("tcp", p.backend)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		_, _ = client.Close(), server.Close()
		return
	}
	p.conns[client], p.conns[server] = true, true
	p.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_, _ = client.Close(), server.Close()
		})
	}
	both.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}

// cut resets all connections, and returns how many clients had one.
func (p *cuttingProxy) cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, not an end in good order
		}
		_ = conn.Close()
	}
	return len(p.conns) / 2
}

func (p *cuttingProxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.listener.Close()
	p.cut()
	p.all.Wait()
}
