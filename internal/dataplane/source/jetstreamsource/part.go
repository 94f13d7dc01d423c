package jetstreamsource

import (
	"context"

	"github.com/levada-io/levada/internal/dataplane/source"
)

// AckPart implements source.PartAcker.
func (r *Reader) AckPart(ctx context.Context, b *source.Batch, from, to int) error {
	return r.ack(ctx, b.Token.([]*item)[from:to])
}

var _ source.PartAcker = (*Reader)(nil)
