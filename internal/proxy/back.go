package proxy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/wheel"
)

// chosen is an endpoint with what the balancer knows of it.
type chosen = balance.Backend[*endpoint]

// gentlePings may follow each other in a silence of a gRPC server. It closes the connection at the third that comes within 5 minutes of the one before, and what it sent
// itself in between forgives only once: also when that crossed a PING.
const (
	gentlePings = 2
	gentleGap   = 5*time.Minute + 10*time.Second
)

// writeStall is how long an endpoint may take nothing of what is written to its connection.
const writeStall = 15 * time.Second

// maxHeads is how much of a connection's output may be waiting for a header to join it: headers are under no window, but others wait behind them.
const maxHeads = 2 * maxOut

var errSilent = errors.New("it did not answer a PING in time")

// back is a connection to an endpoint. conn.mu, its lock, guards the fields here, but not what is in the streams: that belongs to their fronts, whose locks come first. So who
// holds mu may look a stream up, and must release mu before it locks the stream's front, and then check that the stream still is this back's.
type back struct {
	conn
	endpoint *endpoint // set before the goroutines start
	since    time.Time // and so is this

	// Invariant: s is under id exactly while s.back is this and s.backID is id. No id is given twice; next is the lowest that was never given, and odd.
	streams map[uint32]*stream
	next    uint32
	// blocked are the streams with DATA for which there is no room in the connection, in the order of their turns. Invariant: a stream of this connection is in it once, exactly while its
	// inQueued is set, except while moreRoom gives it its turn. One that leaves is taken out, so blocked is no longer than streams.
	blocked    []blockedStream
	forgotten  forgotten
	draining   bool   // it takes no new streams; never false again. Invariant: with no streams left it is closed
	flushedAt  int64  // bytes that were written in all, once the connection has ended: a call whose header ends later was not sent
	idleSince  int64  // when the last stream left
	goAwayCode string // of its GOAWAY; empty as long as there was none

	// The timer of checkHealth. Invariant: while open, watch goes off at watchAt (0: not set), which is no later than the next PING or its timeout.
	watch    wheel.Timer
	watchAt  int64
	lastPing int64                    // when the last PING was sent
	pinged   int64                    // when the PING was sent that is not answered; 0: none
	pings    int                      // sent since quiet
	asked    map[config.RoutePing]int // streams whose routes ask for PINGs of their own
	quiet    int64                    // when the last HEADERS or DATA came
}

// blockedStream is a stream under the number that it has on the connection: it may come back under another one, in another attempt or as another call.
type blockedStream struct {
	s  *stream
	id uint32
}

// take makes a stream of the call, if there is room for one. The lock of the stream's front is held.
func (b *back) take(s *stream) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open() || len(b.out) > maxHeads {
		return false
	}
	s.back, s.backID, s.outFirst = b, b.next, b.announced
	// Under mu, and the HEADERS are appended under it, too: numbers of new streams have to grow on the wire, RFC 9113 section 5.1.1.
	b.next += 2
	b.streams[s.backID] = s
	// Numbers cannot be used again, so the connection ends with its last stream: RFC 9113 section 5.1.1.
	if b.next > frame.MaxStream-2 {
		b.draining = true
	}
	if ping := s.call.route.ping; ping.Interval > 0 {
		if b.asked == nil {
			b.asked = map[config.RoutePing]int{}
		}
		b.asked[ping]++
		b.watchBy(s.sentAt + int64(ping.Interval))
	}
	if interval := b.endpoint.cluster.config().Ping.Interval; len(b.streams) == 1 && interval > 0 {
		b.watchBy(s.sentAt + int64(interval))
	}
	end := b.headEnded(s)
	// These differ from call to call, so HPACK has to encode them. Other calls use a block that was encoded before, if there is one.
	if s.deadline != 0 || s.span != nil {
		fields := s.call.sent.Fields
		if s.deadline != 0 {
			// What is left of the deadline, not what the client sent: the call may have waited here, and this may be a retry.
			fields = with(fields, "grpc-timeout", header.FormatTimeout(time.Duration(s.deadline-s.front.proxy.wheel.Now())))
		}
		if s.span != nil {
			fields = with(fields, "traceparent", s.span.Traceparent())
		}
		b.appendFields(s.backID, fields, end)
	} else {
		b.appendBlock(s.backID, s.call.sent, end)
	}
	s.headAt = b.flushed + int64(b.writing) + int64(len(b.out))
	return true
}

