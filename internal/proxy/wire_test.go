package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire is one end of a connection of HTTP/2: a client of the proxy or an endpoint behind it. It sends the frames that a test tells it to, right or wrong,
// and keeps those that come until the test asks for them.
type wire struct {
	t  testing.TB
	nc net.Conn

	write  sync.Mutex
	framer *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer

	mu      sync.Mutex
	changed chan struct{} // closed when something has come
	events  []event
	ended   error // why nothing comes any more
	initial int64 // of a new stream's window towards the other side
	window  int64
	windows map[uint32]int64 // what the initial one is added to
	reset   map[uint32]bool
	// What we have granted: the proxy must never send more.
	allowed        int64 // for a new stream
	shrunk         int64 // from the acknowledgement of our SETTINGS on, if shrinks
	shrinks        bool
	allowedConn    int64
	allowedStreams map[uint32]int64 // what allowed is added to
	broken         string           // how the proxy has broken it
	lawless        bool             // the test changes windows in ways that are not counted
	mute           bool             // PINGs are not answered
	keepsDATA      bool             // no window is given back
	next           uint32
	reading        sync.WaitGroup
}

// event is a frame that came.
type event struct {
	kind   http2.FrameType
	id     uint32
	fields []hpack.HeaderField
	data   []byte
	end    bool
	ack    bool
	code   http2.ErrCode
	n      uint32 // of WINDOW_UPDATE; the last stream of GOAWAY
	values map[http2.SettingID]uint32
}

func (e event) get(name string) string {
	for _, f := range e.fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

func (e event) String() string {
	s := fmt.Sprintf("%v stream %d", e.kind, e.id)
	for _, f := range e.fields {
		s += fmt.Sprintf(" %s=%q", f.Name, f.Value)
	}
	switch e.kind {
	case http2.FrameData:
		s += fmt.Sprintf(" %d bytes", len(e.data))
	case http2.FrameRSTStream, http2.FrameGoAway:
		s += fmt.Sprintf(" %v %q", e.code, e.data)
	}
	if e.end {
		s += " END"
	}
	return s
}

func newWire(t testing.TB, nc net.Conn, s []http2.Setting) *wire {
	p := &wire{t: t, nc: nc, framer: http2.NewFramer(nc, nc), initial: 65535, window: 65535, windows: map[uint32]int64{}, reset: map[uint32]bool{}, allowed: 65535, allowedConn: 65535, allowedStreams: map[uint32]int64{}, changed: make(chan struct{}), next: 1}
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.framer.MaxHeaderListSize = 1 << 20
	p.framer.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.block)
	for _, x := range s {
		if x.ID == http2.SettingInitialWindowSize {
			p.allowed = int64(x.Val)
		}
	}
	return p
}

func (p *wire) close() {
	p.t.Helper()
	_ = p.nc.Close()
	p.reading.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != "" && !p.lawless {
		p.t.Error(p.broken)
		p.broken = ""
	}
}

// rst closes the connection by a TCP RST.
func (p *wire) rst() {
	_ = p.nc.(*net.TCPConn).SetLinger(0)
	p.close()
}

