package isb_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/memory"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// silent is a state whose first answers do not come.
type silent struct {
	isb.State
	lost int
}

func (s *silent) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	if s.lost > 0 {
		s.lost--
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	return s.State.Get(ctx, key)
}

// TestAPositionIsAskedForAgain: a request that vanished with its broker does not end the start of a source.
func TestAPositionIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := memory.NewServer().Connect()
		store, err := service.Open(t.Context(), isb.Request{Owner: naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "p"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := isb.PositionsOf(service, store.State(), "in").Save(t.Context(), "a", []byte("7")); err != nil {
			t.Fatal(err)
		}
		at, err := isb.PositionsOf(service, &silent{store.State(), 3}, "in").Load(t.Context(), "a")
		if string(at) != "7" || err != nil {
			t.Errorf("position %q, %v", at, err)
		}
	})
}
