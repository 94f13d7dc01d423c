package stream

import "context"

// Hint says that a job may be due. It carries no right: who gets one asks the store. An empty one says that some job may be due.
type Hint struct {
	Stream string
	Job    string
}

// Hints wake workers sooner than their own sweep would. Losing, doubling, delaying or reordering hints changes nothing but
// when a job starts. [github.com/levada-io/levada/stream/streamtest.RunHints] is the suite that every driver passes.
type Hints interface {
	// Send tells some worker, or all, of a job. It returns once the bus has taken the hint for good, or an error; callers
	// only log that.
	Send(ctx context.Context, h Hint) error
	// Listen calls wake for each hint, one at a time, until ctx ends, and reconnects by itself for as long. wake returns when the
	// worker has tried to claim, and while it has no free slot it does not return: only then is the hint acknowledged, where the bus
	// knows such a thing, so a bus that hands each hint to one worker hands it to one that has room. wake returns when its
	// ctx ends. Listen returns ctx's error, or one that no reconnecting would mend.
	Listen(ctx context.Context, wake func(context.Context, Hint)) error
	// Close ends connections. Sends that were under way have returned; later ones, and Listen, return an error that wraps
	// net.ErrClosed.
	Close() error
}