func (p *wire) read() {
	for {
		f, err := p.framer.ReadFrame()
		var stream http2.StreamError
		if errors.As(err, &stream) {
			err = fmt.Errorf("the proxy sent what is malformed: %w", err)
		}
		p.mu.Lock()
		if err != nil {
			p.ended = err
		} else {
			p.take(f)
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// take notes a frame. mu is held.
func (p *wire) take(f http2.Frame) {
	h := f.Header()
	e := event{kind: h.Type, id: h.StreamID}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		e.fields, e.end = slices.Clone(f.Fields), f.StreamEnded()
	case *http2.DataFrame:
		e.data, e.end = bytes.Clone(f.Data()), f.StreamEnded()
		n := f.Length
		p.allowedConn -= int64(n)
		p.allowedStreams[h.StreamID] -= int64(n)
		if left := min(p.allowedConn, p.allowed+p.allowedStreams[h.StreamID]); left < 0 && n > 0 {
			p.broken = fmt.Sprintf("the proxy sent %d bytes on stream %d with %d too many for the windows: connection %d, stream %d", n, h.StreamID, -left, p.allowedConn, p.allowed+p.allowedStreams[h.StreamID])
		}
		if n > 0 && !p.keepsDATA {
			p.allowedConn += int64(n)
			p.allowedStreams[h.StreamID] += int64(n)
			p.later(func() error {
				return errors.Join(p.framer.WriteWindowUpdate(0, n), p.framer.WriteWindowUpdate(h.StreamID, n))
			})
		}
	case *http2.RSTStreamFrame:
		e.code = f.ErrCode
		p.reset[h.StreamID] = true
	case *http2.GoAwayFrame:
		e.code, e.n, e.data = f.ErrCode, f.LastStreamID, bytes.Clone(f.DebugData())
	case *http2.WindowUpdateFrame:
		e.n = f.Increment
		if h.StreamID == 0 {
			p.window += int64(f.Increment)
		} else {
			p.windows[h.StreamID] += int64(f.Increment)
		}
	case *http2.SettingsFrame:
		if e.ack = f.IsAck(); e.ack && p.shrinks {
			p.allowed, p.shrinks = p.shrunk, false
		}
		if !e.ack {
			e.values = map[http2.SettingID]uint32{}
			_ = f.ForeachSetting(func(s http2.Setting) error { e.values[s.ID] = s.Val; return nil })
			if v, ok := e.values[http2.SettingInitialWindowSize]; ok {
				p.initial = int64(v)
			}
			p.later(p.framer.WriteSettingsAck)
		}
	case *http2.PingFrame:
		e.ack = f.IsAck()
		e.data = bytes.Clone(f.Data[:])
		if data := f.Data; !e.ack && !p.mute {
			p.later(func() error { return p.framer.WritePing(true, data) })
		}
	}
	p.events = append(p.events, e)
}

// keep ends that windows are given back for DATA that comes.
func (p *wire) keep() { p.mu.Lock(); p.keepsDATA = true; p.mu.Unlock() }

// giveBack undoes keep: the windows of all DATA that came are given back, and those of what comes.
func (p *wire) giveBack() {
	p.t.Helper()
	p.mu.Lock()
	p.keepsDATA = false
	owed := map[uint32]uint32{}
	for _, e := range p.events {
		if n := uint32(len(e.data)); e.kind == http2.FrameData && n > 0 {
			owed[0] += n
			owed[e.id] += n
		}
	}
	p.mu.Unlock()
	for id, n := range owed {
		p.grant(id, n)
	}
}

// fallSilent ends that PINGs are answered.
func (p *wire) fallSilent() { p.mu.Lock(); p.mute = true; p.mu.Unlock() }

// later writes from the reading goroutine, whose errors show when it reads on. Writes of the test are short, so it does not wait for long.
func (p *wire) later(write func() error) {
	p.write.Lock()
	_ = write()
	p.write.Unlock()
}

// send writes frames in one piece, which the other side reads together, mostly.
func (p *wire) send(write func(f *http2.Framer) error) {
	p.t.Helper()
	p.write.Lock()
	defer p.write.Unlock()
	_ = p.nc.SetWriteDeadline(time.Now().Add(patience))
	if err := write(p.framer); err != nil {
		p.t.Logf("write: %v", err)
	}
}

// fieldsOf makes names and values in turn a header.
func fieldsOf(pairs ...string) []hpack.HeaderField {
	fields := make([]hpack.HeaderField, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		fields = append(fields, hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return fields
}

func (p *wire) encode(pairs []string) []byte {
	p.block.Reset()
	for _, f := range fieldsOf(pairs...) {
		_ = p.enc.WriteField(f)
	}
	return bytes.Clone(p.block.Bytes())
}

// headers sends a header block.
func (p *wire) headers(id uint32, end bool, pairs ...string) {
	p.t.Helper()
	p.send(func(f *http2.Framer) error {
		block := p.encode(pairs)
		first := block[:min(len(block), 16384)]
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(first) == len(block)})
		for rest := block[len(first):]; len(rest) > 0 && err == nil; {
			n := min(len(rest), 16384)
			err = f.WriteContinuation(id, n == len(rest), rest[:n])
			rest = rest[n:]
		}
		return err
	})
}

// data sends DATA whether or not the windows allow it.
func (p *wire) data(id uint32, b []byte, end bool) {
	p.t.Helper()
	p.send(func(f *http2.Framer) error { return f.WriteData(id, end, b) })
}

// pour sends b as the windows allow, and returns how much it could send before a time without room, or before the stream was reset.
func (p *wire) pour(id uint32, b []byte, end bool, stuck time.Duration) int {
	p.t.Helper()
	sent := 0
	for {
		p.mu.Lock()
		n := min(int64(len(b)-sent), 16384, p.window, p.initial+p.windows[id])
		changed, over := p.changed, p.ended != nil || p.reset[id]
		if n > 0 {
			p.window -= n
			p.windows[id] -= n
		}
		p.mu.Unlock()
		if over {
			return sent
		}
		if n > 0 || len(b) == 0 {
			p.data(id, b[sent:sent+int(max(n, 0))], end && sent+int(n) == len(b))
			sent += int(max(n, 0))
		}
		if sent == len(b) {
			return sent
		}
		if n <= 0 {
			select {
			case <-changed:
			case <-time.After(stuck):
				return sent
			}
		}
	}
}

func (p *wire) rstStream(id uint32, code http2.ErrCode) {
	p.t.Helper()
	p.send(func(f *http2.Framer) error { return f.WriteRSTStream(id, code) })
}

func (p *wire) grant(id uint32, n uint32) {
	p.t.Helper()
	p.mu.Lock()
	if id == 0 {
		p.allowedConn += int64(n)
	} else {
		p.allowedStreams[id] += int64(n)
	}
	p.mu.Unlock()
	p.send(func(f *http2.Framer) error { return f.WriteWindowUpdate(id, n) })
}

// settings changes what the peer said, and waits for the acknowledgement.
func (p *wire) settings(s ...http2.Setting) {
	p.t.Helper()
	p.mu.Lock()
	for _, x := range s {
		if x.ID != http2.SettingInitialWindowSize {
			continue
		}
		if p.shrunk, p.shrinks = int64(x.Val), int64(x.Val) < p.allowed; !p.shrinks {
			p.allowed = int64(x.Val)
		}
	}
	p.mu.Unlock()
	p.send(func(f *http2.Framer) error { return f.WriteSettings(s...) })
	p.await("the acknowledgement of SETTINGS", func(e *event) bool { return e.kind == http2.FrameSettings && e.ack })
}

// settle waits until the other side has read all that was sent.
func (p *wire) settle() {
	p.t.Helper()
	var data [8]byte
	p.mu.Lock()
	binary.BigEndian.PutUint64(data[:], uint64(len(p.events))<<32|0xabcd)
	p.mu.Unlock()
	p.send(func(f *http2.Framer) error { return f.WritePing(false, data) })
	p.await("the answer to a PING", func(e *event) bool { return e.kind == http2.FramePing && e.ack && bytes.Equal(e.data, data[:]) })
}

// await removes the first frame that matches, and waits for it if it has not come.
func (p *wire) await(what string, match func(*event) bool) event {
	p.t.Helper()
	e, err := p.awaitFor(patience, match)
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.t.Fatalf("%s: %v; came: %v", what, err, p.events)
	}
	return e
}

var errNotInTime = errors.New("not in time")

func (p *wire) awaitFor(d time.Duration, match func(*event) bool) (event, error) {
	for end := time.After(d); ; {
		p.mu.Lock()
		for i := range p.events {
			if match(&p.events[i]) {
				e := p.events[i]
				p.events = slices.Delete(p.events, i, i+1)
				p.mu.Unlock()
				return e, nil
			}
		}
		changed, ended := p.changed, p.ended
		p.mu.Unlock()
		if ended != nil {
			return event{}, ended
		}
		select {
		case <-changed:
		case <-end:
			return event{}, errNotInTime
		}
	}
}

// seen counts frames that have come and were not awaited.
func (p *wire) seen(match func(*event) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for i := range p.events {
		if match(&p.events[i]) {
			n++
		}
	}
	return n
}

// bytesOf is how much DATA of a stream has come, and was not awaited.
func (p *wire) bytesOf(id uint32) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, e := range p.events {
		if e.kind == http2.FrameData && e.id == id {
			n += len(e.data)
		}
	}
	return n
}

