package standalone

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/manifest"
)

// bufferConfig translates the InterStepBufferService that a pipeline names. Validation has told the user what of it is unsafe, and what becomes of that:
// retention and discard are always those under which nothing is lost, and blocks have no age. maxInFlight is buffer.Options.MaxInFlight.
func (r *runner) bufferConfig(p *v1alpha1.Pipeline) (cfg jetstreambuffer.Config, maxInFlight int, err error) {
	cfg = jetstreambuffer.Config{Replicas: max(1, r.cfg.Replicas), Logger: r.log}
	if r.broker != nil {
		cfg.Room = r.broker.Room
	}
	service := r.bufferService(p)
	if service == nil || service.Spec.JetStream == nil {
		return cfg, 0, nil
	}
	name := service.Name
	b, err := manifest.ParseBufferConfig(service.Spec.JetStream.BufferConfig)
	if err != nil {
		return cfg, 0, fmt.Errorf("InterStepBufferService %s: bufferConfig: %w", name, err)
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
	if cfg.Memory && r.cfg.NATS == "" {
		// The broker ends with this process: what it kept in memory would be lost at every end of a run.
		cfg.Memory = false
		r.inFiles.Do(func() {
			r.log.Warn("bufferConfig asks for storage in memory, using files: the broker in this process would lose the buffers with every stop", "service", name, "pipeline", p.Name)
		})
	}
	if b.Consumer.MaxAckPending != nil {
		maxInFlight = int(min(*b.Consumer.MaxAckPending, 1<<16)) // a block holds at least one message
	}
	return cfg, maxInFlight, nil
}

// memoryStorage is how a bufferConfig asks for storage in memory.
const memoryStorage = 1

// bufferService finds the InterStepBufferService that a pipeline names; nil if it is not among the manifests.
func (r *runner) bufferService(p *v1alpha1.Pipeline) (service *v1alpha1.InterStepBufferService) {
	name := p.Spec.InterStepBufferServiceName
	if name == "" {
		name = "default"
	}
	for _, o := range r.cfg.Objects {
		if s, ok := o.Manifest.(*v1alpha1.InterStepBufferService); ok && s.Name == name && (s.Namespace == p.Namespace || s.Namespace == "" || p.Namespace == "") {
			service = s
		}
	}
	return service
}

// maxPayloadOf reads max_payload from a fragment of a nats-server's configuration; 0 if it does not say.
func maxPayloadOf(settings *string) int32 {
	if settings == nil {
		return 0
	}
	for line := range strings.Lines(*settings) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "max_payload")
		if !ok {
			continue
		}
		value := strings.Trim(strings.TrimSpace(rest), ":= \t\"'")
		if n, err := humanize.ParseBytes(value); err == nil && n <= 64<<20 {
			return int32(n)
		}
	}
	return 0
}
