package observe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

func quiet(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func anEnded() *proxy.Ended {
	return &proxy.Ended{Call: proxy.Call{ID: proxy.ID{Connection: 12, Stream: 345}, Started: time.Date(2026, 11, 21, 1, 2, 3, 456789000, time.UTC), Client: "10.0.0.1:4711",
		TLSPeer: "CN=orders", Authority: "shop:443", Path: "/shop.Orders/Watch", Route: "shop.*", GRPC: true, UserAgent: "grpc-go/1.85.0", Trace: "0af7651916cd43dd8448eb211c80319c"},
		Took: 1234567 * time.Microsecond, Backend: "orders", Endpoint: "10.0.0.2:50051", Code: codes.Unavailable, Reason: "CONNECTION_LOST", Requests: 1, Responses: 20,
		RequestBytes: 5, ResponseBytes: 2000, Attempts: 2, TransparentRetries: 1}
}

func TestAccessLogLine(t *testing.T) {
	got := string(appendEnded(nil, "", anEnded()))
	want := `{"time":"2026-11-21T01:02:03.456789Z","id":"12.345","client":"10.0.0.1:4711","tlsPeer":"CN=orders","authority":"shop:443","path":"/shop.Orders/Watch","route":"shop.*",` +
		`"grpc":true,"userAgent":"grpc-go/1.85.0","trace":"0af7651916cd43dd8448eb211c80319c","seconds":1.234567,"backend":"orders","endpoint":"10.0.0.2:50051","status":"UNAVAILABLE",` +
		`"reason":"CONNECTION_LOST","requests":1,"responses":20,"requestBytes":5,"responseBytes":2000,"attempts":2,"transparentRetries":1}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Seconds have no more digits than microseconds, whatever floating-point numbers make of them.
func TestSeconds(t *testing.T) {
	for took, want := range map[time.Duration]string{1857328 * time.Microsecond: "1.857328", 2710447 * time.Microsecond: "2.710447", 1499 * time.Nanosecond: "0.000001",
		time.Hour + time.Microsecond: "3600.000001", 0: "0"} {
		e := anEnded()
		e.Took = took
		if line := string(appendEnded(nil, "", e)); !strings.Contains(line, `"seconds":`+want+`,`) {
			t.Errorf("%v is %s, want %s", took, line, want)
		}
	}
}

// What is written by hand says the same to a reader, whatever clients sent, and nothing to a terminal.
func FuzzQuoted(f *testing.F) {
	for _, s := range []string{"", `a"b\c`, "line\r\n{\"fake\":1}", "\x1b[31mred\x7f", "\u202egnp.exe", "\x9b31m", "𝄞 é \u2028", "\xff\xfe"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > longestText {
			s = s[:longestText]
		}
		b := quoted(nil, s)
		for _, c := range b {
			if c < ' ' || c > '~' {
				t.Fatalf("%q has the byte %#x", b, c)
			}
		}
		var back string
		if err := json.Unmarshal(b, &back); err != nil || back != strings.ToValidUTF8(s, "\ufffd") && utf8.ValidString(s) {
			t.Fatalf("%q became %s, which is %q: %v", s, b, back, err)
		}
		if again := ASCII(append([]byte(nil), mustMarshal(t, s)...)); json.Unmarshal(again, &back) != nil || utf8.ValidString(s) && back != s {
			t.Fatalf("%q became %s", s, again)
		}
	})
}

