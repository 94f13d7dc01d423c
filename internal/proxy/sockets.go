package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// listen opens the socket. After a drain it is the same address again, also where the configuration left the port to the kernel.
func (l *listener) listen() error {
	c := l.terms.Load().config
	network, address := c.Network()
	l.proxy.mu.Lock()
	before := l.socket
	l.proxy.mu.Unlock()
	var socket net.Listener
	var err error
	switch network {
	case "unix":
		socket, err = listenUnix(address, fs.FileMode(c.Mode), c.ReusePort)
	case "systemd":
		socket, err = listenInherited(address)
	default:
		if before != nil {
			address = before.Addr().String()
		}
		lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
		if c.ReusePort {
			lc.Control = reusePort
			lc.SetMultipathTCP(false) // which has no filters, and a hand-over needs one
		}
		socket, err = lc.Listen(context.Background(), network, address)
	}
	if err != nil {
		return err
	}
	l.proxy.mu.Lock()
	l.socket, l.shared = socket, c.ReusePort
	l.proxy.mu.Unlock()
	return nil
}

// unixSocket is a listener at a Unix socket, whose file it removes when it is closed, if that is still its own.
type unixSocket struct {
	*net.UnixListener
	path string
	file fs.FileInfo
	// unlinked: the file is removed once at most. A file system gives the number of a removed file to the next one, so what is at the path later may look like this
	// listener's own file, and be the socket of the listener that was opened after it.
	unlinked sync.Once
}

// listenUnix listens at a path. A socket at which nobody listens any more, as a process that was killed leaves it, is replaced; everything else that is there is an error.
// The socket is made under another name and renamed, so that nobody connects before its permissions are right.
//
// With takeOver the socket of a process that still listens is replaced, too: who comes from then on comes here.
func listenUnix(path string, mode fs.FileMode, takeOver bool) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: err}
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail(reason(err))
	case info.Mode()&fs.ModeSocket == 0:
		return fail(errors.New("the file exists and is not a socket: remove it, or choose another path"))
	case !takeOver:
		if nc, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = nc.Close()
			return fail(errors.New("another process listens there: stop it, or choose another path"))
		}
	}
	making := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(making)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: making, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	s := &unixSocket{UnixListener: l, path: path}
	if err = os.Chmod(making, mode); err == nil {
		if s.file, err = os.Lstat(making); err == nil {
			err = os.Rename(making, path)
		}
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(making)
		return fail(reason(err))
	}
	return s, nil
}

// reason is an error of a file without its path.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// Close ends the listener, and removes its file.
func (s *unixSocket) Close() error {
	s.unlink()
	return s.UnixListener.Close()
}

// unlink removes the file, if it is still this listener's.
func (s *unixSocket) unlink() {
	s.unlinked.Do(func() {
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
			_ = os.Remove(s.path)
		}
	})
}

// Addr is the path that clients know.
func (s *unixSocket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// chmod changes the permissions.
func (s *unixSocket) chmod(mode fs.FileMode) error { return os.Chmod(s.path, mode) }

// lastCallers is how long a listener that hands over still accepts: who has begun to connect to it is through by then.
const lastCallers = 500 * time.Millisecond

// handOver makes nobody connect to the listeners any more that another process may listen at, too, while those who are on their way are still taken: the kernel resets what
// waits at a socket that is closed. It returns when they may be closed.
func (p *Proxy) handOver() {
	p.mu.Lock()
	p.leaving = true
	all := slices.Clone(p.listeners)
	p.mu.Unlock()
	wait := false
	for _, l := range all {
		p.mu.Lock()
		socket, shared := l.socket, l.shared
		p.mu.Unlock()
		switch socket := socket.(type) {
		case *unixSocket:
			socket.unlink()
			wait = wait || l.terms.Load().config.ReusePort
		case *net.TCPListener:
			if shared { // with the option of a socket as it was opened, whatever a reload has made of the configuration
				if err := refuseSYN(socket); err != nil {
					p.log.Warn("connections may be refused while the listener closes", "address", socket.Addr().String(), "error", err)
				}
				wait = true
			}
		}
	}
	if wait {
		time.Sleep(lastCallers)
	}
	p.closeListeners()
	// Connections in their handshake get one word at least, to go elsewhere.
	for end := time.Now().Add(lastCallers); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		left := len(p.greeting) + p.accepting // of the sockets that are closed: each ends, or has got a last client
		p.mu.Unlock()
		if left == 0 {
			return
		}
	}
}
