// Package source brings messages into a pipeline. Each driver lies in a folder of its own; sourcetest is the suite they all pass.
package source

import (
	"context"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/flow"
)

// Reader is one source, as its vertex reads it. Read is called by one goroutine; the other methods may be called concurrently with it.
type Reader interface {
	// Read waits until there is at least one message, and then returns what is there at once, up to limit messages; it does not wait for
	// a full batch. It returns io.EOF when there will be no more, ctx.Err() when ctx ended (having lost nothing), and other errors
	// for what may go away: the caller waits and reads again.
	Read(ctx context.Context, limit int) (*Batch, error)
	// Ack says that every message of the batch is durable in all outputs. Batches are acknowledged once each, in the order in which Read gave
	// them. After a crash what was not acknowledged must come again, with the same positions or ids.
	Ack(ctx context.Context, b *Batch) error
	// Pending is how many messages wait outside; -1 if unknown.
	Pending(ctx context.Context) (int64, error)
	// Close lets go of everything. What was acknowledged is remembered durably when it returns.
	Close(ctx context.Context) error
}

// PermanentError is an error of Read after which reading again is of no use.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *PermanentError) Unwrap() error { return e.Err }

// Batch is what one Read gave: messages of one partition of the source.
type Batch struct {
	// Partition names the ordered sequence the messages come from, stable over restarts: "0", a file's identity, "orders-3".
	Partition string
	// A source with positions (a file, a log) covers Lo to Hi, in ascending order over all batches of the partition, without gaps between
	// batches: every message that the source will ever have in that range is in this batch. Positions are at least 1, each message has its own
	// (flow.Message.Pos), and the same message has the same one after a restart. Message ids are left empty: they are made of the position.
	Lo, Hi uint64
	// A source without positions sets ByID and gives each message an ID, the source's own name for it, which is the same when it comes again.
	// Lo, Hi and Pos are left 0: the vertex fills them in.
	ByID bool
	// Stride is how many positions in a row go to the same partition of the next buffer; 0 means 256. For byte offsets something like 64 KiB.
	Stride   uint64
	Messages []flow.Message
	// Broken are messages whose content the source cannot give, by their index in Messages, and why. They are dead-lettered instead of
	// being processed, and the batch is acknowledged when that is durable. nil if there is none.
	Broken map[int]*deadletter.Failure
	// Token is for the driver's own use.
	Token any
}

// Positions remembers durably how far a source is. Keys are the names of partitions.
type Positions interface {
	// Load returns nil if nothing was saved.
	Load(ctx context.Context, partition string) ([]byte, error)
	Save(ctx context.Context, partition string, position []byte) error
}
