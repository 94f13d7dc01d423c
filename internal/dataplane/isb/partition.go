package isb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/shard"
)

// Opener opens partitions of one store. Its fields are set before the first call and not changed from then on.
type Opener struct {
	Service Service
	Store   Store
	// Settings are those of all partitions. Lost is filled in here.
	Settings Settings
	// Shards is how many shards each partition of a vertex gets that is created; nil for 1. One that exists keeps what it has.
	Shards func(vertex string) int
	// Sole says that no other process reaches the store: nothing is fenced then.
	Sole   bool
	Logger *slog.Logger
}

// openTimeout bounds opening one partition, with the search for blocks that some replicas lack.
const openTimeout = 5 * time.Minute

// Name is what a partition is called in metrics, logs and errors, whatever its stream is called.
func (o *Opener) Name(vertex string, n int) string { return o.Store.Owner().OldBuffer(vertex, n) }

// Partition opens both ends of a partition, for the one process that reads it: it has a lease that no other has. There is one result for each shard; all have the same Writer. The stream is
// created if it never was. lost is called at most once, for a stream in memory that is gone.
func (o *Opener) Partition(ctx context.Context, vertex string, n int, opt buffer.Options, lost func(buffer.Loss)) ([]*buffer.Partition, error) {
	return o.open(ctx, vertex, n, opt, lost, func(ctx context.Context, base buffer.Driver, opt buffer.Options) ([]*buffer.Partition, error) {
		return ofShards(base, 0, buffer.ShardsOf(base), opt, func(d buffer.Driver) (buffer.Driver, error) {
			if o.Sole {
				return d, nil
			}
			return ownAlone(ctx, d, opt.Name)
		}, func(drivers []buffer.Driver, opt buffer.Options) ([]*buffer.Partition, error) {
			if len(drivers) > 1 {
				return buffer.OpenShards(ctx, drivers, opt)
			}
			return both(ctx, drivers[0], opt)
		})
	})
}

