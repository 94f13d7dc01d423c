package observe

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
)

// tapBuffer is how many bytes of events wait for a client that is slow. What does not fit is dropped and counted.
const tapBuffer = 256 << 10

// Tap shows calls to clients as they begin and end. Without clients it costs nothing.
type Tap struct {
	proxy   *proxy.Proxy
	clients atomic.Pointer[[]*TapClient]
	count   atomic.Int64
	dropped atomic.Int64

	mu   sync.Mutex
	stop func() // the watching of the proxy; nil without clients
}

// NewTap makes a tap. Nothing is watched before there is a client.
func NewTap(p *proxy.Proxy) *Tap { return &Tap{proxy: p} }

// Clients is the number of clients.
func (t *Tap) Clients() int64 { return t.count.Load() }

// Dropped is the number of events that clients were too slow for.
func (t *Tap) Dropped() int64 { return t.dropped.Load() }

// Filter says which events a client gets; what is empty matches all. One with a reason, a status or an endpoint gets no beginnings of calls, which
// have none of these yet.
type Filter struct {
	Route, Endpoint string
	// Path, or the beginning of one with a star behind it.
	Path string
	// Reason and Status, as in the access log.
	Reason, Status string
}

func (f *Filter) matches(c *proxy.Call) bool {
	return (f.Route == "" || f.Route == c.Route) && proxy.MatchPath(f.Path, c.Path)
}

func (f *Filter) began(c *proxy.Call) bool {
	return f.Endpoint == "" && f.Reason == "" && f.Status == "" && f.matches(c)
}

func (f *Filter) ended(e *proxy.Ended) bool {
	return f.matches(&e.Call) && (f.Endpoint == "" || f.Endpoint == e.Endpoint) && (f.Reason == "" || strings.EqualFold(f.Reason, e.Reason)) &&
		(f.Status == "" || strings.EqualFold(f.Status, config.Code(e.Code).String()))
}

// TapClient gets events until it is closed.
type TapClient struct {
	tap    *Tap
	filter Filter
	wake   chan struct{}

	mu      sync.Mutex
	buffer  []byte
	dropped int64 // since the client got their number
}

// Open adds a client.
func (t *Tap) Open(f Filter) *TapClient {
	c := &TapClient{tap: t, filter: f, wake: make(chan struct{}, 1)}
	t.change(func(all []*TapClient) []*TapClient { return append(all, c) })
	return c
}

// Close ends it.
func (c *TapClient) Close() {
	c.tap.change(func(all []*TapClient) (rest []*TapClient) {
		for _, other := range all {
			if other != c {
				rest = append(rest, other)
			}
		}
		return rest
	})
}

func (t *Tap) change(change func([]*TapClient) []*TapClient) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*TapClient
	if now := t.clients.Load(); now != nil {
		all = append(all, *now...)
	}
	all = change(all)
	t.clients.Store(&all)
	t.count.Store(int64(len(all)))
	switch {
	case len(all) == 0 && t.stop != nil:
		t.stop()
		t.stop = nil
	case len(all) > 0 && t.stop == nil:
		t.stop = t.proxy.Watch(proxy.Watcher{Started: t.began, Ended: t.ended})
	}
}

func (t *Tap) began(call *proxy.Call) {
	for _, c := range *t.clients.Load() {
		if c.filter.began(call) {
			c.add(func(b []byte) []byte { return appendBegan(b, call) })
		}
	}
}

func (t *Tap) ended(e *proxy.Ended) {
	for _, c := range *t.clients.Load() {
		if c.filter.ended(e) {
			c.add(func(b []byte) []byte { return appendEnded(b, EventEnded, e) })
		}
	}
}

// add keeps an event, unless there is no room. After one that was dropped all are, until the client reads: so it knows where they are missing.
func (c *TapClient) add(event func([]byte) []byte) {
	c.mu.Lock()
	before := len(c.buffer)
	if c.dropped == 0 {
		if c.buffer = event(c.buffer); len(c.buffer) > tapBuffer {
			c.buffer = c.buffer[:before]
			c.dropped = 1
		}
	} else {
		c.dropped++
	}
	if c.dropped > 0 {
		c.tap.dropped.Add(1)
	}
	c.mu.Unlock()
	if before == 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// Next waits for events and returns them as lines, or nil when ctx has ended. spare is memory to use.
func (c *TapClient) Next(ctx context.Context, spare []byte) []byte {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		c.mu.Lock()
		lines := c.buffer
		if c.buffer = spare[:0]; c.dropped > 0 {
			lines = appendDropped(lines, c.dropped)
			c.dropped = 0
		}
		c.mu.Unlock()
		if len(lines) > 0 {
			return lines
		}
	}
}

// ParsePath checks a path to look for, or the beginning of one with a star behind it. Empty stays empty. What can match no call is refused: nothing would be
// shown indefinitely.
func ParsePath(text string) (string, error) {
	if before, _, star := strings.Cut(text, "*"); text != "" && text != "*" && text[0] != '/' || star && len(before) != len(text)-1 {
		return "", fmt.Errorf("%.100q: expected /service/method, or the beginning of that with a star behind it, such as /shop.*", text)
	}
	return text, nil
}

// ParseReason reads a reason for which calls end, in any case. Empty stays empty.
func ParseReason(text string) (string, error) {
	name, all := strings.ToUpper(text), proxy.Reasons()
	if text != "" && !slices.Contains(all, name) {
		slices.Sort(all)
		return "", fmt.Errorf("%.40q is not a reason; expected one of: %s", text, strings.Join(all, ", "))
	}
	return name, nil
}

// ParseStatus reads the name or the number of a status of gRPC, and returns its name, which is CODE(99) for one without. Empty stays empty.
func ParseStatus(text string) (string, error) {
	number := text
	if inside, ok := strings.CutPrefix(text, "CODE("); ok {
		number, _ = strings.CutSuffix(inside, ")")
	}
	if n, err := strconv.ParseUint(number, 10, 32); err == nil {
		return config.Code(n).String(), nil
	}
	var code config.Code
	if text == "" {
		return "", nil
	}
	if err := code.UnmarshalText([]byte(strings.ToUpper(text))); err != nil {
		return "", fmt.Errorf("%.40q: expected the name or the number of a status of gRPC, such as UNAVAILABLE or 14", text)
	}
	return code.String(), nil
}