// gone waits for the end of the connection.
func (p *wire) gone() {
	p.t.Helper()
	eventually(p.t, "the connection ends", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.ended != nil })
}

func (p *wire) open() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.ended == nil }

// answer is all of a stream that has come.
type answer struct {
	head, trailers event // trailers are head if that ended the stream
	info           []event
	data           []byte
	early          []byte // data before the header
	extra          int    // headers that are neither the first nor trailers
	reset          *http2.ErrCode
	lost           error
}

// status is the call's as gRPC clients see it: of the trailers, or the code of a reset in words.
func (a answer) status() string {
	switch {
	case a.lost != nil:
		return "lost: " + a.lost.Error()
	case a.reset != nil:
		return a.reset.String()
	}
	return a.trailers.get("grpc-status")
}

func (a answer) reason() string { return a.trailers.get("levada-stream-ended") }

// end waits for the end of a stream.
func (p *wire) end(id uint32) answer {
	p.t.Helper()
	a, err := p.endFor(id, patience)
	if err != nil {
		p.t.Fatalf("the end of stream %d: %v (so far %+v)", id, err, a)
	}
	return a
}

func (p *wire) endFor(id uint32, d time.Duration) (a answer, err error) {
	for {
		e, err := p.awaitFor(d, func(e *event) bool {
			return e.id == id && (e.kind == http2.FrameHeaders || e.kind == http2.FrameData || e.kind == http2.FrameRSTStream)
		})
		switch {
		case errors.Is(err, errNotInTime):
			return a, err
		case err != nil:
			a.lost = err
			return a, nil
		case e.kind == http2.FrameRSTStream:
			a.reset = &e.code
			return a, nil
		case e.kind == http2.FrameData && len(a.head.fields) == 0 && e.get(":method") == "":
			a.early = append(a.early, e.data...)
			a.data = append(a.data, e.data...)
		case e.kind == http2.FrameData:
			a.data = append(a.data, e.data...)
		case strings.HasPrefix(e.get(":status"), "1") && len(a.head.fields) == 0:
			a.info = append(a.info, e)
		case a.head.kind == 0 && len(a.head.fields) == 0:
			a.head = e
		case !e.end || e.get(":status") != "":
			a.extra++
		}
		if e.end {
			if e.kind == http2.FrameHeaders {
				a.trailers = e
			}
			return a, nil
		}
	}
}

