package stdinsource_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/records"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
	"github.com/levada-io/levada/internal/dataplane/source/stdinsource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cfg stdinsource.Config) *stdinsource.Reader {
	t.Helper()
	if cfg.Positions == nil {
		cfg.Positions = &sourcetest.Positions{}
	}
	r, err := stdinsource.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return sourcetest.Harness{
			Forgets: true,
			Finite:  true,
			Open:    func(t *testing.T) source.Reader { return open(t, stdinsource.Config{In: in}) },
			Produce: func(t *testing.T, from, to int) {
				for i := from; i < to; i++ { // less than a pipe holds
					if _, err := io.WriteString(out, sourcetest.Payload(i)+"\n"); err != nil {
						t.Fatal(err)
					}
				}
				if err := out.Close(); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

func TestWaitsAndIsCalledOff(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r := open(t, stdinsource.Config{In: in})
	_, _ = io.WriteString(out, "half a l")
	for range 3 {
		short, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if b, err := r.Read(short, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v, %v", b, err)
		}
		cancel()
	}
	_, _ = io.WriteString(out, "ine\n")
	b, err := r.Read(t.Context(), 10)
	if err != nil || string(b.Messages[0].Value) != "half a line" {
		t.Fatalf("%v, %v", b, err)
	}
	if err := r.Close(t.Context()); err != nil { // while nothing comes
		t.Fatal(err)
	}
	if _, err := r.Read(t.Context(), 10); err == nil {
		t.Fatal("read after Close")
	}
}

func TestEachRunHasPositionsOfItsOwn(t *testing.T) {
	positions := &sourcetest.Positions{}
	last := uint64(0)
	for range 3 {
		r := open(t, stdinsource.Config{In: strings.NewReader("a\nb"), Positions: positions})
		for range 2 { // the second message is not acknowledged, and may be in flight
			b, err := r.Read(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if b.Lo <= last || b.Messages[0].Pos < b.Lo || b.Messages[0].Pos > b.Hi {
				t.Fatalf("positions %d to %d after %d", b.Lo, b.Hi, last)
			}
			last = b.Hi
		}
		if err := r.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestErrors(t *testing.T) {
	p := &sourcetest.Positions{}
	for words, cfg := range map[string]stdinsource.Config{
		"in: required":        {Positions: p},
		"positions: required": {In: strings.NewReader("")},
		"lines, ndjson":       {In: strings.NewReader(""), Positions: p, Format: "xml"},
	} {
		if _, err := stdinsource.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("%v does not say %q", err, words)
		}
	}
	r := open(t, stdinsource.Config{In: strings.NewReader("1\n\n{\n"), Format: records.NDJSON, OnMalformed: records.Fail})
	if _, err := r.Read(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(t.Context(), 10); !errors.Is(err, records.ErrSyntax) || !strings.Contains(err.Error(), "stdin:3: ") {
		t.Fatal(err)
	}
}

// TestMalformedInputIsDeadLettered: a line that cannot be read costs no other.
func TestMalformedInputIsDeadLettered(t *testing.T) {
	r := open(t, stdinsource.Config{In: strings.NewReader("1\n{oops\n2\n"), Format: records.NDJSON})
	b, err := r.Read(t.Context(), 10)
	if err != nil || len(b.Messages) != 3 || len(b.Broken) != 1 || !strings.HasPrefix(b.Broken[1].Error, "stdin:2: ") || string(b.Messages[1].Value) != "{oops" {
		t.Fatalf("%+v, %v", b, err)
	}
	if _, err := r.Read(t.Context(), 10); err != io.EOF {
		t.Fatal(err)
	}
}
