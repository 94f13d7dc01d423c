package streamtest

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/stream"
)

func (s *storeTest) claim() {
	submitted := s.add(stream.Job{ID: "a", Query: []byte("q")})
	st := s.one("w", long)
	if diff := cmp.Diff(submitted.Job, st.Job, sameTime); diff != "" {
		s.Errorf("the claim returned another job (-want +got):\n%s", diff)
	}
	if st.State != stream.Running || st.Epoch != 1 || st.Attempts != 1 || st.Owner != worker("w") || st.Reclaimed {
		s.Errorf("the claim returned the status %+v", st)
	}
	if st.Lease() != (stream.Lease{Job: "a", Epoch: 1, Owner: worker("w")}) {
		s.Errorf("the lease is %+v", st.Lease())
	}
	if lasts := st.LeaseUntil.Sub(st.ClaimedAt); lasts < long-time.Second || lasts > long+time.Second {
		s.Errorf("the lease lasts %v, want %v", lasts, long)
	}
	if st.StartedAt.IsZero() {
		s.Error("StartedAt is not set")
	}
	stored := s.get("a")
	if diff := cmp.Diff(st, stored, sameTime); diff != "" {
		s.Errorf("the claim returned something else than is stored (-claimed +stored):\n%s", diff)
	}
	if again := s.take("v", long, 10); len(again) != 0 {
		s.Errorf("a leased job was claimed by another: %v", ids(again))
	}
	s.owners(st)
}

// owners has one owner take a second job, and give both back.
func (s *storeTest) owners(st stream.Status) {
	s.Helper()
	owners, err := s.Store.Owners(s.ctx)
	if err != nil || !slices.Equal(owners, []stream.Owner{worker("w")}) {
		s.Errorf("the owners are %v, error %v", owners, err)
	}
	// One owner of two jobs is there once, and only while it has a job.
	s.add(stream.Job{ID: "b"})
	second := s.one("w", long)
	if owners, err = s.Store.Owners(s.ctx); err != nil || len(owners) != 1 {
		s.Errorf("the owners are %v, error %v", owners, err)
	}
	s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: stream.Failed}), nil, "release")
	s.is(s.Store.Release(s.ctx, second.Lease(), stream.Release{State: stream.Ready, After: long}), nil, "release")
	if owners, err = s.Store.Owners(s.ctx); err != nil || len(owners) != 0 {
		s.Errorf("without a running job the owners are %v, error %v", owners, err)
	}
}

func (s *storeTest) claimOrder() {
	now := time.Now()
	s.add(stream.Job{ID: "late", NotBefore: now.Add(-time.Minute)})
	s.add(stream.Job{ID: "early", NotBefore: now.Add(-time.Hour)})
	s.add(stream.Job{ID: "urgent", Priority: 5, NotBefore: now.Add(-time.Second)})
	s.add(stream.Job{ID: "idle", Priority: -5, NotBefore: now.Add(-2 * time.Hour)})
	s.add(stream.Job{ID: "tomorrow", Priority: 9, NotBefore: now.Add(24 * time.Hour)})
	s.add(stream.Job{ID: "other", Stream: "orders", Priority: 9})
	for _, step := range []struct {
		most    int
		streams []string
		want    []string
	}{
		{10, []string{"nobody's"}, nil},
		{10, []string{}, nil}, // an owner without handlers
		{2, []string{"users"}, []string{"urgent", "early"}},
		{10, []string{"nobody's", "users"}, []string{"late", "idle"}},
		{10, nil, []string{"other"}},
	} {
		if got := s.claimed(step.most, step.streams); !slices.Equal(got, step.want) {
			s.Errorf("claiming %d of %v gave %v, want %v", step.most, step.streams, got, step.want)
		}
	}
	if s.Advance != nil {
		s.claimOrderLater(now)
	}
}

// claimed claims for longer than other leases last, and returns the ids. No streams at all means all of them.
func (s *storeTest) claimed(most int, streams []string) []string {
	s.Helper()
	got, err := s.Store.Claim(s.ctx, stream.Claim{Owner: worker("w"), Streams: streams, TTL: 2 * long, Max: most})
	s.is(err, nil, "claim")
	return ids(got)
}