// headersOf waits for a header block of a stream.
func (p *wire) headersOf(id uint32) event {
	p.t.Helper()
	return p.await(fmt.Sprintf("HEADERS of stream %d", id), func(e *event) bool { return e.kind == http2.FrameHeaders && e.id == id })
}

// resetOf waits for a RST_STREAM.
func (p *wire) resetOf(id uint32) http2.ErrCode {
	p.t.Helper()
	return p.await(fmt.Sprintf("RST_STREAM of stream %d", id), func(e *event) bool { return e.kind == http2.FrameRSTStream && e.id == id }).code
}

// dataOf waits for n bytes of DATA, or for the stream's end by DATA.
func (p *wire) dataOf(id uint32, n int) []byte {
	p.t.Helper()
	var all []byte
	for len(all) < n {
		e := p.await(fmt.Sprintf("%d bytes of stream %d, of which %d came", n, id, len(all)), func(e *event) bool { return e.kind == http2.FrameData && e.id == id })
		all = append(all, e.data...)
		if e.end {
			break
		}
	}
	return all
}

// Clients.

// dial connects a client to the proxy.
func dial(t testing.TB, addr string, s ...http2.Setting) *wire {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return callOver(t, nc, s...)
}

func callOver(t testing.TB, nc net.Conn, s ...http2.Setting) *wire {
	t.Helper()
	p := newWire(t, nc, s)
	t.Cleanup(p.close)
	_, err := io.WriteString(nc, http2.ClientPreface)
	if err == nil {
		err = p.framer.WriteSettings(s...)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.reading.Go(p.read)
	p.await("SETTINGS of the proxy", func(e *event) bool { return e.kind == http2.FrameSettings && !e.ack })
	p.await("the acknowledgement of SETTINGS", func(e *event) bool { return e.kind == http2.FrameSettings && e.ack })
	return p
}

// testMethod is the path of the calls in these tests.
const testMethod = "/test.Service/Call"

func request(pairs ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":path", testMethod, ":authority", "test", "content-type", "application/grpc", "te", "trailers"}, pairs...)
}

// begin opens a stream with a header, and returns its number.
func (p *wire) begin(end bool, pairs ...string) uint32 {
	p.t.Helper()
	id := p.next
	p.next += 2
	p.headers(id, end, request(pairs...)...)
	return id
}

// unary makes a call with one message, and returns how it ended.
func (p *wire) unary(message []byte, pairs ...string) answer {
	p.t.Helper()
	id := p.begin(false, pairs...)
	p.data(id, prefixed(message), true)
	return p.end(id)
}

func prefixed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// split reads messages, and returns what is left after the last whole one.
func split(b []byte) (messages [][]byte, rest []byte) {
	for len(b) >= 5 {
		n := int(binary.BigEndian.Uint32(b[1:]))
		if len(b) < 5+n {
			break
		}
		messages, b = append(messages, b[5:5+n]), b[5+n:]
	}
	return messages, b
}

// Endpoints.

// endpoints listens as an endpoint of a backend does.
type endpoints struct {
	t        testing.TB
	listener net.Listener
	settings []http2.Setting
	handle   func(*wire) // nil: connections wait for accept
	conns    chan *wire
	serving  sync.WaitGroup
	mu       sync.Mutex
	all      []*wire
	keeps    bool // keep is called for each connection
}

// listen makes an endpoint that greets each connection with the settings.
func listen(t testing.TB, s ...http2.Setting) *endpoints {
	t.Helper()
	return listenAt(t, "127.0.0.1:0", nil, s...)
}

