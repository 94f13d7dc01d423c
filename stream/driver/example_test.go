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
	_ driver.Hints      = (*bus)(nil)
)

// bus is a hint driver within one process: each hint goes to one listener, or is lost if all are busy.
type bus struct {
	hints  chan driver.Hint
	closed chan struct{}
	once   sync.Once
}

func newBus() *bus { return &bus{hints: make(chan driver.Hint, 16), closed: make(chan struct{})} }

// Send may lose a hint: workers find the job at their next sweep.
func (b *bus) Send(ctx context.Context, h driver.Hint) error {
	select {
	case <-b.closed:
		return fmt.Errorf("send a hint: %w", net.ErrClosed)
	default:
	}
	select {
	case b.hints <- h:
	default:
	}
	return ctx.Err()
}

func (b *bus) Listen(ctx context.Context, wake func(context.Context, driver.Hint)) error {
	for {
		select {
		case h := <-b.hints:
			wake(ctx, h) // returns when the worker has tried to claim
		case <-ctx.Done():
			return ctx.Err()
		case <-b.closed:
			return fmt.Errorf("listen for hints: %w", net.ErrClosed)
		}
	}
}

func (b *bus) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// A hint driver of your own. Pass it to streamtest.RunHints as well, which tries what networks do.
func Example_hints() {
	hints := newBus()
	defer hints.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if _, err := stream.Submit(ctx, memstore.New(), hints, stream.Job{ID: "copy-users", Stream: "users"}); err != nil {
		fmt.Println(err)
	}
	err := hints.Listen(ctx, func(_ context.Context, h driver.Hint) {
		fmt.Println("a worker claims", h.Job, "of", h.Stream)
		stop()
	})
	fmt.Println(err)
	// Output:
	// a worker claims copy-users of users
	// context canceled
}
