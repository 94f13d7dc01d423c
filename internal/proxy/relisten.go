package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/config"
)

// relisten is a change of the listeners that has been prepared: the new ones are open, and nobody is served by them yet.
type relisten struct {
	proxy   *Proxy
	next    []*listener // in the order of the configuration
	terms   map[*listener]*terms
	added   []*listener
	removed []*listener
	open    bool // the proxy serves; a proxy that has drained opens them when it serves again
	closed  []*listener
}

// prepare opens what a configuration adds to the listeners. A listener is the same one as before if its address is. An error leaves everything as it was.
func (p *Proxy) prepare(c *config.Config) (*relisten, error) {
	p.mu.Lock()
	r := &relisten{proxy: p, terms: map[*listener]*terms{}, removed: slices.Clone(p.listeners), open: !p.closed}
	p.mu.Unlock()
	for i := range c.Listeners {
		t, err := newTerms(p, &c.Listeners[i])
		if err != nil {
			return nil, err
		}
		kept := slices.IndexFunc(r.removed, func(l *listener) bool { return l.terms.Load().config.Address == t.config.Address })
		if kept < 0 {
			l := &listener{proxy: p}
			l.adopt(t)
			r.added, r.next = append(r.added, l), append(r.next, l)
			continue
		}
		l := r.removed[kept]
		r.removed = slices.Delete(r.removed, kept, kept+1)
		r.next, r.terms[l] = append(r.next, l), t
	}
	if !r.open {
		return r, nil
	}
	for i, l := range r.added {
		err := l.listen()
		if errors.Is(err, syscall.EADDRINUSE) && r.makeWay(l) {
			err = l.listen()
		}
		if err != nil {
			r.added = r.added[:i]
			err = fmt.Errorf("listen for clients (listeners[].address): %w", err)
			return nil, errors.Join(append([]error{err}, r.undo()...)...)
		}
	}
	return r, nil
}

// makeWay closes the removed listeners that are in the way of a new one, as :8080 is of 127.0.0.1:8080, and reports whether there are any. Their connections go on. Others
// stay open until the change is certain: a change that is refused must not refuse a client.
func (r *relisten) makeWay(l *listener) bool {
	found := false
	for _, old := range r.removed {
		if port := old.port(); port != "" && port == l.port() && !slices.Contains(r.closed, old) {
			old.close()
			r.closed, found = append(r.closed, old), true
		}
	}
	return found
}

// port is that of a TCP address; empty for other sockets.
func (l *listener) port() string {
	_, port, err := net.SplitHostPort(l.terms.Load().config.Address)
	if err != nil {
		return ""
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "" // unix:PATH, systemd:NAME
	}
	return port
}

// undo closes what was opened, and opens what was closed.
func (r *relisten) undo() (failed []error) {
	for _, l := range r.added {
		l.close()
	}
	for _, l := range r.closed {
		if err := l.listen(); err != nil {
			failed = append(failed, fmt.Errorf("listen as before: %w", err))
			continue
		}
		l.start()
	}
	return failed
}

// commit puts the change in force.
func (r *relisten) commit(drain time.Duration) {
	p := r.proxy
	for l, t := range r.terms {
		if socket, ok := l.current().(*unixSocket); ok && t.config.Mode != l.terms.Load().config.Mode {
			if err := socket.chmod(fs.FileMode(t.config.Mode)); err != nil {
				p.log.Warn("permissions of a socket cannot be changed", "address", t.config.Address, "error", err)
			}
		}
		r.noteReusePort(l, t)
		l.adopt(t)
	}
	p.mu.Lock()
	p.listeners = r.next
	closed := p.closed
	p.mu.Unlock()
	if r.open && closed { // it has begun to drain meanwhile
		for _, l := range r.added {
			l.close()
		}
	} else if r.open {
		for _, l := range r.added {
			l.start()
		}
	}
	for _, l := range r.removed {
		l.close()
		p.background.Go(func() { l.retire(drain) })
	}
}

// noteReusePort says when a changed reusePort counts. The kernel takes it when a socket is opened; that of a path is a file, which can be replaced at any time.
func (r *relisten) noteReusePort(l *listener, t *terms) {
	now := t.config.ReusePort
	if now == l.terms.Load().config.ReusePort {
		return
	}
	if network, _ := t.config.Network(); network == "unix" {
		r.proxy.log.Info("reusePort of a listener changed", "address", t.config.Address, "reusePort", now)
		return
	}
	r.proxy.log.Warn("reusePort of a listener changed, in force when its socket is opened again: restart the proxy", "address", t.config.Address, "reusePort", now)
}

// current is the socket; nil if there is none yet.
func (l *listener) current() net.Listener {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	return l.socket
}

// start accepts connections at the socket that listen has opened.
func (l *listener) start() {
	socket := l.current()
	l.proxy.background.Go(func() { l.accept(socket) })
	l.proxy.log.Info("listening", "address", socket.Addr().String())
}

func (l *listener) close() {
	if socket := l.current(); socket != nil {
		_ = socket.Close()
	}
}

// retire drains a listener that the configuration has no more.
func (l *listener) retire(period time.Duration) {
	p := l.proxy
	mine := func() []*front {
		return slices.DeleteFunc(p.allFronts(), func(f *front) bool { return f.listener.of != l })
	}
	p.log.Info("listener removed, draining", "address", l.terms.Load().config.Address, "period", period, "connections", len(mine()))
	for _, f := range mine() {
		f.sendGoAway()
	}
	endStreams(period, mine, "the listener was removed: open the stream elsewhere", func(d time.Duration) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-p.working.Done():
			return false
		case <-timer.C:
			return true
		}
	})
	for _, f := range mine() {
		f.mu.Lock()
		f.closeAfterOut(f.last, frame.NoError, "drained")
		f.wakeWriterLocked()
		f.mu.Unlock()
	}
}
