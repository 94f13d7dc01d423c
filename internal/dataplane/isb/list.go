package isb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/retry"
	"github.com/levada-io/levada/internal/dataplane/topology"
)

// Found is what is found of one pipeline at a service.
type Found struct {
	Place
	// Record is the stored topology; nil if there is none that this version can read.
	Record *topology.Topology
	// Buffers are the streams that exist.
	Buffers []Stream
}

// List returns all pipelines at a service, also those that no manifest has.
func List(ctx context.Context, s Service) (all []Found, err error) {
	places, err := s.Places(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		f := Found{Place: p}
		record, _, err := p.State().Get(ctx, KeyTopology)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.State().Name(), err)
		}
		if record != nil {
			// A record of a newer Levada, or a damaged one, does not hide the buffers.
			if f.Record, err = topology.Decode(record); err != nil {
				f.Record = nil
			}
		}
		if f.Buffers, err = p.Streams(ctx); err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// Recorded reports whether the stored topology has a partition.
func (f *Found) Recorded(s Stream) bool {
	if f.Record == nil {
		return false
	}
	v := f.Record.Vertex(s.Vertex)
	return v != nil && s.Partition < v.Partitions
}

// Inspect counts what a stream holds. It touches nothing of it.
func Inspect(ctx context.Context, p Place, stream string) (buffer.Contents, error) {
	driver, err := p.Attach(ctx, stream)
	if err != nil {
		return buffer.Contents{}, err
	}
	c, err := buffer.Inspect(ctx, driver)
	return c, errors.Join(err, driver.Close())
}

// Drop discards what a stream holds, and returns the number of messages. The caller has the lease of the pipeline.
func Drop(ctx context.Context, p Place, stream string) (int, error) {
	driver, err := p.Attach(ctx, stream)
	if err != nil {
		return 0, err
	}
	n, err := dropAll(ctx, driver, stream)
	return n, errors.Join(err, driver.Close())
}

// dropAll discards what is in all shards of a partition.
func dropAll(ctx context.Context, driver buffer.Driver, stream string) (dropped int, err error) {
	for i := range buffer.ShardsOf(driver) {
		d := driver
		if s, ok := driver.(buffer.Sharded); ok && buffer.ShardsOf(driver) > 1 {
			d = s.Shard(i)
			defer func() { err = errors.Join(err, d.Close()) }()
		}
		ours, err := ownAlone(ctx, d, stream)
		if err != nil {
			return dropped, err
		}
		n, err := buffer.Discard(ctx, ours)
		if dropped += n; err != nil {
			return dropped, err
		}
	}
	return dropped, nil
}

// Retry repeats what failed because the service could not answer, until ctx ends: see retry.Until.
func Retry[T any](ctx context.Context, s Service, log *slog.Logger, what string, ask func(ctx context.Context) (T, error)) (T, error) {
	return retry.Until(ctx, log, what, func(err error) error { return s.Final(what, err) }, ask)
}
