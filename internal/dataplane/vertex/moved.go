package vertex

import (
	"context"
	"path/filepath"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/filesource"
)

// FileMoved reports whether the file that a source read as former lies at path now. saved are the positions of its vertex.
func FileMoved(ctx context.Context, saved source.Positions, former, path string) (bool, error) {
	position, err := saved.Load(ctx, filepath.Base(former))
	if err != nil || position == nil {
		return false, err
	}
	return filesource.Moved(former, path, position), nil
}
