package buffertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/flow"
)

// Cases in which a partition has several shards.

// divided opens the store with so many shards, as a new process would; false for a store whose partitions have none.
func divided(t *testing.T, h Harness, shards int) (buffer.Sharded, bool) {
	t.Helper()
	if h.Divide == nil {
		return nil, false
	}
	h.Divide(t, shards)
	d, ok := h.Open(t).(buffer.Sharded)
	return d, ok && d.Shards() == shards
}

// openShard opens one shard in a process of its own.
func openShard(t *testing.T, h Harness, n, of int, opt buffer.Options) *buffer.Partition {
	t.Helper()
	opt.Name = "test"
	p, err := buffer.OpenShard(ctx(t), h.Open(t).(buffer.Sharded).Shard(n), n, of, opt)
	if err != nil {
		t.Fatalf("open shard %d: %v", n, err)
	}
	return p
}

// openShards opens all shards in one process.
func openShards(t *testing.T, d buffer.Sharded, opt buffer.Options) []*buffer.Partition {
	t.Helper()
	opt.Name = "test"
	var drivers []buffer.Driver
	for n := range d.Shards() {
		drivers = append(drivers, d.Shard(n))
	}
	all, err := buffer.OpenShards(ctx(t), drivers, opt)
	if err != nil {
		t.Fatalf("open shards: %v", err)
	}
	return all
}

// writeTo writes one message to a shard.
func writeTo(t *testing.T, w *buffer.Writer, shard int, lane string, pos uint64) {
	t.Helper()
	var e flow.Encoder
	e.Reset(pos)
	e.Append(&flow.Message{ID: fmt.Sprintf("%s/%d", lane, pos), Pos: pos, Value: []byte("x")})
	h := &flow.Block{Lane: lane, Lo: pos, Hi: pos, ByID: lane == "byid", Watermark: flow.NoWatermark}
	out, err := w.WriteTo(ctx(t), shard, h, &e)
	if err == nil {
		err = out.Wait(ctx(t))
	}
	if err != nil {
		t.Fatalf("write %d to shard %d: %v", pos, shard, err)
	}
}

// next reads one block.
func next(t *testing.T, p *buffer.Partition) *buffer.Delivery {
	t.Helper()
	d, err := p.Read(ctx(t))
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return d
}

// positionOf reads one block of one message, finishes it, and returns the position of the message.
func positionOf(t *testing.T, p *buffer.Partition) uint64 {
	t.Helper()
	d := next(t, p)
	p.Done(ctx(t), d)
	return d.Block.Messages[0].Pos
}

// trim lets a reader remove what it may. What the others have saved may become known to it a moment later.
func trim(t *testing.T, p *buffer.Partition) {
	t.Helper()
	if err := p.Trim(ctx(t)); err != nil {
		t.Fatalf("trim: %v", err)
	}
}

