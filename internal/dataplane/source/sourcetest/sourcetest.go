// Package sourcetest is the suite that every source driver passes, against its real counterpart.
package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// A Harness is one new source, from which nothing was read.
type Harness struct {
	// Open opens it, or opens it again as a new process would, after the last reader was closed.
	Open func(t *testing.T) source.Reader
	// Produce makes the messages from..to-1 come, with the payloads that Payload gives. nil if Open makes Made messages by itself.
	Produce func(t *testing.T, from, to int)
	// Made is the number of messages that a source without Produce makes.
	Made int
	// Forgets says that what is not acknowledged does not come again.
	Forgets bool
	// Finite says that Read returns io.EOF after the last message. Produce is then called once, before Open.
	Finite bool
	// Unordered says that what comes again may come in another order.
	Unordered bool
}

// Payload of the i-th message that Produce makes.
func Payload(i int) string { return fmt.Sprintf("message %06d", i) }

// Run runs the suite. make is called for each subtest: they share nothing.
func Run(t *testing.T, makeHarness func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"each message comes once, with an identity":  once,
		"what was acknowledged does not come again":  acknowledged,
		"what was not acknowledged comes again":      unacknowledged,
		"a context's end loses nothing":              cancelled,
		"reading and acknowledging at the same time": concurrently,
		"closing twice does no harm":                 closedTwice,
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

const many = 300

// begin makes the messages 0..n-1 come and opens the source.
func begin(t *testing.T, h Harness, n int) (source.Reader, int) {
	t.Helper()
	if h.Produce == nil {
		return h.Open(t), h.Made
	}
	if h.Finite {
		h.Produce(t, 0, n)
		return h.Open(t), n
	}
	r := h.Open(t) // some sources only have what comes while they are open
	h.Produce(t, 0, n)
	return r, n
}

// message is what the suite remembers of a message.
type message struct {
	identity, payload string
}

// checker checks batches against the contract of source.Reader.
type checker struct {
	h    Harness
	last map[string]uint64
}

func (c *checker) batch(t *testing.T, b *source.Batch, limit int) []message {
	t.Helper()
	if len(b.Messages) == 0 || len(b.Messages) > limit {
		t.Fatalf("a batch of %d messages with a limit of %d", len(b.Messages), limit)
	}
	if c.last == nil {
		c.last = map[string]uint64{}
	}
	var got []message
	pos := b.Lo
	if !b.ByID {
		if last, ok := c.last[b.Partition]; ok && b.Lo != last+1 {
			t.Fatalf("a batch begins at %d after one that ended at %d", b.Lo, last)
		}
		if b.Lo == 0 || b.Hi < b.Lo {
			t.Fatalf("batch covers %d to %d", b.Lo, b.Hi)
		}
		c.last[b.Partition] = b.Hi
	}
	for i := range b.Messages {
		m := &b.Messages[i]
		checkMessage(t, b, m, pos)
		pos = m.Pos + 1
		got = append(got, message{fmt.Sprintf("%s/%d/%s", b.Partition, m.Pos, m.ID), string(m.Value)})
	}
	return got
}

// checkMessage fails the test unless m can be in the batch at position pos or later.
func checkMessage(t *testing.T, b *source.Batch, m *flow.Message, pos uint64) {
	t.Helper()
	switch {
	case b.ByID && (m.ID == "" || m.Pos != 0):
		t.Fatalf("message of a source without positions has id %q and position %d", m.ID, m.Pos)
	case !b.ByID && (m.ID != "" || m.Pos < pos || m.Pos > b.Hi):
		t.Fatalf("message has id %q and position %d, in a batch from %d to %d after %d", m.ID, m.Pos, b.Lo, b.Hi, pos-1)
	case m.EventTime == 0 || m.Ingested == 0:
		t.Fatalf("message %q has event time %d and was ingested at %d", m.Value, m.EventTime, m.Ingested)
	}
}

// read reads until it has n messages; done acknowledges them.
func (c *checker) read(t *testing.T, r source.Reader, n, limit int, done bool) (got []message, batches []*source.Batch) {
	t.Helper()
	for len(got) < n {
		b, err := r.Read(ctx(t), limit)
		if err != nil {
			t.Fatalf("read after %d of %d messages: %v", len(got), n, err)
		}
		got = append(got, c.batch(t, b, limit)...)
		batches = append(batches, b)
		if done {
			if err := r.Ack(ctx(t), b); err != nil {
				t.Fatalf("ack: %v", err)
			}
		}
	}
	return got, batches
}

func shut(t *testing.T, r source.Reader) {
	t.Helper()
	if err := r.Close(ctx(t)); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// distinct fails unless got are the messages from..to-1 in order, with different identities.
func (c *checker) distinct(t *testing.T, got []message, from, to int) {
	t.Helper()
	if len(got) != to-from {
		t.Fatalf("got %d messages, want %d", len(got), to-from)
	}
	ids, payloads := map[string]bool{}, map[string]bool{}
	for i, m := range got {
		if ids[m.identity] {
			t.Fatalf("two messages are called %s", m.identity)
		}
		ids[m.identity], payloads[m.payload] = true, true
		if c.h.Produce != nil && !c.h.Unordered && m.payload != Payload(from+i) {
			t.Fatalf("message %d is %q", from+i, m.payload)
		}
	}
	for i := from; c.h.Produce != nil && i < to; i++ {
		if !payloads[Payload(i)] {
			t.Fatalf("%q is missing", Payload(i))
		}
	}
}

func once(t *testing.T, h Harness) {
	r, n := begin(t, h, many)
	c := &checker{h: h}
	got, _ := c.read(t, r, n, 7, true)
	c.distinct(t, got, 0, n)
	if h.Finite {
		for range 2 {
			if b, err := r.Read(ctx(t), 7); !errors.Is(err, io.EOF) {
				t.Fatalf("after the last message: %v, %v", b, err)
			}
		}
	}
	if pending, err := r.Pending(ctx(t)); err != nil || pending > 0 {
		t.Fatalf("pending = %d, %v after the last message", pending, err)
	}
	shut(t, r)
}

func acknowledged(t *testing.T, h Harness) {
	r, n := begin(t, h, many)
	c := &checker{h: h}
	first, _ := c.read(t, r, n/2, 50, true)
	if !h.Forgets {
		shut(t, r)
		r = h.Open(t)
	}
	second, _ := c.read(t, r, n-len(first), 50, true)
	shut(t, r)
	if h.Unordered {
		c.distinct(t, append(first, second...), 0, n)
		return
	}
	c.distinct(t, first, 0, len(first))
	c.distinct(t, second, len(first), n)
}

func unacknowledged(t *testing.T, h Harness) {
	if h.Forgets {
		t.Skip("this source forgets what it gave")
	}
	r, n := begin(t, h, many)
	c := &checker{h: h}
	done, _ := c.read(t, r, n/3, 20, true)
	lost, _ := c.read(t, r, n/3, 20, false)
	shut(t, r)
	r = h.Open(t)
	c = &checker{h: h} // positions begin again
	rest, _ := c.read(t, r, n-len(done), 33, true)
	shut(t, r)
	if !h.Unordered {
		c.distinct(t, rest, len(done), n)
	}
	onlyLost(t, h, rest, lost, done)
}

// onlyLost fails the test unless all that was lost is in rest as it was, and nothing that was done is.
func onlyLost(t *testing.T, h Harness, rest, lost, done []message) {
	t.Helper()
	again := map[string]string{}
	for _, m := range rest {
		again[m.identity] = m.payload
	}
	for _, m := range lost {
		payload, ok := again[m.identity]
		if !ok || h.Produce != nil && payload != m.payload {
			t.Fatalf("%s was not acknowledged and did not come again as it was: %q, %q", m.identity, m.payload, payload)
		}
	}
	for _, m := range done {
		if _, ok := again[m.identity]; ok {
			t.Fatalf("%s was acknowledged and came again", m.identity)
		}
	}
}

func cancelled(t *testing.T, h Harness) {
	c := &checker{h: h}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r, n := begin(t, h, many)
	var got []message
	take := func(b *source.Batch) {
		got = append(got, c.batch(t, b, 3)...)
		if err := r.Ack(ctx(t), b); err != nil { // some sources have no more until some are done
			t.Fatalf("ack: %v", err)
		}
	}
	for turn := 0; len(got) < n; turn++ {
		if b, err := r.Read(gone, 3); err == nil {
			take(b) // there was something at once: allowed, and not lost
		} else if !errors.Is(err, context.Canceled) {
			t.Fatalf("with a context that ended: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Duration(turn%5)*100*time.Microsecond)
		b, err := r.Read(short, 3)
		cancel()
		switch {
		case err == nil:
			take(b)
		case !errors.Is(err, context.DeadlineExceeded) && !(h.Finite && errors.Is(err, io.EOF)):
			t.Fatalf("with a context that ends: %v", err)
		}
		if len(got) == n {
			break
		}
		b, err = r.Read(ctx(t), 3)
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		take(b)
	}
	c.distinct(t, got, 0, n)
	shut(t, r)
}

func concurrently(t *testing.T, h Harness) {
	r, n := begin(t, h, many)
	c := &checker{h: h}
	toAck := make(chan *source.Batch, n)
	var workers sync.WaitGroup
	workers.Go(func() {
		for b := range toAck {
			if err := r.Ack(ctx(t), b); err != nil {
				t.Errorf("ack: %v", err)
			}
		}
	})
	workers.Go(func() {
		for range 20 {
			if _, err := r.Pending(ctx(t)); err != nil {
				t.Errorf("pending: %v", err)
			}
		}
	})
	var got []message
	for len(got) < n {
		b, err := r.Read(ctx(t), 11)
		if err != nil {
			t.Errorf("read: %v", err)
			break
		}
		got = append(got, c.batch(t, b, 11)...)
		toAck <- b
	}
	close(toAck)
	workers.Wait()
	if t.Failed() {
		return
	}
	c.distinct(t, got, 0, n)
	shut(t, r)
}

func closedTwice(t *testing.T, h Harness) {
	r, _ := begin(t, h, 1)
	shut(t, r)
	shut(t, r)
}
