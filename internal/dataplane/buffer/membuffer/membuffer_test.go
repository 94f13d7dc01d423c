package membuffer_test

import (
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/buffertest"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
)

func TestConformance(t *testing.T) {
	buffertest.Run(t, func(*testing.T) buffertest.Harness {
		s := membuffer.NewStore(64 << 10)
		return buffertest.Harness{
			Open:      func(*testing.T) buffer.Driver { return s.Open() },
			Divide:    func(_ *testing.T, n int) { s.Divide(n) },
			ForgetIDs: func(*testing.T) { s.ForgetIDs() },
		}
	})
}
