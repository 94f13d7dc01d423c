package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"

	"github.com/levada-io/levada/test/proxy/hostile/target"
)

// recorder is a backend that takes whatever it gets, sends DATA back, and keeps what the requests said.
type recorder struct {
	addr string
	mu   sync.Mutex
	got  []*http2.MetaHeadersFrame
	bad  []string // what its own library refused to read
}

func startRecorder(t *testing.T) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", target.Backend())
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{addr: l.Addr().String()}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(newConn(c, true))
		}
	}()
	return r
}

func (r *recorder) serve(c *Conn) {
	defer c.Close()
	if c.Hello() != nil {
		return
	}
	c.request = func(c *Conn, f *http2.MetaHeadersFrame) error {
		r.mu.Lock()
		r.got = append(r.got, f)
		r.mu.Unlock()
		if f.PseudoValue("path") == "" {
			return c.do(head(c.answers, f.StreamID, Fields("grpc-status", "0"), true)) // trailers of the request
		}
		err := head(c.answers, f.StreamID, Response(), false)
		if err == nil && f.StreamEnded() {
			err = head(c.answers, f.StreamID, Fields("grpc-status", "0"), true)
		}
		return c.do(err)
	}
	c.data = func(c *Conn, f *http2.DataFrame) error {
		err := c.answers.WriteData(f.StreamID, false, f.Data())
		if err == nil && f.StreamEnded() {
			err = head(c.answers, f.StreamID, Fields("grpc-status", "0"), true)
		}
		if err != nil {
			return err
		}
		return c.credit(f)
	}
	c.Read()
	r.mu.Lock()
	defer r.mu.Unlock()
	for what := range c.saw {
		if strings.HasPrefix(what, "malformed") {
			r.bad = append(r.bad, what)
		}
	}
}

// take returns what came since it was last asked, and forgets it.
func (r *recorder) take() (requests []*http2.MetaHeadersFrame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests, r.got = r.got, nil
	return requests
}

// beside is a connection with a stream on it that must go on, whatever becomes of the others.
type beside struct {
	*Conn
	t *testing.T
}

const bystander, abuser = 1, 3

func openBeside(t *testing.T, proxy *target.Proxy) beside {
	t.Helper()
	c, err := Dial(t.Context(), proxy.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	go c.Read()
	c.Watch(bystander)
	c.Watch(abuser)
	if err := open(c); err != nil {
		t.Fatal(err)
	}
	b := beside{c, t}
	b.check("before")
	return b
}

// check has a message go to the backend and back.
func (b beside) check(when string) {
	b.t.Helper()
	err := b.do(b.WriteData(bystander, false, Message([]byte("hello"))))
	if err == nil {
		err = b.Await(bystander, 10, 5*time.Second)
	}
	if err != nil {
		b.t.Fatalf("%s, the stream beside it: %v (saw %v)", when, err, b.seen())
	}
}

// refused says whether an outcome is a clear no.
func refused(outcome string) bool {
	return strings.HasPrefix(outcome, "RST ") || strings.HasPrefix(outcome, "http 4") || strings.HasPrefix(outcome, "grpc ") && outcome != "grpc 0"
}

// TestMalformed sends each malformed request beside a stream on the same connection, which must go on as if nothing had happened (S-25, X-08), and looks at
// what the backend got of it.
func TestMalformed(t *testing.T) {
	backend := startRecorder(t)
	proxy := target.Start(t, target.Options{Backend: backend.addr, MaxMessage: MaxMessage})
	for _, m := range Malformed {
		t.Run(m.Name, func(t *testing.T) {
			c := openBeside(t, proxy)
			backend.take()
			if err := c.do(m.Send(c.Conn)); err != nil {
				t.Fatal(err)
			}
			outcome := c.Outcome(abuser, 5*time.Second)
			for _, f := range backend.take() {
				if why := unclean(f); why != "" {
					t.Errorf("the backend got %s: %v", why, f.Fields)
				} else if !m.Clean && m.Then == nil {
					t.Errorf("the backend got it: %v", f.Fields)
				}
			}
			if !refused(outcome) && !(m.Clean && outcome == "grpc 0") {
				t.Errorf("answered by %q; want RST_STREAM, status 4xx or a grpc-status that is not 0", outcome)
			}
			c.check("after")
			t.Log(outcome)
		})
	}
	proxy.Stop() // its connections end, and the recorder has counted
	backend.mu.Lock()
	defer backend.mu.Unlock()
	for _, what := range slices.Compact(slices.Sorted(slices.Values(backend.bad))) {
		t.Errorf("the backend got a request that is %s", what)
	}
}

// TestMalformedAnswers has a backend give each malformed answer: the client gets an error in well-formed frames, and what else goes over its connection, to
// another backend, goes on.
func TestMalformedAnswers(t *testing.T) {
	backend := startRecorder(t)
	for _, m := range MalformedAnswers {
		t.Run(m.Name, func(t *testing.T) {
			l, err := net.Listen("tcp", target.EvilBackend())
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan Result)
			go func() {
				done <- Attack{Request: func(c *Conn, f *http2.MetaHeadersFrame) error { return m.send(c, f) }}.Back(ctx, l)
			}()
			defer func() { stop(); <-done }()
			proxy := target.Start(t, target.Options{Backend: backend.addr, Evil: l.Addr().String()})
			defer proxy.Stop()
			c := openBeside(t, proxy)
			err = c.Open(Fields(":method", "POST", ":scheme", "http", ":path", target.EvilPath+"Call", ":authority", "hostile",
				"content-type", "application/grpc", "te", "trailers"), true)
			if err = c.do(err); err != nil {
				t.Fatal(err)
			}
			if outcome := c.Outcome(abuser, 5*time.Second); !refused(outcome) && !strings.HasPrefix(outcome, "http 5") {
				t.Errorf("answered by %q; want an error", outcome)
			} else {
				t.Log(outcome)
			}
			c.check("after")
			for what := range c.seen() {
				if strings.HasPrefix(what, "malformed") {
					t.Errorf("the client got a response that is %s", what)
				}
			}
		})
	}
}

