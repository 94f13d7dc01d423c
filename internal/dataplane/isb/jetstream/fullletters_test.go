package jetstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	service "github.com/levada-io/levada/internal/dataplane/isb/jetstream"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testnats"
)

// TestALetterThatTheStreamRefusesIsNotTakenForStored fills the stream of dead letters: its refusal has the code of a letter that is there already.
func TestALetterThatTheStreamRefusesIsNotTakenForStored(t *testing.T) {
	js := testnats.Connect(t, testnats.Server(t).DSN())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	storage, err := service.OpenLetters(ctx, js, "letters", naming.Tag{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	s := deadletter.New(storage, "p", nil)
	stream, err := js.Stream(ctx, "letters")
	if err != nil {
		t.Fatal(err)
	}
	limits := stream.CachedInfo().Config
	limits.MaxBytes = 20_000
	if _, err := js.UpdateStream(ctx, limits); err != nil {
		t.Fatal(err)
	}
	put := func(ctx context.Context, i int) error {
		return s.Put(ctx, "v", &flow.Message{ID: fmt.Sprint(i), Pos: uint64(i), Value: bytes.Repeat([]byte{1}, 3000)}, &deadletter.Failure{Reason: "test"})
	}
	stored := 0
	for ; ; stored++ {
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err := put(short, stored)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if stored > 20 {
			t.Fatal("a full stream took more letters")
		}
	}
	if stored > 0 {
		if err := put(ctx, 0); err != nil {
			t.Errorf("a letter that is there: %v", err)
		}
	}
	waiting := make(chan error, 1)
	go func() { waiting <- put(ctx, stored) }()
	limits.MaxBytes = -1
	if _, err := js.UpdateStream(ctx, limits); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("there is room again: %v", err)
	}
	info, err := js.Stream(ctx, "letters")
	if err != nil {
		t.Fatal(err)
	}
	if n := info.CachedInfo().State.Msgs; n != uint64(stored+1) {
		t.Errorf("%d letters are stored of %d", n, stored+1)
	}
}
