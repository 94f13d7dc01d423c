package vertex

import (
	"context"
	"fmt"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/blackholesink"
	"github.com/levada-io/levada/internal/dataplane/sink/filesink"
	"github.com/levada-io/levada/internal/dataplane/sink/jetstreamsink"
	"github.com/levada-io/levada/internal/dataplane/sink/logsink"
	"github.com/levada-io/levada/internal/dataplane/sink/natssink"
	"github.com/levada-io/levada/internal/dataplane/sink/render"
	"github.com/levada-io/levada/internal/dataplane/sink/stdoutsink"
	"github.com/levada-io/levada/internal/dataplane/sink/udsink"
)

// logSink writes a line for each message, for people.
func (b *builder) logSink(context.Context, function.Role, *v1alpha1.AbstractSink) (sink.Writer, error) {
	b.says("log")
	return logsink.New(logsink.Config{Out: b.env.Stdout})
}

// blackholeSink takes everything and keeps nothing.
func (b *builder) blackholeSink(context.Context, function.Role, *v1alpha1.AbstractSink) (sink.Writer, error) {
	b.says("blackhole")
	return blackholesink.New(blackholesink.Config{})
}

// fileSink opens a file that Vertex.Reopen opens again.
func (b *builder) fileSink(_ context.Context, role function.Role, s *v1alpha1.AbstractSink) (sink.Writer, error) {
	b.says("file " + s.File.Path)
	path := b.env.path(s.File.Path)
	if err := b.claim(role, path); err != nil {
		return nil, err
	}
	w, err := filesink.New(filesink.Config{Path: path, Format: render.Format(s.File.Format), Append: true, Rotate: rotation(s.File.Rotate), Logger: b.v.logger})
	if err != nil {
		return nil, err
	}
	b.v.files = append(b.v.files, w)
	return w, nil
}

// stdoutSink writes for a shell's pipe, in the format of the manifest.
func (b *builder) stdoutSink(_ context.Context, _ function.Role, s *v1alpha1.AbstractSink) (sink.Writer, error) {
	b.says("standard output")
	return stdoutsink.New(stdoutsink.Config{Out: b.env.Stdout, Format: render.Format(s.Stdout.Format)})
}

// jetStreamSink publishes to a stream that exists. Within its window the stream drops what it has already; that is counted as duplicates of the sink.
func (b *builder) jetStreamSink(ctx context.Context, role function.Role, s *v1alpha1.AbstractSink) (sink.Writer, error) {
	link, err := b.connect(ctx, s.JetStream.URL, s.JetStream.TLS, s.JetStream.Auth)
	if err != nil {
		return nil, fmt.Errorf("sink.jetstream: %w", err)
	}
	b.says("jetstream " + s.JetStream.Subject)
	cfg := jetstreamsink.Config{
		Conn: link.Conn, Subject: s.JetStream.Subject, Stream: s.JetStream.Stream, Writer: b.writerName(role), Logger: b.v.logger,
		Duplicates: func(n int) { b.metrics.SinkDuplicates(role, n) },
	}
	return openJetStream(ctx, b, link, "the stream of "+s.JetStream.Subject, func(ctx context.Context) (sink.Writer, error) { return jetstreamsink.New(ctx, cfg) })
}

// natsSink publishes to a subject. Core NATS acknowledges nothing: what is published while nobody subscribes is gone.
func (b *builder) natsSink(ctx context.Context, role function.Role, s *v1alpha1.AbstractSink) (sink.Writer, error) {
	link, err := b.connect(ctx, s.Nats.URL, s.Nats.TLS, s.Nats.Auth)
	if err != nil {
		return nil, fmt.Errorf("sink.nats: %w", err)
	}
	b.says("nats " + s.Nats.Subject)
	return natssink.New(natssink.Config{Conn: link.Conn, Subject: s.Nats.Subject, Writer: b.writerName(role)})
}

// udSink builds a sink that is user code.
func (b *builder) udSink(_ context.Context, role function.Role, s *v1alpha1.AbstractSink) (sink.Writer, error) {
	f, p, err := b.function(role, s.UDSink.Container)
	if err != nil {
		return nil, err
	}
	if f != nil {
		return udsink.Sink{Function: f}, nil
	}
	if p.Sink == nil {
		return nil, fmt.Errorf("its %s is the builtin %s, which is not a sink", role, p.Name)
	}
	return p.Sink, nil
}
