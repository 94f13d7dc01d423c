package sqlitestore

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

// clock is one that tests move, besides moving by itself.
type clock struct {
	lock  sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.lock.Lock()
	defer c.lock.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) advance(d time.Duration) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.ahead += d
}

func open(t *testing.T, path string, options ...Option) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStoreConformance(t *testing.T) {
	streamtest.RunStore(t, func(t *testing.T) streamtest.StoreUnderTest {
		path, c := filepath.Join(t.TempDir(), "jobs.db"), &clock{}
		return streamtest.StoreUnderTest{
			Store:   open(t, path, WithClock(c.now)),
			More:    []stream.Store{open(t, path, WithClock(c.now))},
			Advance: c.advance,
		}
	})
}
