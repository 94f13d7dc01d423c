package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/flow"
)

// raw hands the bytes of messages on as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

// hostile serves any method with a function of its own, on grpc-go, and returns its address.
func hostile(t *testing.T, serve func(s grpc.ServerStream) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error { return serve(s) }))
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return path
}

func recv(s grpc.ServerStream) ([]byte, error) {
	var b []byte
	err := s.RecvMsg(&b)
	return b, err
}

func send(s grpc.ServerStream, b []byte) error { return s.SendMsg(&b) }

// bare is a message without its gRPC prefix.
func bare(field byte) []byte { return mark(field)[5:] }

// answerTo is an answer of a mapper with one result.
func answerTo(id string, value []byte) []byte {
	result := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), value)
	b := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), result)
	return protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), id)
}

// idOf is the id of a request.
func idOf(request []byte) string {
	id := ""
	_ = fields(request, func(f protowire.Number, v []byte, _ uint64) error {
		if f == 2 {
			id = string(v)
		}
		return nil
	})
	return id
}

func requests(n int) []flow.Message {
	in := make([]flow.Message, n)
	for i := range in {
		in[i] = flow.Message{ID: fmt.Sprint("in/0/", i), Pos: uint64(i + 1), Value: []byte(strconv.Itoa(i))}
	}
	return in
}

const hostileLimit = 1 << 20 // bytes of an answer

// TestHostileFunctions meets servers that break the contract. Whatever they do: a call returns, every message has an outcome or counts as not sent, nothing is made up,
// and little memory is used.
func TestHostileFunctions(t *testing.T) {
	const n = 20
	// each serves requests after a proper handshake
	handshake := func(serve func(s grpc.ServerStream, request []byte, k int) error) func(grpc.ServerStream) error {
		return func(s grpc.ServerStream) error {
			if _, err := recv(s); err != nil {
				return err
			}
			if err := send(s, bare(3)); err != nil {
				return err
			}
			for k := 0; ; k++ {
				b, err := recv(s)
				if err != nil {
					return err
				}
				if err := serve(s, b, k); err != nil {
					return err
				}
			}
		}
	}
	good := func(s grpc.ServerStream, b []byte) error { return send(s, answerTo(idOf(b), []byte("ok"))) }
	for name, c := range map[string]struct {
		serve   func(grpc.ServerStream) error
		opens   bool // whether it gets through the handshake
		answers int  // how many messages must be done, at least
		strays  uint64
		hangs   bool // it is the caller's timeout that ends it
	}{
		"refuses the call":          {serve: func(grpc.ServerStream) error { return status.Error(codes.Unimplemented, "no") }},
		"ends before the handshake": {serve: func(grpc.ServerStream) error { return nil }},
		"never shakes hands":        {serve: func(s grpc.ServerStream) error { <-s.Context().Done(); return nil }, hangs: true},
		"garbage instead of a handshake": {serve: func(s grpc.ServerStream) error {
			_ = send(s, []byte("\xff\xff\xffgarbage"))
			<-s.Context().Done()
			return nil
		}, opens: true, hangs: true},
		"garbage": {serve: handshake(func(s grpc.ServerStream, _ []byte, _ int) error {
			return send(s, []byte("\x0a\xff\xff\xff\xff\x7fgarbage"))
		}), opens: true},
		"an empty message": {serve: handshake(func(s grpc.ServerStream, b []byte, _ int) error { return errors.Join(send(s, nil), good(s, b)) }), opens: true, answers: n, strays: n},
		"ids nobody asked for": {serve: handshake(func(s grpc.ServerStream, b []byte, k int) error {
			return errors.Join(send(s, answerTo(strconv.Itoa(1<<40+k), nil)), send(s, answerTo("x", nil)), send(s, answerTo("99999999999999999999", nil)), good(s, b))
		}), opens: true, answers: n, strays: 3 * n},
		"every answer twice": {serve: handshake(func(s grpc.ServerStream, b []byte, _ int) error { return errors.Join(good(s, b), good(s, b)) }), opens: true, answers: n, strays: n - 1},
		"one that is never answered": {serve: handshake(func(s grpc.ServerStream, b []byte, k int) error {
			if k == 7 {
				return nil
			}
			return good(s, b)
		}), opens: true, answers: n - 1, hangs: true},
		"ends in the middle": {serve: handshake(func(s grpc.ServerStream, b []byte, k int) error {
			if k == 7 {
				return status.Error(codes.Internal, "UDF_EXECUTION_ERROR(udf): sorry")
			}
			return good(s, b)
		}), opens: true},
		"ends well in the middle": {serve: handshake(func(s grpc.ServerStream, b []byte, k int) error {
			if k == 7 {
				return errEnd
			}
			return good(s, b)
		}), opens: true},
		"an answer that is too large": {serve: handshake(func(s grpc.ServerStream, b []byte, _ int) error {
			return send(s, answerTo(idOf(b), make([]byte, 2*hostileLimit)))
		}), opens: true},
		"fields of any kind": {serve: handshake(func(s grpc.ServerStream, b []byte, _ int) error {
			a := protowire.AppendFixed64(protowire.AppendTag(answerTo(idOf(b), []byte("ok")), 99, protowire.Fixed64Type), 1)
			return send(s, protowire.AppendVarint(protowire.AppendTag(a, 1<<20, protowire.VarintType), 1))
		}), opens: true, answers: n},
		"a result of the wrong type": {serve: handshake(func(s grpc.ServerStream, b []byte, _ int) error {
			return send(s, protowire.AppendString(protowire.AppendTag(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1<<60), 2, protowire.BytesType), idOf(b)))
		}), opens: true},
	} {
		t.Run(name, func(t *testing.T) {
			serve := func(s grpc.ServerStream) error {
				if err := c.serve(s); !errors.Is(err, errEnd) {
					return err
				}
				return nil
			}
			address := hostile(t, serve)
			var strays atomic.Uint64
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if c.hangs {
				ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p, err := openPipe(ctx, address, &unaryMap, n, hostileLimit, &strays, func(context.Context, error) map[uint64]bool { return nil })
			if (err == nil) != c.opens {
				t.Fatalf("opening it: %v", err)
			}
			if err != nil {
				return
			}
			in := requests(n)
			out, unsent, err := p.Call(ctx, in, nil)
			p.Close()
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
				t.Errorf("it took %d MB", used>>20)
			}
			checkOutcomes(t, in, out, unsent, err, c.answers)
			if got := strays.Load(); got < c.strays {
				t.Errorf("%d stray answers, want at least %d", got, c.strays)
			}
			if ctx.Err() != nil && !c.hangs {
				t.Error("it hung")
			}
		})
	}
}