// headEnded reports whether the request is its header alone.
func (b *back) headEnded(s *stream) bool {
	return s.inEnd && s.in.size == 0 && len(s.replay) == 0 && s.inTrailers == nil
}

// tooLarge reports whether the endpoint would not take the request's headers, and with them perhaps the connection of all.
func (b *back) tooLarge(s *stream) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(s.call.sent.Size) > b.peer.list
}

// with returns the fields with one of them replaced or added.
func with(fields []header.Field, name, value string) []header.Field {
	out := make([]header.Field, 0, len(fields)+2)
	for _, f := range fields {
		if f.Name != name {
			out = append(out, f)
		}
	}
	return append(out, header.Field{Name: name, Value: value})
}

// remove takes a stream from the connection. The lock of its front is held.
func (b *back) remove(id uint32, reset bool, code frame.Code, w *wakeups) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.streams[id]
	if s == nil {
		return
	}
	delete(b.streams, id)
	if s.inQueued {
		s.inQueued = false
		b.blocked = slices.DeleteFunc(b.blocked, func(w blockedStream) bool { return w.id == id })
	}
	if ping := s.call.route.ping; ping.Interval > 0 {
		if b.asked[ping]--; b.asked[ping] <= 0 {
			delete(b.asked, ping)
		}
	}
	if reset && !b.closing && b.err == nil {
		b.out = frame.AppendReset(b.out, id, code)
		b.budget.earned.Add(1) // for what is on its way
		// As many bytes as a stream's window can be at most may be on their way.
		b.forgotten.add(id, largeWindow)
		w.add(&b.conn)
	}
	if len(b.streams) == 0 {
		b.idleSince = b.proxy.wheel.Now()
		if b.draining && !b.closing {
			b.closeAfterOut(0, frame.NoError, "")
			w.add(&b.conn)
		}
	}
	if b.endpoint.waits.Load() > 0 {
		w.endpoints = append(w.endpoints, b.endpoint)
	}
}

// use calls do with the stream, with its front's lock, if it is still on this connection.
func (b *back) use(id uint32, do func(s *stream, w *wakeups)) {
	s := b.stream(id)
	if s == nil {
		return
	}
	s.front.mu.Lock()
	if s.back == b && s.backID == id {
		do(s, &b.woken)
	}
	s.front.mu.Unlock()
}

// stream looks a stream up. It may leave the connection before the caller has the lock of its front, and has to be asked again under that.
func (b *back) stream(id uint32) *stream {
	b.mu.Lock()
	s := b.streams[id]
	b.mu.Unlock()
	return s
}

// known checks the number of a stream.
func (b *back) known(id uint32, what string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if id%2 == 0 || id >= b.next {
		return frame.Error{Code: frame.ProtocolError, Reason: what + " on a stream that was not opened"}
	}
	return nil
}

func (b *back) block(id uint32, set *header.Set, end bool) error {
	s := b.stream(id)
	if s == nil {
		if err := b.known(id, "HEADERS"); err != nil {
			return err
		}
		return b.spend(1, "frames on closed streams")
	}
	s.front.mu.Lock()
	if s.back == b && s.backID == id {
		s.header(set, end, &b.woken)
	}
	s.front.mu.Unlock()
	return nil
}

func (b *back) data(id uint32, p []byte, length int, end bool) error {
	s := b.stream(id)
	if s == nil {
		if err := b.known(id, "DATA"); err != nil || b.late(id, length) {
			return err
		}
		return b.spend(1, "DATA frames on closed streams")
	}
	s.front.mu.Lock()
	if s.back == b && s.backID == id {
		s.answered(p, length, end, &b.woken)
	}
	s.front.mu.Unlock()
	return nil
}

func (b *back) reset(id uint32, code frame.Code) error {
	if err := b.known(id, "RST_STREAM"); err != nil {
		return err
	}
	if b.stream(id) == nil {
		return b.spend(1, "RST_STREAM frames on closed streams")
	}
	b.use(id, func(s *stream, w *wakeups) { s.resetByBackend(code, w) })
	return nil
}

