package metrics

import "sync/atomic"

// Counts are what one input of a vertex has done since the start of the process.
type Counts struct {
	In, Out, Acked, Errors, Dropped, DeadLetters int64
	// Delivered are messages that a primary or a fallback sink took, and LatencyNanos the sum of their ages at that moment.
	Delivered, LatencyNanos int64
	// SinkDuplicates are messages that a sink's store already had.
	SinkDuplicates int64
}

// Add adds the counts of another input.
func (c *Counts) Add(o Counts) {
	c.In += o.In
	c.Out += o.Out
	c.Acked += o.Acked
	c.Errors += o.Errors
	c.Dropped += o.Dropped
	c.DeadLetters += o.DeadLetters
	c.Delivered += o.Delivered
	c.LatencyNanos += o.LatencyNanos
	c.SinkDuplicates += o.SinkDuplicates
}

// counts are Counts that several goroutines write to. Each is exact; a reading of all of them is not one moment.
type counts struct {
	in, out, acked, errors, dropped, deadLetters, delivered, latency, sinkDuplicates atomic.Int64
}

// Counts returns what the vertex has done so far.
func (v *Vertex) Counts() Counts {
	c := &v.counts
	return Counts{
		In: c.in.Load(), Out: c.out.Load(), Acked: c.acked.Load(), Errors: c.errors.Load(), Dropped: c.dropped.Load(), DeadLetters: c.deadLetters.Load(),
		Delivered: c.delivered.Load(), LatencyNanos: c.latency.Load(), SinkDuplicates: c.sinkDuplicates.Load(),
	}
}
