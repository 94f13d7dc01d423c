// Package sinktest is the suite that every sink driver passes, against its real counterpart.
package sinktest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// A Harness is one new sink, to which nothing was written.
type Harness struct {
	// Open opens it, or opens it again as a new process would, after the last writer was closed.
	Open func(t *testing.T) sink.Writer
	// Delivered returns the payloads that arrived so far, in their order. nil for a sink that keeps none.
	Delivered func(t *testing.T) []string
	// ExactlyOnce says that writing again adds nothing.
	ExactlyOnce bool
}

// Run runs the suite. make is called for each subtest: they share nothing.
func Run(t *testing.T, makeHarness func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"what is written arrives, in order":      arrives,
		"lanes are written at the same time":     lanes,
		"writing again loses nothing":            again,
		"regrouped after a restart":              regrouped,
		"ids of lanes without positions":         byID,
		"a block without messages":               empty,
		"a context that has ended":               cancelled,
		"a block is left as it was":              untouched,
		"closing twice does no harm":             closedTwice,
		"messages of all sizes and many at once": sizes,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, makeHarness(t))
		})
	}
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return c
}

// Block makes the block of the positions lo to hi of a lane. The payload of a message is its id.
func Block(lane string, lo, hi, floor uint64) *flow.Block {
	b := &flow.Block{Lane: lane, Lo: lo, Hi: hi, Floor: floor, ByID: strings.HasPrefix(lane, "byid")}
	for p := lo; p <= hi; p++ {
		id := fmt.Sprintf("%s/%d", lane, p)
		b.Messages = append(b.Messages, flow.Message{
			ID: id, Pos: p, Value: []byte(id), Keys: []string{"k"}, EventTime: int64(p) * 1e9, Ingested: 1,
			Headers: flow.AppendHeader(nil, "name", "value"),
		})
	}
	return b
}

func write(t *testing.T, w sink.Writer, b *flow.Block) {
	t.Helper()
	if results, err := w.Write(ctx(t), b); err != nil || results != nil {
		t.Fatalf("write %s %d-%d: %v, %v", b.Lane, b.Lo, b.Hi, results, err)
	}
}

