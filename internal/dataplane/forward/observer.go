package forward

import (
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// Observer is called with what a loop and its output do. Calls are concurrent, and return quickly: they are made on the path of messages.
type Observer interface {
	// Read is called for messages that the input returned. took includes the time of waiting for them.
	Read(messages, bytes int, took time.Duration)
	// Applied is called after each call of a stage: in messages became out, dropped of them nothing, and failed of them are tried again or given up.
	Applied(stage string, in, out, dropped, failed int, took time.Duration)
	// Acked is called for messages that are acknowledged to the input, and Nacked for those that are given back to it.
	Acked(messages int, took time.Duration)
	Nacked(messages int)
	// DeadLettered is called once messages are durable among the dead letters.
	DeadLettered(messages int, reason deadletter.Reason)
	// Processed is called with the time from reading to acknowledging a batch.
	Processed(took time.Duration)

	// Wrote is called once messages are durable in a partition of a buffer.
	Wrote(partition string, messages, bytes int)
	// Dropped is called for messages that go nowhere. partition is empty where no buffer is concerned.
	Dropped(partition string, messages, bytes int, reason string)

	// Delivered is called for messages that a sink took. role is the sink's, one of package function.
	Delivered(role function.Role, m []flow.Message, took time.Duration)
	// Failed is called for messages that a sink did not take, or that could not be sent to it.
	Failed(role function.Role, messages int)
}

// SinkRetriesExhausted is Numaflow's reason for messages that are dropped when a sink's retry strategy ends.
const SinkRetriesExhausted = "Retries exhausted in the Sink"
