// Package buffertest is the suite that every buffer driver passes, against its real store.
package buffertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/flow"
)

// A Harness opens drivers on one new, empty store.
type Harness struct {
	// Open opens the store again, as a new process would.
	Open func(t *testing.T) buffer.Driver
	// Restart kills the store (SIGKILL or the like) and starts it again; nil if it cannot die.
	Restart func(t *testing.T)
	// Cursors are what reads the store at the moment, as far as the store knows it; nil if it does not.
	Cursors func(t *testing.T) []string
	// ForgetIDs makes the store forget its own deduplication, as time would; nil if it cannot be done.
	ForgetIDs func(t *testing.T)
	// Divide makes Open create the partition with so many shards; nil for stores whose partitions have none. One that does not do so passes without these cases.
	Divide func(t *testing.T, shards int)
}

// Run runs the suite. make is called for each subtest: they share nothing.
func Run(t *testing.T, makeHarness func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"blocks come out in order and once":           inOrder,
		"what is not done comes again":                unfinishedComesAgain,
		"writing again adds nothing":                  writeAgain,
		"writing again adds nothing after forgetting": writeAgainForgotten,
		"a regrouped rewrite adds only what is new":   regrouped,
		"trimming forgets nothing":                    trimming,
		"large blocks are put together":               largeBlocks,
		"pending is counted in messages":              pending,
		"writers wait for room":                       room,
		"many lanes write at once":                    manyLanes,
		"ids of lanes without positions":              byID,
		"a killed store loses nothing":                killed,
		"reading ends with its context":               readCancelled,
		"what is stored beside a block is found":      numbers,
		"a block keeps its number":                    numbersOfRestarts,

		"blocks without messages are read in their place and trimmed": blocksWithoutMessages,
		"messages that are consumed leave room and hold the floor":    consumed,

		"each message comes once out of its shard":                        onceOverShards,
		"a shard removes nothing that another one needs":                  neverAboveSiblings,
		"writers count the messages of all shards":                        roomOfShards,
		"ids of a shard are kept whatever others remove":                  idsOfShards,
		"a partition keeps the number of shards that it was created with": shardsStay,

		"a writer opened elsewhere leaves the reader alone":                           writerLeavesReaderAlone,
		"a writer in another process sees room when the reader elsewhere has read":    writerElsewhereSeesRoom,
		"a full buffer blocks writers of other processes and wakes them":              fullForAll,
		"a store that is killed does not confuse writers and reader in two processes": killedWhileFollowed,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, makeHarness(t))
		})
	}
}

func open(t *testing.T, h Harness, opt buffer.Options) *buffer.Partition {
	t.Helper()
	opt.Name = "test"
	p, err := buffer.Open(ctx(t), h.Open(t), opt)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return p
}

// keep runs the upkeep of a partition until the end of the test, as a process does: it notices that entries are stored which the cursor does not give.
func keep(t *testing.T, p *buffer.Partition) {
	c, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("upkeep: %v", err)
		}
	})
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return c
}

// write writes positions lo..hi of a lane, one message each, and waits.
func write(t *testing.T, p writing, lane string, lo, hi, floor uint64) {
	t.Helper()
	if err := tryWrite(ctx(t), p, lane, lo, hi, floor, 10); err != nil {
		t.Fatalf("write %s %d-%d: %v", lane, lo, hi, err)
	}
}

// writing is a Writer, or a Partition.
type writing interface {
	Write(ctx context.Context, h *flow.Block, e *flow.Encoder) (*buffer.Write, error)
}

func tryWrite(ctx context.Context, p writing, lane string, lo, hi, floor uint64, size int) error {
	var e flow.Encoder
	e.Reset(lo)
	for pos := lo; pos <= hi; pos++ {
		e.Append(&flow.Message{ID: fmt.Sprintf("%s/%d", lane, pos), Pos: pos, Value: []byte(strings.Repeat("x", size))})
	}
	w, err := p.Write(ctx, &flow.Block{Lane: lane, Lo: lo, Hi: hi, Floor: floor, ByID: strings.HasPrefix(lane, "byid"), Watermark: flow.NoWatermark}, &e)
	if err != nil {
		return err
	}
	return w.Wait(ctx)
}

// read reads until it has n messages and returns their ids; done says whether they are finished.
func read(t *testing.T, p *buffer.Partition, n int, done bool) (ids []string, last *buffer.Delivery) {
	t.Helper()
	for len(ids) < n {
		d, err := p.Read(ctx(t))
		if err != nil {
			t.Fatalf("read after %d of %d: %v", len(ids), n, err)
		}
		for _, m := range d.Block.Messages {
			ids = append(ids, m.ID)
		}
		if done {
			p.Done(ctx(t), d)
		}
		last = d
	}
	return ids, last
}

