package blackholesink_test

import (
	"testing"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/blackholesink"
	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
)

func open(t *testing.T) *blackholesink.Writer {
	t.Helper()
	w, err := blackholesink.New(blackholesink.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(*testing.T) sinktest.Harness {
		return sinktest.Harness{Open: func(t *testing.T) sink.Writer { return open(t) }}
	})
}

func TestCounts(t *testing.T) {
	w := open(t)
	b := sinktest.Block("in/0", 1, 3, 0)
	if _, err := w.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if messages, bytes := w.Dropped(); messages != 3 || bytes != int64(3*len("in/0/1")) {
		t.Fatalf("%d messages, %d bytes", messages, bytes)
	}
}
