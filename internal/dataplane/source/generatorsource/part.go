package generatorsource

import (
	"context"

	"github.com/levada-io/levada/internal/dataplane/source"
)

// AckPart implements source.PartAcker.
func (r *Reader) AckPart(ctx context.Context, b *source.Batch, _, to int) error {
	return r.saver.Ack(ctx, b.EndOf(to))
}

var _ source.PartAcker = (*Reader)(nil)
