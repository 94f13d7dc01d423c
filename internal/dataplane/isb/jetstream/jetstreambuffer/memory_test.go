package jetstreambuffer_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testnats"
)

// TestLossOfAStreamInMemoryIsReported removes a stream in memory, as a restart of the broker does, with blocks in it: the next start began again silently.
func TestLossOfAStreamInMemoryIsReported(t *testing.T) {
	s := testnats.Server(t)
	js := testnats.Connect(t, s.DSN())
	defer js.Conn().Close()
	kv, err := jetstreambuffer.OpenBucket(t.Context(), js, "test_STATE", naming.Tag{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var logs bytes.Buffer
	cfg := jetstreambuffer.Config{Stream: "b", State: kv, Memory: true, Logger: slog.New(slog.NewTextHandler(&logs, nil))}
	d, err := jetstreambuffer.Open(t.Context(), js, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p, err := buffer.Open(t.Context(), d, buffer.Options{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for pos := uint64(1); pos <= 2; pos++ {
		var e flow.Encoder
		e.Reset(pos)
		e.Append(&flow.Message{ID: "x", Pos: pos})
		w, err := p.Write(t.Context(), &flow.Block{Lane: "in/0", Lo: pos, Hi: pos, Watermark: flow.NoWatermark}, &e)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(logs.String(), "lost") {
		t.Fatalf("a loss is reported too early: %s", &logs)
	}
	if err := js.DeleteStream(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := jetstreambuffer.Open(t.Context(), js, cfg); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(logs.String(), "messages_lost=2") || !strings.Contains(logs.String(), "blocks_lost_at_least=2") {
		t.Errorf("the loss of two messages is not reported: %s", &logs)
	}
	// The manifest asks for files now. The stream was in memory all the same: it is not one of those that must not vanish.
	if err := js.DeleteStream(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	cfg.Memory = false
	if _, err := jetstreambuffer.Open(t.Context(), js, cfg); err != nil {
		t.Errorf("a stream in memory that is gone keeps the pipeline from starting: %v", err)
	}
	if n := strings.Count(logs.String(), "messages_lost=2"); n != 1 {
		t.Errorf("the loss is said %d times: %s", n, &logs)
	}
}