// numbers reads what is stored beside a block by way of Find and Scan.
func numbers(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "in/0@x", 1, 1, 0)
	_, first := read(t, p, 1, false)
	d := h.Open(t)
	found, err := d.Find(ctx(t), first.Seq, first.Seq, func(buffer.Entry) bool { return true })
	if err != nil || len(found) != 1 {
		t.Fatalf("find: %d, %v", len(found), err)
	}
	var scanned buffer.Entry
	if err := d.Scan(ctx(t), first.Seq, func(e buffer.Entry) error { scanned = e; return nil }); err != nil {
		t.Fatal(err)
	}
	if base := first.Number - first.Seq; base == 0 || found[0].Base != base || scanned.Base != base {
		t.Errorf("base is %d, Find gives %d, Scan %d", base, found[0].Base, scanned.Base)
	}
	// What the writer knew to be stored tells an entry that took the place of a lost one.
	seq, _, err := d.Submit(ctx(t), buffer.Record{ID: "after", Data: found[0].Data, After: 7}).Wait(ctx(t))
	if err != nil || seq != first.Seq+1 {
		t.Fatalf("stored at %d, %v; want %d", seq, err, first.Seq+1)
	}
	if found, err = d.Find(ctx(t), seq, seq, func(buffer.Entry) bool { return true }); err != nil || len(found) != 1 {
		t.Fatalf("find: %d, %v", len(found), err)
	}
	if err := d.Scan(ctx(t), seq, func(e buffer.Entry) error { scanned = e; return nil }); err != nil {
		t.Fatal(err)
	}
	if found[0].After != 7 || scanned.After != 7 {
		t.Errorf("after is 7, Find gives %d, Scan %d", found[0].After, scanned.After)
	}
}

// numbersOfRestarts reads a block again in another process.
func numbersOfRestarts(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "in/0@x", 1, 1, 0)
	_, first := read(t, p, 1, false)
	p = open(t, h, buffer.Options{})
	write(t, p, "in/0@x", 2, 2, 0)
	_, again := read(t, p, 1, true)
	_, second := read(t, p, 1, true)
	if again.Number != first.Number || second.Number <= first.Number {
		t.Errorf("the blocks have numbers %d and %d, and the first had %d", again.Number, second.Number, first.Number)
	}
}

// nothingMore fails if another message comes, which it shows by sending one more and getting that next.
func nothingMore(t *testing.T, p *buffer.Partition) {
	t.Helper()
	write(t, p, "end/0", 1, 1, 0)
	ids, _ := read(t, p, 1, true)
	if ids[0] != "end/0/1" {
		t.Fatalf("%v came, which had been read before", ids)
	}
}

func want(t *testing.T, got []string, lane string, lo, hi int) {
	t.Helper()
	if len(got) != hi-lo+1 {
		t.Fatalf("got %d messages, want %d: %v", len(got), hi-lo+1, got)
	}
	for i, id := range got {
		if w := fmt.Sprintf("%s/%d", lane, lo+i); id != w {
			t.Fatalf("message %d is %s, want %s", i, id, w)
		}
	}
}

func inOrder(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	for lo := uint64(1); lo <= 91; lo += 10 {
		write(t, p, "a/0", lo, lo+9, lo-1)
	}
	ids, _ := read(t, p, 100, true)
	want(t, ids, "a/0", 1, 100)
	nothingMore(t, p)
}

func unfinishedComesAgain(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "a/0", 1, 10, 0)
	write(t, p, "a/0", 11, 20, 10)
	write(t, p, "a/0", 21, 30, 20)
	read(t, p, 10, true)
	read(t, p, 20, false)
	if err := p.Close(ctx(t)); err != nil {
		t.Fatal(err)
	}
	p = open(t, h, buffer.Options{})
	ids, _ := read(t, p, 20, true)
	want(t, ids, "a/0", 11, 30)
	nothingMore(t, p)
}

func writeAgain(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "a/0", 1, 10, 0)
	write(t, p, "a/0", 11, 20, 0)
	write(t, p, "a/0", 1, 10, 0)
	write(t, p, "a/0", 11, 20, 0)
	ids, _ := read(t, p, 20, true)
	want(t, ids, "a/0", 1, 20)
	nothingMore(t, p)
	if p.Pending() != 0 {
		t.Errorf("%d pending when all is done", p.Pending())
	}
}

