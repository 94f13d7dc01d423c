package proxy

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
)

// What all streams may hold is bounded by limits.memory, and a client or backend that is slow is no reason to end its stream. So
//
//   - windows get smaller the more calls are open, so that all of them could be full: see wantedWindow;
//   - above half of limits.memory they get smaller still, nothing is granted beyond them, no request is kept to be sent again, and connections that hold more than
//     their share get no new calls with large headers;
//   - above limits.memory, connections that hold more than their share get no new calls;
//   - above twice limits.memory, streams of such connections end if their client has taken nothing for stuckTime, and above three times, any that adds to it.
//
// limits.memory is by itself a quarter of what the process may use, so that there is room for the last two.
const (
	leastWindow  = 4 << 10
	lookAtWindow = 100 * time.Millisecond
	widenAfter   = 5 * time.Second // after the last change, windows may get larger again
	maxPressure  = 4               // times that windows are halved
	maxUnacked   = 4               // changes of windows that a peer has not acknowledged
	stuckTime    = 10 * time.Second
)

// windowSize is a change of the window of all streams: by delta, for those of our own with a number below before.
type windowSize struct {
	delta  int32
	before uint32
}

// pressed reports whether streams hold so much that they should hold less.
func (p *Proxy) pressed() bool { return p.held.Load() > p.memory.Load()/2 }

// short reports whether a connection does not get a new call with this header because it holds more than its share, and all of them too much. A large header takes its
// memory at once and waits with it for an endpoint, so such calls stop at half: the other half is for the calls that are open.
func (p *Proxy) short(f *front, set *header.Set) bool {
	limit := p.memory.Load()
	if large(set) {
		limit /= 2
	}
	return p.held.Load() > limit && f.holdsShare(limit)
}

// overShare reports whether the connection holds more than its share of limits.memory. mu is held.
func (f *front) overShare() bool { return f.holdsShare(f.proxy.memory.Load()) }

// holdsShare reports whether the connection holds what all connections could, if they held limit bytes together. mu is held.
func (f *front) holdsShare(limit int64) bool {
	return int64(f.held)*f.proxy.stats.fronts.Load() >= limit
}

// refusedForMemory ends a call whose connection is short of memory. mu is held.
func (f *front) refusedForMemory() *ending {
	p := f.proxy
	p.stats.shortOfMemory.Add(1)
	p.warn("memory limit reached, refusing new calls of the connection", "client", f.nc.RemoteAddr().String(), "connectionBytes", f.held, "allBytes", p.held.Load(), "limit", p.memory.Load())
	e := failure(codes.ResourceExhausted, reasonMemory, http.StatusServiceUnavailable, "streams hold more than limits.memory, and those of this connection more than their share")
	e.unprocessed, e.retry = true, time.Second
	return e
}

// tooMuch reports whether the stream has to end because of what all streams hold. The front's lock is held.
func (s *stream) tooMuch(all int64) bool {
	p := s.front.proxy
	switch {
	case all <= 2*p.memory.Load() || !s.open || !s.front.overShare():
		return false
	case all > 3*p.memory.Load():
		return true
	}
	return s.stuck != 0 && p.now()-s.stuck > int64(stuckTime)
}

// wantedWindow is a window with which all open calls could be full in one direction, and take half of limits.memory; halved once for each step of pressure.
func (p *Proxy) wantedWindow(pressure int) int32 {
	share := p.memory.Load() / 2 / max(p.calls.Load(), 1)
	w := int32(firstWindow)
	for ; w > leastWindow && int64(w) > share; w /= 2 {
	}
	return max(w>>pressure, leastWindow)
}

// opened notes that a call is open, and has windows made smaller if there are many more than before.
func (p *Proxy) opened() {
	if n := p.calls.Add(1); int64(p.window.Load()) > leastWindow && n*int64(p.window.Load()) > p.memory.Load()/2 {
		select {
		case p.crowded <- struct{}{}:
		default:
		}
	}
}

// limitMemory puts limits.memory in force; windows follow. 0 is a quarter of what the process may use.
func (p *Proxy) limitMemory(configured int64) {
	limit := configured
	if limit == 0 {
		limit = processMemory() / 4
	}
	before := p.memory.Swap(limit)
	if before == 0 || before == limit {
		return
	}
	p.log.Info("memory limit changed", "before", before, "limit", limit)
	select {
	case p.crowded <- struct{}{}:
	default:
	}
}

// adjustWindows keeps windows at what there is memory for, until ctx ends.
func (p *Proxy) adjustWindows(ctx context.Context) {
	ticker := time.NewTicker(lookAtWindow)
	defer ticker.Stop()
	pressure := 0
	var changed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.crowded:
		case <-ticker.C:
			if held := p.held.Load(); held > p.memory.Load()/2 {
				pressure = min(pressure+1, maxPressure)
			} else if held < p.memory.Load()/4 {
				pressure = max(pressure-1, 0)
			}
		}
		now, want := p.window.Load(), p.wantedWindow(pressure)
		if want == now || want > now && time.Since(changed) < widenAfter {
			continue
		}
		p.window.Store(want)
		changed = time.Now()
		p.log.Debug("windows of streams changed", "bytes", want, "calls", p.calls.Load(), "held", p.held.Load(), "limit", p.memory.Load())
		for _, f := range p.allFronts() {
			f.mu.Lock()
			f.setWindow(want, 0)
			f.mu.Unlock()
		}
		for _, b := range p.allBacks() {
			b.setWindow(want)
		}
	}
}

func (p *Proxy) allBacks() []*back {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.backs))
}

// setWindow tells the peer another window for its streams; streams of our own with a number below before were opened with the one until now. mu is held.
func (c *conn) setWindow(n int32, before uint32) {
	if n == c.announced || c.closing || c.err != nil || len(c.unacked) >= maxUnacked {
		return
	}
	// Peers acknowledge SETTINGS in the order in which they came (RFC 9113 section 6.5.3), so the oldest is what an acknowledgment means.
	c.unacked = append(c.unacked, windowSize{n - c.announced, before})
	c.announced = n
	c.out = frame.AppendSettings(c.out, frame.Setting{ID: frame.InitialWindowSize, Value: uint32(n)})
	c.wakeWriterLocked()
}

func (b *back) setWindow(n int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Streams from next on are opened after these SETTINGS on the wire, because take appends HEADERS under the same lock.
	b.conn.setWindow(n, b.next)
}

// acknowledged returns what the peer has acknowledged with its SETTINGS.
func (c *conn) acknowledged() (change windowSize, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.unacked) == 0 {
		return change, false
	}
	change = c.unacked[0]
	c.unacked = c.unacked[1:]
	return change, true
}

func (f *front) windowChanged(c windowSize) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// From its acknowledgment on, the client keeps to it. Windows may become negative by it: RFC 9113 section 6.9.2.
	f.allowed += c.delta
	for _, s := range f.streams {
		s.inWindow += c.delta
		s.inSize += c.delta
		s.inFirst += c.delta
	}
}

func (b *back) windowChanged(c windowSize) {
	for _, s := range b.all() {
		s.front.mu.Lock()
		if s.back == b && s.backID < c.before {
			s.outWindow += c.delta
			s.outSize += c.delta
			s.outFirst += c.delta
		}
		s.front.mu.Unlock()
	}
}
