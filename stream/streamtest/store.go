package streamtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/levada-io/levada/stream"
)

// StoreUnderTest is a store, and what its suite needs to know of it.
type StoreUnderTest struct {
	// Store is open and empty.
	Store stream.Store
	// More are openings of the same store as other processes have them; none if there can be only one.
	More []stream.Store
	// Advance makes the store believe that time has passed. Nil: the suite waits, with leases of some hundred milliseconds, and leaves
	// out the comparison with a model.
	Advance func(time.Duration)
}

// storeTests are the checks of RunStore.
var storeTests = []struct {
	name string
	run  func(*storeTest)
}{
	{"Submit returns what was submitted", (*storeTest).submit},
	{"Submit refuses bad jobs", (*storeTest).submitBad},
	{"Submit finds the job that is there", (*storeTest).dedupe},
	{"Submit at once by many makes one job", (*storeTest).dedupeRace},
	{"Claim gives a lease", (*storeTest).claim},
	{"Claim keeps to priority, time and streams", (*storeTest).claimOrder},
	{"Claim by many gives each job once", (*storeTest).claimRace},
	{"Claim refuses what has no meaning", (*storeTest).claimBad},
	{"A lease that runs out is given to another", (*storeTest).leaseEnds},
	{"Renew makes the lease last", (*storeTest).renew},
	{"Progress, crash state and retry state are kept", (*storeTest).note},
	{"Release ends the lease", (*storeTest).release},
	{"A stale lease can do nothing", (*storeTest).fencing},
	{"A person's changes are possible in the right states only", (*storeTest).states},
	{"Expire ends the leases of the dead", (*storeTest).expire},
	{"List filters", (*storeTest).list},
	{"Unknown jobs", (*storeTest).unknown},
	{"The store does what a model does", (*storeTest).model},
}

// RunStore checks that a store does what [stream.Store] promises. open is called for each test, also for several at once; what it opens is
// closed by the test that it belongs to (see testing.T.Cleanup). If the store has a method Orphans(context.Context) (int, error), which
// counts jobs that no claim would find, each test ends by asking it.
func RunStore(t *testing.T, open func(t *testing.T) StoreUnderTest) {
	for _, test := range storeTests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			u := open(t)
			s := &storeTest{T: t, StoreUnderTest: u, ctx: ctx, ttl: time.Hour}
			if u.Advance == nil {
				s.ttl = 300 * time.Millisecond
			}
			test.run(s)
			if o, ok := u.Store.(interface {
				Orphans(context.Context) (int, error)
			}); ok {
				if n, err := o.Orphans(ctx); n != 0 || err != nil {
					t.Errorf("there are %d jobs that no claim would find, error %v", n, err)
				}
			}
		})
	}
}

type storeTest struct {
	*testing.T
	StoreUnderTest
	ctx context.Context
	ttl time.Duration // of the leases that are to run out
}

// long is a lease that does not run out in a test without Advance.
const long = time.Hour

// pass lets time pass.
func (s *storeTest) pass(d time.Duration) {
	if s.Advance != nil {
		s.Advance(d)
		return
	}
	time.Sleep(d)
}

func (s *storeTest) all() []stream.Store { return append([]stream.Store{s.Store}, s.More...) }

func (s *storeTest) is(err, want error, what string, args ...any) {
	s.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		s.Errorf("%s: error is %v, want %v", fmt.Sprintf(what, args...), err, want)
	}
}

func (s *storeTest) add(job stream.Job) stream.Status {
	s.Helper()
	if job.Stream == "" {
		job.Stream = "users"
	}
	st, err := s.Store.Submit(s.ctx, job)
	if err != nil {
		s.Fatal(err)
	}
	return st
}

func (s *storeTest) get(id string) stream.Status {
	s.Helper()
	st, err := s.Store.Get(s.ctx, id)
	if err != nil {
		s.Fatal(err)
	}
	return st
}

func worker(name string) stream.Owner {
	return stream.Owner{Pod: name, PodUID: "uid-" + name, Container: "main", Incarnation: "incarnation-" + name}
}

func (s *storeTest) take(name string, ttl time.Duration, most int) []stream.Status {
	s.Helper()
	got, err := s.Store.Claim(s.ctx, stream.Claim{Owner: worker(name), TTL: ttl, Max: most})
	if err != nil {
		s.Fatal(err)
	}
	return got
}

// one takes the only job that is due.
func (s *storeTest) one(name string, ttl time.Duration) stream.Status {
	s.Helper()
	got := s.take(name, ttl, 10)
	if len(got) != 1 {
		s.Fatalf("%d jobs were claimed, want 1: %v", len(got), ids(got))
	}
	return got[0]
}

func ids(all []stream.Status) []string {
	var names []string
	for _, st := range all {
		names = append(names, st.ID)
	}
	return names
}

// sameTime allows for stores that keep microseconds.
var sameTime = cmpopts.EquateApproxTime(time.Microsecond)

func (s *storeTest) must(st stream.Status, err error) stream.Status {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	return st
}