var errEnd = errors.New("end the call well")

func checkOutcomes(t *testing.T, in []flow.Message, out []Outcome, unsent []int, err error, least int) {
	t.Helper()
	if len(out) != len(in) {
		t.Fatalf("%d outcomes for %d messages: %v", len(out), len(in), err)
	}
	open := map[int]bool{}
	for _, i := range unsent {
		open[i] = true
	}
	done := 0
	for i, o := range out {
		switch {
		case open[i]:
		case o.Verdict == Done && len(o.Results) == 1 && string(o.Results[0].Value) == "ok":
			done++
		case o.Verdict == Suspect || o.Verdict == Broken:
		case o.Verdict == Done && err == nil && len(o.Results) == 0:
		default:
			t.Errorf("message %d: %+v", i, o)
		}
	}
	if done < least {
		t.Errorf("%d messages are done, want %d: %v", done, least, err)
	}
	if done < len(in) && err == nil && least > 0 {
		t.Error("not all are done, and there is no error")
	}
}

// TestHostileBatches is the same for functions and sinks that take groups.
func TestHostileBatches(t *testing.T) {
	const n = 10
	for name, c := range map[string]struct {
		answer  func(s grpc.ServerStream, ids []string) error
		answers int
		fails   bool
	}{
		"all is well": {func(s grpc.ServerStream, ids []string) error {
			for _, id := range ids {
				if err := send(s, answerTo(id, []byte("ok"))); err != nil {
					return err
				}
			}
			return send(s, bare(4))
		}, n, false},
		"answers are missing": {func(s grpc.ServerStream, ids []string) error {
			return errors.Join(send(s, answerTo(ids[0], []byte("ok"))), send(s, bare(4)))
		}, 1, true},
		"answers twice, and others": {func(s grpc.ServerStream, ids []string) error {
			for _, id := range append(ids, ids...) {
				if err := errors.Join(send(s, answerTo(id, []byte("ok"))), send(s, answerTo("no such", nil))); err != nil {
					return err
				}
			}
			return send(s, bare(4))
		}, n, false},
		"an end at once": {func(s grpc.ServerStream, _ []string) error { return send(s, bare(4)) }, 0, true},
		"garbage":        {func(s grpc.ServerStream, _ []string) error { return send(s, []byte{0x0a, 0xff}) }, 0, true},
		"closes":         {func(grpc.ServerStream, []string) error { return errEnd }, 0, true},
		"an answer too large": {func(s grpc.ServerStream, ids []string) error {
			return send(s, answerTo(ids[0], make([]byte, 2*hostileLimit)))
		}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			address := hostile(t, func(s grpc.ServerStream) error {
				if _, err := recv(s); err != nil {
					return err
				}
				if err := send(s, bare(3)); err != nil {
					return err
				}
				for {
					var ids []string
					for {
						b, err := recv(s)
						if err != nil {
							return err
						}
						if string(b) == string(bare(4)) {
							break
						}
						ids = append(ids, idOf(b))
					}
					if err := c.answer(s, ids); err != nil {
						if errors.Is(err, errEnd) {
							return nil
						}
						return err
					}
				}
			})
			var strays atomic.Uint64
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			p, err := openBatch(ctx, address, &batchMap, 100, hostileLimit, time.Minute, &strays)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			in := requests(n)
			out, unsent, err := p.Call(ctx, in, nil)
			if ctx.Err() != nil {
				t.Fatal("it hung")
			}
			if (err != nil) != c.fails {
				t.Errorf("it says %v", err)
			}
			checkOutcomes(t, in, out, unsent, err, c.answers)
			if c.fails { // of no more use: it must say so at once, and have sent nothing
				if _, unsent, err := p.Call(ctx, in, nil); err == nil || len(unsent) != n {
					t.Errorf("the next call: %d unsent, %v", len(unsent), err)
				}
			}
		})
	}
}

