package httpsource

import (
	"context"
	"net/http"

	"github.com/levada-io/levada/internal/dataplane/source"
)

// AckPart implements source.PartAcker: a request is answered as soon as its own message is durable.
func (r *Reader) AckPart(_ context.Context, b *source.Batch, from, to int) error {
	for _, q := range b.Token.([]*request)[from:to] {
		r.finish(q, http.StatusOK)
	}
	return nil
}

var _ source.PartAcker = (*Reader)(nil)
