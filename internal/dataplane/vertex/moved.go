package vertex

import (
	"context"
	"path/filepath"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/source/filesource"
)

// FileMoved reports whether the file that a source vertex read as former lies at path now.
func FileMoved(ctx context.Context, state jetstream.KeyValue, vertex, former, path string) (bool, error) {
	saved, err := positions{state, "source." + vertex}.Load(ctx, filepath.Base(former))
	if err != nil || saved == nil {
		return false, err
	}
	return filesource.Moved(former, path, saved), nil
}
