package buffertest

import (
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/flow"
)

// writeBound writes a block without messages that carries a watermark. It covers the last position of its lane, which others do, too.
func writeBound(t *testing.T, p writing, lane string, last uint64, watermark int64) {
	t.Helper()
	var e flow.Encoder
	e.Reset(last)
	w, err := p.Write(ctx(t), &flow.Block{Lane: lane, Lo: last, Hi: last, Watermark: watermark}, &e)
	if err == nil {
		err = w.Wait(ctx(t))
	}
	if err != nil {
		t.Fatalf("write a watermark: %v", err)
	}
}

// readBounds reads the blocks up to n watermarks, and returns these with how many messages came before each.
func readBounds(t *testing.T, p *buffer.Partition, n int) (bounds []int64, before []int, deliveries []*buffer.Delivery) {
	t.Helper()
	messages := 0
	for len(bounds) < n {
		d, err := p.Read(ctx(t))
		if err != nil {
			t.Fatalf("read after %d of %d watermarks: %v", len(bounds), n, err)
		}
		deliveries = append(deliveries, d)
		messages += len(d.Block.Messages)
		if d.Block.Watermark != flow.NoWatermark {
			bounds, before = append(bounds, d.Block.Watermark), append(before, messages)
		}
	}
	return bounds, before, deliveries
}

// blocksWithoutMessages would lose a watermark on an edge without messages, or leave its block behind.
func blocksWithoutMessages(t *testing.T, h Harness) {
	opt := buffer.Options{MaxLength: 10, UsageLimit: 100, SaveEvery: 20 * time.Millisecond}
	p := open(t, h, opt)
	w := elsewhere(t, h, opt)
	writeBound(t, w, "a/0", 0, -5)
	write(t, p, "a/0", 1, 4, 0)
	write(t, p, "a/0", 5, 5, 0)
	writeBound(t, p, "a/0", 5, 60)
	for i := range 20 { // more than the buffer may hold messages
		writeBound(t, w, "b/0", 0, int64(i))
	}
	write(t, w, "a/0", 6, 10, 0)
	writeBound(t, w, "a/0", 10, 120)
	eventually(t, "the writer sees 10 messages", func() bool { return w.Pending() == 10 })
	check := func(bounds []int64, before []int) {
		t.Helper()
		for i, b := range bounds {
			want, messages := int64(i-2), 5
			switch i {
			case 0:
				want, messages = -5, 0
			case 1:
				want = 60
			case 22:
				want, messages = 120, 10
			}
			if b != want || before[i] != messages {
				t.Fatalf("watermark %d is %d after %d messages, want %d after %d", i, b, before[i], want, messages)
			}
		}
	}
	bounds, before, _ := readBounds(t, p, 23)
	check(bounds, before)
	p = open(t, h, opt) // nothing was done, so all of it comes again
	run(t, p.Run)
	bounds, before, deliveries := readBounds(t, p, 23)
	check(bounds, before)
	for _, d := range deliveries {
		p.Done(ctx(t), d)
	}
	eventually(t, "nothing is pending for the writer", func() bool { return w.Pending() == 0 })
	if err := p.Trim(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if b, err := h.Open(t).Bounds(ctx(t)); err != nil || b.First != b.Last+1 || p.Floor() != b.Last || p.Pending() != 0 {
		t.Errorf("the store has %+v, the floor is %d, %d are pending, error %v", b, p.Floor(), p.Pending(), err)
	}
}

// consumed would let a window that is larger than the buffer keep out the messages that end it.
func consumed(t *testing.T, h Harness) {
	opt := buffer.Options{MaxLength: 10, UsageLimit: 100, SaveEvery: 20 * time.Millisecond}
	p := open(t, h, opt)
	run(t, p.Run)
	w := elsewhere(t, h, opt)
	var window []*buffer.Delivery
	for round := range uint64(3) {
		if err := w.WaitForRoom(ctx(t)); err != nil {
			t.Fatal(err)
		}
		write(t, w, "a/0", round*10+1, round*10+10, 0)
		isFull(t, w)
		d, err := p.Read(ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		p.Consume(d, 0, 10)
		window = append(window, d)
	}
	if err := w.WaitForRoom(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if p.Consumed() != 30 || p.Pending() != 0 || p.Floor() >= window[0].Seq {
		t.Errorf("%d consumed, %d pending, floor %d", p.Consumed(), p.Pending(), p.Floor())
	}
}
