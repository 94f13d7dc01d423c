package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/proxy/config"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(processConfig); file != "" {
		os.Exit(proxyProcess(file))
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen. It is long because the machine may be busy, and no test waits for it to pass.
const patience = 15 * time.Second

// running is a proxy under test.
type running struct {
	*Proxy
	addr string
	stop func() // drains, and returns when Run has
	log  *lines
}

// lines is a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(line))
	return len(line), nil
}

// with counts the lines that have all of the words.
func (l *lines) with(words ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			n++
		}
	}
	return n
}

// start runs a proxy until the test ends. The text is a configuration without listeners, or with them; a drain takes no time unless it configures one.
func start(t testing.TB, text string) *running {
	t.Helper()
	return startConfig(t, parse(t, text))
}

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	if !strings.Contains(text, "listeners:") {
		text = "listeners: [{address: '127.0.0.1:0'}]\n" + text
	}
	if !strings.Contains(text, "drain:") {
		text = "drain: {period: 0s}\n" + text
	}
	c, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func startConfig(t testing.TB, c *config.Config, change ...func(*Proxy)) *running {
	t.Helper()
	logged := &lines{}
	log := slog.New(slog.NewTextHandler(logged, nil))
	if os.Getenv("PROXY_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	p, err := New(c, Options{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	var stopped bool
	r := &running{Proxy: p, log: logged, stop: func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * patience):
			t.Error("Run does not return")
		}
	}}
	t.Cleanup(r.stop)
	eventually(t, "the proxy listens", p.Ready)
	r.addr = p.Addresses()[0].String()
	return r
}

// oneBackend is a configuration with a single backend. Each of the options is a line "backend: KEY: VALUE" or "route: KEY: VALUE" or "listener: KEY: VALUE".
func oneBackend(target string, options ...string) string {
	var listener, backend, route strings.Builder
	var rest string
	for _, o := range options {
		part, line, _ := strings.Cut(o, ": ")
		switch part {
		case "listener":
			fmt.Fprintf(&listener, "  %s\n", line)
		case "backend":
			fmt.Fprintf(&backend, "  %s\n", line)
		case "route":
			fmt.Fprintf(&route, "  %s\n", line)
		default:
			rest += o + "\n"
		}
	}
	return fmt.Sprintf("listeners:\n- address: 127.0.0.1:0\n%sbackends:\n- name: one\n  target: '%s'\n%sroutes:\n- backend: one\n%s%s", listener.String(), target, backend.String(), route.String(), rest)
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// never fails if the condition comes true within a time.
func never(t testing.TB, what string, d time.Duration, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if holds() {
			t.Fatal(what)
		}
	}
}

// nobody is an address at which nobody listens, or will during the test: it is one end of a connection.
func nobody(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return nc.LocalAddr().String()
}
