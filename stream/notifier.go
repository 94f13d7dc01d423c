package stream

import "context"

// Notification says that a job may be due. It carries no right: its receiver asks the store. An empty one says that some job may be due.
type Notification struct {
	Stream string
	Job    string
}

// Notifier wakes workers sooner than their own poll would. Losing, doubling, delaying or reordering notifications changes only
// when a job starts. [github.com/levada-io/levada/stream/streamtest.RunNotifier] is the suite that every driver passes.
type Notifier interface {
	// Send sends a notification to one worker, or to all. It returns once the broker has accepted it durably, or an error, which callers
	// only log.
	Send(ctx context.Context, n Notification) error
	// Listen calls wake for each notification, one at a time, until ctx ends, and reconnects by itself for as long. wake returns when the
	// worker has tried to claim, and does not return while the worker has no free slot. Only then is the notification acknowledged, where the
	// broker has acknowledgements, so that a broker which delivers to one worker delivers to one that has room. wake returns when its
	// ctx ends. Listen returns ctx's error, or one that reconnecting would not fix.
	Listen(ctx context.Context, wake func(context.Context, Notification)) error
	// Close ends connections. Sends that were under way have returned; later ones, and Listen, return an error that wraps
	// net.ErrClosed.
	Close() error
}
