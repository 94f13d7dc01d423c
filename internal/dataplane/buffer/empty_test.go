package buffer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/flow"
)

// writeBound writes a block of one message at a position, or of none, that carries a watermark.
func writeBound(p writing, pos uint64, messages int, watermark int64) error {
	var e flow.Encoder
	e.Reset(pos)
	for range messages {
		e.Append(&flow.Message{Pos: pos, ID: fmt.Sprintf("a/0/%d", pos), Value: []byte("v")})
	}
	w, err := p.Write(context.Background(), &flow.Block{Lane: "a/0", Lo: pos, Hi: pos, Watermark: watermark}, &e)
	if err != nil {
		return err
	}
	return w.Wait(context.Background())
}

// TestBlockThatSaysNothingPassesTheReader: it has neither messages nor a watermark. It counts as nothing, and does not hold up the floor.
func TestBlockThatSaysNothingPassesTheReader(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	for pos := uint64(1); pos <= 4; pos++ {
		if err := writeBound(p, pos, int(1-pos%2), flow.NoWatermark); err != nil {
			t.Fatal(err)
		}
	}
	if p.Pending() != 2 {
		t.Errorf("%d pending", p.Pending())
	}
	for _, want := range []uint64{2, 4} {
		d := must(p.Read(t.Context()))
		if d.Seq != want || len(d.Block.Messages) != 1 {
			t.Fatalf("%+v", d)
		}
		p.Done(t.Context(), d)
	}
	if p.Pending() != 0 || p.Floor() != 4 {
		t.Errorf("%d pending, floor %d", p.Pending(), p.Floor())
	}
}

// TestEveryBoundAboveTheFloorComesAfterACrash writes blocks with and without messages, all with a watermark. A reader reads some, does some of those in any order, and
// saves or not; then the next one begins. It is given every watermark above the saved floor, in order, also of blocks whose messages were done or were known before: a
// promise that got lost would keep a window open. Messages come again exactly if they were not known as done.
func TestEveryBoundAboveTheFloorComesAfterACrash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := membuffer.NewStore(1 << 20)
		blocks := rapid.SliceOfN(rapid.IntRange(0, 1), 1, 12).Draw(t, "messages of the blocks")
		w := reopen(t, s)
		for i, n := range blocks {
			if err := writeBound(w, uint64(i+1), n, int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		stored := len(blocks)
		if rapid.Bool().Draw(t, "the last is written again") { // without its message, which is known
			s.ForgetIDs()
			if err := writeBound(w, uint64(stored), blocks[stored-1], int64(stored)); err != nil {
				t.Fatal(err)
			}
			stored++
		}
		floor, done := uint64(0), map[uint64]bool{}
		for range rapid.IntRange(1, 4).Draw(t, "lives") {
			p := reopen(t, s)
			if p.Floor() != floor {
				t.Fatalf("it begins at %d, and %d was saved", p.Floor(), floor)
			}
			read := rapid.IntRange(0, stored-int(floor)).Draw(t, "reads")
			var now []uint64
			for i := range read {
				d := next(t, p)
				want := floor + uint64(i) + 1
				has := want <= uint64(len(blocks)) && blocks[want-1] == 1 && !done[want]
				if d.Seq != want || d.Block.Watermark != int64(want-1) || (len(d.Block.Messages) == 1) != has {
					t.Fatalf("block %d came with the watermark %d and %d messages, want block %d, with its message: %t", d.Seq, d.Block.Watermark, len(d.Block.Messages), want, has)
				}
				if rapid.Bool().Draw(t, "done") {
					p.Done(context.Background(), d)
					now = append(now, want)
				}
			}
			if !rapid.Bool().Draw(t, "saved") {
				continue
			}
			if err := p.Trim(context.Background()); err != nil {
				t.Fatal(err)
			}
			floor = p.Floor()
			for _, seq := range now {
				done[seq] = true
			}
			if left := s.Len(); left != stored-int(floor) {
				t.Fatalf("%d blocks are left above the floor %d of %d", left, floor, stored)
			}
		}
	})
}

