package httpsource_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source/httpsource"
)

// dial opens a connection and sends text.
func dial(t *testing.T, r *httpsource.Reader, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.Addresses()[0].String())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = io.WriteString(c, text)
	must(t, err)
	return c
}

func announce(size int) string {
	return fmt.Sprintf("POST /vertices/in HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size)
}

// served fails unless an honest sender is served at once.
func served(t *testing.T, r *httpsource.Reader, size int) {
	t.Helper()
	begun := time.Now()
	status := post(t, r, bytes.NewReader(make([]byte, size)))
	must(t, r.Ack(t.Context(), read(t, r)))
	wantStatus(t, status, 200)
	if took := time.Since(begun); took > 5*time.Second {
		t.Fatalf("an honest sender waited %v", took)
	}
}

// answered sends a payload and returns the answer: 200 once it is acknowledged, unless it is refused.
func answered(t *testing.T, r *httpsource.Reader, payload []byte) int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	reading.Go(func() {
		for {
			b, err := r.Read(ctx, 100)
			if err != nil {
				return // the payload was answered
			}
			if err := r.Ack(ctx, b); err != nil {
				return
			}
		}
	})
	return <-post(t, r, bytes.NewReader(payload))
}

// closes waits until the server closes a connection, and returns what it answered.
func closes(t *testing.T, c net.Conn, within time.Duration) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	answer, err := io.ReadAll(c)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Fatalf("the connection is still open after %v; answered %q", within, answer)
	}
	return string(answer)
}

// TestAnnouncedPayloadsCostNothing: 64 senders announced 4 MiB each and sent nothing; everybody got 429 for a minute.
func TestAnnouncedPayloadsCostNothing(t *testing.T) {
	r := open(t, httpsource.Config{MaxBytes: 16 << 20})
	for range 200 {
		dial(t, r, announce(4<<20))
	}
	served(t, r, 10)
	served(t, r, 4<<20)
}

// holdAPayload sends a payload without its last byte until the test ends. One that is refused is sent again: those that wait for the same room at the same time are all refused.
func holdAPayload(t *testing.T, r *httpsource.Reader, size int) {
	var holding sync.WaitGroup
	t.Cleanup(holding.Wait)
	holding.Go(func() {
		for t.Context().Err() == nil {
			c, err := net.Dial("tcp", r.Addresses()[0].String())
			if err != nil {
				return // the source is closing
			}
			stop := context.AfterFunc(t.Context(), func() { _ = c.Close() })
			_, _ = c.Write(append([]byte(announce(size)), make([]byte, size-1)...))
			_, _ = io.Copy(io.Discard, c)
			stop()
			_ = c.Close()
		}
	})
}

// TestAClientHoldsAPartOfTheMemory: one client sends most of many large payloads and never the rest. Its own further ones are refused, small ones and
// those of other clients are not.
func TestAClientHoldsAPartOfTheMemory(t *testing.T) {
	r := open(t, httpsource.Config{MaxBytes: 16 << 20, MaxBody: 1 << 20, RateWindow: time.Minute})
	for range 8 {
		holdAPayload(t, r, 1<<20)
	}
	served(t, r, 4<<10)
	wait := time.Now().Add(20 * time.Second)
	for { // once they hold it, a large payload of the same client is refused
		status := answered(t, r, make([]byte, 1<<20))
		if status == http.StatusTooManyRequests || status == 0 {
			break
		}
		if time.Now().After(wait) {
			t.Fatal("one client holds as much as it likes")
		}
	}
	served(t, r, 4<<10)

	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	client := http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	status := make(chan int, 1)
	go func() {
		out, err := client.Post("http://"+r.Addresses()[0].String()+"/vertices/in", "text/plain", bytes.NewReader(make([]byte, 1<<20)))
		if err != nil {
			status <- 0
			return
		}
		_ = out.Body.Close()
		status <- out.StatusCode
	}()
	must(t, r.Ack(t.Context(), read(t, r)))
	wantStatus(t, status, 200)
}

