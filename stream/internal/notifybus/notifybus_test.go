package notifybus

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/stream"
)

func FuzzText(f *testing.F) {
	for _, s := range []string{"", " ", "users 1", "a b c", "%zz x", "caf\xe9 \x00", "a+b %20", strings.Repeat("%", 9000)} {
		f.Add(s, s, s)
	}
	f.Fuzz(func(t *testing.T, name, job, text string) {
		want := stream.Notification{Stream: name, Job: job}
		encoded := Encode(want)
		if len(encoded) > MaxText {
			t.Errorf("Encode(%q) has %d bytes, and %d are allowed", want, len(encoded), MaxText)
		}
		for _, c := range []byte(encoded) {
			if c < ' ' || c > '~' {
				t.Errorf("Encode(%q) = %q holds byte %#x", want, encoded, c)
			}
		}
		if encoded == "" && len(name)+len(job) < MaxText/3-1 && want != (stream.Notification{}) {
			t.Errorf("Encode(%q) lost the names", want)
		}
		if encoded == "" {
			want = stream.Notification{}
		}
		if got, err := Decode(encoded); err != nil || got != want {
			t.Errorf("Decode(Encode(%q)) = %q, %v", want, got, err)
		}
		if h, err := Decode(text); err != nil && h != (stream.Notification{}) {
			t.Errorf("Decode(%q) = %q with error %v", text, h, err)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	for _, text := range []string{"alone", "a b c", "%zz x", "x %", strings.Repeat("a", 4000) + " " + strings.Repeat("b", 4000)} {
		if h, err := Decode(text); err == nil {
			t.Errorf("Decode(%.20q) = %q, want an error", text, h)
		}
	}
}

func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lifecycle
		listen, leave, err := l.Listening(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
		send, sent, err := l.Sending(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		short, shortSent, err := l.Sending(t.Context(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if !errors.Is(short.Err(), context.DeadlineExceeded) {
			t.Errorf("a send outlived its limit: %v", short.Err())
		}
		shortSent()
		closed := make(chan bool, 1)
		go func() { closed <- l.Close() }()
		synctest.Wait()
		for name, ctx := range map[string]context.Context{"listen": listen, "send": send} {
			if cause := context.Cause(ctx); !errors.Is(cause, ErrClosed) || !errors.Is(cause, net.ErrClosed) {
				t.Errorf("after Close, %s has the cause %v", name, cause)
			}
		}
		select {
		case <-closed:
			t.Error("Close did not wait for the send")
		default:
		}
		sent()
		synctest.Wait()
		if first := <-closed; !first {
			t.Error("the first Close does not know that it is")
		}
		if l.Close() {
			t.Error("the second Close takes itself for the first")
		}
		if _, _, err := l.Listening(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Listening after Close: %v", err)
		}
		if _, _, err := l.Sending(t.Context(), time.Second); !errors.Is(err, ErrClosed) {
			t.Errorf("Sending after Close: %v", err)
		}
	})
}

func TestPauses(t *testing.T) {
	p := Backoff()
	p.Reset()
	for i := range 40 {
		d := p.NextBackOff()
		if d < 0 || d > 7500*time.Millisecond {
			t.Fatalf("pause %d is %v", i, d)
		}
		if i == 0 && d > 150*time.Millisecond {
			t.Errorf("the first pause is %v", d)
		}
		if i > 10 && d < 2500*time.Millisecond {
			t.Errorf("pause %d is only %v", i, d)
		}
	}
}
