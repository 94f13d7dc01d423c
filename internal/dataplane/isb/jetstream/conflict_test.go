package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/testnats"
)

// TestAConflictInAClusterIsAConflict: of writers that replace a value at the same time one succeeds, and the others learn that it was replaced. While a write is on its way to the
// replicas the broker answers with another code than afterwards, and processes ended with that.
func TestAConflictInAClusterIsAConflict(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	owner := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "rivers"}
	const writers, rounds = 8, 30
	var states []isb.State
	var registers []buffer.StateRegister
	for range writers {
		s, err := Connect(t.Context(), Config{URL: c.URL()})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		opened, err := isb.Retry(t.Context(), s, slog.New(slog.DiscardHandler), "the store", func(ctx context.Context) (isb.Store, error) {
			return s.Open(ctx, isb.Request{Owner: owner})
		})
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, opened.State())
		d, err := jetstreambuffer.Open(t.Context(), s.js, jetstreambuffer.Config{Stream: "levada_rivers", State: opened.(*store).kv, Replicas: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		registers = append(registers, d.(buffer.StateRegister))
	}
	for name, replace := range map[string]struct {
		conflict error
		write    func(writer int, expect uint64) (uint64, error)
	}{
		"a value": {isb.ErrConflict, func(w int, expect uint64) (uint64, error) {
			return states[w].CompareAndSet(t.Context(), "key", []byte(fmt.Sprint(w)), expect)
		}},
		"the state of a buffer": {buffer.ErrReplaced, func(w int, expect uint64) (uint64, error) {
			return registers[w].ReplaceState(t.Context(), []byte(fmt.Sprint(w)), expect)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var revision uint64
			for range rounds {
				revisions, errs := make([]uint64, writers), make([]error, writers)
				var writing sync.WaitGroup
				for w := range writers {
					writing.Go(func() { revisions[w], errs[w] = replace.write(w, revision) })
				}
				writing.Wait()
				succeeded := 0
				for w, err := range errs {
					switch {
					case err == nil:
						succeeded, revision = succeeded+1, revisions[w]
					case !errors.Is(err, replace.conflict):
						t.Fatalf("not a conflict: %v", err)
					}
				}
				if succeeded != 1 {
					t.Fatalf("%d writers succeeded at once", succeeded)
				}
			}
		})
	}
}