// streamWindow takes a WINDOW_UPDATE. Errors of one stream's window end that stream, and not the connection: RFC 9113 section 6.9.
func (b *back) streamWindow(id uint32, n int) error {
	if err := b.known(id, "WINDOW_UPDATE"); err != nil {
		return err
	}
	b.use(id, func(s *stream, w *wakeups) {
		s.backWindow += int64(n)
		switch {
		case n == 0:
			s.fault(frame.ProtocolError, failureOfBackend("a WINDOW_UPDATE of 0"), w)
		case b.peerWindow()+s.backWindow > frame.MaxWindow:
			s.fault(frame.FlowControlError, failureOfBackend("a window above 2^31-1"), w)
		default:
			s.pushIn(w)
		}
	})
	return nil
}

// peerWindow is what the endpoint grants every new stream. mu is not held.
func (b *back) peerWindow() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peer.window
}

// settled pushes what waited for windows that have grown. The error ends the connection: RFC 9113 section 6.9.2.
func (b *back) settled(more bool) error {
	if b.endpoint.waits.Load() > 0 { // it may take more streams now
		b.woken.endpoints = append(b.woken.endpoints, b.endpoint)
	}
	if !more {
		return nil
	}
	var err error
	for _, s := range b.all() {
		s.front.mu.Lock()
		if s.back == b {
			if b.peerWindow()+s.backWindow > frame.MaxWindow {
				err = frame.Error{Code: frame.FlowControlError, Reason: "SETTINGS_INITIAL_WINDOW_SIZE makes a window larger than 2^31-1"}
			}
			s.pushIn(&b.woken)
		}
		s.front.mu.Unlock()
	}
	return err
}

// late takes bytes that came for a stream which is not there any more, and reports whether they may have been on their way when it was reset.
func (b *back) late(id uint32, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.forgotten.late(id, n)
}

func (b *back) batch(*wakeups) {}

// all are the streams, for those who must take the lock of each one's front.
func (b *back) all() []*stream {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]*stream, 0, len(b.streams))
	for _, s := range b.streams {
		all = append(all, s)
	}
	return all
}

func (b *back) moreRoom(w *wakeups) {
	if b.endpoint.waits.Load() > 0 {
		w.endpoints = append(w.endpoints, b.endpoint)
	}
	b.mu.Lock()
	// Each stream that waits has one turn: one that is blocked again joins at the end, and would otherwise be looked at without end.
	turns := len(b.blocked)
	b.mu.Unlock()
	for ; turns > 0; turns-- {
		next, ok := b.nextBlocked()
		if !ok {
			return
		}
		s := next.s
		s.front.mu.Lock()
		if s.back == b && s.backID == next.id {
			s.inQueued = false
			s.pushInTurn(true, w)
		}
		s.front.mu.Unlock()
	}
}

// nextBlocked takes a stream from blocked, if the connection has room for it. mu is released again, because the stream's front has to be locked first.
func (b *back) nextBlocked() (next blockedStream, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.blocked) == 0 || b.window <= 0 || b.room() <= 0 {
		return next, false
	}
	next = b.blocked[0]
	if b.blocked = b.blocked[1:]; len(b.blocked) == 0 {
		b.blocked = nil
	}
	return next, true
}

// goAway: no new streams. Those that the endpoint will not process go elsewhere, the others may end in peace.
func (b *back) goAway(last uint32, code frame.Code, text string) error {
	b.endpoint.cluster.stats.goAways.Add(1)
	if code == frame.EnhanceYourCalm && text == "too_many_pings" && !b.endpoint.calm.Swap(true) {
		b.proxy.log.Warn("endpoint allows fewer PINGs than the configuration asks for, pinging as for gentle: true from now on; raise ping.interval, or allow more at the server",
			"backend", b.endpoint.cluster.name, "endpoint", b.endpoint.address)
	}
	b.mu.Lock()
	b.draining, b.goAwayCode = true, code.String()
	var unseen []*stream
	var ids []uint32
	for id, s := range b.streams {
		if id > last {
			unseen, ids = append(unseen, s), append(ids, id)
		}
	}
	if len(b.streams) == 0 && !b.closing {
		b.closeAfterOut(0, frame.NoError, "")
		b.woken.add(&b.conn)
	}
	b.mu.Unlock()
	b.endpoint.retire(b, code, text)
	reason := fmt.Errorf("it said GOAWAY with %v", code)
	for i, s := range unseen {
		s.front.mu.Lock()
		if s.back == b && s.backID == ids[i] {
			s.connectionLost(b, reason, true, &b.woken)
		}
		s.front.mu.Unlock()
	}
	return nil
}

