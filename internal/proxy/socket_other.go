//go:build !linux

package proxy

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// lostAfter needs an option that only Linux has: elsewhere the kernel's own patience counts.
func lostAfter(string, string, syscall.RawConn) error { return nil }

// hostSilent needs an option that only Linux has: elsewhere the peer's own silence decides.
func hostSilent(net.Conn, time.Duration) bool { return true }

// reusePort needs an option that is another one on each system.
func reusePort(string, string, syscall.RawConn) error {
	return errors.New("reusePort is for Linux: leave it away")
}

// refuseSYN needs an option that only Linux has.
func refuseSYN(*net.TCPListener) error { return errors.New("only Linux can") }
