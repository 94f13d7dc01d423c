package httpsource

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// connections bounds how many connections there are, and how many of one client.
type connections struct {
	max, maxClient int

	mu     sync.Mutex
	open   map[net.Conn]*connection
	client map[string]int
}

type connection struct {
	client string
	idle   time.Time // since when; zero if it is not
}

func newConnections(limit, ofClient int) *connections {
	return &connections{max: limit, maxClient: ofClient, open: map[net.Conn]*connection{}, client: map[string]int{}}
}

// limit returns a listener whose connections are counted.
func (c *connections) limit(l net.Listener) net.Listener { return limited{l, c} }

type limited struct {
	net.Listener
	all *connections
}

// Accept returns the next connection that there is room for.
func (l limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.all.admit(conn) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

func (c *connections) admit(conn net.Conn) bool {
	client := clientOf(conn.RemoteAddr().String())
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.client[client] >= c.maxClient:
		if !c.makeRoom(client) {
			return false
		}
	case len(c.open) >= c.max:
		if !c.makeRoom("") {
			return false
		}
	}
	c.open[conn] = &connection{client: client}
	c.client[client]++
	return true
}

// makeRoom closes the connection that is idle for longest, of the client if one is named. The lock is held.
func (c *connections) makeRoom(client string) bool {
	var oldest net.Conn
	var since time.Time
	for conn, about := range c.open {
		if !about.idle.IsZero() && (client == "" || about.client == client) && (oldest == nil || about.idle.Before(since)) {
			oldest, since = conn, about.idle
		}
	}
	if oldest == nil {
		return false
	}
	c.forget(oldest)
	_ = oldest.Close()
	return true
}

func (c *connections) forget(conn net.Conn) {
	about := c.open[conn]
	if about == nil {
		return
	}
	delete(c.open, conn)
	if c.client[about.client]--; c.client[about.client] == 0 {
		delete(c.client, about.client)
	}
}

// changed follows the state of a connection; see http.Server.ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	about := c.open[conn]
	switch {
	case about == nil:
	case state == http.StateClosed || state == http.StateHijacked:
		c.forget(conn)
	case state == http.StateIdle:
		about.idle = time.Now()
	default:
		about.idle = time.Time{}
	}
}