func (b *back) pushed() error {
	return frame.Error{Code: frame.ProtocolError, Reason: "PUSH_PROMISE, which was switched off"}
}

func (b *back) pong(uint64) {
	b.mu.Lock()
	b.pinged = 0
	if ping := b.ping(); ping.Interval > 0 && len(b.streams) > 0 {
		b.watchBy(b.proxy.wheel.Now() + int64(ping.Interval)) // and not when the answer would have been due
	}
	b.mu.Unlock()
}

// ping is how the connection is tested now: as the backend says, or more often if the route of one of its streams asks for that, unless the endpoint does not allow
// it. mu is held.
func (b *back) ping() config.Ping {
	ping := b.endpoint.cluster.config().Ping
	if b.endpoint.calm.Load() {
		ping.Gentle = true
		return ping
	}
	for asked := range b.asked {
		if ping.Gentle || ping.Interval == 0 || asked.Interval < ping.Interval {
			ping.Interval = asked.Interval
		}
		ping.Timeout = min(ping.Timeout, asked.Timeout)
		ping.Gentle = false
	}
	return ping
}

// checkHealth is called by the wheel when something may be due: is the endpoint still there, and is the connection still wanted?
func (b *back) checkHealth(now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ping := b.ping()
	b.watchAt = 0
	if b.err != nil {
		return
	}
	read, news := b.lastRead.Load(), b.lastNews.Load()
	if news != b.quiet {
		b.quiet, b.pings = news, 0
	}
	if read > b.pinged { // whatever it sent, it is there
		b.pinged = 0
	}
	next := now + int64(idleBack)
	due := read + int64(ping.Interval)
	if ping.Gentle && b.pings >= gentlePings {
		due = b.lastPing + int64(gentleGap)
	}
	switch {
	case b.writing > 0 && now-b.writeFrom > int64(writeStall):
		b.fail(fmt.Errorf("it has taken nothing for %v", writeStall))
		return
	case b.pinged != 0 && now >= b.pinged+int64(ping.Timeout):
		b.fail(errSilent)
		return
	case b.pinged != 0:
		next = b.pinged + int64(ping.Timeout)
	case ping.Interval > 0 && len(b.streams) > 0 && now >= due:
		b.pinged, b.lastPing = now, now
		b.pings++
		b.out = frame.AppendPing(b.out, false, pingKeepalive)
		b.wakeWriterLocked()
		next = now + int64(ping.Timeout)
	case ping.Interval > 0 && len(b.streams) > 0:
		next = due
	case len(b.streams) == 0 && !b.closing && now-b.idleSince > int64(idleBack) && b.endpoint.surplus(b):
		b.draining = true
		b.closeAfterOut(0, frame.NoError, "idle")
		b.wakeWriterLocked()
	}
	if b.writing > 0 || len(b.streams) > 0 {
		next = min(next, now+int64(writeStall))
	}
	b.watchBy(next)
}

// watchBy has checkHealth called at a time, or before. mu is held.
func (b *back) watchBy(at int64) {
	if b.watchAt == 0 || at < b.watchAt {
		b.watchAt = at
		b.proxy.wheel.Set(&b.watch, at)
	}
}

// run serves the connection until it ends.
func (b *back) run() {
	written := make(chan struct{})
	go func() { defer close(written); b.write(b) }()
	err := b.read(b, nil)
	b.mu.Lock()
	var broken frame.Error
	if errors.As(err, &broken) && b.err == nil {
		b.closeAfterOut(0, broken.Code, broken.Reason)
		b.err = err
		b.wakeWriterLocked()
		b.mu.Unlock()
	} else {
		if b.err != nil && b.err != errClosed {
			err = b.err // why we closed it ourselves
		}
		b.fail(err)
		b.mu.Unlock()
	}
	_ = b.nc.SetWriteDeadline(time.Now().Add(time.Second))
	<-written
	b.close(false)
	b.proxy.wheel.Stop(&b.watch)
	b.endpoint.gone(b, err)
	b.mu.Lock()
	b.flushedAt = b.flushed
	b.mu.Unlock()
	var w wakeups
	for _, s := range b.all() {
		s.front.mu.Lock()
		if s.back == b {
			s.lost(b, err, &w)
		}
		s.front.mu.Unlock()
		w.flush()
	}
}
