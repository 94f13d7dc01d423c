package buffer_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/identity"
)

func next(t *rapid.T, p *buffer.Partition) *buffer.Delivery {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	d, err := p.Read(ctx)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return d
}

// deaf is a driver whose broker knows nothing of acknowledgements: only the saved state counts.
type deaf struct{ buffer.Driver }

func (deaf) Ack(context.Context, uint64) error { return nil }

func reopen(t *rapid.T, s *membuffer.Store) *buffer.Partition {
	p, err := buffer.Open(context.Background(), deaf{s.Open()}, buffer.Options{Name: "test"})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return p
}

// TestProgressWithinABlockSurvivesARestart does parts of blocks in any order, saves at some moment and opens the partition again: exactly what was not done
// when the state was saved comes again, under the same positions, and is in the pending count. Blocks are also larger than the broker's largest message.
func TestProgressWithinABlockSurvivesARestart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := membuffer.NewStore(rapid.SampledFrom([]int{1 << 20, 700}).Draw(t, "largest entry"))
		w := reopen(t, s)
		type message struct{ block, place int }
		open := map[message]string{}
		const lane = "in/0@x"
		pos := uint64(0)
		blocks := rapid.IntRange(1, 4).Draw(t, "blocks")
		for b := range blocks {
			n := rapid.IntRange(1, 30).Draw(t, "messages")
			if err := write(w, lane, pos+1, pos+uint64(n), 0, 20); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				open[message{b, i}] = fmt.Sprintf("%s/%d", lane, pos+uint64(i)+1)
			}
			pos += uint64(n)
		}
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 4).Draw(t, "lives") {
			p := reopen(t, s)
			got := map[string]bool{}
			remaining := len(open)
			var deliveries []*buffer.Delivery
			for remaining > 0 {
				d := next(t, p)
				deliveries = append(deliveries, d)
				for i := range d.Block.Messages {
					got[d.Block.Messages[i].ID] = true
				}
				remaining -= len(d.Block.Messages)
			}
			for at, id := range open {
				if !got[id] {
					t.Fatalf("%s, message %d of block %d, did not come again", id, at.place, at.block)
				}
			}
			if len(got) != len(open) || p.Pending() != len(open) {
				t.Fatalf("%d came again and %d are pending, of %d that are not done", len(got), p.Pending(), len(open))
			}
			// Some of it is done, in parts.
			save := rapid.IntRange(0, 12).Draw(t, "save after")
			done := map[string]bool{}
			steps := 0
			for _, d := range rapid.Permutation(deliveries).Draw(t, "order") {
				from := 0
				var parts [][2]int
				for from < len(d.Block.Messages) {
					to := rapid.IntRange(from+1, len(d.Block.Messages)).Draw(t, "to")
					parts, from = append(parts, [2]int{from, to}), to
				}
				parts = rapid.Permutation(parts).Draw(t, "parts")
				for _, part := range parts[:rapid.IntRange(0, len(parts)).Draw(t, "of them")] {
					p.DonePart(context.Background(), d, part[0], part[1])
					if steps++; steps <= save {
						for i := part[0]; i < part[1]; i++ {
							done[d.Block.Messages[i].ID] = true
						}
					}
					if steps == save {
						if err := p.Trim(context.Background()); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			if steps < save { // everything is saved at an orderly end
				if err := p.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
			} else if save == 0 {
				clear(done)
			}
			for at, id := range open {
				if done[id] {
					delete(open, at)
				}
			}
			if len(open) == 0 {
				return
			}
		}
	})
}

// TestProgressOfAnotherBlockIsIgnored has a store that loses its end and gives the sequence to another block: nothing of that was done.
func TestProgressOfAnotherBlockIsIgnored(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	if err := write(p, "in/0", 1, 10, 0, 10); err != nil {
		t.Fatal(err)
	}
	d, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.DonePart(t.Context(), d, 0, 6)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Edit(func(e []buffer.Entry) []buffer.Entry {
		e[0].Stored = e[0].Stored.Add(time.Second) // as a broker does that stores another block there
		return e
	})
	p = open(t, s, -1)
	if d, err = p.Read(t.Context()); err != nil || len(d.Block.Messages) != 10 {
		t.Fatalf("%d messages of the other block came, error %v", len(d.Block.Messages), err)
	}
}

// TestSavedStateFormats: a state without progress is what every version reads, and one of a later version is refused with what to do.
func TestSavedStateFormats(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	first := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 0), 0)
	first = append(first, identity.New(time.Hour, 10).Marshal()...)
	if err := s.Open().SaveState(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	p := open(t, s, -1)
	if err := write(p, "in/0", 1, 4, 0, 10); err != nil {
		t.Fatal(err)
	}
	d, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	state := func() []byte {
		if err := p.Trim(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, err := s.Open().LoadState(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.Clone(b)
	}
	p.DonePart(t.Context(), d, 1, 3)
	partial := state()
	if !strings.HasPrefix(string(partial), "LVSTATE") {
		t.Errorf("the state with progress begins with %q", partial[:8])
	}
	p.DonePart(t.Context(), d, 0, 1)
	p.DonePart(t.Context(), d, 3, 4)
	if whole := state(); binary.LittleEndian.Uint64(whole[13:]) != 1 {
		t.Errorf("the state without progress is %q", whole)
	}
	old := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 1), 1)
	if err := s.Open().SaveState(t.Context(), append(old, identity.New(time.Hour, 10).Marshal()...)); err != nil {
		t.Fatal(err)
	}
	if p, err := buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test"}); err != nil || p.Floor() != 1 {
		t.Errorf("a state of the first format: %v", err)
	}
	partial[8] = 9
	if err := s.Open().SaveState(t.Context(), partial); err != nil {
		t.Fatal(err)
	}
	if _, err := buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test"}); err == nil || !strings.Contains(err.Error(), "format 9") {
		t.Errorf("a state of a later version: %v", err)
	}
	partial[8], partial[20] = 3, partial[20]^1
	if err := s.Open().SaveState(t.Context(), partial); err != nil {
		t.Fatal(err)
	}
	if _, err := buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test"}); err == nil {
		t.Error("a damaged state was taken")
	}
}
