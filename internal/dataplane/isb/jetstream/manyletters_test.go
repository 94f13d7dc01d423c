package jetstream_test

import (
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

// TestAPageOfManyLettersIsQuick lists 12,000 dead letters page by page: the first page comes within a second, every letter comes once, and a list can be
// interrupted.
func TestAPageOfManyLettersIsQuick(t *testing.T) {
	server := testnats.Server(t, testnats.JetStream("sync_interval: 2m"))
	js := testnats.Connect(t, server.DSN())
	owner, err := naming.New("default", naming.Pipeline, "p")
	if err != nil {
		t.Fatal(err)
	}
	storage, err := service.OpenLetters(t.Context(), js, "letters", naming.Tag{Owner: owner, Role: naming.RoleDeadLetters}, 1)
	if err != nil {
		t.Fatal(err)
	}
	store := deadletter.New(storage, "p", nil)
	const count, vertices = 12_000, 3
	for i := range count {
		m := &flow.Message{ID: fmt.Sprintf("in/%d", i), Pos: uint64(i + 1), Value: []byte("payload")}
		if err := store.Put(t.Context(), fmt.Sprintf("v%d", i%vertices), m, &deadletter.Failure{Reason: deadletter.Error, Error: "no", Attempts: 1}); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	first, next, err := store.Page(t.Context(), "", 0, 100)
	if took := time.Since(begun); err != nil || len(first) != 100 || next == 0 || took > time.Second {
		t.Fatalf("the first page: %d letters, next %d, %v, after %v", len(first), next, err, took)
	}
	for vertex, want := range map[string]int{"": count, "v1": count / vertices} {
		seen := map[string]bool{}
		for after, last := uint64(0), -1; ; {
			letters, next, err := store.Page(t.Context(), vertex, after, 700)
			if err != nil {
				t.Fatal(err)
			}
			for i := range letters {
				var n int
				if _, err := fmt.Sscanf(letters[i].ID, "in/%d", &n); err != nil || n <= last {
					t.Fatalf("%s comes after number %d", letters[i].ID, last)
				}
				last, seen[letters[i].Name] = n, true
			}
			if after = next; next == 0 {
				break
			}
		}
		if len(seen) != want {
			t.Errorf("vertex %q: %d letters, want %d", vertex, len(seen), want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := store.Page(ctx, "", 0, count); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted list: %v", err)
	}
	if letters, next, err := store.Page(t.Context(), "nobody", 0, 10); len(letters) != 0 || next != 0 || err != nil {
		t.Errorf("a vertex without letters: %v, %d, %v", letters, next, err)
	}
}
