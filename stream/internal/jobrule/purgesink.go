package jobrule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/levada-io/levada/stream"
)

// purgePage is how many jobs a sink's purge looks at in one step.
const purgePage = 500

// SinkTables are the tables of a sink, for PurgeSink.
type SinkTables interface {
	// Old returns up to limit jobs, in the order of their ids, that come after one and are old enough to be purged. unfinished says that their streams need not
	// have been read to their end.
	Old(ctx context.Context, r stream.SinkRetention, unfinished bool, after string, limit int) ([]string, error)
	// Delete deletes what belongs to those of the jobs that still are as Old says, in one transaction, and returns how many.
	Delete(ctx context.Context, r stream.SinkRetention, unfinished bool, jobs []string) (int, error)
}

// PurgeSink deletes from a sink's tables what r says.
func PurgeSink(ctx context.Context, r stream.SinkRetention, tables SinkTables) (deleted int, err error) {
	if r.OlderThan < time.Minute {
		return 0, fmt.Errorf("purge the sink: OlderThan is %v, but must be at least a minute", r.OlderThan)
	}
	if r.Max < 0 {
		return 0, fmt.Errorf("purge the sink: Max is %d, but must not be negative", r.Max)
	}
	if r.Max == 0 {
		r.Max = 10000
	}
	unfinished := r.Jobs != nil
	for after := ""; deleted < r.Max; {
		page, err := tables.Old(ctx, r, unfinished, after, purgePage)
		if err != nil {
			return deleted, fmt.Errorf("purge the sink: %w", err)
		}
		if len(page) == 0 {
			break
		}
		after = page[len(page)-1]
		gone, err := unknown(ctx, r, page)
		if err != nil {
			return deleted, fmt.Errorf("purge the sink: %w", err)
		}
		gone = gone[:min(len(gone), r.Max-deleted)]
		if len(gone) == 0 {
			continue
		}
		n, err := tables.Delete(ctx, r, unfinished, gone)
		if err != nil {
			return deleted, fmt.Errorf("purge the sink: %w", err)
		}
		deleted += n
	}
	return deleted, nil
}

// unknown returns those of the jobs that the job store does not have any more.
func unknown(ctx context.Context, r stream.SinkRetention, jobs []string) (gone []string, err error) {
	if r.Jobs == nil {
		return jobs, nil
	}
	for _, id := range jobs {
		switch _, err := r.Jobs.Get(ctx, id); {
		case errors.Is(err, stream.ErrNotFound):
			gone = append(gone, id)
		case err != nil:
			return nil, fmt.Errorf("ask the job store for job %s: %w", id, err)
		}
	}
	return gone, nil
}
