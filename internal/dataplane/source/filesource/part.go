package filesource

import (
	"context"

	"github.com/levada-io/levada/internal/dataplane/source"
)

// AckPart implements source.PartAcker: a part is a batch that ends earlier.
func (r *Reader) AckPart(ctx context.Context, b *source.Batch, _, to int) error {
	return r.ack(ctx, b, b.EndOf(to))
}

var _ source.PartAcker = (*Reader)(nil)
