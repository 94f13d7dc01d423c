package buffer_test

import (
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/flow"
)

// TestBlockWithoutMessages: a block that carries only a watermark counts as nothing, passes the reader, and does not hold up its floor.
func TestBlockWithoutMessages(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p, err := buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for pos := uint64(1); pos <= 4; pos++ {
		b := &flow.Block{Lane: "a/0", Lo: pos, Hi: pos, Watermark: int64(pos)}
		var e flow.Encoder
		e.Reset(pos)
		if pos%2 == 0 {
			e.Append(&flow.Message{Pos: pos, ID: "a", Value: []byte("v")})
		}
		w, err := p.Write(t.Context(), b, &e)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if p.Pending() != 2 {
		t.Errorf("%d pending", p.Pending())
	}
	for _, want := range []uint64{2, 4} {
		d, err := p.Read(t.Context())
		if err != nil || d.Seq != want || d.Block.Watermark != int64(want) || len(d.Block.Messages) != 1 {
			t.Fatalf("%+v, %v", d, err)
		}
		p.Done(t.Context(), d)
	}
	if p.Pending() != 0 || p.Floor() != 4 {
		t.Errorf("%d pending, floor %d", p.Pending(), p.Floor())
	}
}
