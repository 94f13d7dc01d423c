package source

import "context"

// PartAcker is a Reader that accepts acknowledgements of a part of a batch, so that a batch whose messages take long makes progress that survives a restart.
type PartAcker interface {
	// AckPart says that the messages from..to-1 of the batch are durable in all outputs. Of a source with positions the parts come in order, and all
	// before them is durable, too; of others in any order. No message comes in two parts. Ack still ends the batch, with all of its messages.
	AckPart(ctx context.Context, b *Batch, from, to int) error
}

// EndOf is how far a source with positions is once the messages before index to of a batch are done: up to the next message.
func (b *Batch) EndOf(to int) uint64 {
	if to >= len(b.Messages) {
		return b.Hi
	}
	return b.Messages[to].Pos - 1
}
