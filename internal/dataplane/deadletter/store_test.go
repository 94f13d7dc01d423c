package deadletter

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// refusing stores nothing until a time.
type refusing struct {
	Storage
	until  time.Time
	stored []Stored
}

func (r *refusing) Name() string { return "letters" }

func (r *refusing) Add(_ context.Context, l Stored) error {
	if time.Now().Before(r.until) {
		return errors.New("full")
	}
	r.stored = append(r.stored, l)
	return nil
}

// Put waits until the letter is stored: its message is acknowledged after that. A wait of minutes is a few lines of log, and not one for each attempt.
func TestPutWaitsUntilTheLetterIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		storage := &refusing{until: time.Now().Add(time.Minute)}
		s := New(storage, "p", slog.New(slog.NewTextHandler(&out, nil)))
		f := Failure{Reason: Error, Stack: strings.Repeat("x", 2*maxEvidence), Error: "bad\xff"}
		if err := s.Of("v").Put(t.Context(), &flow.Message{ID: "in/1", Pos: 1, Value: []byte("x")}, &f); err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(out.String(), "\n"); lines != 2 {
			t.Errorf("%d lines were logged:\n%s", lines, &out)
		}
		if len(storage.stored) != 1 || bytes.ContainsRune(storage.stored[0].Head, '\n') || len(storage.stored[0].Head) > 2*maxEvidence || len(f.Stack) != 2*maxEvidence {
			t.Errorf("stored: %q", storage.stored)
		}
		stopped, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		storage.until = time.Now().Add(time.Hour)
		if err := s.Put(stopped, "v", &flow.Message{ID: "in/2", Pos: 2}, &f); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a wait that is given up: %v", err)
		}
	})
}