func firstStored(t *testing.T, h Harness) uint64 {
	t.Helper()
	b, err := h.Open(t).Bounds(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	return b.First
}

// empty reports whether nothing is to be read.
func empty(t *testing.T, p *buffer.Partition) bool {
	t.Helper()
	short, cancel := context.WithTimeout(ctx(t), 100*time.Millisecond)
	defer cancel()
	d, err := p.Read(short)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
	return d == nil
}

// onceOverShards: messages of a lane go to three shards, and the same lane and range may go to several of them. Each comes out of its shard, in order, once, also after a start of all readers.
func onceOverShards(t *testing.T, h Harness) {
	const shards, messages = 3, 60
	d, ok := divided(t, h, shards)
	if !ok {
		return
	}
	all := openShards(t, d, buffer.Options{})
	for pos := uint64(1); pos <= messages; pos++ {
		writeTo(t, all[0].Writer, int(pos%shards), "a/0", pos)
		writeTo(t, all[0].Writer, int((pos+1)%shards), "a/0", pos) // as where two edges lead to one vertex
		writeTo(t, all[0].Writer, int(pos%shards), "a/0", pos)     // again: it adds nothing
	}
	if n := all[0].Writer.Pending(); n != 2*messages {
		t.Errorf("%d messages are pending in the partition, want %d", n, 2*messages)
	}
	var reading sync.WaitGroup
	got := make([][]uint64, shards)
	for n, p := range all {
		reading.Go(func() {
			for len(got[n]) < 2*messages/shards/2 {
				got[n] = append(got[n], positionOf(t, p))
			}
		})
	}
	reading.Wait()
	for _, p := range all { // what they did is saved
		if err := p.Close(ctx(t)); err != nil {
			t.Fatal(err)
		}
	}
	d, _ = divided(t, h, shards)
	all = openShards(t, d, buffer.Options{})
	for n, p := range all {
		for len(got[n]) < 2*messages/shards {
			got[n] = append(got[n], positionOf(t, p))
		}
		if !empty(t, p) || p.Pending() != 0 {
			t.Errorf("shard %d has more than was written, or %d messages pending", n, p.Pending())
		}
		var want []uint64
		for pos := uint64(1); pos <= messages; pos++ {
			if int(pos%shards) == n || int((pos+1)%shards) == n {
				want = append(want, pos)
			}
		}
		if !slices.Equal(got[n], want) {
			t.Errorf("shard %d gives %v, want %v", n, got[n], want)
		}
	}
	for _, p := range all {
		if end, err := p.ReadEnd(ctx(t)); err != nil || p.ReadFloor() != end {
			t.Errorf("all is done up to %d of %d (%v)", p.ReadFloor(), end, err)
		}
	}
	eventually(t, "all is removed once every shard has saved that it is done", func() bool {
		for _, p := range all {
			trim(t, p)
		}
		return firstStored(t, h) == 2*messages+1
	})
}

// neverAboveSiblings: a shard has done all of its entries and passed those of another, which was never read. None of that is removed. When the reader of the other one is killed
// with work in flight, its successor finds everything.
func neverAboveSiblings(t *testing.T, h Harness) {
	d, ok := divided(t, h, 2)
	if !ok {
		return
	}
	w, err := buffer.OpenWriter(ctx(t), h.Open(t), buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.(buffer.Driver).Close() }()
	for pos := uint64(1); pos <= 10; pos++ {
		writeTo(t, w, int(pos%2), "a/0", pos)
	}
	even := openShard(t, h, 0, 2, buffer.Options{})
	for pos := uint64(2); pos <= 10; pos += 2 {
		if got := positionOf(t, even); got != pos {
			t.Fatalf("the even shard gives %d, want %d", got, pos)
		}
	}
	for range 3 { // what it knows of the other one may come late
		trim(t, even)
		time.Sleep(20 * time.Millisecond) // for nothing to happen
	}
	if first := firstStored(t, h); first != 1 {
		t.Fatalf("blocks before %d were removed, and no reader of the other shard has ever begun", first)
	}
	odd := openShard(t, h, 1, 2, buffer.Options{})
	odd.Done(ctx(t), next(t, odd))
	trim(t, odd)
	kept := next(t, odd) // and now it is killed, with 3 in flight; 1 is done and saved
	eventually(t, "what both have done is removed", func() bool { trim(t, even); return firstStored(t, h) == 2 })
	odd = openShard(t, h, 1, 2, buffer.Options{})
	again := next(t, odd)
	if again.Number != kept.Number || again.Block.Messages[0].Pos != 3 {
		t.Errorf("the successor is given position %d as block %d, want 3 as block %d", again.Block.Messages[0].Pos, again.Number, kept.Number)
	}
	odd.Done(ctx(t), again)
	for pos := uint64(5); pos <= 9; pos += 2 {
		if got := positionOf(t, odd); got != pos {
			t.Errorf("the successor gives %d, want %d", got, pos)
		}
	}
	if !empty(t, odd) { // it passes the last one, which is of the other shard
		t.Error("the successor is given a block too many")
	}
	eventually(t, "everything is removed", func() bool { trim(t, odd); trim(t, even); return firstStored(t, h) == 11 })
}

// roomOfShards: a writer in another process counts what is pending in all shards, by any process, against the limit of the partition.
func roomOfShards(t *testing.T, h Harness) {
	if _, ok := divided(t, h, 2); !ok {
		return
	}
	w := elsewhere(t, h, buffer.Options{MaxLength: 10, UsageLimit: 60})
	for pos := uint64(1); pos <= 6; pos++ {
		writeTo(t, w, int(pos%2), "a/0", pos)
	}
	isFull(t, w)
	even, odd := openShard(t, h, 0, 2, buffer.Options{SaveEvery: 5 * time.Millisecond}), openShard(t, h, 1, 2, buffer.Options{SaveEvery: 5 * time.Millisecond})
	run(t, even.Run)
	run(t, odd.Run)
	if even.Pending() != 3 || odd.Pending() != 3 {
		t.Errorf("%d and %d messages are pending in the shards, want 3 and 3", even.Pending(), odd.Pending())
	}
	_ = positionOf(t, odd)
	eventually(t, "the writer sees that one message is done", func() bool { return w.Pending() == 5 })
	writeTo(t, w, 0, "a/0", 8)
	isFull(t, w)
	for range 4 {
		_ = positionOf(t, even)
	}
	eventually(t, "the writer sees that one shard is empty", func() bool { return w.Pending() == 2 })
	if err := w.WaitForRoom(ctx(t)); err != nil {
		t.Fatal(err)
	}
}

// idsOfShards: ids of lanes without positions are kept for their window, and no other shard removes the blocks that have them.
func idsOfShards(t *testing.T, h Harness) {
	d, ok := divided(t, h, 2)
	if !ok {
		return
	}
	all := openShards(t, d, buffer.Options{})
	for pos := uint64(1); pos <= 3; pos++ {
		writeTo(t, all[0].Writer, 0, "byid", pos)
		writeTo(t, all[0].Writer, 1, "a/0", pos)
	}
	for range 3 {
		_, _ = positionOf(t, all[0]), positionOf(t, all[1])
	}
	for range 3 { // the first shard saves that it needs them, and the second one tries to remove them
		trim(t, all[0])
		trim(t, all[1])
	}
	if first := firstStored(t, h); first != 1 {
		t.Fatalf("blocks before %d were removed within the window of their ids", first)
	}
	for _, p := range all {
		if err := p.Close(ctx(t)); err != nil {
			t.Fatal(err)
		}
	}
	if h.ForgetIDs != nil {
		h.ForgetIDs(t)
	}
	d, _ = divided(t, h, 2)
	all = openShards(t, d, buffer.Options{})
	writeTo(t, all[0].Writer, 0, "byid", 2)
	if !empty(t, all[0]) {
		t.Error("a message that was written again under its id is read again")
	}
}

// shardsStay: a log keeps the number of shards that it was created with.
func shardsStay(t *testing.T, h Harness) {
	d, ok := divided(t, h, 4)
	if !ok {
		return
	}
	writeTo(t, openShards(t, d, buffer.Options{})[0].Writer, 3, "a/0", 1)
	for _, other := range []int{1, 8} {
		h.Divide(t, other)
		if n := h.Open(t).(buffer.Sharded).Shards(); n != 4 {
			t.Errorf("opened for %d shards, it has %d, want the 4 that it was created with", other, n)
		}
	}
	c, err := buffer.Inspect(ctx(t), h.Open(t))
	if err != nil {
		t.Fatal(err)
	}
	if c.Messages != 1 || len(c.Shards) != 4 || c.Shards[3].Messages != 1 {
		t.Errorf("%d messages are counted, in the shards %+v", c.Messages, c.Shards)
	}
}
