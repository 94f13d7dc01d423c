package ownership

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestVacateRefusesALivingOwnerAndFencesADeadOne: a vertex may start beside an expired lease of the whole pipeline only if the owner of that lease cannot go on when
// it wakes up. Without the write it would renew its lease, which nobody took, and both would read the same buffers.
func TestVacateRefusesALivingOwnerAndFencesADeadOne(t *testing.T) {
	vacate := func(t *testing.T, s Store) error {
		return Vacate(t.Context(), Config{Store: s, Self: owner("vertex", "b"), Alive: func(Owner) Life { return Unknown }})
	}
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		if err := vacate(t, store); err != nil {
			t.Fatalf("without a record: %v", err)
		}
		lease, err := acquire(t, store, owner("run", "a"), Unknown)
		if err != nil {
			t.Fatalf("what was vacated is free: %v", err)
		}
		renewing := make(chan error, 1)
		ctx, stop := context.WithCancel(t.Context())
		go func() { renewing <- lease.Run(ctx) }()
		if err := vacate(t, store); !errors.Is(err, ErrOwned) {
			t.Fatalf("beside a process that renews: %v", err)
		}
		stop()
		<-renewing
		began := time.Now()
		if err := vacate(t, store); err != nil {
			t.Fatalf("beside a process that is stopped: %v", err)
		}
		if took := time.Since(began); took < TTL {
			t.Errorf("a lease counts as expired after %v, want at least %v", took, TTL)
		}
		if err := lease.Check(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("the process that wakes up may save: %v", err)
		}
	})
}

// staleReads answers the first reads as a replica does that lags.
type staleReads struct {
	*memory
	value    []byte
	revision uint64
	times    int
}

// TestVacateSeesAnOwnerThatALaggingReplicaDoesNotKnow: two processes that take their leases at the same moment and look at each other's must not both go on.
func TestVacateSeesAnOwnerThatALaggingReplicaDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		if _, err := acquire(t, store, owner("run", "a"), Unknown); err != nil {
			t.Fatal(err)
		}
		stale := &staleReads{memory: store, times: 2}
		err := Vacate(t.Context(), Config{Store: stale, Self: owner("vertex", "a"), Alive: func(Owner) Life { return Running }})
		if !errors.Is(err, ErrOwned) {
			t.Errorf("it goes on beside an owner: %v", err)
		}
	})
}

func (s *staleReads) Get(ctx context.Context) ([]byte, uint64, error) {
	if s.times > 0 {
		s.times--
		return s.value, s.revision, nil
	}
	return s.memory.Get(ctx)
}
