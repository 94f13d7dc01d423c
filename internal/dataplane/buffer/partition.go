package buffer

import (
	"cmp"
	"context"
	"time"
)

// Partition is both ends of a partition in one process. They share what they know: the writer has room as soon as something is done here, and a store that lost
// its end stops both. Where the partition is divided into shards, the Reader is that of one shard, and the Writer is that of all.
//
// Invariant: the Reader has the usage of its shard in common with the Writer, and what is known of the end of the log, so that what the one learns counts for the other at once.
type Partition struct {
	*Writer // nil for a shard that was opened for reading alone
	*Reader
}

// Open takes up a partition where its last reader left it, for reading and writing: what was in flight then is delivered again, what was finished is known.
func Open(ctx context.Context, driver Driver, opt Options) (*Partition, error) {
	r, err := OpenReader(ctx, driver, opt)
	if err != nil {
		return nil, err
	}
	return bothEnds(driver, []*Reader{r}, []Usage{driver})[0], nil
}

// OpenShards is Open for all shards of a partition in one process: drivers are those of the shards, in order. The partitions that it returns, one for each, have one Writer. If it fails, the
// readers that were opened save nothing more; the caller closes the drivers.
func OpenShards(ctx context.Context, drivers []Driver, opt Options) (all []*Partition, err error) {
	left := newRoom(opt.withDefaults().limit())
	var readers []*Reader
	var usages []Usage
	for i, d := range drivers {
		r, err := openReader(ctx, d, opt, left, i, len(drivers))
		if err != nil {
			return nil, err
		}
		readers, usages = append(readers, r), append(usages, d)
	}
	return bothEnds(drivers[0], readers, usages), nil
}

// OpenShard opens one shard of a partition for reading, in a process that may read others of its shards apart from it. It has no Writer.
func OpenShard(ctx context.Context, driver Driver, shard, of int, opt Options) (*Partition, error) {
	r, err := openReader(ctx, driver, opt, newRoom(opt.withDefaults().limit()), shard, of)
	if err != nil {
		return nil, err
	}
	r.followOthers(driver)
	return &Partition{Reader: r}, nil
}

// bothEnds makes partitions of the readers of all shards.
func bothEnds(driver WriterDriver, readers []*Reader, drivers []Usage) (all []*Partition) {
	first := readers[0]
	usages := make([]*usage, len(readers))
	for i, r := range readers {
		usages[i] = r.usage
	}
	w := newWriter(driver, first.opt, usages, first.tail)
	known, top := uint64(0), uint64(0)
	for _, r := range readers {
		known, top = max(known, r.tail.known.Load()), max(top, r.top)
	}
	w.base = newBase(known, top, time.Now())
	w.loseEnd = func(ctx context.Context, from uint64, why error) (err error) {
		for _, r := range readers {
			err = cmp.Or(err, r.loseEnd(ctx, from, why))
		}
		return err
	}
	for i, r := range readers {
		if i > 0 {
			w.others = append(w.others, r.tail)
		}
		r.writeBase = w.base
		r.followOthers(drivers[i])
		all = append(all, &Partition{w, r})
	}
	return all
}

// followOthers makes the reader learn of what others write at once, if it was asked to.
func (r *Reader) followOthers(driver Usage) {
	if r.opt.Shared {
		r.follow = &follower{driver: driver, usage: r.usage, tail: r.tail, retry: r.retrier}
	}
}

// Name is the name of the partition.
func (p *Partition) Name() string { return p.Reader.Name() }

// MaxLength is the nominal length of the partition, in messages.
func (p *Partition) MaxLength() int { return p.Reader.opt.MaxLength }

// Pending is the number of messages that are stored or being stored and not done, of the shard that is read here.
func (p *Partition) Pending() int { return p.Reader.Pending() }

// Run keeps the partition in order until ctx ends: see Reader.Run.
func (p *Partition) Run(ctx context.Context) error { return p.Reader.Run(ctx) }

// Health returns what keeps the partition from taking or giving messages, and does not pass at once; nil if nothing does.
func (p *Partition) Health() error {
	err := p.Reader.Health()
	if p.Writer != nil {
		err = cmp.Or(err, p.Writer.refusedRoom())
	}
	return err
}

// Close saves how far the reader came, so that the next one need not look, and closes the driver.
func (p *Partition) Close(ctx context.Context) error { return p.Reader.Close(ctx) }
