package vertex

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/streamsink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/streamsource"
)

// streamSource builds a source that reads a stream of another service. Its positions are tokens of that stream.
func (b *builder) streamSource(ctx context.Context, spec *v1alpha1.Source, at source.Positions) (source.Reader, error) {
	s := spec.Stream
	cfg := streamsource.Config{
		Target: s.Target, Stream: s.Stream, Query: []byte(s.Query), Payload: streamsource.Payload(s.Payload), Partition: s.Partition,
		Batch: b.lim.batch, Positions: at, Logger: b.v.logger,
	}
	if cfg.Partition == "" {
		cfg.Partition = s.Stream
	}
	// The same after a restart, and another one for each life of the positions: sources that keep a snapshot make one for each.
	cfg.Name = fmt.Sprintf("%s/%s/%s/%s", b.env.Namespace, b.env.Pipeline, b.name, cfg.Partition)
	if inc := b.env.Owner.Incarnation; inc != "" {
		cfg.Name = b.env.Owner.Writer(b.name, "") + "/" + cfg.Partition + "@" + inc
	}
	if s.TLS != nil {
		var err error
		if cfg.TLS, err = b.env.tlsConfig(s.TLS); err != nil {
			return nil, fmt.Errorf("source.stream.tls: %w", err)
		}
	}
	r, err := streamsource.New(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("source.stream: %w", err)
	}
	b.says("stream " + s.Stream + " of " + s.Target)
	return r, nil
}

// streamSink builds a sink that keeps messages in a file until readers have them, and serves them as a stream. Each sink of a vertex has a file of its own.
func (b *builder) streamSink(ctx context.Context, role function.Role, spec *v1alpha1.AbstractSink) (sink.Writer, error) {
	s := spec.Stream
	file := "sink"
	if role != function.UDSink {
		file = string(role)
	}
	cfg := streamsink.Config{
		Path: b.env.file("stream", b.name, file+".sqlite"), Name: s.Name, Listen: s.Listen, Payload: streamsink.Payload(s.Payload), Logger: b.v.logger,
	}
	if s.MaxBytes != nil {
		cfg.MaxBytes = s.MaxBytes.Value()
	}
	cfg.MaxAge = duration(s.MaxAge)
	if s.TLS != nil {
		var err error
		if cfg.TLS, err = b.env.serverTLS(s.TLS); err != nil {
			return nil, fmt.Errorf("sink.stream.tls: %w", err)
		}
	}
	// The file outlives the process: readers go on where they were, and what is written again is known.
	w, err := streamsink.New(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("sink.stream: %w", err)
	}
	b.says("stream " + s.Name + " on " + w.Addr().String())
	b.env.Announce(b.name, "stream "+s.Name, w.Addr().String())
	return w, nil
}

// file is the path of a file that a vertex keeps, by what it is for. "MONO" cannot be the name of a pipeline.
func (e *Env) file(kind, vertex, name string) string {
	owner := e.Namespace + "." + e.Pipeline + "." + vertex
	if e.Owner.Kind == naming.MonoVertex && e.Owner.Incarnation != "" { // an old store has its files under the old name, which a pipeline can have, too
		owner = e.Namespace + ".MONO." + vertex
	}
	return filepath.Join(e.Data, kind, owner, name)
}
