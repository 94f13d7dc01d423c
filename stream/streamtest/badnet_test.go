package streamtest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/test/bufconn"
)

// echo is a backend that sends back what it is sent, until l is closed. It reports how each of its connections ended.
func echo(t *testing.T, l net.Listener) (ends chan error) {
	t.Helper()
	ends = make(chan error, 100)
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			running.Go(func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if n > 0 {
						if _, err := c.Write(buf[:n]); err != nil {
							ends <- err
							return
						}
					}
					if err != nil {
						ends <- err
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return ends
}

type badNetFixture struct {
	*BadNet
	ends chan error
}

func newBadNetFixture(t *testing.T) badNetFixture {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ends := echo(t, l)
	return badNetFixture{NewBadNet(t, l.Addr().String()), ends}
}

func (f badNetFixture) connect(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", f.Addr(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// roundTrip sends text, and expects it back.
func roundTrip(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read: %v", err)
	}
	if string(got) != text {
		t.Fatalf("got %q, expected %q", got, text)
	}
}

// silent expects that nothing is to be read for a while.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	defer c.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, error %v, expected silence", n, err)
	}
}

func TestBadNetPassesOn(t *testing.T) {
	f := newBadNetFixture(t)
	c := f.connect(t)
	roundTrip(t, c, "hello")
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go c.Write(large)
	got := make([]byte, len(large))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, large) {
		t.Fatalf("1 MiB did not return as it was: %v", err)
	}
	c.CloseWrite() // a half-closed connection goes on the other way
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("end of the connection: %v, expected io.EOF", err)
	}
	if err := <-f.ends; err != io.EOF {
		t.Fatalf("the backend saw %v, expected io.EOF", err)
	}
}

func TestBadNetCutAndReset(t *testing.T) {
	f := newBadNetFixture(t)
	c := f.connect(t)
	roundTrip(t, c, "hello")
	f.Cut()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("cut: the client saw %v, expected io.EOF", err)
	}
	if err := <-f.ends; err != io.EOF {
		t.Fatalf("cut: the backend saw %v, expected io.EOF", err)
	}
	c = f.connect(t)
	roundTrip(t, c, "hello")
	f.Reset()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("reset: the client saw %v, expected a reset", err)
	}
	if err := <-f.ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("reset: the backend saw %v, expected a reset", err)
	}
	roundTrip(t, f.connect(t), "neither is for new connections")
}

func TestBadNetCutAfter(t *testing.T) {
	f := newBadNetFixture(t)
	f.New().CutAfter(ToClient, 5)
	c := f.connect(t)
	io.WriteString(c, "hello world")
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v, expected %q and a normal end", got, err, "hello")
	}
	f.New().Heal()
	c = f.connect(t)
	roundTrip(t, c, "some bytes before")
	f.Open().ResetAfter(ToBackend, 3) // counted from now
	io.WriteString(c, "abc")
	if got, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %q, %v, expected a reset", got, err)
	}
	roundTrip(t, f.connect(t), "long enough")
}

func TestBadNetCorrupt(t *testing.T) {
	f := newBadNetFixture(t)
	f.Corrupt(ToBackend, 2)
	c := f.connect(t)
	roundTrip(t, c, "ab")
	io.WriteString(c, "cd")
	got := make([]byte, 2)
	if _, err := io.ReadFull(c, got); err != nil || got[0] != 'c'^1<<4 || got[1] != 'd' {
		t.Fatalf("got %q, %v, expected one flipped bit in the first byte", got, err)
	}
	roundTrip(t, c, "only once")
}

func TestBadNetStall(t *testing.T) {
	f := newBadNetFixture(t)
	c := f.connect(t)
	roundTrip(t, c, "hello")
	f.Stall(ToClient)
	io.WriteString(c, "held")
	silent(t, c)
	late := f.connect(t)
	io.WriteString(late, "held too")
	silent(t, late)
	f.Resume()
	for conn, want := range map[net.Conn]string{c: "held", late: "held too"} {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, expected %q", got, err, want)
		}
	}
}

func TestBadNetStallBlocksSenders(t *testing.T) {
	f := newBadNetFixture(t)
	c := f.connect(t)
	roundTrip(t, c, "hello")
	f.Stall(ToBackend)
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	if n, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes went into a stalled connection: %v", n, err)
	}
}

func TestBadNetBlackhole(t *testing.T) {
	f := newBadNetFixture(t)
	c := f.connect(t)
	other := f.connect(t)
	roundTrip(t, c, "hello")
	roundTrip(t, other, "hello")
	f.Blackhole(BothWays)
	io.WriteString(c, "swallowed")
	silent(t, c)
	c.CloseWrite()
	select {
	case err := <-f.ends:
		t.Fatalf("the backend was told of the end: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	f.Heal()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("a connection that lost bytes went on: %v", err)
	}
	roundTrip(t, other, "lost nothing, goes on")
	f.Blackhole(ToClient) // one way only
	io.WriteString(other, "x")
	silent(t, other)
}

func TestBadNetRefuse(t *testing.T) {
	f := newBadNetFixture(t)
	c := f.connect(t)
	roundTrip(t, c, "hello")
	f.Refuse(true)
	refused, err := net.Dial("tcp", f.Addr())
	if err == nil { // the reset may also come before connect returns
		defer refused.Close()
		refused.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := refused.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a refused connection answered: %v", err)
		}
	}
	roundTrip(t, c, "open ones go on")
	f.Heal()
	roundTrip(t, f.connect(t), "hello")
	if open, ever := f.Connections(); open != 2 || ever != 3 {
		t.Fatalf("%d connections are open of %d, expected 2 of 3", open, ever)
	}
}

func TestBadNetWithoutBackend(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	n := NewBadNet(t, nobody)
	c, err := net.Dial("tcp", n.Addr())
	if err == nil { // the reset may also come before connect returns
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the client saw %v, expected a reset", err)
	}
}

// Close in the middle of everything leaves nothing behind, however often.
func TestBadNetCloses(t *testing.T) {
	for i := range 30 {
		f := newBadNetFixture(t)
		for range 3 {
			go func(c net.Conn) { c.Write(make([]byte, 1<<20)) }(f.connect(t))
		}
		switch i % 4 {
		case 0:
			f.Stall(BothWays)
		case 1:
			f.Blackhole(ToClient)
		case 2:
			f.Cut()
		}
		f.Close()
		f.Close()
		if open, _ := f.Connections(); open != 0 {
			t.Fatalf("%d connections are open after Close", open)
		}
	}
}

// In a bubble, all time is virtual: an hour's stall and a slow line cost nothing.
func TestBadNetInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, clients := bufconn.Listen(1<<16), bufconn.Listen(1<<16)
		echo(t, backend)
		n := NewBadNetOver(t, clients, backend.Dial)
		c, err := clients.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		roundTrip(t, c, "hello")

		n.Stall(ToBackend)
		start := time.Now()
		time.AfterFunc(time.Hour, n.Resume)
		roundTrip(t, c, "an hour later")
		if took := time.Since(start); took != time.Hour {
			t.Errorf("the stall took %v, expected an hour", took)
		}

		n.SlowRate(100)
		start = time.Now()
		roundTrip(t, c, string(make([]byte, 1000)))
		if took := time.Since(start); took < 9*time.Second || took > 21*time.Second {
			t.Errorf("1000 bytes there and back at 100 bytes per second took %v", took)
		}

		n.Reset()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the connection survived a reset")
		}
	})
}