// unclean says what is wrong with a request that was forwarded.
func unclean(f *http2.MetaHeadersFrame) string {
	count := map[string]int{}
	for _, h := range f.Fields {
		count[h.Name]++
		switch {
		case h.Name == "" || h.Name != strings.ToLower(h.Name) || !h.IsPseudo() && !httpguts.ValidHeaderFieldName(h.Name):
			return fmt.Sprintf("the name %q", h.Name)
		case strings.ContainsAny(h.Value, "\r\n\x00") || strings.Trim(h.Value, " \t") != h.Value:
			return fmt.Sprintf("the value %q", h.Value)
		case slices.Contains([]string{"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}, h.Name):
			return "a field that is about a connection"
		case h.Name == "te" && h.Value != "trailers":
			return "te: " + h.Value
		case h.Name == "host" && h.Value != f.PseudoValue("authority"):
			return "a host that is not :authority"
		}
	}
	if count[":path"] == 0 {
		return "" // trailers
	}
	for _, name := range []string{":method", ":scheme", ":path"} {
		if count[name] != 1 {
			return fmt.Sprintf("%d times %s", count[name], name)
		}
	}
	if count[":authority"] > 1 || count["content-length"] > 1 || count["host"] > 1 {
		return "a field twice"
	}
	return ""
}

func (c *Conn) seen() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]int{}
	for what, n := range c.saw {
		all[what] = n
	}
	return all
}

// TestSmuggling sends what two servers of HTTP/1.1 can understand differently: it is refused, and the backend gets nothing of what hides in it.
func TestSmuggling(t *testing.T) {
	backend := startRecorder(t)
	proxy := target.Start(t, target.Options{Backend: backend.addr})
	for name, text := range Smuggling {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", proxy.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(io.LimitReader(c, 64<<10))
			if status, ok := strings.CutPrefix(string(answer), "HTTP/1."); ok && len(status) > 2 && status[2] != '4' && status[2] != '5' {
				t.Errorf("answered %.100q", answer)
			}
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
				t.Errorf("the connection is still open 10 s later; it said %.100q", answer)
			}
			for _, f := range backend.take() {
				t.Errorf("the backend got %v", f.Fields)
			}
		})
	}
	if !proxy.Alive() {
		t.Errorf("the proxy has ended:\n%s", proxy.Log())
	}
}
