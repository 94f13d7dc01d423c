package isb

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/manifest"
)

// Settings say how the streams of a pipeline are kept. A service leaves out what it has no notion of.
type Settings struct {
	// Memory keeps blocks in the memory of the service: its restart loses them.
	Memory bool
	// MaxBytes and MaxBlocks bound a stream, behind the limits that are counted in messages; 0 for no bound.
	MaxBytes, MaxBlocks int64
	// Duplicates is for how long the service itself knows what was stored under an id, a first line of deduplication only; 0 for its default.
	Duplicates time.Duration
	// Shards is how many shards a partition gets that is created, where the service can divide it; 0 counts as 1. One that exists keeps what it has.
	Shards int
	// Fence, if not nil, is asked before state is saved or blocks are removed: an error means that another process may read the partition by now.
	Fence func(context.Context) error
	// Lost, if not nil, is called for a stream in memory that is gone, once for each attempt to open it.
	Lost func(buffer.Loss)
	// Logger gets lines about replicas that lack blocks which others have; nil for none.
	Logger *slog.Logger
}

// memoryStorage is how a bufferConfig asks for storage in memory.
const memoryStorage = 1

// Configure takes over what an InterStepBufferService says about the buffers of a pipeline; nil for one that is not among the manifests. Validation has told the
// user what of it is unsafe, and what is done instead: retention and discard are always those under which nothing is lost, and blocks have no age. maxInFlight is
// buffer.Options.MaxInFlight.
func Configure(service *v1alpha1.InterStepBufferService, cfg *Settings) (maxInFlight int, err error) {
	if service == nil || service.Spec.JetStream == nil {
		return 0, nil
	}
	b, err := manifest.ParseBufferConfig(service.Spec.JetStream.BufferConfig)
	if err != nil {
		return 0, fmt.Errorf("InterStepBufferService %s: bufferConfig: %w", service.Name, err)
	}
	if b.Stream.MaxMsgs != nil && *b.Stream.MaxMsgs > 0 {
		cfg.MaxBlocks = *b.Stream.MaxMsgs // a block holds at least one message
	}
	if b.Stream.MaxBytes != nil {
		cfg.MaxBytes = *b.Stream.MaxBytes
	}
	if b.Stream.Duplicates != nil {
		cfg.Duplicates = b.Stream.Duplicates.Duration
	}
	cfg.Memory = b.Stream.Storage != nil && *b.Stream.Storage == memoryStorage
	if b.Consumer.MaxAckPending != nil {
		maxInFlight = int(min(*b.Consumer.MaxAckPending, 1<<16)) // a block holds at least one message
	}
	return maxInFlight, nil
}