func writeAgainForgotten(t *testing.T, h Harness) {
	if h.ForgetIDs == nil {
		t.Skip("this store cannot be made to forget")
	}
	for _, trim := range []bool{false, true} {
		p := open(t, h, buffer.Options{})
		write(t, p, "a/0", 1, 10, 0)
		write(t, p, "a/0", 11, 20, 0)
		read(t, p, 20, !trim)
		h.ForgetIDs(t)
		write(t, p, "a/0", 1, 10, 0)
		if trim {
			if err := p.Trim(ctx(t)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		nothingMore(t, p)
		if err := p.Close(ctx(t)); err != nil {
			t.Fatal(err)
		}
		h.ForgetIDs(t)
		p = open(t, h, buffer.Options{})
		write(t, p, "a/0", 11, 20, 0)
		write(t, p, "a/0", 21, 21, 0)
		ids, _ := read(t, p, 1, true)
		want(t, ids, "a/0", 21, 21)
		return
	}
}

func regrouped(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "a/0", 1, 10, 0)
	write(t, p, "a/0", 1, 15, 0) // the same beginning in a larger group: none of its tail may be lost
	write(t, p, "a/0", 8, 20, 0)
	ids, _ := read(t, p, 20, true)
	want(t, ids, "a/0", 1, 20)
	nothingMore(t, p)
}

func trimming(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	for lo := uint64(1); lo <= 100; lo++ {
		write(t, p, "a/0", lo, lo, 0) // the writer promises nothing, so all must be remembered
	}
	read(t, p, 100, true)
	if err := p.Trim(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(ctx(t)); err != nil {
		t.Fatal(err)
	}
	d := h.Open(t)
	if b, err := d.Bounds(ctx(t)); err != nil || b.First != 101 || b.Last != 100 {
		t.Fatalf("after trimming all: %+v, %v", b, err)
	}
	p = open(t, h, buffer.Options{})
	if h.ForgetIDs != nil {
		h.ForgetIDs(t)
	}
	for lo := uint64(1); lo <= 100; lo += 7 {
		write(t, p, "a/0", lo, lo, 0)
	}
	nothingMore(t, p)
}

func largeBlocks(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	size := p.MaxEntry() / 2
	for _, lane := range []string{"a/0", "b/0"} {
		if err := tryWrite(ctx(t), p, lane, 1, 7, 0, size); err != nil {
			t.Fatal(err)
		}
	}
	if p.Pending() != 14 {
		t.Errorf("%d pending, want 14", p.Pending())
	}
	ids, _ := read(t, p, 7, true)
	want(t, ids, "a/0", 1, 7)
	read(t, p, 7, false)
	if err := p.Close(ctx(t)); err != nil {
		t.Fatal(err)
	}
	p = open(t, h, buffer.Options{})
	ids, _ = read(t, p, 7, true)
	want(t, ids, "b/0", 1, 7)
	nothingMore(t, p)
	if p.Pending() != 0 {
		t.Errorf("%d pending when all is done", p.Pending())
	}
}

func pending(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "a/0", 1, 30, 0)
	write(t, p, "a/0", 31, 40, 0)
	read(t, p, 30, true)
	if p.Pending() != 10 {
		t.Fatalf("%d pending, want 10", p.Pending())
	}
	if err := p.Close(ctx(t)); err != nil {
		t.Fatal(err)
	}
	p = open(t, h, buffer.Options{})
	if p.Pending() != 10 {
		t.Fatalf("%d pending after a restart, want 10", p.Pending())
	}
}

func room(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{MaxLength: 100, UsageLimit: 50})
	write(t, p, "a/0", 1, 50, 0)
	short, cancel := context.WithTimeout(ctx(t), 20*time.Millisecond)
	defer cancel()
	if err := p.WaitForRoom(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("room in a full buffer: %v", err)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- p.WaitForRoom(ctx(t)) }()
	read(t, p, 50, true)
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
}

func manyLanes(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	const lanes, each = 8, 50
	var group sync.WaitGroup
	for l := range lanes {
		group.Go(func() {
			for pos := uint64(1); pos <= each; pos++ {
				if err := tryWrite(ctx(t), p, fmt.Sprintf("l%d/0", l), pos, pos, pos-1, 10); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ids, _ := read(t, p, lanes*each, true)
	group.Wait()
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
	}
	nothingMore(t, p)
}

func byID(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "byid/0", 1, 10, 0)
	read(t, p, 10, true)
	if err := p.Close(ctx(t)); err != nil {
		t.Fatal(err)
	}
	p = open(t, h, buffer.Options{})
	if h.ForgetIDs != nil {
		h.ForgetIDs(t)
	}
	write(t, p, "byid/0", 3, 12, 0)
	ids, _ := read(t, p, 2, true)
	want(t, ids, "byid/0", 11, 12)
	nothingMore(t, p)
}

func killed(t *testing.T, h Harness) {
	if h.Restart == nil {
		t.Skip("this store cannot be killed")
	}
	p := open(t, h, buffer.Options{})
	keep(t, p) // a replica that has restarted may give nothing new for as long as it is behind
	const last = 300
	wrote := make(chan error, 1)
	go func() {
		for pos := uint64(1); pos <= last; pos++ {
			if err := tryWrite(ctx(t), p, "a/0", pos, pos, pos-1, 10); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	var ids []string
	for len(ids) < last {
		more, _ := read(t, p, 20, true)
		ids = append(ids, more...)
		if n := len(ids); n == 60 || n == 160 {
			h.Restart(t)
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	want(t, ids, "a/0", 1, last)
	nothingMore(t, p)
}

func readCancelled(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	c, cancel := context.WithCancelCause(ctx(t))
	reason := errors.New("enough")
	ended := make(chan error, 1)
	go func() { _, err := p.Read(c); ended <- err }()
	cancel(reason)
	if err := <-ended; !errors.Is(err, reason) {
		t.Fatalf("Read ended with %v", err)
	}
}
