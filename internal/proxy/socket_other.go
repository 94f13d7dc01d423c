//go:build !linux

package proxy

import (
	"net"
	"syscall"
	"time"
)

// lostAfter needs an option that only Linux has: elsewhere the kernel's own patience counts.
func lostAfter(string, string, syscall.RawConn) error { return nil }

// hostSilent needs an option that only Linux has: elsewhere the peer's own silence decides.
func hostSilent(net.Conn, time.Duration) bool { return true }
