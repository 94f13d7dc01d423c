package isb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/natslink"
)

// Opener opens partitions of one store. Its fields are set before the first call and not changed from then on.
type Opener struct {
	Store *Store
	// Link is the connection to a broker elsewhere; nil for one in this process.
	Link *natslink.Link
	// Config is how streams are set up. Stream, Tag, State, Changed and Lost are filled in here.
	Config jetstreambuffer.Config
	Logger *slog.Logger
}

// openTimeout bounds opening one partition, with the search for blocks that some replicas lack.
const openTimeout = 5 * time.Minute

// Name is what a partition is called in metrics, logs and errors, whatever its stream is called.
func (o *Opener) Name(vertex string, n int) string { return o.Store.Owner.OldBuffer(vertex, n) }

// Partition opens both ends of a partition, for the one process that reads it. The stream is created if it never was. lost is called at most once, for a stream
// in memory that is gone.
func (o *Opener) Partition(ctx context.Context, vertex string, n int, opt buffer.Options, lost func(jetstreambuffer.Loss)) (*buffer.Partition, error) {
	open, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	cfg, said := o.config(), false
	cfg.Lost = func(l jetstreambuffer.Loss) {
		if !said { // an attempt that fails after it is tried again
			said = true
			lost(l)
		}
	}
	opt.Name = o.Name(vertex, n)
	return natslink.Retry(open, o.Link, o.Logger, "buffer "+opt.Name, func(attempt context.Context) (_ *buffer.Partition, err error) {
		if cfg.Stream, cfg.Tag, err = o.Store.Buffer(attempt, vertex, n); err != nil {
			return nil, err
		}
		driver, err := jetstreambuffer.Open(open, o.Store.js, cfg)
		if err != nil {
			return nil, err
		}
		part, err := buffer.Open(open, driver, opt)
		if err != nil {
			return nil, errors.Join(err, driver.Close())
		}
		return part, nil
	})
}

func (o *Opener) config() jetstreambuffer.Config {
	cfg := o.Config
	cfg.State, cfg.Changed = o.Store.State, o.Store.Changed
	return cfg
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
		if !errors.Is(err, jetstreambuffer.ErrNotCreated) && !errors.Is(err, buffer.ErrLostEnd) {
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
	cfg := o.config()
	w, err := natslink.Retry(open, o.Link, o.Logger, "buffer "+opt.Name, func(attempt context.Context) (_ *buffer.Writer, err error) {
		if cfg.Stream, cfg.Tag, err = o.Store.Buffer(attempt, vertex, n); err != nil {
			return nil, err
		}
		driver, err := jetstreambuffer.AttachWriter(open, o.Store.js, cfg)
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
