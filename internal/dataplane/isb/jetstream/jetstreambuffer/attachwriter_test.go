package jetstreambuffer_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/testnats"
)

// TestAWriterElsewhereCreatesNothing: a writer that comes before the reader waits for it, and one that comes after the stream was lost returns an error. If it created the
// stream, it could remove the state that a reader has just saved, and what was lost would be replaced by an empty stream silently.
func TestAWriterElsewhereCreatesNothing(t *testing.T) {
	s := testnats.Server(t)
	js := testnats.Connect(t, s.DSN())
	defer js.Conn().Close()
	ctx := within(t)
	state, err := jetstreambuffer.OpenBucket(ctx, js, "test_STATE", naming.Tag{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := jetstreambuffer.Config{Stream: "later", State: state}
	if _, err := jetstreambuffer.AttachWriter(ctx, js, cfg); !errors.Is(err, buffer.ErrNotCreated) {
		t.Fatalf("before the reader has created the stream: %v", err)
	}
	if _, err := js.Stream(ctx, cfg.Stream); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatalf("the writer created the stream: %v", err)
	}
	reader, err := jetstreambuffer.Open(ctx, js, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	writer, err := jetstreambuffer.AttachWriter(ctx, js, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := js.DeleteStream(ctx, cfg.Stream); err != nil {
		t.Fatal(err)
	}
	if _, err := jetstreambuffer.AttachWriter(ctx, js, cfg); !errors.Is(err, buffer.ErrMissing) {
		t.Errorf("after the stream was lost: %v", err)
	}
}
