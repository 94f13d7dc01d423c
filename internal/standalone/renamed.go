package standalone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/topology"
	"github.com/levada-io/levada/internal/manifest"
)

// renamed refuses a pipeline that reads and writes what another one of this data directory reads and writes, which is in no manifest: it is that one under a new
// name, and would deliver everything once more. Of others that are in no manifest, it says what they hold.
func (r *runner) renamed(ctx context.Context) error {
	if r.broker == nil {
		return nil // at a broker of its own there are others, of which this run knows nothing
	}
	pipelines, err := patient(ctx, r, "list of pipelines", func(ctx context.Context) ([]isb.Found, error) { return isb.List(ctx, r.service) })
	if err != nil {
		return err
	}
	for _, b := range pipelines {
		if b.Owner().Name == "" || b.Record == nil || slices.ContainsFunc(r.cfg.Objects, func(o manifest.Object) bool {
			return (o.Kind() == string(naming.Pipeline) || o.Kind() == string(naming.MonoVertex)) &&
				naming.Owner{Namespace: cmp.Or(o.Manifest.GetNamespace(), "default"), Kind: naming.Kind(o.Kind()), Name: o.Manifest.GetName()}.Is(b.Owner())
		}) {
			continue
		}
		for _, h := range r.held {
			if h.stored != nil {
				continue // it has been here before
			}
			if in, out := topology.Shared(b.Record, h.wanted); in != "" && out != "" {
				return &refusal{fmt.Sprintf("%s: %s, which is in no manifest any more, reads %s and writes %s in this data directory already. Under a new name all of it would be read and delivered once more. "+
					"Call it %s again; or, if that is what you want, run it in another data directory (--data). Nothing was changed. See docs/changing-a-pipeline.md", h.of(), b.Owner(), in, out, b.Owner().Name)}
			}
		}
		held := 0
		for _, s := range b.Buffers {
			c, err := isb.Inspect(ctx, b, s.Stream)
			if err != nil && !errors.Is(err, buffer.ErrMissing) {
				return fmt.Errorf("buffer %s: %w", s.Stream, err)
			}
			held += c.Messages
		}
		if held > 0 {
			r.log.Warn("a pipeline that is in no manifest holds messages; levada buffers list shows them", "owner", b.Owner().String(), "messages", held)
		}
	}
	return nil
}
