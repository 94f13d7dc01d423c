// Package sink takes messages out of a pipeline. Each driver lies in a folder of its own; sinktest is the suite they all pass.
package sink

import (
	"context"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/flow"
)

// Writer is one sink, as its vertex writes it. Write may be called concurrently for different lanes; the blocks of one lane come one after the other.
type Writer interface {
	// Write delivers the messages of b and returns when they are as durable as the sink can make them.
	//
	// A nil slice of results means that all were delivered. Otherwise there is one result for each message. An error means that nothing is known about
	// any of them: the caller writes the same block again, until ctx ends.
	//
	// b names its input by lane and positions, which are the same when the block is written again after a crash, though the grouping may be another. A
	// sink that keeps an identity.Seen beside its data, and changes both in one step, has each message exactly once; other sinks may use
	// flow.Message.ID as an idempotency key. b.Floor is filled in. Messages must not be kept after Write returned.
	Write(ctx context.Context, b *flow.Block) ([]Result, error)
	// Close lets go of everything, having made durable what was written.
	Close(ctx context.Context) error
}

// Result is what became of one message.
type Result struct {
	Status Status
	// Error says why, for people.
	Error string
	// Permanent says of a failed message that the sink will never take it, however often it is tried: retryStrategy.onFailure decides at once, and
	// otherwise the message is dead-lettered.
	Permanent bool
	// OnSuccess is what the on-success sink gets instead of the message, if not nil.
	OnSuccess *flow.Message
	// Delay is how long to wait before a nacked message is given again, MaxDeliveries how often it is given at the most; 0: no limit.
	Delay         time.Duration
	MaxDeliveries int
	// Failure is the evidence, of a broken message.
	Failure *deadletter.Failure
}

// Status of a message at a sink, as in Numaflow's sink.v1.
type Status uint8

// The statuses.
const (
	// Delivered: done.
	Delivered Status = iota
	// Failed: the retry strategy decides.
	Failed
	// Fallback: the fallback sink gets it.
	Fallback
	// Serve is a response of a serving pipeline.
	Serve
	// OnSuccess: delivered, and the on-success sink gets it as well.
	OnSuccess
	// Nacked: the message is given again later.
	Nacked
	// Broken: the message is dead-lettered; Failure says why.
	Broken
)

// PermanentError is an error of Write after which writing again is of no use.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *PermanentError) Unwrap() error { return e.Err }