// claimOrderLater lets the leases of claimOrder run out.
func (s *storeTest) claimOrderLater(now time.Time) {
	// Leases that ran out and jobs that are ready stand in one order.
	s.pass(90 * time.Minute)
	s.add(stream.Job{ID: "ready", NotBefore: now.Add(-3 * time.Hour)})
	s.add(stream.Job{ID: "top", Priority: 6})
	s.pass(time.Hour)
	if got, want := s.claimed(3, nil), []string{"other", "top", "urgent"}; !slices.Equal(got, want) {
		s.Errorf("the most urgent are %v, want %v", got, want)
	}
	if got, want := s.claimed(1, nil), []string{"ready"}; !slices.Equal(got, want) {
		s.Errorf("the one that was due longest is %v, want %v", got, want)
	}
	s.pass(24 * time.Hour)
	if got := s.claimed(1, nil); !slices.Equal(got, []string{"tomorrow"}) && !slices.Equal(got, []string{"other"}) {
		s.Errorf("after a day the most urgent is %v", got)
	}
}

// raceJobs is how many jobs many owners claim at once.
const raceJobs = 60

func (s *storeTest) claimRace() {
	for i := range raceJobs {
		s.add(stream.Job{ID: fmt.Sprint("job", i), Priority: i % 3})
	}
	s.claimAll(1)
	if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{All: true}); n != raceJobs || err != nil {
		s.Fatalf("Expire ended %d leases, error %v, want %d", n, err, raceJobs)
	}
	s.claimAll(2)
}

// claimAll has owners claim until nothing is left. Each job must get one owner, and this epoch.
func (s *storeTest) claimAll(epoch uint64) {
	s.Helper()
	const owners = 12
	var (
		lock  sync.Mutex
		owner = map[string]string{}
		all   sync.WaitGroup
	)
	for w := range owners {
		name := fmt.Sprint("w", w)
		all.Go(func() {
			s.claimUntilEmpty(s.all()[w%len(s.all())], name, 1+w%4, func(st stream.Status) {
				lock.Lock()
				defer lock.Unlock()
				if before, twice := owner[st.ID]; twice || st.Epoch != epoch {
					s.Errorf("job %s was given to %s and to %q, epoch %d, want %d", st.ID, name, before, st.Epoch, epoch)
				}
				owner[st.ID] = name
			})
		})
	}
	all.Wait()
	for _, st := range s.take("rest", long, raceJobs) {
		owner[st.ID] = "rest"
	}
	if len(owner) != raceJobs {
		s.Errorf("%d jobs were claimed, want %d", len(owner), raceJobs)
	}
	for id, name := range owner {
		if st := s.get(id); st.Owner != worker(name) || st.Epoch != epoch {
			s.Errorf("job %s belongs to %v in epoch %d, but was given to %s in epoch %d", id, st.Owner, st.Epoch, name, epoch)
		}
	}
}

// claimUntilEmpty stops at the second empty answer: one may come from claims of others that are under way.
func (s *storeTest) claimUntilEmpty(store stream.Store, name string, most int, claimed func(stream.Status)) {
	for empty := 0; empty < 2; {
		got, err := store.Claim(s.ctx, stream.Claim{Owner: worker(name), TTL: long, Max: most})
		if err != nil {
			s.Error(err)
			return
		}
		if len(got) > most {
			s.Errorf("%d jobs were claimed at once, want %d at most", len(got), most)
		}
		if len(got) == 0 {
			empty++
		}
		for _, st := range got {
			claimed(st)
		}
	}
}

func (s *storeTest) claimBad() {
	s.add(stream.Job{ID: "a"})
	for _, c := range []stream.Claim{{Owner: worker("w"), Max: 1}, {Owner: worker("w"), TTL: long}, {Owner: worker("w"), TTL: -long, Max: 1}, {Owner: worker("w"), TTL: long, Max: -1}} {
		if got, err := s.Store.Claim(s.ctx, c); len(got) > 0 {
			s.Errorf("%+v gave %v, error %v", c, ids(got), err)
		}
	}
	if st := s.get("a"); st.State != stream.Ready || st.Epoch != 0 {
		s.Errorf("a refused claim made the job %+v", st)
	}
}