// TestConsumedMessagesTakeNoRoomAndComeAgain consumes messages, and does some of them, in any order: those that are consumed leave the room that writers wait for,
// hold the floor, and come again after a crash.
func TestConsumedMessagesTakeNoRoomAndComeAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := membuffer.NewStore(1 << 20)
		p := reopen(t, s)
		type message struct{ block, at int }
		state := map[message]string{}
		var deliveries []*buffer.Delivery
		for b := range rapid.IntRange(1, 4).Draw(t, "blocks") {
			n := rapid.IntRange(1, 6).Draw(t, "messages")
			if err := write(p, "in/0@x", uint64(b*10+1), uint64(b*10+n), 0, 10); err != nil {
				t.Fatal(err)
			}
			deliveries = append(deliveries, next(t, p))
			for i := range n {
				state[message{b, i}] = "waits"
			}
		}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			b := rapid.IntRange(0, len(deliveries)-1).Draw(t, "block")
			i := rapid.IntRange(0, len(deliveries[b].Block.Messages)-1).Draw(t, "message")
			switch m := (message{b, i}); {
			case state[m] == "done":
			case state[m] == "waits" && rapid.Bool().Draw(t, "consume"):
				p.Consume(deliveries[b], i, i+1)
				state[m] = "consumed"
			default:
				p.DonePart(context.Background(), deliveries[b], i, i+1)
				state[m] = "done"
			}
			counts := map[string]int{}
			for _, is := range state {
				counts[is]++
			}
			if p.Pending() != counts["waits"] || p.Consumed() != counts["consumed"] || p.InFlight() != counts["waits"]+counts["consumed"] {
				t.Fatalf("%d pending, %d consumed, %d in flight; want %v", p.Pending(), p.Consumed(), p.InFlight(), counts)
			}
			floor, passed := len(deliveries), len(deliveries)
			for m, is := range state {
				if is != "done" {
					floor = min(floor, m.block)
				}
				if is == "waits" {
					passed = min(passed, m.block)
				}
			}
			if int(p.ReadFloor()) != floor || int(p.ConsumedFloor()) != passed {
				t.Fatalf("floor %d, %d with what is consumed; want %d and %d", p.ReadFloor(), p.ConsumedFloor(), floor, passed)
			}
		}
		if err := p.Trim(context.Background()); err != nil {
			t.Fatal(err)
		}
		var want []string
		for m, is := range state {
			if is != "done" {
				want = append(want, fmt.Sprintf("in/0@x/%d", m.block*10+m.at+1))
			}
		}
		p = reopen(t, s)
		var got []string
		for len(got) < len(want) {
			d := next(t, p)
			for i := range d.Block.Messages {
				got = append(got, d.Block.Messages[i].ID)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) || p.Pending() != len(want) {
			t.Fatalf("after a crash %d are pending, and these come:\n%s\nwant\n%s", p.Pending(), strings.Join(got, " "), strings.Join(want, " "))
		}
	})
}

// TestWriterElsewhereSeesRoomOfConsumedMessages: a window of more messages than the buffer may hold would otherwise keep out the messages that end it.
func TestWriterElsewhereSeesRoomOfConsumedMessages(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	opt := buffer.Options{Name: "test", MaxLength: 10, UsageLimit: 100}
	p, err := buffer.Open(t.Context(), s.Open(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(p, "in/0@x", 1, 10, 0, 10); err != nil {
		t.Fatal(err)
	}
	d := must(p.Read(t.Context()))
	p.Consume(d, 0, 4)
	p.Consume(d, 4, 10)
	if err := p.Trim(t.Context()); err != nil {
		t.Fatal(err)
	}
	w, err := buffer.OpenWriter(t.Context(), s.Open(), opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	if err := write(p, "in/0@x", 11, 13, 0, 10); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); w.Pending() == 0; time.Sleep(time.Millisecond) { // it follows the log in order
		if time.Now().After(deadline) {
			t.Fatal("the writer does not see the second block")
		}
	}
	if w.Pending() != 3 || p.Floor() != 0 || s.Len() != 2 {
		t.Errorf("%d pending for a writer elsewhere, floor %d, %d blocks stored", w.Pending(), p.Floor(), s.Len())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	p.Done(t.Context(), d)
	if p.Consumed() != 0 || p.Floor() != 1 {
		t.Errorf("%d consumed after all is done, floor %d", p.Consumed(), p.Floor())
	}
}

// TestReaderReadsOnOverConsumedBlocks: an open window may hold more blocks than may be in flight.
func TestReaderReadsOnOverConsumedBlocks(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p, err := buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test", MaxInFlight: 2})
	if err != nil {
		t.Fatal(err)
	}
	var all []*buffer.Delivery
	for pos := uint64(1); pos <= 5; pos++ {
		if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Fatal(err)
		}
		d := must(p.Read(t.Context()))
		p.Consume(d, 0, 1)
		all = append(all, d)
	}
	for _, d := range all {
		p.Done(t.Context(), d)
	}
	if p.Floor() != 5 {
		t.Errorf("floor %d", p.Floor())
	}
	for pos := uint64(6); pos <= 8; pos++ {
		if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Fatal(err)
		}
	}
	if got := readAll(t, p); got != 2 { // a delivery leaves the count of those in flight once, consumed and done
		t.Errorf("%d blocks are in flight, 2 may be", got)
	}
}

// readAll reads what it can without finishing anything, and returns how many blocks those were.
func readAll(t *testing.T, p *buffer.Partition) (n int) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := p.Read(ctx)
		cancel()
		if err != nil {
			return n
		}
		n++
	}
}