// TestHostileBlocks answers blocks with pieces that do not belong to them.
func TestHostileBlocks(t *testing.T) {
	const n = 10
	outcome := func(value string) []byte {
		result := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), value)
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), result)
	}
	piece := func(id, first uint64, count int) []byte {
		b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), id)
		b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), first)
		for range count {
			b = protowire.AppendBytes(protowire.AppendTag(b, 3, protowire.BytesType), outcome("ok"))
		}
		return b
	}
	for name, c := range map[string]struct {
		pieces func(id uint64) [][]byte
		fails  bool
	}{
		"backwards":    {func(id uint64) [][]byte { return [][]byte{piece(id, 5, 5), piece(id, 0, 5)} }, false},
		"other blocks": {func(id uint64) [][]byte { return [][]byte{piece(id+1, 0, 10), piece(1<<63, 0, 1), piece(id, 0, 10)} }, false},
		"beyond the end": {func(id uint64) [][]byte {
			return [][]byte{piece(id, 5, 6), piece(id, 1<<63, 1), piece(id, 11, 0), piece(id, 0, 10)}
		}, false},
		"twice":              {func(id uint64) [][]byte { return [][]byte{piece(id, 0, 9), piece(id, 0, 10)} }, false},
		"garbage at the end": {func(id uint64) [][]byte { return [][]byte{piece(id, 0, 9), binary.AppendUvarint([]byte{0x1a}, 1<<62)} }, true},
	} {
		t.Run(name, func(t *testing.T) {
			address := hostile(t, func(s grpc.ServerStream) error {
				for {
					b, err := recv(s)
					if err != nil {
						return err
					}
					var id uint64
					_ = fields(b, func(f protowire.Number, _ []byte, n uint64) error {
						if f == 1 {
							id = n
						}
						return nil
					})
					for _, p := range c.pieces(id) {
						if err := send(s, p); err != nil {
							return err
						}
					}
				}
			})
			var strays atomic.Uint64
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			p, err := openBlocks(ctx, address, 500, hostileLimit, &strays, func(context.Context, error) map[uint64]bool { return nil })
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			in := requests(n)
			out, unsent, err := p.Call(ctx, in, nil)
			if ctx.Err() != nil {
				t.Fatal("it hung")
			}
			if (err != nil) != c.fails {
				t.Errorf("it says %v", err)
			}
			least := n
			if c.fails {
				least = n - 1
			}
			checkOutcomes(t, in, out, unsent, err, least)
			if name != "backwards" && !c.fails && strays.Load() == 0 {
				t.Error("no stray answers were counted")
			}
		})
	}
}
