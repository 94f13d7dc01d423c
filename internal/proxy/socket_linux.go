package proxy

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const lostTime = 20 * time.Second

// lostAfter limits how long the kernel tries to deliver what we wrote, whether or not we may ask the peer by PING.
func lostAfter(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lostTime.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}