// Shard opens a shard of a partition, for a start of it. Without shards that is both ends of the partition, and otherwise one for reading alone. The error is a *shard.FencedError if a later
// owner has begun; fenced is called if that is found out afterwards. From then on nothing is saved and removed.
func (o *Opener) Shard(ctx context.Context, vertex string, n, of int, start shard.Ownership, fenced func(error), opt buffer.Options, lost func(buffer.Loss)) (*buffer.Partition, error) {
	all, err := o.open(ctx, vertex, n, opt, lost, func(ctx context.Context, base buffer.Driver, opt buffer.Options) ([]*buffer.Partition, error) {
		return ofShards(base, of, of+1, opt, func(d buffer.Driver) (buffer.Driver, error) {
			return own(ctx, d, opt.Name, start, fenced)
		}, func(drivers []buffer.Driver, opt buffer.Options) ([]*buffer.Partition, error) {
			if shards := buffer.ShardsOf(base); shards > 1 {
				p, err := buffer.OpenShard(ctx, drivers[0], of, shards, opt)
				return []*buffer.Partition{p}, err
			}
			return both(ctx, drivers[0], opt)
		})
	})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// both opens both ends of a partition without shards.
func both(ctx context.Context, d buffer.Driver, opt buffer.Options) ([]*buffer.Partition, error) {
	p, err := buffer.Open(ctx, d, opt)
	return []*buffer.Partition{p}, err
}

// ofShards opens the shards from..to-1 of a partition, each with the driver that own returns. The driver of the partition is used only where it has no shards.
func ofShards(base buffer.Driver, from, to int, opt buffer.Options, own func(buffer.Driver) (buffer.Driver, error),
	open func([]buffer.Driver, buffer.Options) ([]*buffer.Partition, error),
) (all []*buffer.Partition, err error) {
	shards := buffer.ShardsOf(base)
	if to > shards {
		return nil, fmt.Errorf("there is no shard %d: the stream was created with %d", to-1, shards)
	}
	var drivers []buffer.Driver
	for n := from; n < to; n++ {
		d := base
		if shards > 1 {
			d = base.(buffer.Sharded).Shard(n)
			defer func() {
				if err != nil {
					err = errors.Join(err, d.Close())
				}
			}()
		}
		ours, err := own(d)
		if err != nil {
			return nil, err
		}
		drivers = append(drivers, ours)
	}
	opt.OnCorrupt = asked(drivers, opt.OnCorrupt)
	if all, err = open(drivers, opt); err == nil && shards > 1 {
		err = base.Close()
	}
	return all, err
}

// Create creates the stream of a partition if it never was, for a process that may read it later: others wait for it to write. Processes may do so at once. It returns the number of shards
// that the stream has.
func (o *Opener) Create(ctx context.Context, vertex string, n int, lost func(buffer.Loss)) (shards int, err error) {
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	settings := o.settings(vertex, lost)
	divides := false // the service can divide partitions
	shards, err = Retry(open, o.Service, o.Logger, "buffer "+o.Name(vertex, n), func(context.Context) (int, error) {
		driver, err := o.Store.OpenPartition(open, vertex, n, settings)
		if err != nil {
			return 0, err
		}
		_, divides = driver.(buffer.Sharded)
		return buffer.ShardsOf(driver), driver.Close()
	})
	if err == nil && divides && shards != settings.Shards {
		o.Logger.Info("partition keeps the number of shards that it was created with", "buffer", o.Name(vertex, n), "shards", shards, "wanted", settings.Shards)
	}
	return shards, err
}

// settings are those to open a partition with. lost is called once.
func (o *Opener) settings(vertex string, lost func(buffer.Loss)) Settings {
	settings, said := o.Settings, false
	if settings.Shards = 1; o.Shards != nil {
		settings.Shards = o.Shards(vertex)
	}
	settings.Lost = func(l buffer.Loss) {
		if !said { // an attempt that fails after it is tried again
			said = true
			lost(l)
		}
	}
	return settings
}

// open opens the stream of a partition, and calls do, which closes what it opens if it fails.
func (o *Opener) open(ctx context.Context, vertex string, n int, opt buffer.Options, lost func(buffer.Loss),
	do func(context.Context, buffer.Driver, buffer.Options) ([]*buffer.Partition, error),
) ([]*buffer.Partition, error) {
	open, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	settings := o.settings(vertex, lost)
	opt.Name = o.Name(vertex, n)
	return Retry(open, o.Service, o.Logger, "buffer "+opt.Name, func(context.Context) ([]*buffer.Partition, error) { // what it asks for has deadlines of its own
		driver, err := o.Store.OpenPartition(open, vertex, n, settings)
		if err != nil {
			return nil, err
		}
		all, err := do(open, driver, opt)
		if err != nil {
			return nil, errors.Join(err, driver.Close())
		}
		return all, nil
	})
}

// createdPoll is how often a stream is looked for that another process creates.
const createdPoll = 250 * time.Millisecond

// Writer opens the writing end of a partition that another process reads. It waits until that process has created the stream, and has decided about blocks that
// the store has lost, for as long as ctx lives. waiting is called when it begins to wait, with the reason; what it returns is called at the end of the wait.
func (o *Opener) Writer(ctx context.Context, vertex string, n int, opt buffer.Options, waiting func(error) func(error)) (*buffer.Writer, error) {
	opt.Name = o.Name(vertex, n)
	var over func(error)
	for {
		w, err := o.writer(ctx, vertex, n, opt)
		if !errors.Is(err, buffer.ErrNotCreated) && !errors.Is(err, buffer.ErrLostEnd) {
			if over != nil {
				over(err)
			}
			return w, err
		}
		if over == nil {
			over = waiting(err)
		}
		select {
		case <-time.After(createdPoll):
		case <-ctx.Done():
			over(ctx.Err())
			return nil, context.Cause(ctx)
		}
	}
}

func (o *Opener) writer(ctx context.Context, vertex string, n int, opt buffer.Options) (*buffer.Writer, error) {
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	w, err := Retry(open, o.Service, o.Logger, "buffer "+opt.Name, func(context.Context) (*buffer.Writer, error) {
		driver, err := o.Store.AttachWriter(open, vertex, n, o.Settings)
		if err != nil {
			return nil, err
		}
		w, err := buffer.OpenWriter(open, driver, opt)
		if err != nil {
			return nil, errors.Join(err, driver.Close())
		}
		return w, nil
	})
	if err != nil {
		return nil, fmt.Errorf("buffer %s: %w", opt.Name, err)
	}
	return w, nil
}
