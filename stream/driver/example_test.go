package driver_test

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/driver"
	"github.com/levada-io/levada/stream/memstore"
)

var (
	_ driver.Store      = (*memstore.Store)(nil)
	_ driver.ReplaySink = (*memstore.Sink)(nil)
	_ driver.Notifier   = (*bus)(nil)
)

// bus is a notifier driver within one process: each notification goes to one listener, or is lost if all are busy.
type bus struct {
	notifier chan driver.Notification
	closed   chan struct{}
	once     sync.Once
}

func newBus() *bus {
	return &bus{notifier: make(chan driver.Notification, 16), closed: make(chan struct{})}
}

// Send may lose a notification: workers find the job at their next poll.
func (b *bus) Send(ctx context.Context, h driver.Notification) error {
	select {
	case <-b.closed:
		return fmt.Errorf("send a notification: %w", net.ErrClosed)
	default:
	}
	select {
	case b.notifier <- h:
	default:
	}
	return ctx.Err()
}

func (b *bus) Listen(ctx context.Context, wake func(context.Context, driver.Notification)) error {
	for {
		select {
		case h := <-b.notifier:
			wake(ctx, h) // returns when the worker has tried to claim
		case <-ctx.Done():
			return ctx.Err()
		case <-b.closed:
			return fmt.Errorf("listen for notifications: %w", net.ErrClosed)
		}
	}
}

func (b *bus) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// A notifier driver of your own. Pass it to streamtest.RunNotifier as well, which tries what networks do.
func Example_notifier() {
	notifier := newBus()
	defer notifier.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if _, err := stream.Submit(ctx, memstore.New(), notifier, stream.Job{ID: "copy-users", Stream: "users"}); err != nil {
		fmt.Println(err)
	}
	err := notifier.Listen(ctx, func(_ context.Context, h driver.Notification) {
		fmt.Println("a worker claims", h.Job, "of", h.Stream)
		stop()
	})
	fmt.Println(err)
	// Output:
	// a worker claims copy-users of users
	// context canceled
}
