package wire_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
)

// rawCodec lets a grpc-go server speak bytes.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// serve starts a grpc-go server whose every method is handled by handle.
func serve(t *testing.T, handle func(grpc.ServerStream) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return handle(stream) }))
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return path
}

func echo(stream grpc.ServerStream) error {
	for {
		var b []byte
		if err := stream.RecvMsg(&b); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&b); err != nil {
			return err
		}
	}
}

func dial(t *testing.T, address string) *wire.Stream {
	t.Helper()
	s, err := wire.Dial(t.Context(), address, "/echo.Echo/Echo", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestEcho sends messages of all sizes, many at a time, past every window and frame limit, and gets each back.
func TestEcho(t *testing.T) {
	s := dial(t, serve(t, echo))
	random := rand.New(rand.NewPCG(1, 2))
	var sizes []int
	for i := range 3000 {
		sizes = append(sizes, random.IntN(1000))
		if i%100 == 0 {
			sizes = append(sizes, random.IntN(300_000))
		}
	}
	sizes = append(sizes, 0, 1, 16379, 16380, 16384, 65530, 65535, 65536, 1<<20, 20<<20)
	message := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, sizes[i]) }
	var group sync.WaitGroup
	group.Go(func() {
		var b []byte
		for i := range sizes {
			b = append(wire.AppendPrefix(b, sizes[i]), message(i)...)
			if i%50 == 0 || i == len(sizes)-1 {
				if err := s.Send(b); err != nil {
					t.Error(err)
				}
				b = b[:0]
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	})
	var kept [][]byte
	for i := range sizes {
		got, err := s.Recv()
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		kept = append(kept, got)
	}
	for i := range sizes { // looked at late: what was given out must not have been written over
		if !bytes.Equal(kept[i], message(i)) {
			t.Fatalf("message %d of %d bytes came back otherwise", i, sizes[i])
		}
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("the end is %v", err)
	}
	group.Wait()
}

func TestStatus(t *testing.T) {
	s := dial(t, serve(t, func(stream grpc.ServerStream) error {
		return status.Error(codes.Internal, "UDF_EXECUTION_ERROR(udf): ä 100 % broken")
	}))
	_, err := s.Recv()
	var st *wire.Status
	if !errors.As(err, &st) || st.Code != codes.Internal || st.Message != "UDF_EXECUTION_ERROR(udf): ä 100 % broken" {
		t.Fatalf("got %v", err)
	}
	if err := s.Send(wire.AppendPrefix(nil, 0)); err == nil {
		t.Fatal("Send after the end succeeded")
	}
}

func TestCall(t *testing.T) {
	answer, err := wire.Call(t.Context(), serve(t, echo), "/echo.Echo/Echo", []byte("hello"), 100)
	if err != nil || string(answer) != "hello" {
		t.Fatalf("%q, %v", answer, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stuck := serve(t, func(stream grpc.ServerStream) error { <-stream.Context().Done(); return nil })
	if _, err := wire.Call(ctx, stuck, "/echo.Echo/Echo", nil, 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	address := serve(t, func(stream grpc.ServerStream) error {
		b := make([]byte, 2000)
		return stream.SendMsg(&b)
	})
	s, err := wire.Dial(t.Context(), address, "/echo.Echo/Echo", 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Recv()
	var st *wire.Status
	if !errors.As(err, &st) || st.Code != codes.ResourceExhausted || !strings.Contains(st.Message, "2000 bytes") {
		t.Fatalf("got %v", err)
	}
}

func TestSendEndsWhenTheServerDies(t *testing.T) {
	address := serve(t, func(stream grpc.ServerStream) error { <-stream.Context().Done(); return nil })
	s := dial(t, address)
	ended := make(chan error, 2)
	go func() { ended <- s.Send(append(wire.AppendPrefix(nil, 1<<20), make([]byte, 1<<20)...)) }() // more than the window
	go func() { _, err := s.Recv(); ended <- err }()
	s.Close()
	for range 2 {
		if err := <-ended; err == nil {
			t.Fatal("no error")
		}
	}
}

// FuzzPeer lets a hostile server say anything. Nothing may panic, hang or take much memory.
func FuzzPeer(f *testing.F) {
	settings := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}
	f.Add(settings)
	f.Add(append(settings, 0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8))
	f.Add(append(settings, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 4, 'a', 'b', 'c', 'd'))
	f.Add([]byte{0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8})
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		go func() {
			_, _ = theirs.Write(said)
			_ = theirs.Close()
		}()
		s, err := wire.NewStream(ours, "/a.B/C", 1<<20)
		if err != nil {
			return
		}
		defer s.Close()
		total := 0
		for {
			m, err := s.Recv()
			if err != nil {
				return
			}
			if total += len(m) + wire.Prefix; total > len(said) {
				t.Fatalf("%d bytes of messages from %d bytes", total, len(said))
			}
		}
	})
}

func BenchmarkEcho(b *testing.B) {
	path := filepath.Join(b.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error { return echo(s) }))
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	s, err := wire.Dial(b.Context(), path, "/echo.Echo/Echo", 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	const batch, size = 500, 300
	var out []byte
	for range batch {
		out = binary.BigEndian.AppendUint32(append(out, 0), size)
		out = append(out, make([]byte, size)...)
	}
	go func() {
		for s.Send(out) == nil { // until it is closed
		}
	}()
	for b.Loop() {
		if _, err := s.Recv(); err != nil {
			b.Fatal(err)
		}
	}
}
