package jetstream

import (
	"sync"
	"testing"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// Processes that open a new store at the same time agree on its incarnation; another store has another one.
func TestOpenersOfOneStoreAgreeOnItsIncarnation(t *testing.T) {
	b, err := broker.Start(broker.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	service, err := Connect(t.Context(), Config{Server: b})
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	seen := map[string]string{}
	for _, name := range []string{"one", "two"} {
		owner := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: name}
		got := make([]string, 8)
		var opening sync.WaitGroup
		for i := range got {
			opening.Go(func() {
				s, err := service.Open(t.Context(), isb.Request{Owner: owner})
				if err != nil {
					t.Error(err)
					return
				}
				got[i] = s.Owner().Incarnation
			})
		}
		opening.Wait()
		for _, incarnation := range got {
			if incarnation == "" || incarnation != got[0] {
				t.Fatalf("incarnations of %s: %q", name, got)
			}
		}
		if other, taken := seen[got[0]]; taken {
			t.Fatalf("%s and %s have the incarnation %s", name, other, got[0])
		}
		seen[got[0]] = name
	}
}
