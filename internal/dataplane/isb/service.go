// Package isb is the seam between pipelines and their inter-step buffer service: what a service keeps for a pipeline, whatever server it is. A service is a NATS
// server with JetStream (isb/jetstream), Redis (isb/redis) or the memory of a process, for tests (isb/memory); package isbtest is the suite that each of them passes. Nothing above
// this package knows which one it has, except for the package that connects to it.
//
// # What a service provides
//
//   - A State for each pipeline: small durable values, with compare-and-set.
//   - Streams: the logs of partitions, as a buffer.Driver for the process that reads one, and as a buffer.WriterDriver for the others.
//   - A deadletter.Storage for each pipeline.
//   - What an error means: whether it may go away by itself.
//
// All else is made of these here and is the same for every service: leases (Lease), positions of sources (Positions), the record of the topology and the note about
// the last end (keys of the State), waiting for a stream that another process creates (Opener), lists and drops (List, Inspect, Drop).
//
// # Keys of the state
//
//	owner                 the lease of the process that runs the whole pipeline (package ownership)
//	owner.VERTEX          the lease of the process that runs one vertex, or the names of those that share it
//	owner.VERTEX.NAME     the lease of one of these
//	shards.VERTEX.*       which of them reads which shard (package shard; only with Sharer)
//	processes.owner       the lease of the process that starts those of the vertices (levada run --processes)
//	processes.wanted      how many processes each vertex is to have
//	processes.running     how many each vertex has
//	topology              the record of its shape (package topology)
//	settled               how the last process ended
//	source.VERTEX.*       how far the partitions of a source were read
//	rate.VERTEX           the limit of messages a second that they share (package ratelimit)
//
// Other keys belong to the service. No key here is written by two processes at once, but by compare-and-set.
//
// # What must hold
//
// What is written is durable when the call returns. A stream that was created and is missing is a loss, and is reported (buffer.ErrMissing), never created again:
// so a State is never created beside streams that need one. Opening for writing, listing and inspecting create and change nothing.
package isb

import (
	"context"
	"log/slog"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// Service is a connection to an inter-step buffer service. All methods may be called concurrently.
type Service interface {
	// Open opens what an owner keeps, and creates it if there is nothing. An owner's store that was written by an earlier version is adopted.
	Open(ctx context.Context, r Request) (Store, error)
	// Places returns what is there of all pipelines, also of those that no manifest has, in no order.
	Places(ctx context.Context) ([]Place, error)
	// DeadLetters returns the dead letters that are there of all pipelines, in no order.
	DeadLetters(ctx context.Context) ([]Letters, error)
	// AttachVertex opens the first partition of the vertex that the letters are of for writing, as it is; nil if the vertex has no buffer.
	AttachVertex(ctx context.Context, of Letters, vertex string) (buffer.WriterDriver, error)

	// Final returns nil for an error of this service that may go away by itself, and the error to end with for any other. what was asked for.
	Final(what string, err error) error
	// Usable returns why messages cannot be stored or read now; nil if they can.
	Usable(ctx context.Context) error
	// Degraded returns what is wrong with the service although messages can be stored and read, such as replicas that are offline. It asks nothing of the service.
	Degraded() []error
	// Stuck returns an error only if a restart of this process may help the service.
	Stuck() error
	// Close disconnects.
	Close()
}

// Request says what Service.Open opens.
type Request struct {
	// Owner comes without its incarnation.
	Owner naming.Owner
	// Vertices are those of the manifest: a store of an earlier version that knows none of them is not the owner's.
	Vertices []string
	// Replicas of all that is opened, for services that keep some. With 0 what exists keeps its own, and the service chooses for what is created.
	Replicas int
	Logger   *slog.Logger
}

// Place is what one pipeline keeps at a service, as it is. Its methods create nothing.
type Place interface {
	// Owner is whose it is, with the incarnation if this is a Store. It has no name for a place that an earlier version wrote and that nobody has adopted.
	Owner() naming.Owner
	State() State
	// Streams returns the streams that were created and exist, in no order.
	Streams(ctx context.Context) ([]Stream, error)
	// Describe says how a stream is kept. The error is buffer.ErrMissing if it does not exist.
	Describe(ctx context.Context, stream string) (Storage, error)
	// Attach opens a stream as it is, whatever its settings say. The error is buffer.ErrMissing if it does not exist.
	Attach(ctx context.Context, stream string) (buffer.Driver, error)
	// Remove removes a stream for good, with what the state knows of it.
	Remove(ctx context.Context, stream string) error
}

// Store is the place of a pipeline whose process may create what is missing.
type Store interface {
	Place
	// Stream is what the stream of a partition is called. It need not exist.
	Stream(ctx context.Context, vertex string, partition int) (string, error)
	// OpenPartition opens the stream of a partition for the one process that reads it, and creates it if it never was. The error is buffer.ErrMissing for one that was
	// created and is gone, unless it was in memory: then it is created again, and Settings.Lost is called.
	OpenPartition(ctx context.Context, vertex string, partition int, s Settings) (buffer.Driver, error)
	// AttachWriter opens the stream of a partition for writing, as it is. The error is buffer.ErrNotCreated for one that its reader will create, and
	// buffer.ErrMissing for one that was there and is lost.
	AttachWriter(ctx context.Context, vertex string, partition int, s Settings) (buffer.WriterDriver, error)
	// DeadLetters opens the dead letters, and creates their storage if there is none.
	DeadLetters(ctx context.Context) (*deadletter.Store, error)
	// LogChanges logs one line about what was changed while everything was opened.
	LogChanges()
}

// Stream is the log of a partition that exists.
type Stream struct {
	Vertex    string
	Partition int
	Stream    string
	// Unknown says that the name is one of an earlier version, whose parts are not known. Vertex is the whole name then.
	Unknown bool
}

// Storage is how a stream is kept.
type Storage struct {
	Replicas int
	// Kind is "file" or "memory".
	Kind string
}

// Letters are the dead letters of one pipeline, as they are.
type Letters struct {
	*deadletter.Store
	// Owner has no name for letters that an earlier version wrote and that nobody has adopted.
	Owner naming.Owner
	// Prefix begins the names of letters of an earlier version: {namespace}-{pipeline}. Where the namespace ends is not said in it.
	Prefix string
}
