package forward_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/forward"
)

// TestFloorStaysBelowWhatAnotherHolds: another holder has the first block of the buffer when a loop reads the rest. The loop must not promise that the first is
// done: the next vertex would drop what comes of it later.
func TestFloorStaysBelowWhatAnotherHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, _ := partitions(t, 1, 1<<20, buffer.Options{})
		out, stores := partitions(t, 1, 1<<20, buffer.Options{})
		fill := &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(in)}}}
		if err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: values(40), batch: 10}), Processor: &forward.Map{InFlight: 1}, Output: fill}); err != nil {
			t.Fatal(err)
		}
		first, err := in[0].Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		input := &forward.BufferInput{Vertex: "x", Partition: in[0].Reader, Limit: 10}
		go input.Run(ctx)
		ended := make(chan error, 1)
		l := &forward.Loop{
			Input: input, Processor: &forward.Map{InFlight: 1}, Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output: &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "y", Partitions: writers(out)}}},
		}
		go func() { ended <- l.Run(ctx, ctx) }()
		synctest.Wait()
		blocks, messages := stored(t, stores[0])
		if len(messages) != 30 {
			t.Fatalf("%d messages came through", len(messages))
		}
		for _, b := range blocks {
			if b.Floor >= first.Number<<20 {
				t.Errorf("block %d-%d promises %d, and block %d at %d is not done", b.Lo, b.Hi, b.Floor, first.Number, first.Number<<20)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
