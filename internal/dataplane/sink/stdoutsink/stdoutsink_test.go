package stdoutsink_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/render"
	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
	"github.com/levada-io/levada/internal/dataplane/sink/stdoutsink"
)

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		var out bytes.Buffer
		return sinktest.Harness{
			Open: func(t *testing.T) sink.Writer {
				w, err := stdoutsink.New(stdoutsink.Config{Out: &out})
				if err != nil {
					t.Fatal(err)
				}
				return w
			},
			Delivered: func(*testing.T) []string { return strings.Split(out.String(), "\n") },
		}
	})
}

// counter counts calls: a block is one.
type counter struct{ calls, bytes int }

func (c *counter) Write(b []byte) (int, error) { c.calls++; c.bytes += len(b); return len(b), nil }

func TestOneWriteForABlock(t *testing.T) {
	var out counter
	w, err := stdoutsink.New(stdoutsink.Config{Out: &out, Format: render.JSON})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(t.Context(), sinktest.Block("in/0", 1, 1000, 0)); err != nil || out.calls != 1 {
		t.Fatalf("%d writes of %d bytes, %v", out.calls, out.bytes, err)
	}
}

func TestErrors(t *testing.T) {
	r, broken, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	defer broken.Close()
	w, err := stdoutsink.New(stdoutsink.Config{Out: broken})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(t.Context(), sinktest.Block("in/0", 1, 1, 0)); err == nil || errors.Is(err, os.ErrClosed) {
		t.Fatalf("a pipe that nobody reads: %v", err)
	}
	if _, err := stdoutsink.New(stdoutsink.Config{}); err == nil || !strings.Contains(err.Error(), "out: required") {
		t.Fatal(err)
	}
	if _, err := stdoutsink.New(stdoutsink.Config{Out: broken, Format: "xml"}); err == nil || !strings.Contains(err.Error(), "format: ") {
		t.Fatal(err)
	}
}
