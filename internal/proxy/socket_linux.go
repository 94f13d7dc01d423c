package proxy

import (
	"net"
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

// hostSilent reports whether the peer's host has been silent for at least d although the kernel wants something acknowledged. A program that is busy for a minute
// answers no PING, but its host acknowledges what it is sent, also while the program takes none of it; a host that is gone does not. Where there is no TCP, the
// peer's own silence decides, and the other end of a Unix socket never disappears silently.
func hostSilent(nc net.Conn, d time.Duration) bool {
	if _, ok := nc.(*net.UnixConn); ok {
		return false
	}
	socket, ok := nc.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	silent := true
	_ = raw.Control(func(fd uintptr) { // fails for a connection that is closed already
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		asking := info.Retransmits > 0 || info.Probes > 0
		silent = asking && time.Duration(info.Last_ack_recv)*time.Millisecond >= d
	})
	return silent
}

// reusePort lets another process listen at the same address.
func reusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
		return e
	}
	return err
}

// refuseSYN makes the kernel drop packets that begin a connection to the socket, and pass on all others. Who sent one sends it again, and reaches the process that listens then.
func refuseSYN(l *net.TCPListener) error {
	const loadByte, and, jumpEqual, returns = 0x30, 0x54, 0x15, 0x06 // of classic BPF
	filter := []unix.SockFilter{
		{Code: loadByte, K: 13},           // the flags of the TCP header
		{Code: and, K: 0x12},              // SYN and ACK
		{Code: jumpEqual, Jf: 1, K: 0x02}, // SYN alone
		{Code: returns, K: 0},
		{Code: returns, K: 1<<32 - 1},
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	}); e != nil {
		return e
	}
	return err
}
