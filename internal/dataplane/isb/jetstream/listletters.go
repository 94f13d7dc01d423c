package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// DeadLetters implements isb.Service.
func (s *Service) DeadLetters(ctx context.Context) (all []isb.Letters, err error) {
	streams := s.js.ListStreams(ctx)
	for info := range streams.Info() {
		name := info.Config.Name
		tag, tagged := naming.TagOf(info.Config.Metadata)
		prefix, old := strings.CutSuffix(name, naming.OldDeadLettersSuffix)
		if tagged && tag.Role == naming.RoleDeadLetters || !tagged && old {
			all = append(all, isb.Letters{Store: deadletter.New(&letters{js: s.js, stream: name, tag: tag}, tag.Owner.Name, nil), Owner: tag.Owner, Prefix: prefix})
		}
	}
	return all, streams.Err()
}

// AttachVertex implements isb.Service.
func (s *Service) AttachVertex(ctx context.Context, of isb.Letters, vertex string) (buffer.WriterDriver, error) {
	for _, c := range candidates(of, vertex) {
		found, err := s.js.Stream(ctx, c.cfg.Stream)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", c.cfg.Stream, err)
		}
		if _, err := c.cfg.Tag.Check(c.cfg.Stream, found.CachedInfo().Config.Metadata); err != nil {
			continue
		}
		if c.cfg.State, err = s.js.KeyValue(ctx, c.bucket); errors.Is(err, jetstream.ErrBucketNotFound) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("bucket %s: %w", c.bucket, err)
		}
		return jetstreambuffer.Attach(ctx, s.js, c.cfg)
	}
	return nil, nil
}

// candidate is where the buffer of a vertex may be.
type candidate struct {
	bucket string
	cfg    jetstreambuffer.Config
}

// candidates are the names under which this version and earlier ones keep the first partition of a vertex.
func candidates(of isb.Letters, vertex string) []candidate {
	if of.Owner.Name == "" {
		return []candidate{{of.Prefix + "_STATE", jetstreambuffer.Config{Stream: of.Prefix + "-" + vertex + "-0"}}}
	}
	tag := naming.Tag{Owner: of.Owner, Role: naming.RoleBuffer, Vertex: vertex}
	now, old := of.Owner.Buffer(vertex, 0), of.Owner.OldBuffer(vertex, 0)
	return []candidate{
		{of.Owner.State(), jetstreambuffer.Config{Stream: now, Tag: tag}},
		{of.Owner.OldState(), jetstreambuffer.Config{Stream: now, Tag: tag}},
		{of.Owner.OldState(), jetstreambuffer.Config{Stream: old, Tag: tag}},
	}
}
