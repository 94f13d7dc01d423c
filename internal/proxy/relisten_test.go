package proxy

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// freePort is an address at which nobody listens now.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func listening(addresses ...string) string {
	text := "listeners:\n"
	for _, a := range addresses {
		text += "- " + a + "\n"
	}
	return text
}

// TestReloadChangesListeners: a listener that comes or goes must not touch the streams of the others, and one whose limits change keeps its connections as they were.
func TestReloadChangesListeners(t *testing.T) {
	back := listenEcho(t)
	rest := fmt.Sprintf("drain: {period: 100ms}\nbackends: [{name: b, target: '%s'}]\n", back.addr())
	kept, removed, added := freePort(t), freePort(t), freePort(t)
	p := start(t, listening("{address: '"+kept+"', maxStreams: 7}", "{address: '"+removed+"'}")+rest)
	stays, goes := dial(t, kept), dial(t, removed)
	one, two := stays.begin(false), goes.begin(false)
	stays.headersOf(one)
	goes.headersOf(two)

	if err := p.Reload(parse(t, listening("{address: '"+kept+"', maxStreams: 8}", "{address: '"+added+"'}")+rest)); err != nil {
		t.Fatal(err)
	}
	if a := goes.end(two); a.status() != "14" || a.reason() != "DRAINING" {
		t.Errorf("the stream of the removed listener ends with %s %s", a.status(), a.reason())
	}
	goes.gone()
	if nc, err := net.Dial("tcp", removed); err == nil {
		_ = nc.Close()
		t.Error("the removed listener is still there")
	}
	if a := dial(t, added).unary([]byte("x")); a.status() != "0" {
		t.Errorf("a call at the added listener ends with %s", a.status())
	}
	stays.data(one, prefixed([]byte("still here")), true)
	if a := stays.end(one); a.status() != "0" || !strings.HasSuffix(string(a.data), "still here") {
		t.Errorf("the stream of the listener that stays ends with %s and %q", a.status(), a.data)
	}
	if !stays.open() {
		t.Error("the connection at the listener that stays has ended")
	}
	nc, err := net.Dial("tcp", kept)
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, nc, nil)
	t.Cleanup(w.close)
	_, _ = nc.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	_ = w.framer.WriteSettings()
	w.reading.Go(w.read)
	if s := w.await("SETTINGS", func(e *event) bool { return len(e.values) > 0 }); s.values[3] != 8 {
		t.Errorf("a new connection may open %d streams, want 8", s.values[3])
	}
	if got := len(p.Addresses()); got != 2 {
		t.Errorf("%d addresses", got)
	}
}

// TestReloadWithABadListenerChangesNothing: whatever cannot be had of a new configuration, the one that was in force stays so, all of it.
func TestReloadWithABadListenerChangesNothing(t *testing.T) {
	back := listenEcho(t)
	rest := fmt.Sprintf("backends: [{name: b, target: '%s'}]\n", back.addr())
	one, two, free := freePort(t), freePort(t), freePort(t)
	p := start(t, listening("{address: '"+one+"'}", "{address: '"+two+"'}")+rest)
	c := dial(t, one)
	id := c.begin(false)
	c.headersOf(id)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	// The sockets are the same ones afterwards: closed ones that are opened again refuse clients in between.
	sockets := func() (all []net.Listener) {
		for _, l := range p.listeners {
			all = append(all, l.current())
		}
		return all
	}
	before := sockets()
	for _, bad := range []string{
		listening("{address: '"+one+"'}", "{address: '"+free+"'}", "{address: '"+taken.Addr().String()+"'}"),
		listening("{address: '" + taken.Addr().String() + "'}"),
		listening("{address: '" + one + "', tls: {certificate: /missing, key: /missing}}"),
	} {
		err := p.Reload(parse(t, bad+rest))
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Fatalf("Reload gave %v", err)
		}
		if after := sockets(); !slices.Equal(after, before) {
			t.Errorf("after %q other sockets listen: %v instead of %v", err, after, before)
		}
		for _, address := range []string{one, two} {
			if a := dial(t, address).unary([]byte("x")); a.status() != "0" {
				t.Errorf("after %q a call at %s ends with %s", err, address, a.status())
			}
		}
		if nc, err := net.Dial("tcp", free); err == nil {
			_ = nc.Close()
			t.Error("a listener of the bad configuration is open")
		}
	}
	c.data(id, prefixed([]byte("x")), true)
	if a := c.end(id); a.status() != "0" {
		t.Errorf("the open stream ends with %s", a.status())
	}
}

// TestReloadWidensAnAddress: the socket of the listener that goes is in the way of the one that comes.
func TestReloadWidensAnAddress(t *testing.T) {
	back := listenEcho(t)
	rest := fmt.Sprintf("backends: [{name: b, target: '%s'}]\n", back.addr())
	narrow := freePort(t)
	_, port, _ := net.SplitHostPort(narrow)
	p := start(t, listening("{address: '"+narrow+"'}")+rest)
	if err := p.Reload(parse(t, listening("{address: ':"+port+"'}")+rest)); err != nil {
		t.Fatal(err)
	}
	if a := dial(t, narrow).unary([]byte("x")); a.status() != "0" {
		t.Errorf("a call ends with %s", a.status())
	}
}

// TestUnixSockets: both sides can be a Unix socket, with the permissions that the configuration says; what a killed process left is replaced, and nothing else is.
func TestUnixSockets(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.sock"), filepath.Join(dir, "out.sock")
	l, err := net.Listen("unix", out)
	if err != nil {
		t.Fatal(err)
	}
	back := &echo{calls: map[string]int{}}
	back.endpoints = serveOn(t, l, back.answer)
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: in, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	_ = left.Close() // as a process that was killed

	text := "listeners: [{address: 'unix:" + in + "', mode: '0600', maxConnections: 3}]\nbackends: [{name: b, target: 'unix://" + out + "'}]\n"
	p := start(t, text)
	info, err := os.Lstat(in)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("the socket is %v, %v", info, err)
	}
	nc, err := net.Dial("unix", in)
	if err != nil {
		t.Fatal(err)
	}
	c := callOver(t, nc)
	for range 3 {
		if a := c.unary([]byte("hello"), "call-id", "1"); a.status() != "0" || !strings.HasSuffix(string(a.data), "hello") {
			t.Fatalf("a call ends with %s, %q", a.status(), a.data)
		}
	}
	if err := p.Reload(parse(t, strings.Replace(text, "0600", "0666", 1))); err != nil {
		t.Fatal(err)
	}
	if info, err = os.Lstat(in); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("after a reload the socket is %v, %v", info, err)
	}

	if _, err := listenUnix(in, 0o600, false); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a socket that is in use is taken: %v", err)
	}
	if a := c.unary([]byte("hello")); a.status() != "0" {
		t.Errorf("then a call ends with %s", a.status())
	}
	p.stop()
	if _, err := os.Lstat(in); err == nil {
		t.Error("the socket is left behind")
	}
	if err := os.WriteFile(in, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(in, 0o600, false); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a file is taken: %v", err)
	}
	if text, err := os.ReadFile(in); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}
	if _, err := listenUnix(filepath.Join(dir, "missing", "x.sock"), 0o600, false); err == nil {
		t.Error("a socket in a folder that does not exist")
	}
}

// TestUnixSocketOfAnother: a process that closes its socket leaves the file of the one that has taken its place.
func TestUnixSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	old, err := listenUnix(path, 0o600, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	next, err := listenUnix(path, 0o600, false)
	if err != nil {
		t.Fatal(err)
	}
	_ = old.Close()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.Close()
	_ = next.Close()
}
