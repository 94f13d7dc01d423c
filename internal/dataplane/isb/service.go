package isb

import (
	"fmt"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/manifest"
)

// memoryStorage is how a bufferConfig asks for storage in memory.
const memoryStorage = 1

// Configure takes over what an InterStepBufferService says about the buffers of a pipeline; nil for one that is not among the manifests. Validation has told the
// user what of it is unsafe, and what is done instead: retention and discard are always those under which nothing is lost, and blocks have no age. maxInFlight is
// buffer.Options.MaxInFlight.
func Configure(service *v1alpha1.InterStepBufferService, cfg *jetstreambuffer.Config) (maxInFlight int, err error) {
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
