package jetstream_test

import (
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/isbtest"
	service "github.com/levada-io/levada/internal/dataplane/isb/jetstream"
	"github.com/levada-io/levada/internal/testnats"
)

// duplicates is the deduplication window of the streams, short so that the suite can wait for its end.
const duplicates = 200 * time.Millisecond

func TestConformance(t *testing.T) {
	isbtest.Run(t, func(t *testing.T) isbtest.Harness {
		dir := t.TempDir()
		b, err := broker.Start(broker.Config{Dir: dir, Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		url := b.URL()
		t.Cleanup(func() { b.Stop() })
		js := testnats.Connect(t, url)
		return isbtest.Harness{
			Connect: func(t *testing.T) isb.Service {
				s, err := service.Connect(t.Context(), service.Config{URL: url})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Restart: func(t *testing.T) {
				b.Stop()
				if b, err = broker.Start(broker.Config{Dir: dir, Listen: url[len("nats://"):]}); err != nil {
					t.Fatal(err)
				}
			},
			Lose: func(t *testing.T, stream string) {
				if err := js.DeleteStream(t.Context(), stream); err != nil {
					t.Fatal(err)
				}
			},
			Duplicates: duplicates,
			ForgetIDs:  func(*testing.T) { <-time.After(3 * duplicates) }, // the server's window has passed, by its own clock
			Cursors: func(t *testing.T, name string) (names []string) {
				stream, err := js.Stream(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				list := stream.ConsumerNames(t.Context())
				for name := range list.Name() {
					names = append(names, name)
				}
				slices.Sort(names)
				return names
			},
		}
	})
}