func listenAt(t testing.TB, address string, handle func(*wire), s ...http2.Setting) *endpoints {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, handle, s...)
}

// serveOn is listenAt with a listener.
func serveOn(t testing.TB, l net.Listener, handle func(*wire), s ...http2.Setting) *endpoints {
	e := &endpoints{t: t, listener: l, settings: s, handle: handle, conns: make(chan *wire, 1000)}
	e.serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			e.serving.Go(func() { e.greet(nc) })
		}
	})
	t.Cleanup(e.close)
	return e
}

// close ends the listener and all connections.
func (e *endpoints) close() {
	_ = e.listener.Close()
	e.drop()
	e.serving.Wait()
}

// keep makes connections give no windows back, from the first byte on.
func (e *endpoints) keep() { e.mu.Lock(); e.keeps = true; e.mu.Unlock() }

// drop ends the connections.
func (e *endpoints) drop() {
	e.mu.Lock()
	all := e.all
	e.all = nil
	e.mu.Unlock()
	for _, p := range all {
		p.close()
	}
}

func (e *endpoints) addr() string { return e.listener.Addr().String() }

func (e *endpoints) greet(nc net.Conn) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(nc, preface); err != nil || string(preface) != http2.ClientPreface {
		_ = nc.Close()
		return
	}
	p := newWire(e.t, nc, e.settings)
	e.mu.Lock()
	e.all = append(e.all, p)
	p.keepsDATA = e.keeps
	e.mu.Unlock()
	if err := p.framer.WriteSettings(e.settings...); err != nil {
		_ = nc.Close()
		return
	}
	p.reading.Go(p.read)
	_, _ = p.awaitFor(patience, func(e *event) bool { return e.kind == http2.FrameSettings && e.ack })
	if e.handle != nil {
		e.handle(p)
		return
	}
	e.conns <- p
}

// accept waits for a connection of the proxy.
func (e *endpoints) accept() *wire {
	e.t.Helper()
	select {
	case p := <-e.conns:
		return p
	case <-time.After(patience):
		e.t.Fatal("the proxy does not connect")
		return nil
	}
}

// take waits for the next request on a connection.
func (p *wire) takeRequest() event {
	p.t.Helper()
	return p.await("a request", func(e *event) bool { return e.kind == http2.FrameHeaders && e.get(":method") != "" })
}

// respond sends the header of a good answer.
func (p *wire) respond(id uint32, pairs ...string) {
	p.t.Helper()
	p.headers(id, false, append([]string{":status", "200", "content-type", "application/grpc"}, pairs...)...)
}

// finish sends trailers.
func (p *wire) finish(id uint32, status string, pairs ...string) {
	p.t.Helper()
	p.headers(id, true, append([]string{"grpc-status", status}, pairs...)...)
}

// only sends an answer that is a header alone.
func (p *wire) only(id uint32, status string, pairs ...string) {
	p.t.Helper()
	p.headers(id, true, append([]string{":status", "200", "content-type", "application/grpc", "grpc-status", status}, pairs...)...)
}

// echo is an endpoint that gives each call its messages back, and OK. It counts the calls by their header call-id.
type echo struct {
	*endpoints
	mu    sync.Mutex
	calls map[string]int
	total int
}

func listenEcho(t testing.TB, s ...http2.Setting) *echo {
	t.Helper()
	return echoAt(t, "127.0.0.1:0", s...)
}

func echoAt(t testing.TB, address string, s ...http2.Setting) *echo {
	t.Helper()
	x := &echo{calls: map[string]int{}}
	x.endpoints = listenAt(t, address, x.answer, s...)
	return x
}

func (x *echo) count(id string) int { x.mu.Lock(); defer x.mu.Unlock(); return x.calls[id] }

func (x *echo) sum() int { x.mu.Lock(); defer x.mu.Unlock(); return x.total }

func (x *echo) answer(p *wire) {
	for {
		e, err := p.awaitFor(time.Hour, func(e *event) bool {
			return e.kind == http2.FrameHeaders || e.kind == http2.FrameData || len(e.fields) == 0 && e.kind != http2.FrameSettings
		})
		if err != nil {
			return
		}
		switch {
		case e.get(":method") != "":
			x.mu.Lock()
			x.calls[e.get("call-id")]++
			x.total++
			x.mu.Unlock()
			p.respond(e.id)
		case len(e.data) > 0 && e.kind == http2.FrameData:
			p.pour(e.id, e.data, false, patience)
		}
		if e.end {
			p.finish(e.id, "0")
		}
	}
}
