package vertex

import (
	"context"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/source"
)

// The kinds of sources and sinks that a manifest can name, and how each is opened. Nothing else decides what this version can run: see NotRunnable.

// sourceDriver is one kind of source.
type sourceDriver struct {
	// field is its name in a manifest, below source.
	field string
	set   func(*v1alpha1.Source) bool
	// open is nil for a kind that this version cannot run.
	open func(*builder, context.Context, *v1alpha1.Source, source.Positions) (source.Reader, error)
	// shared reports whether several processes can read the source at once; nil if none can, as none can of a file.
	shared func(*v1alpha1.Source) bool
}

// anyNumber is for sources that any number of processes can read at once.
func anyNumber(*v1alpha1.Source) bool { return true }

// inQueue is for sources that processes share in a queue group. Without one each process would get every message.
func inQueue(s *v1alpha1.Source) bool { return s.Nats.Queue != "" }

var sourceDrivers = []sourceDriver{
	{"file", func(s *v1alpha1.Source) bool { return s.File != nil }, (*builder).file, nil},
	{"stdin", func(s *v1alpha1.Source) bool { return s.Stdin != nil }, (*builder).stdin, nil},
	{"generator", func(s *v1alpha1.Source) bool { return s.Generator != nil }, (*builder).generator, anyNumber},
	{"http", func(s *v1alpha1.Source) bool { return s.HTTP != nil }, (*builder).http, anyNumber},
	{"nats", func(s *v1alpha1.Source) bool { return s.Nats != nil }, (*builder).nats, inQueue},
	{"jetstream", func(s *v1alpha1.Source) bool { return s.JetStream != nil }, (*builder).jetStream, anyNumber},
	{"stream", func(s *v1alpha1.Source) bool { return s.Stream != nil }, (*builder).streamSource, nil},
	{"udsource", func(s *v1alpha1.Source) bool { return s.UDSource != nil }, (*builder).udSource, anyNumber},
	{"kafka", func(s *v1alpha1.Source) bool { return s.Kafka != nil }, nil, nil},
	{"pulsar", func(s *v1alpha1.Source) bool { return s.Pulsar != nil }, nil, nil},
	{"sqs", func(s *v1alpha1.Source) bool { return s.Sqs != nil }, nil, nil},
	{"serving", func(s *v1alpha1.Source) bool { return s.Serving != nil }, nil, nil},
}

// sinkDriver is one kind of sink.
type sinkDriver struct {
	// field is its name in a manifest, below sink, sink.fallback and sink.onSuccess.
	field string
	set   func(*v1alpha1.AbstractSink) bool
	// open is nil for a kind that this version cannot run.
	open func(*builder, context.Context, function.Role, *v1alpha1.AbstractSink) (sink.Writer, error)
	// alone says that one process at a time can have it: it keeps a file.
	alone bool
}

var sinkDrivers = []sinkDriver{
	{"log", func(s *v1alpha1.AbstractSink) bool { return s.Log != nil }, (*builder).logSink, false},
	{"blackhole", func(s *v1alpha1.AbstractSink) bool { return s.Blackhole != nil }, (*builder).blackholeSink, false},
	{"file", func(s *v1alpha1.AbstractSink) bool { return s.File != nil }, (*builder).fileSink, true},
	{"stdout", func(s *v1alpha1.AbstractSink) bool { return s.Stdout != nil }, (*builder).stdoutSink, false},
	{"jetstream", func(s *v1alpha1.AbstractSink) bool { return s.JetStream != nil }, (*builder).jetStreamSink, false},
	{"nats", func(s *v1alpha1.AbstractSink) bool { return s.Nats != nil }, (*builder).natsSink, false},
	{"stream", func(s *v1alpha1.AbstractSink) bool { return s.Stream != nil }, (*builder).streamSink, true},
	{"udsink", func(s *v1alpha1.AbstractSink) bool { return s.UDSink != nil }, (*builder).udSink, false},
	{"kafka", func(s *v1alpha1.AbstractSink) bool { return s.Kafka != nil }, nil, false},
	{"pulsar", func(s *v1alpha1.AbstractSink) bool { return s.Pulsar != nil }, nil, false},
	{"sqs", func(s *v1alpha1.AbstractSink) bool { return s.Sqs != nil }, nil, false},
	{"serve", func(s *v1alpha1.AbstractSink) bool { return s.Serve != nil }, nil, false},
}