func mustMarshal(t *testing.T, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestQuotedCuts(t *testing.T) {
	e := anEnded()
	e.Path, e.UserAgent, e.Authority = strings.Repeat("\n", 1<<20), strings.Repeat("é", 1<<20), strings.Repeat("x", 1<<20)
	b := appendEnded(nil, "", e)
	if len(b) > 12*longestText || bytes.Count(b, []byte{'\n'}) != 1 {
		t.Errorf("%d bytes, %d lines", len(b), bytes.Count(b, []byte{'\n'}))
	}
	if !json.Valid(b) {
		t.Error("it is no JSON")
	}
}

// A line costs no memory: the log is on in production.
func TestAccessLogAllocates(t *testing.T) {
	l, err := OpenAccessLog("", nil, quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	e := anEnded()
	l.buffer = make([]byte, 0, 2*logBuffer)
	if n := testing.AllocsPerRun(100, func() { l.ended(e) }); n != 0 {
		t.Errorf("%v allocations for a line", n)
	}
}

func BenchmarkAccessLog(b *testing.B) {
	l, err := OpenAccessLog("", nil, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	e := anEnded()
	for b.Loop() {
		if l.ended(e); len(l.buffer) > logBuffer/2 {
			l.buffer = l.buffer[:0]
		}
	}
}

func run(t *testing.T, l *AccessLog) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { l.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	t.Cleanup(stop)
	return stop
}

// A pipe that nobody reads is a disk that has stopped: calls go on, lines are dropped and counted, and those that were taken all arrive in the end.
func TestAccessLogBlocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDWR, 0) // so that opening it to write does not wait
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenAccessLog(path, nil, quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	backend := proxytest.NewBackend(t)
	p := proxytest.Start(t, proxytest.Config(t, backend.Address, nil), proxy.Options{Logger: slog.New(slog.DiscardHandler)})
	defer p.Watch(l.Watcher())()
	client := p.Client(t)

	const calls = 10000 // of more than 200 bytes each
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range calls / 8 {
				if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if l.Dropped() == 0 {
		t.Error("nothing was dropped: the pipe was not full")
	}
	l.mu.Lock()
	waiting := len(l.buffer)
	l.mu.Unlock()
	if waiting > logBuffer {
		t.Errorf("%d bytes wait", waiting)
	}
	read := make(chan int)
	go func() {
		lines := 0
		for s := bufio.NewScanner(reader); s.Scan(); {
			if s.Text() == "end" {
				break
			}
			if !json.Valid(s.Bytes()) {
				t.Errorf("a line that is no JSON: %s", s.Text())
			}
			lines++
		}
		read <- lines
	}()
	stop()
	if _, err := reader.WriteString("end\n"); err != nil {
		t.Fatal(err)
	}
	if lines := <-read; int64(lines) != l.Lines() || l.Lines()+l.Dropped() != calls {
		t.Errorf("%d lines were read and %d written, %d dropped, of %d", lines, l.Lines(), l.Dropped(), calls)
	}
}

// The end does not wait for a disk that has stopped.
func TestAccessLogEndsBlocked(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	l, err := OpenAccessLog("-", out, quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	for range 2000 { // far more than a pipe takes
		l.ended(anEnded())
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took < logEnd || took > logEnd+5*time.Second {
		t.Errorf("it took %v", took)
	}
	_ = out.Close() // ends the write
}

func TestAccessLogReopen(t *testing.T) {
	dir := t.TempDir()
	first, moved, other := filepath.Join(dir, "log"), filepath.Join(dir, "log.1"), filepath.Join(dir, "other")
	l, err := OpenAccessLog(first, nil, quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	lines := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil {
			return -1
		}
		return bytes.Count(b, []byte{'\n'})
	}
	await := func(path string, n int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); lines(path) != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s has %d lines, want %d", path, lines(path), n)
			}
		}
	}
	l.ended(anEnded())
	if err := os.Rename(first, moved); err != nil {
		t.Fatal(err)
	}
	l.ended(anEnded())
	l.Reopen(first)
	await(moved, 2)
	l.ended(anEnded())
	await(first, 1)                            // within a second, without more lines
	l.Reopen(filepath.Join(dir, "none", "no")) // cannot be opened
	l.ended(anEnded())
	await(first, 2)
	l.Reopen(other)
	await(other, 0)
	l.ended(anEnded())
	stop() // writes what is left
	await(other, 1)
	if l.Lines() != 5 || l.Dropped() != 0 {
		t.Errorf("%d lines, %d dropped", l.Lines(), l.Dropped())
	}
}

// A full disk tears a line. The next one begins on a line of its own.
func TestAccessLogTorn(t *testing.T) {
	disk := &fullDisk{room: 700}
	l, err := OpenAccessLog("-", disk, quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	l.ended(anEnded())
	l.ended(anEnded())
	l.write(l.take(nil))
	disk.room = 1 << 20
	l.ended(anEnded())
	l.write(l.take(nil))
	all := strings.Split(strings.TrimSuffix(disk.String(), "\n"), "\n")
	if len(all) != 3 || !json.Valid([]byte(all[0])) || json.Valid([]byte(all[1])) || !json.Valid([]byte(all[2])) || l.Lines() != 2 || l.Dropped() != 1 {
		t.Errorf("%q, %d lines, %d dropped", all, l.Lines(), l.Dropped())
	}
}

type fullDisk struct {
	bytes.Buffer
	room int
}

func (d *fullDisk) Write(p []byte) (int, error) {
	n := min(len(p), d.room-d.Len())
	d.Buffer.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}
