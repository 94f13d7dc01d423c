package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/levada-io/levada/sdk"
)

// counter is a source of the numbers below count. Its offsets are the numbers.
type counter struct {
	count int

	mu   sync.Mutex
	next int
	// again are numbers to be read once more, in order.
	again []int
	// open are numbers that were read and neither acknowledged nor given back.
	open map[int]bool
	// more is closed, and replaced, when there is more to read.
	more chan struct{}
}

func newCounter(count int) *counter {
	return &counter{count: count, open: make(map[int]bool), more: make(chan struct{})}
}

// Reopen is called when the platform begins to read, the first time or after a break.
func (c *counter) Reopen(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repeat(slices.Collect(maps.Keys(c.open)))
	return nil
}

// repeat makes open numbers be read again. The caller holds mu.
func (c *counter) repeat(numbers []int) {
	for _, n := range numbers {
		if c.open[n] {
			delete(c.open, n)
			c.again = append(c.again, n)
		}
	}
	slices.Sort(c.again)
	close(c.more)
	c.more = make(chan struct{})
}

func (c *counter) Read(ctx context.Context, max int) ([]sdk.Record, error) {
	for {
		records, more := c.take(max)
		if len(records) > 0 {
			return records, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *counter) take(max int) ([]sdk.Record, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var records []sdk.Record
	for len(records) < max {
		var n int
		switch {
		case len(c.again) > 0:
			n, c.again = c.again[0], c.again[1:]
		case c.next < c.count:
			n = c.next
			c.next++
		default:
			return records, c.more
		}
		c.open[n] = true
		text := strconv.AppendInt(nil, int64(n), 10)
		records = append(records, sdk.Record{
			Offset: sdk.Offset{Value: text, Partition: sdk.Replica()},
			Value:  text,
		})
	}
	return records, c.more
}

func (c *counter) Ack(_ context.Context, offsets []sdk.Offset) error {
	numbers, err := parse(offsets)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range numbers {
		delete(c.open, n)
	}
	return nil
}

func (c *counter) Nack(_ context.Context, offsets []sdk.Offset, _ sdk.NackOptions) error {
	numbers, err := parse(offsets)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repeat(numbers)
	return nil
}

func (c *counter) Pending(context.Context) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(c.count - c.next + len(c.again)), nil
}

func parse(offsets []sdk.Offset) ([]int, error) {
	numbers := make([]int, len(offsets))
	for i, offset := range offsets {
		n, err := strconv.Atoi(string(offset.Value))
		if err != nil {
			return nil, fmt.Errorf("offset %q is not one of ours", offset.Value)
		}
		numbers[i] = n
	}
	return numbers, nil
}
