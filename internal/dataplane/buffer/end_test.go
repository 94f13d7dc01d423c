package buffer_test

import (
	"context"
	"errors"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
)

func readEnd(t *testing.T, p *buffer.Partition) uint64 {
	t.Helper()
	end, err := p.ReadEnd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// TestFloorMeetsEndOnceAllIsDone: floor and end tell when a partition is empty, also after a restart, and whatever the count of pending messages says.
func TestFloorMeetsEndOnceAllIsDone(t *testing.T) {
	s := membuffer.NewStore(small)
	p := open(t, s, -1)
	if floor, end := p.ReadFloor(), readEnd(t, p); floor != end {
		t.Fatalf("new: floor %d, end %d", floor, end)
	}
	for i := range uint64(3) {
		if err := write(p, "lane", i*2, i*2+1, 0, 10); err != nil {
			t.Fatal(err)
		}
	}
	if floor, end := p.ReadFloor(), readEnd(t, p); floor >= end || p.KnownEnd() != end {
		t.Fatalf("written: floor %d, end %d, known end %d", floor, end, p.KnownEnd())
	}
	moved := p.FloorMoved()
	d, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.Done(t.Context(), d)
	select {
	case <-moved:
	default:
		t.Error("the floor moved, and nobody was told")
	}
	p = open(t, s, -1) // another process takes it up
	if floor, end := p.ReadFloor(), readEnd(t, p); floor >= end {
		t.Fatalf("opened again: floor %d, end %d", floor, end)
	}
	// The same blocks once more: the reader drops them, but they are entries, which it must have dropped before the partition is empty.
	if err := write(p, "lane", 0, 1, 0, 10); err != nil {
		t.Fatal(err)
	}
	rest(t, p)
	if floor, end := p.ReadFloor(), readEnd(t, p); floor != end {
		t.Fatalf("all done: floor %d, end %d", floor, end)
	}
}

// TestPiecesOfABlockThatNeverBecomesWholeDoNotKeepARunFromEnding: a writer died within a block, and has written it otherwise since.
func TestPiecesOfABlockThatNeverBecomesWholeDoNotKeepARunFromEnding(t *testing.T) {
	s := membuffer.NewStore(small)
	p := open(t, s, 1) // one piece is stored, and then the process dies
	if err := write(p, "lane", 0, 9, 0, 300); !errors.Is(err, buffer.ErrClosed) {
		t.Fatalf("error %v", err)
	}
	p = open(t, s, -1)
	if floor, end := p.ReadFloor(), readEnd(t, p); floor >= end {
		t.Fatalf("not read yet: floor %d, end %d", floor, end)
	}
	rest(t, p)
	if floor, end := p.ReadFloor(), readEnd(t, p); floor != end {
		t.Fatalf("read: floor %d, end %d", floor, end)
	}
	p.GiveUpPieces(t.Context())
	if got, end := p.Floor(), readEnd(t, p); got != end {
		t.Errorf("given up: floor %d, end %d", got, end)
	}
}

// TestStoreThatLostItsEndIsNoEnd: a store that ends before what it had acknowledged is not taken for one that is empty.
func TestStoreThatLostItsEndIsNoEnd(t *testing.T) {
	d := &forgetful{Driver: membuffer.NewStore(small).Open()}
	p, err := buffer.Open(context.Background(), d, buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(p, "lane", 0, 1, 0, 10); err != nil {
		t.Fatal(err)
	}
	rest(t, p)
	d.lost = true
	if end, err := p.ReadEnd(t.Context()); !errors.Is(err, buffer.ErrGap) {
		t.Errorf("end %d, error %v, want %v", end, err, buffer.ErrGap)
	}
}

// forgetful says that nothing is stored.
type forgetful struct {
	buffer.Driver
	lost bool
}

func (f *forgetful) Bounds(ctx context.Context) (buffer.Bounds, error) {
	if f.lost {
		return buffer.Bounds{First: 1}, nil
	}
	return f.Driver.Bounds(ctx)
}
