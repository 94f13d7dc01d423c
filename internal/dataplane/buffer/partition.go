package buffer

import (
	"cmp"
	"context"
	"time"
)

// Partition is both ends of a partition in one process. They share what they know: the writer has room as soon as something is done here, and a store that lost
// its end stops both.
//
// Invariant: both have the same usage and the same tail, so that what the one learns counts for the other at once.
type Partition struct {
	*Writer
	*Reader
}

// Open takes up a partition where its last reader left it, for reading and writing: what was in flight then is delivered again, what was finished is known.
func Open(ctx context.Context, driver Driver, opt Options) (*Partition, error) {
	r, err := OpenReader(ctx, driver, opt)
	if err != nil {
		return nil, err
	}
	w := newWriter(driver, r.opt, r.usage, r.tail)
	w.loseEnd = r.loseEnd
	w.base = newBase(r.tail.known.Load(), r.top, time.Now())
	r.writeBase = w.base
	if r.opt.Shared {
		r.follow = &follower{driver: driver, usage: r.usage, tail: r.tail, retry: r.retrier}
	}
	return &Partition{w, r}, nil
}

// Name is the name of the partition.
func (p *Partition) Name() string { return p.Reader.Name() }

// Pending is the number of messages that are stored or being stored and not done.
func (p *Partition) Pending() int { return p.Reader.Pending() }

// Run keeps the partition in order until ctx ends: see Reader.Run.
func (p *Partition) Run(ctx context.Context) error { return p.Reader.Run(ctx) }

// Health returns what keeps the partition from taking or giving messages, and does not pass at once; nil if nothing does.
func (p *Partition) Health() error { return cmp.Or(p.Reader.Health(), p.Writer.refusedRoom()) }

// Close saves how far the reader came, so that the next one need not look, and closes the driver.
func (p *Partition) Close(ctx context.Context) error { return p.Reader.Close(ctx) }
