package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"
)

// unixPrefix is before the path of a Unix socket in an address.
const unixPrefix = "unix:"

// Listen opens host:port, or unix:PATH. Only the user of the process may connect to a Unix socket. One that a process which was killed has left is replaced; one at
// which a process listens is an error.
func Listen(address string) (net.Listener, error) {
	path, ok := strings.CutPrefix(address, unixPrefix)
	if !ok {
		return net.Listen("tcp", address)
	}
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	// Made under another name and renamed, so that there is no moment in which others may connect.
	making := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(making)
	l, err := net.Listen("unix", making)
	if err != nil {
		return nil, err
	}
	socket := l.(*net.UnixListener)
	socket.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(making, 0o600), os.Rename(making, path)); err != nil {
		_ = socket.Close()
		_ = os.Remove(making)
		return nil, err
	}
	return &unixSocket{socket, path}, nil
}

type unixSocket struct {
	*net.UnixListener
	path string
}

// Close removes the socket's file, too.
func (s *unixSocket) Close() error {
	err := s.UnixListener.Close()
	if err == nil {
		_ = os.Remove(s.path)
	}
	return err
}

func (s *unixSocket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// checkSocketPath refuses a path that is another kind of file, or at which another process listens. A socket that a process left may be replaced.
func checkSocketPath(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s exists and is not a socket: remove it, or choose another path", path)
	}
	if nc, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = nc.Close()
		return fmt.Errorf("%s is in use: another process listens there", path)
	}
	return nil
}
