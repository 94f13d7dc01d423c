//go:build linux && (amd64 || arm64)

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// rawSocket reads and writes a TCP connection without announcing each system call to Go's scheduler, which is meant for calls that may block: those of a socket
// that does not block do not. An announced call wakeups the runtime's monitor thread when the process was idle before, and the monitor then looks at us every 20
// microseconds; in a proxy, which is idle many thousand times a second, that was a fifth of all its CPU time.
//
// One goroutine may read while another one writes.
type rawSocket struct {
	*net.TCPConn
	raw  syscall.RawConn
	recv func(fd uintptr) bool // made once, so that a call allocates nothing
	send func(fd uintptr) bool

	// Of the call that is going on.
	lend                 func() []byte // where in comes from, if not from Read
	giveBack             func()
	in, out              []byte
	received             int
	recvErrno, sendErrno syscall.Errno
}

// newRawSocket returns nc itself where there is nothing to gain.
func newRawSocket(nc net.Conn) net.Conn {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nc
	}
	s := &rawSocket{TCPConn: t, raw: raw}
	s.recv, s.send = s.recvNow, s.sendNow
	return s
}

func (s *rawSocket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.in = p
	return s.read()
}

// readLent is Read into memory that is lent for the moment: while nothing comes, the connection has none.
func (s *rawSocket) readLent(lend func() []byte, giveBack func()) (int, error) {
	s.lend, s.giveBack = lend, giveBack
	defer func() { s.lend, s.giveBack = nil, nil }()
	return s.read()
}

func (s *rawSocket) read() (int, error) {
	err := s.raw.Read(s.recv)
	s.in = nil
	switch {
	case err != nil:
		return 0, s.failed("read", err)
	case s.recvErrno != 0:
		return 0, s.failed("read", os.NewSyscallError("recvfrom", s.recvErrno))
	case s.received == 0:
		return 0, io.EOF
	}
	return s.received, nil
}

// recvNow reports whether there was something, be it an error.
func (s *rawSocket) recvNow(fd uintptr) bool {
	if s.lend != nil {
		s.in = s.lend()
	}
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&s.in[0])), uintptr(len(s.in)), 0, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		s.received, s.recvErrno = int(n), errno
		if errno == syscall.EAGAIN && s.lend != nil {
			s.giveBack()
		}
		return errno != syscall.EAGAIN
	}
}

func (s *rawSocket) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.out = p
	err := s.raw.Write(s.send)
	n := len(p) - len(s.out)
	s.out = nil
	switch {
	case err != nil:
		return n, s.failed("write", err)
	case s.sendErrno != 0:
		return n, s.failed("write", os.NewSyscallError("sendto", s.sendErrno))
	}
	return n, nil
}

// sendNow reports whether all is written, or no more can be.
func (s *rawSocket) sendNow(fd uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&s.out[0])), uintptr(len(s.out)), syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			s.sendErrno = 0
			if s.out = s.out[n:]; len(s.out) == 0 {
				return true
			}
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			s.sendErrno = errno
			return true
		}
	}
}

// failed says what net's own Read and Write would.
func (s *rawSocket) failed(op string, err error) error {
	var wrapped *net.OpError
	if errors.As(err, &wrapped) { // of net's raw-read and raw-write
		err = wrapped.Err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}
