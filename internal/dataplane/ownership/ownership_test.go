package ownership

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a Store in memory. A process that is cut off gets errors.
type memory struct {
	mu       sync.Mutex
	value    []byte
	revision uint64
	away     bool
	lateAck  bool // the next Put is stored, and its answer is lost
}

var errAway = errors.New("broker away")

func (m *memory) Get(context.Context) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return nil, 0, errAway
	}
	return m.value, m.revision, nil
}

func (m *memory) Put(_ context.Context, value []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return 0, errAway
	}
	if revision != m.revision {
		return 0, ErrConflict
	}
	m.value, m.revision = value, m.revision+1
	if m.lateAck {
		m.lateAck = false
		return 0, errAway
	}
	return m.revision, nil
}

func (m *memory) cut(away bool) { m.mu.Lock(); defer m.mu.Unlock(); m.away = away }

func owner(name, host string) Owner {
	return Owner{Instance: name, Host: host, Boot: "boot of " + host, PID: 7, ProcessStart: "1"}
}

// acquire claims, with what the kernel says of a process on the same host.
func acquire(t *testing.T, s Store, self Owner, life Life) (*Lease, error) {
	t.Helper()
	return Acquire(t.Context(), Config{Store: s, Self: self, Alive: func(Owner) Life { return life }})
}

// TestALostAnswerIsNotAnotherProcess: the claim is stored and its answer goes with the broker. The same process claims again, and is not refused because it runs.
func TestALostAnswerIsNotAnotherProcess(t *testing.T) {
	store, self := &memory{lateAck: true}, owner("self", "a")
	if _, err := acquire(t, store, self, Running); !errors.Is(err, errAway) {
		t.Fatalf("the first claim: %v", err)
	}
	l, err := acquire(t, store, self, Running)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := acquire(t, store, owner("other", "a"), Running); !errors.Is(err, ErrOwned) {
		t.Errorf("another start in the same process gets %v", err)
	}
}

func TestWhoMayTakeThePipeline(t *testing.T) {
	for _, c := range []struct {
		name string
		// The owner before, what becomes of it, and what the kernel of its host says of it.
		host    string
		renews  bool
		release bool
		life    Life
		// The claimant is on host a.
		refused bool
		after   time.Duration
	}{
		{name: "same host, process runs", host: "a", renews: true, life: Running, refused: true},
		{name: "same host, process runs but is stopped", host: "a", life: Running, refused: true},
		{name: "same host, process ended", host: "a", life: Ended},
		{name: "same host, process unknown, no renewal", host: "a", life: Unknown, after: TTL},
		{name: "same host, process unknown, renewed", host: "a", renews: true, life: Unknown, refused: true, after: renew},
		{name: "other host, renewed", host: "b", renews: true, life: Ended, refused: true, after: renew},
		{name: "other host, no renewal", host: "b", life: Ended, after: TTL},
		{name: "other host, released", host: "b", release: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &memory{}
				first, err := acquire(t, store, owner("first", c.host), Ended)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.renews {
					go func() { _ = first.Run(ctx) }()
				}
				if c.release {
					if err := first.Release(ctx); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				_, err = acquire(t, store, owner("second", "a"), c.life)
				took := time.Since(began)
				if errors.Is(err, ErrOwned) != c.refused || err != nil && !c.refused {
					t.Errorf("refused %v, wanted %v: %v", errors.Is(err, ErrOwned), c.refused, err)
				}
				if took < c.after-poll || took > c.after+2*poll {
					t.Errorf("decided after %v, wanted %v", took, c.after)
				}
			})
		})
	}
}

func TestOwnerKeepsThePipelineWhenTheBrokerWasAwayAndNobodyTookIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		lease, err := acquire(t, store, owner("first", "a"), Ended)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- lease.Run(ctx) }()
		store.cut(true)
		time.Sleep(10 * TTL)
		if err := lease.Check(ctx); !errors.Is(err, errAway) {
			t.Errorf("while the broker is away longer than TTL nothing may be saved: %v", err)
		}
		store.cut(false)
		time.Sleep(2 * retry)
		if err := lease.Check(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestOwnerStopsWhenAnotherTookThePipelineOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		first, err := acquire(t, store, owner("first", "a"), Ended)
		if err != nil {
			t.Fatal(err)
		}
		// The first is stopped for a minute: it renews nothing.
		second, err := acquire(t, store, owner("second", "b"), Unknown)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := first.Check(t.Context()); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "host b") {
			t.Errorf("the zombie may save: %v", err)
		}
		if err := first.Run(t.Context()); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		if err := first.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if err := second.Check(t.Context()); err != nil {
			t.Errorf("the new owner was harmed: %v", err)
		}
	})
}

func TestRenewalWhoseAnswerWasLostIsOurOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		lease, err := acquire(t, store, owner("first", "a"), Ended)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = lease.Run(ctx) }()
		store.mu.Lock()
		store.lateAck = true
		store.mu.Unlock()
		time.Sleep(3 * TTL)
		if err := lease.Err(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheSoleUserOfAStoreNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		if _, err := acquire(t, store, owner("first", "b"), Unknown); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		lease, err := Acquire(t.Context(), Config{Store: store, Self: owner("second", "a"), Sole: true})
		if err != nil || time.Since(began) > 0 {
			t.Fatal(err, time.Since(began))
		}
		time.Sleep(time.Hour)
		if err := lease.Check(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestTwoClaimsAtTheSameMomentHaveOneWinner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		if _, err := acquire(t, store, owner("gone", "c"), Unknown); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for _, name := range []string{"x", "y", "z"} {
			wg.Go(func() {
				lease, err := acquire(t, store, owner(name, name), Unknown)
				if err == nil {
					mu.Lock()
					won++
					mu.Unlock()
					go func() { _ = lease.Run(ctx) }()
				} else if !errors.Is(err, ErrOwned) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d claims won", won)
		}
	})
}

func TestThisProcessIsAlive(t *testing.T) {
	self := Self("levada run", "test")
	if self.ProcessStart == "" {
		if runtime.GOOS == "linux" {
			t.Fatal("the start time of this process cannot be read from /proc")
		}
		t.Skip("no /proc here")
	}
	if alive(self) != Running {
		t.Error("this process is not taken for one that runs")
	}
	reused := self
	reused.ProcessStart = "1"
	if alive(reused) != Ended {
		t.Error("a PID that was used again is taken for the old process")
	}
	gone := self
	gone.PID = 1 << 30
	if alive(gone) != Ended {
		t.Error("a PID that is not there is taken for a process")
	}
}
