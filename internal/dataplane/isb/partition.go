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
	// Sole says that no other process reaches the store: nothing is fenced then.
	Sole   bool
	Logger *slog.Logger
}

// openTimeout bounds opening one partition, with the search for blocks that some replicas lack.
const openTimeout = 5 * time.Minute

// Name is what a partition is called in metrics, logs and errors, whatever its stream is called.
func (o *Opener) Name(vertex string, n int) string { return o.Store.Owner().OldBuffer(vertex, n) }

// Partition opens both ends of a partition, for the one process that reads it: it has a lease that no other has. The stream is created if it never was. lost is called
// at most once, for a stream in memory that is gone.
func (o *Opener) Partition(ctx context.Context, vertex string, n int, opt buffer.Options, lost func(buffer.Loss)) (*buffer.Partition, error) {
	return o.partition(ctx, vertex, n, opt, lost, func(ctx context.Context, d buffer.Driver) (buffer.Driver, error) {
		if o.Sole {
			return d, nil
		}
		return ownAlone(ctx, d, opt.Name)
	})
}

// Shard opens both ends of a partition, for a start of the shard that the partition is. The error is a *shard.FencedError if a later owner has begun; fenced is called if
// that is found out afterwards. From then on nothing is saved and removed.
func (o *Opener) Shard(ctx context.Context, vertex string, n int, start shard.Ownership, fenced func(error), opt buffer.Options, lost func(buffer.Loss)) (*buffer.Partition, error) {
	return o.partition(ctx, vertex, n, opt, lost, func(ctx context.Context, d buffer.Driver) (buffer.Driver, error) {
		return own(ctx, d, opt.Name, start, fenced)
	})
}

// Create creates the stream of a partition if it never was, for a process that may read it later: others wait for it to write. Processes may do so at once.
func (o *Opener) Create(ctx context.Context, vertex string, n int, lost func(buffer.Loss)) error {
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	settings := o.settings(lost)
	_, err := Retry(open, o.Service, o.Logger, "buffer "+o.Name(vertex, n), func(context.Context) (struct{}, error) {
		driver, err := o.Store.OpenPartition(open, vertex, n, settings)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, driver.Close()
	})
	return err
}

// settings are those to open a partition with. lost is called once.
func (o *Opener) settings(lost func(buffer.Loss)) Settings {
	settings, said := o.Settings, false
	settings.Lost = func(l buffer.Loss) {
		if !said { // an attempt that fails after it is tried again
			said = true
			lost(l)
		}
	}
	return settings
}

func (o *Opener) partition(ctx context.Context, vertex string, n int, opt buffer.Options, lost func(buffer.Loss), own func(context.Context, buffer.Driver) (buffer.Driver, error)) (*buffer.Partition, error) {
	open, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	settings := o.settings(lost)
	opt.Name = o.Name(vertex, n)
	return Retry(open, o.Service, o.Logger, "buffer "+opt.Name, func(context.Context) (*buffer.Partition, error) { // what it asks for has deadlines of its own
		driver, err := o.Store.OpenPartition(open, vertex, n, settings)
		if err != nil {
			return nil, err
		}
		ours, err := own(open, driver)
		if err != nil {
			return nil, errors.Join(err, driver.Close())
		}
		opt := opt
		if o, ok := ours.(*owned); ok {
			opt.OnCorrupt = o.asked(opt.OnCorrupt)
		}
		part, err := buffer.Open(open, ours, opt)
		if err != nil {
			return nil, errors.Join(err, driver.Close())
		}
		return part, nil
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
