package filesource

import (
	"context"

	"github.com/levada-io/levada/internal/dataplane/source"
)

// AckPart implements source.PartAcker: a part is a batch that ends earlier.
func (r *Reader) AckPart(ctx context.Context, b *source.Batch, _, to int) error {
	part := *b
	part.Hi = b.EndOf(to)
	return r.Ack(ctx, &part)
}

var _ source.PartAcker = (*Reader)(nil)
