package buffer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/flow"
)

// dividedStore has two shards, and 10 blocks of one message: the odd ones are of shard 1.
func dividedStore(t *testing.T) *membuffer.Store {
	t.Helper()
	s := membuffer.NewStore(64 << 10)
	s.Divide(2)
	w, err := buffer.OpenWriter(t.Context(), s.Open(), buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for pos := uint64(1); pos <= 10; pos++ {
		writeShard(t, w, int(pos%2), pos)
	}
	return s
}

func writeShard(t *testing.T, w *buffer.Writer, shard int, pos uint64) {
	t.Helper()
	var e flow.Encoder
	e.Reset(pos)
	e.Append(&flow.Message{ID: fmt.Sprint(pos), Pos: pos, Value: []byte("x")})
	out, err := w.WriteTo(t.Context(), shard, &flow.Block{Lane: "a/0", Lo: pos, Hi: pos, Watermark: flow.NoWatermark}, &e)
	if err == nil {
		err = out.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func openShard(t *testing.T, s *membuffer.Store, n int, opt buffer.Options) (*buffer.Partition, error) {
	t.Helper()
	opt.Name = "test"
	return buffer.OpenShard(t.Context(), s.Open().(buffer.Sharded).Shard(n), n, 2, opt)
}

// readShard reads until nothing comes, and finishes what it reads.
func readShard(t *testing.T, p *buffer.Partition) (got []uint64, err error) {
	t.Helper()
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for {
		d, err := p.Read(short)
		if short.Err() != nil {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, d.Block.Messages[0].Pos)
		p.Done(t.Context(), d)
	}
}

// TestHiddenEntriesOfAnyShardAreFound: a cursor that skips entries, as on a damaged replica, skips neither those of the shard nor those of others: what is its own is read, and
// what is not does not count as damage.
func TestHiddenEntriesOfAnyShardAreFound(t *testing.T) {
	for name, hidden := range map[string][]uint64{"of the shard": {3, 7}, "of the other one": {2, 4}, "of both, in a row": {3, 4, 5, 6}} {
		t.Run(name, func(t *testing.T) {
			s := dividedStore(t)
			s.Hide(hidden...)
			p, err := openShard(t, s, 1, buffer.Options{OnCorrupt: func(seq uint64, _ []byte, err error) error {
				t.Errorf("damage at %d: %v", seq, err)
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readShard(t, p); err != nil || !slices.Equal(got, []uint64{1, 3, 5, 7, 9}) {
				t.Errorf("the shard gives %v (%v), want the odd ones", got, err)
			}
			if end, err := p.ReadEnd(t.Context()); err != nil || p.ReadFloor() != end {
				t.Errorf("all is done up to %d of %d (%v)", p.ReadFloor(), end, err)
			}
		})
	}
}

// TestMissingEntriesAreDamageForEachShard: an entry that is nowhere may have been one of any shard, so that each of them reports it, and goes on once it may.
func TestMissingEntriesAreDamageForEachShard(t *testing.T) {
	s := dividedStore(t)
	s.Edit(func(all []buffer.Entry) []buffer.Entry { return slices.Delete(all, 4, 5) })
	for n := range 2 {
		p, err := openShard(t, s, n, buffer.Options{})
		if err == nil {
			_, err = readShard(t, p)
		}
		if !errors.Is(err, buffer.ErrGap) {
			t.Errorf("shard %d reports %v, want %v", n, err, buffer.ErrGap)
		}
		var reported []uint64
		p, err = openShard(t, s, n, buffer.Options{OnCorrupt: func(seq uint64, _ []byte, _ error) error { reported = append(reported, seq); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		got, err := readShard(t, p)
		if want := map[int][]uint64{0: {2, 4, 6, 8, 10}, 1: {1, 3, 7, 9}}[n]; err != nil || !slices.Equal(got, want) || !slices.Contains(reported, 5) {
			t.Errorf("shard %d gives %v (%v) and reports %v, want %v and 5", n, got, err, reported, want)
		}
	}
}

// TestLostEndStopsEveryShard: a store loses its end under a writer and two readers, and gives the sequences again. No reader passes an entry of its shard for one that it has read, none
// removes anything, and after a start each message of the new end is read, and none of it was removed because of what another shard had saved before.
func TestLostEndStopsEveryShard(t *testing.T) {
	s := dividedStore(t)
	drivers := []buffer.Driver{s.Open().(buffer.Sharded).Shard(0), s.Open().(buffer.Sharded).Shard(1)}
	all, err := buffer.OpenShards(t.Context(), drivers, buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for n, p := range all {
		if got, err := readShard(t, p); err != nil || len(got) != 5 {
			t.Fatalf("shard %d gives %v, %v", n, got, err)
		}
		if err := p.Trim(t.Context()); n == 0 && err != nil { // one saves that it has done all
			t.Fatal(err)
		}
	}
	s.LoseEnd(5)
	var e flow.Encoder
	e.Reset(11)
	e.Append(&flow.Message{ID: "11", Pos: 11, Value: []byte("x")})
	out, err := all[0].Writer.WriteTo(t.Context(), 0, &flow.Block{Lane: "a/0", Lo: 11, Hi: 11, Watermark: flow.NoWatermark}, &e)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Wait(t.Context()); !errors.Is(err, buffer.ErrLostEnd) {
		t.Fatalf("a write into the lost end: %v, want %v", err, buffer.ErrLostEnd)
	}
	for n, p := range all {
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := p.Read(short); !errors.Is(err, buffer.ErrLostEnd) {
			t.Errorf("shard %d goes on: %v", n, err)
		}
		cancel()
	}
	// The other shard begins first, and may remove nothing because of what this one has saved of the lost end.
	accept := buffer.Options{OnCorrupt: func(uint64, []byte, error) error { return nil }}
	other, err := openShard(t, s, 1, accept)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readShard(t, other); err != nil {
		t.Fatal(err)
	}
	if err := other.Trim(t.Context()); err != nil {
		t.Fatal(err)
	}
	one, err := openShard(t, s, 0, accept)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readShard(t, one); err != nil || !slices.Contains(got, 11) {
		t.Errorf("the shard gives %v (%v), want 11 among it", got, err)
	}
}

// TestShardsTogetherSaveNoMoreThanAFew: the interval grows with the number of shards.
func TestShardsTogetherSaveNoMoreThanAFew(t *testing.T) {
	const every = 200 * time.Millisecond
	for n, want := range map[int]time.Duration{0: every, 1: every, 4: every, 8: 400 * time.Millisecond, 12: 600 * time.Millisecond, 20: time.Second, 64: time.Second} {
		if got := buffer.SpacedBy(every, n); got != want {
			t.Errorf("with %d shards a state is saved every %v, want %v", n, got, want)
		}
	}
}