func TestSendersThatTrickleAreCutOff(t *testing.T) {
	r := open(t, httpsource.Config{RateWindow: 300 * time.Millisecond})
	silent := dial(t, r, "")
	header := dial(t, r, "POST /vertices/in HTTP/1.1\r\nHost: x\r\n")
	body := dial(t, r, announce(1000))
	refused := dial(t, r, "POST /vertices/other HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = fmt.Fprintf(header, "X-%d: y\r\n", i)
				_, _ = body.Write([]byte{'x'})
			}
		}
	}()
	closes(t, silent, 10*time.Second)
	closes(t, header, 10*time.Second)
	if answer := closes(t, body, 10*time.Second); !strings.Contains(answer, "408") {
		t.Fatalf("a payload that trickles: %q", answer)
	}
	closes(t, refused, 10*time.Second)
	served(t, r, 10)
}

// TestASlowHonestSenderIsServed sends several times longer than the window, a little above the minimum rate.
func TestASlowHonestSenderIsServed(t *testing.T) {
	r := open(t, httpsource.Config{RateWindow: 200 * time.Millisecond, MinRate: 1000})
	c := dial(t, r, announce(4000))
	go func() {
		for range 40 {
			_, _ = c.Write(make([]byte, 100))
			time.Sleep(25 * time.Millisecond)
		}
	}()
	must(t, r.Ack(t.Context(), read(t, r)))
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	_ = answer.Body.Close()
	if answer.StatusCode != 200 {
		t.Fatal(answer.Status)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	r := open(t, httpsource.Config{MaxConnections: 10, MaxClientConnections: 5})
	var conns []net.Conn
	for range 5 {
		c := dial(t, r, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		conns = append(conns, c)
	}
	served(t, r, 10) // an idle connection makes room
	left := 0
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			left++
		}
	}
	if left != 4 {
		t.Fatalf("%d of 5 idle connections are left, want 4", left)
	}
	for range 5 { // none is idle
		c := dial(t, r, announce(10))
		defer c.Close()
	}
	if answer := closes(t, dial(t, r, ""), 10*time.Second); answer != "" {
		t.Fatal(answer)
	}
}

// TestTextThatIsNotUTF8IsRefusedAtTheDoor: protobuf strings cannot carry it, so that the function behind would be killed for it.
func TestTextThatIsNotUTF8IsRefusedAtTheDoor(t *testing.T) {
	r := open(t, httpsource.Config{})
	for _, header := range []string{"X-Name: M\xfcller", "X-Numaflow-Keys: \xff", "X-Numaflow-Id: \xc3"} {
		c := dial(t, r, "POST /vertices/in HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+header+"\r\nContent-Length: 1\r\n\r\nx")
		name, _, _ := strings.Cut(header, ":")
		if answer := closes(t, c, 10*time.Second); !strings.HasPrefix(answer, "HTTP/1.1 400") || !strings.Contains(answer, name) {
			t.Errorf("%q: %q", header, answer)
		}
	}
	status := post(t, r, strings.NewReader("\xff\x00"), "X-Name=Müller")
	b := read(t, r)
	if name, _ := b.Messages[0].Headers.Get("x-name"); name != "Müller" || string(b.Messages[0].Value) != "\xff\x00" {
		t.Fatalf("%+v", b.Messages[0])
	}
	must(t, r.Ack(t.Context(), b))
	wantStatus(t, status, 200)
}

// A client that speaks plain HTTP to the HTTPS port was reported by net/http itself, as plain text among records of JSON.
func TestFailedHandshakesGoToTheLogger(t *testing.T) {
	var logged lockedBuffer
	r := open(t, httpsource.Config{Vertex: "in", HTTPS: "127.0.0.1:0", Logger: slog.New(slog.NewJSONHandler(&logged, nil))})
	resp, err := http.Post("http://"+r.Addresses()[0].String()+"/vertices/in", "text/plain", strings.NewReader("x"))
	if err == nil {
		_ = resp.Body.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(logged.String(), "TLS handshake error"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing was logged: %q", logged.String())
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
