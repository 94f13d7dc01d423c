package jetstreambuffer_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testnats"
)

// TestEntriesOfEarlierVersionsAreCounted follows a stream with a block that an earlier version wrote, without its count in a header. It would count as nothing, and a
// buffer that was full before an upgrade would take as much again.
func TestEntriesOfEarlierVersionsAreCounted(t *testing.T) {
	s := testnats.Server(t)
	js := testnats.Connect(t, s.DSN())
	defer js.Conn().Close()
	ctx := within(t)
	state, err := jetstreambuffer.OpenBucket(ctx, js, "test_STATE", naming.Tag{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	open := func() buffer.Driver {
		d, err := jetstreambuffer.Open(ctx, js, jetstreambuffer.Config{Stream: "old", State: state})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	reader, err := buffer.Open(ctx, open(), buffer.Options{Name: "old"})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close(ctx)
	var e flow.Encoder
	e.Reset(1)
	for pos := uint64(1); pos <= 3; pos++ {
		e.Append(&flow.Message{Pos: pos, Value: []byte("hello")})
	}
	data, err := e.Finish(&flow.Block{Lane: "a/0", Lo: 1, Hi: 3}, flow.None)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "old", data, jetstream.WithMsgID("a/0/1-3")); err != nil {
		t.Fatal(err)
	}
	w, err := buffer.OpenWriter(ctx, open(), buffer.Options{Name: "old"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { ended <- w.Run(running) }()
	until(t, "the writer counts 3 messages", func() bool { return w.Pending() == 3 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
