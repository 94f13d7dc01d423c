package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tcpPair returns both ends of a connection: near is what the proxy uses, far is net's own.
func tcpPair(t *testing.T) (near net.Conn, far *net.TCPConn) {
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
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, far = newRawSocket(nc), other.(*net.TCPConn)
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

func TestRawSocketCarries(t *testing.T) {
	near, far := tcpPair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB: more than the kernel takes at once
	go func() {
		_, _ = io.Copy(far, far)
		_ = far.CloseWrite()
	}()
	wrote := make(chan error, 1)
	go func() {
		n, err := near.Write(sent)
		if err == nil && n != len(sent) {
			err = io.ErrShortWrite
		}
		wrote <- errors.Join(err, near.(interface{ CloseWrite() error }).CloseWrite())
	}()
	got, err := io.ReadAll(near) // while it is being written
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back of %d, error %v", len(got), len(sent), err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if n, err := near.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d, %v, want 0, EOF", n, err)
	}
	for _, call := range []func([]byte) (int, error){near.Read, near.Write} {
		if n, err := call(nil); n != 0 || err != nil {
			t.Errorf("no bytes: %d, %v, want 0 and no error", n, err)
		}
	}
}

// TestRawSocketFails: errors are those of net, by which others find out what they mean.
func TestRawSocketFails(t *testing.T) {
	full := make([]byte, 64<<20) // more than the kernel takes from a peer that does not read
	one := make([]byte, 1)
	reset := func(_ net.Conn, far *net.TCPConn) { _, _ = far.SetLinger(0), far.Close() }
	for _, c := range []struct {
		name string
		do   func(near net.Conn, far *net.TCPConn) // before, or in the middle of, the call
		call func(near net.Conn) (int, error)
		want error
		op   string
	}{
		{"read, deadline", func(near net.Conn, _ *net.TCPConn) { _ = near.SetDeadline(time.Unix(1, 0)) }, func(c net.Conn) (int, error) { return c.Read(one) }, os.ErrDeadlineExceeded, "read"},
		{"write, deadline", func(near net.Conn, _ *net.TCPConn) { _ = near.SetDeadline(time.Unix(1, 0)) }, func(c net.Conn) (int, error) { return c.Write(full) }, os.ErrDeadlineExceeded, "write"},
		{"read, closed", func(near net.Conn, _ *net.TCPConn) { _ = near.Close() }, func(c net.Conn) (int, error) { return c.Read(one) }, net.ErrClosed, "read"},
		{"write, closed", func(near net.Conn, _ *net.TCPConn) { _ = near.Close() }, func(c net.Conn) (int, error) { return c.Write(full) }, net.ErrClosed, "write"},
		{"read, reset", reset, func(c net.Conn) (int, error) { return c.Read(one) }, syscall.ECONNRESET, "read"},
		{"write, reset", reset, func(c net.Conn) (int, error) { return c.Write(full) }, syscall.ECONNRESET, "write"},
	} {
		for _, when := range []string{"before", "while it waits"} {
			t.Run(c.name+" "+when, func(t *testing.T) {
				near, far := tcpPair(t)
				if when == "before" {
					c.do(near, far)
				}
				failed := make(chan error, 1)
				go func() {
					_, err := c.call(near)
					failed <- err
				}()
				if when != "before" {
					select {
					case err := <-failed:
						t.Fatalf("it did not wait: %v", err)
					case <-time.After(20 * time.Millisecond): // to be in the call, mostly; both orders have to work
					}
					c.do(near, far)
				}
				select {
				case err := <-failed:
					var op *net.OpError
					if !errors.Is(err, c.want) && !(c.want == syscall.ECONNRESET && errors.Is(err, syscall.EPIPE)) || !errors.As(err, &op) || op.Op != c.op {
						t.Errorf("got %v, want %s: %v", err, c.op, c.want)
					}
				case <-time.After(10 * time.Second):
					t.Error("it waits still")
				}
			})
		}
	}
}

// TestRawSocketLends: while a connection waits it has no memory for what may come.
func TestRawSocketLends(t *testing.T) {
	near, far := tcpPair(t)
	socket, ok := near.(interface {
		readLent(lend func() []byte, giveBack func()) (int, error)
	})
	if !ok {
		t.Skip("not on this system")
	}
	var mu sync.Mutex
	lent, times, memory := 0, 0, make([]byte, 10)
	lend := func() []byte { mu.Lock(); defer mu.Unlock(); lent++; times++; return memory }
	giveBack := func() { mu.Lock(); defer mu.Unlock(); lent-- }
	read := make(chan error, 1)
	go func() {
		n, err := socket.readLent(lend, giveBack)
		if err == nil && string(memory[:n]) != "word" {
			err = fmt.Errorf("got %q", memory[:n])
		}
		read <- err
	}()
	eventually(t, "it waits without memory", func() bool {
		mu.Lock()
		defer mu.Unlock()
		if lent < 0 || lent > 1 {
			t.Fatalf("lent %d times", lent)
		}
		return times > 0 && lent == 0
	})
	if _, err := far.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil || lent != 1 {
		t.Errorf("error %v; the memory that holds what came was lent %d times, want 1", err, lent)
	}
}

func TestRawSocketAllocatesNothing(t *testing.T) {
	near, far := tcpPair(t)
	p := make([]byte, 100)
	n := testing.AllocsPerRun(100, func() {
		for _, step := range []func([]byte) (int, error){near.Write, far.Read, far.Write, near.Read} {
			if n, err := step(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for a write and a read", n)
	}
}
