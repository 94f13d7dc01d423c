package proxy

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	suspectTime  = 10 * time.Second
	keptSuspects = 4096
)

// suspects are addresses of callers whose connections were closed because they did nothing but make work. A new connection does not get them
// a new budget at once. Honest callers behind the same address lose nothing by it, since theirs is filled by what they are sent.
type suspects struct {
	mu    sync.Mutex
	until map[netip.Addr]int64
}

func hostOfCaller(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}

func (s *suspects) add(a net.Addr, now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) >= keptSuspects {
		s.until = map[netip.Addr]int64{}
	}
	s.until[hostOfCaller(a)] = now + int64(suspectTime)
}

func (s *suspects) has(a net.Addr, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until[hostOfCaller(a)] > now
}
