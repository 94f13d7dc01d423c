package memory_test

import (
	"testing"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/isbtest"
	"github.com/levada-io/levada/internal/dataplane/isb/memory"
)

func TestConformance(t *testing.T) {
	isbtest.Run(t, func(*testing.T) isbtest.Harness {
		server := memory.NewServer()
		return isbtest.Harness{
			Connect:   func(*testing.T) isb.Service { return server.Connect() },
			Lose:      func(_ *testing.T, stream string) { server.Lose(stream) },
			ForgetIDs: func(*testing.T) { server.ForgetIDs() },
		}
	})
}