func shut(t *testing.T, w sink.Writer) {
	t.Helper()
	if err := w.Close(ctx(t)); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// want fails unless lo to hi of the lane arrived, in order; once says that each did just once.
func (h Harness) want(t *testing.T, lane string, lo, hi uint64, once bool) {
	t.Helper()
	if h.Delivered == nil {
		return
	}
	next := lo
	var n uint64
	for _, got := range h.Delivered(t) {
		if !strings.HasPrefix(got, lane+"/") {
			continue
		}
		n++
		if next <= hi && got == fmt.Sprintf("%s/%d", lane, next) {
			next++
		}
	}
	if next != hi+1 {
		t.Fatalf("%s/%d did not arrive, or not after the one before it", lane, next)
	}
	if (once || h.ExactlyOnce) && n != hi-lo+1 {
		t.Fatalf("%s: %d messages arrived, want %d", lane, n, hi-lo+1)
	}
}

func arrives(t *testing.T, h Harness) {
	w := h.Open(t)
	for p := uint64(1); p <= 100; p += 10 {
		write(t, w, Block("in/0", p, p+9, p-1))
	}
	shut(t, w)
	h.want(t, "in/0", 1, 100, true)
}

func lanes(t *testing.T, h Harness) {
	w := h.Open(t)
	const n = 6
	var writers sync.WaitGroup
	for i := range n {
		writers.Go(func() {
			lane := fmt.Sprintf("in/%d", i)
			for p := uint64(1); p <= 60; p += 3 {
				if results, err := w.Write(ctx(t), Block(lane, p, p+2, p-1)); err != nil || results != nil {
					t.Errorf("write: %v, %v", results, err)
				}
			}
		})
	}
	writers.Wait()
	shut(t, w)
	for i := range n {
		h.want(t, fmt.Sprintf("in/%d", i), 1, 60, true)
	}
}

func again(t *testing.T, h Harness) {
	w := h.Open(t)
	for range 2 {
		write(t, w, Block("in/0", 1, 10, 0))
		write(t, w, Block("in/0", 11, 20, 0))
	}
	shut(t, w)
	h.want(t, "in/0", 1, 20, false)
}

func regrouped(t *testing.T, h Harness) {
	w := h.Open(t)
	write(t, w, Block("in/0", 1, 10, 0))
	write(t, w, Block("in/0", 11, 15, 0))
	write(t, w, Block("in/1", 1, 7, 0))
	shut(t, w)
	w = h.Open(t)
	write(t, w, Block("in/0", 5, 13, 4))
	write(t, w, Block("in/0", 14, 30, 4))
	write(t, w, Block("in/1", 7, 9, 0))
	shut(t, w)
	w = h.Open(t)
	write(t, w, Block("in/0", 20, 40, 19))
	shut(t, w)
	h.want(t, "in/0", 1, 40, false)
	h.want(t, "in/1", 1, 9, false)
}

func byID(t *testing.T, h Harness) {
	w := h.Open(t)
	write(t, w, Block("byid/0", 1, 10, 0))
	shut(t, w)
	w = h.Open(t)
	b := Block("byid/0", 5, 20, 0)
	b.Lo, b.Hi = 1, 16 // positions mean nothing here
	write(t, w, b)
	shut(t, w)
	h.want(t, "byid/0", 1, 20, false)
}

func empty(t *testing.T, h Harness) {
	w := h.Open(t)
	write(t, w, &flow.Block{Lane: "in/0", Lo: 1, Hi: 10})
	write(t, w, Block("in/0", 11, 12, 10))
	shut(t, w)
	h.want(t, "in/0", 11, 12, true)
}

func cancelled(t *testing.T, h Harness) {
	w := h.Open(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Write(gone, Block("in/0", 1, 5, 0)); err == nil && h.Delivered != nil {
		h.want(t, "in/0", 1, 5, true) // done all the same: allowed
	}
	write(t, w, Block("in/0", 1, 5, 0))
	shut(t, w)
	h.want(t, "in/0", 1, 5, false)
}

func untouched(t *testing.T, h Harness) {
	w := h.Open(t)
	write(t, w, Block("in/0", 1, 5, 0))
	b := Block("in/0", 3, 8, 0)
	before := slices.Clone(b.Messages)
	write(t, w, b)
	if len(b.Messages) != len(before) {
		t.Fatalf("the block has %d messages after the write, had %d", len(b.Messages), len(before))
	}
	for i := range before {
		if b.Messages[i].ID != before[i].ID || string(b.Messages[i].Value) != string(before[i].Value) {
			t.Fatalf("message %d was %v and is %v", i, before[i], b.Messages[i])
		}
	}
	shut(t, w)
}

func closedTwice(t *testing.T, h Harness) {
	w := h.Open(t)
	shut(t, w)
	shut(t, w)
}

func sizes(t *testing.T, h Harness) {
	w := h.Open(t)
	b := &flow.Block{Lane: "in/0", Lo: 1, Hi: 2000}
	for p := b.Lo; p <= b.Hi; p++ {
		id := fmt.Sprintf("in/0/%d", p)
		b.Messages = append(b.Messages, flow.Message{ID: id, Pos: p, Value: []byte(id)})
	}
	write(t, w, b)
	large := &flow.Block{Lane: "large", Lo: 1, Hi: 1}
	large.Messages = []flow.Message{{ID: "large/1", Pos: 1, Value: []byte("large/" + strings.Repeat("x", 200_000))}}
	write(t, w, large)
	shut(t, w)
	h.want(t, "in/0", 1, 2000, true)
	if h.Delivered != nil && !slices.Contains(h.Delivered(t), string(large.Messages[0].Value)) {
		t.Fatal("the large message did not arrive whole")
	}
}
