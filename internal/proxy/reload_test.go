package proxy

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
)

// reloaded puts another configuration in force. It has the listener of the first.
func reloaded(t *testing.T, p *running, text string) {
	t.Helper()
	if err := p.Reload(parse(t, text)); err != nil {
		t.Fatal(err)
	}
}

// TestReloadKeepsTheCallsOfAnEndpoint: calls that are open at an endpoint count for callsPerEndpoint also after a reload that replaces its backend, and one that waits gets
// the room that an old call leaves. The new backend counted from 0, so the server got twice as many as it may have.
func TestReloadKeepsTheCallsOfAnEndpoint(t *testing.T) {
	back := listen(t)
	const limits = "backend: limits: {callsPerEndpoint: 2, waiting: 1, waitTimeout: 1m}"
	p := start(t, oneBackend(back.addr(), limits))
	c := dial(t, p.addr)
	open := []uint32{c.begin(false)}
	e := back.accept()
	requests := []event{e.takeRequest()}
	open, requests = append(open, c.begin(false)), append(requests, e.takeRequest()) // one after the other: streams have no order

	reloaded(t, p, oneBackend(back.addr(), limits, "backend: balance: {slowStart: 1m}")) // which makes it another one
	if len(p.Stats().Backends) != 1 {
		t.Fatal("more than one backend")
	}
	eventually(t, "the new backend knows its endpoint", func() bool { return len(p.state.Load().clusters["one"].set.Backends()) == 1 })
	waiting := c.begin(true)
	eventually(t, "a call waits for room", func() bool { return p.Stats().Backends[0].Waiting == 1 })
	if a := c.end(c.begin(true)); a.reason() != reasonOverloaded {
		t.Errorf("a call too many ended with %s (%s)", a.status(), a.reason())
	}
	e.finishAll(requests[:1])
	c.end(open[0])
	next := back.accept() // the connection of the new backend's endpoint
	next.only(next.takeRequest().id, "0")
	if a := c.end(waiting); a.status() != "0" {
		t.Errorf("the call that waited ended with %s (%s)", a.status(), a.reason())
	}
	e.finishAll(requests[1:])
	c.end(open[1])
	eventually(t, "all places are given back", func() bool { return p.state.Load().clusters["one"].set.Backends()[0].Of.calls.n.Load() == 0 })
}

// TestDiscoveryKeepsTheCallsOfAnEndpoint: so do those of an endpoint that was removed from the list and has come back.
func TestDiscoveryKeepsTheCallsOfAnEndpoint(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: limits: {callsPerEndpoint: 1}"))
	c := dial(t, p.addr)
	open := c.begin(false)
	e := back.accept()
	request := e.takeRequest()
	x := p.state.Load().clusters["one"]
	x.update(nil)
	x.update([]string{back.addr()})
	if a := c.end(c.begin(true)); a.reason() != reasonOverloaded {
		t.Errorf("a call too many ended with %s (%s)", a.status(), a.reason())
	}
	e.finishAll([]event{request})
	if a := c.end(open); a.status() != "0" {
		t.Errorf("the call that was open when its endpoint was removed ended with %s (%s)", a.status(), a.reason())
	}
	again := c.begin(true)
	e = back.accept()
	e.only(e.takeRequest().id, "0")
	if a := c.end(again); a.status() != "0" {
		t.Errorf("after it the endpoint gives %s (%s)", a.status(), a.reason())
	}
}

// TestCallCountsAreForgotten: addresses that come and go, as those of pods do, leave nothing behind.
func TestCallCountsAreForgotten(t *testing.T) {
	p := start(t, oneBackend("10.255.255.1:1"))
	x := p.state.Load().clusters["one"]
	for i := range 1000 {
		x.update([]string{fmt.Sprintf("10.0.%d.%d:1", i/250, i%250)})
	}
	eventually(t, "what nobody refers to is forgotten", func() bool {
		runtime.GC()
		p.callCounts.mu.Lock()
		defer p.callCounts.mu.Unlock()
		return len(p.callCounts.all) < 10
	})
}

// TestReloadChangesTheMemoryLimit: limits.memory is in force with the reload, also for windows, and one line has the old and the new limit.
func TestReloadChangesTheMemoryLimit(t *testing.T) {
	x := listenEcho(t)
	p := start(t, oneBackend(x.addr(), "limits: {memory: 64MiB}"))
	c := dial(t, p.addr)
	for range 100 {
		c.begin(false)
	}
	eventually(t, "the calls are open", func() bool { return p.Open() == 100 })
	before := p.window.Load()
	reloaded(t, p, oneBackend(x.addr(), "limits: {memory: 1MiB}"))
	if got := p.memory.Load(); got != 1<<20 {
		t.Errorf("the limit is %d", got)
	}
	eventually(t, "windows are smaller", func() bool { return p.window.Load() < before })
	if p.log.with("memory limit changed", "before=67108864", "limit=1048576") != 1 {
		t.Error("the log does not say it once")
	}
	reloaded(t, p, oneBackend(x.addr(), "limits: {memory: 1MiB}"))
	reloaded(t, p, oneBackend(x.addr()))
	if got := p.memory.Load(); got != processMemory()/4 {
		t.Errorf("by itself the limit is %d", got)
	}
	if p.log.with("memory limit changed") != 2 {
		t.Error("a limit that stays is said to have changed")
	}
}

// TestReloadSaysWhenReusePortCounts: the kernel takes the option when a socket is opened, so a changed one of a TCP address waits, and one log line says that it waits. It was silent.
func TestReloadSaysWhenReusePortCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.sock")
	text := func(reuse bool) string {
		return fmt.Sprintf("listeners: [{address: '127.0.0.1:0', reusePort: %v}, {address: 'unix:%s', reusePort: %v}]\nbackends: [{name: one, target: '127.0.0.1:1'}]\n", reuse, path, reuse)
	}
	p := start(t, text(false))
	reloaded(t, p, text(true))
	reloaded(t, p, text(true))
	if n := p.log.with("reusePort of a listener changed, in force when its socket is opened again", "address=127.0.0.1:0", "reusePort=true"); n != 1 {
		t.Errorf("the TCP listener is said to wait %d times", n)
	}
	if n := p.log.with("reusePort of a listener changed", "unix:"); n != 1 {
		t.Errorf("that of the Unix socket is said to have changed %d times", n)
	}
	if p.listeners[0].shared {
		t.Error("the socket counts as one that is shared")
	}
	p.Drain()
	if err := p.Undrain(); err != nil {
		t.Fatal(err)
	}
	if !p.listeners[0].shared {
		t.Error("opened again, it is not shared")
	}
}
