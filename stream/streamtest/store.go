package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

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

// RunStore checks that a store does what [stream.Store] promises. open is called for each test, also for several at once; what it opens is
// closed by the test that it belongs to (see testing.T.Cleanup). If the store has a method Orphans(context.Context) (int, error), which
// counts jobs that no claim would find, each test ends by asking it.
func RunStore(t *testing.T, open func(t *testing.T) StoreUnderTest) {
	tests := []struct {
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
	for _, test := range tests {
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

func (s *storeTest) submit() {
	job := stream.Job{ID: "a", Stream: "users", Target: "dns:///users:443", Query: []byte{0, 255, '\'', 10}, DedupeKey: "users/ü", Priority: -7,
		NotBefore: time.Now().Add(48 * time.Hour).Truncate(time.Microsecond), OnBad: stream.HaltJob, MaxBad: stream.None}
	st := s.add(job)
	if diff := cmp.Diff(job, st.Job, sameTime); diff != "" {
		s.Errorf("Submit returned another job (-want +got):\n%s", diff)
	}
	if st.State != stream.Ready || st.Epoch != 0 || st.Existed || st.CreatedAt.IsZero() || st.Attempts != 0 || !st.ClaimedAt.IsZero() {
		s.Errorf("a new job has the status %+v", st)
	}
	if diff := cmp.Diff(st, s.get("a"), sameTime); diff != "" {
		s.Errorf("Get returned another job (-want +got):\n%s", diff)
	}
	plain := s.add(stream.Job{Stream: "users"})
	if plain.ID == "" || plain.ID == s.add(stream.Job{Stream: "users"}).ID {
		s.Errorf("jobs without an ID must get one of their own, got %q", plain.ID)
	}
	if plain.OnBad != "" && plain.OnBad != stream.Quarantine {
		s.Errorf("the default of OnBad became %q", plain.OnBad)
	}
}

func (s *storeTest) submitBad() {
	for name, job := range map[string]stream.Job{
		"no stream":            {ID: "a"},
		"an unknown policy":    {Stream: "users", OnBad: "skip"},
		"a negative limit":     {Stream: "users", MaxBad: -2},
		"a space in a name":    {Stream: "two words"},
		"a line break in a ID": {ID: "a\nb", Stream: "users"},
	} {
		if st, err := s.Store.Submit(s.ctx, job); err == nil {
			s.Errorf("a job with %s was taken: %+v", name, st.Job)
		}
	}
	if all, err := s.Store.List(s.ctx, stream.Filter{}); err != nil || len(all) > 0 {
		s.Errorf("refused jobs were stored: %v, error %v", ids(all), err)
	}
}

func (s *storeTest) dedupe() {
	first := s.add(stream.Job{ID: "a", Stream: "users", DedupeKey: "k", Query: []byte("1"), Target: "dns:///users:443"})
	// One that asks for other records must not get it: the caller would take those of the first for its own.
	for name, job := range map[string]stream.Job{
		"the key, another query":  {Stream: "users", DedupeKey: "k", Query: []byte("2"), Target: "dns:///users:443"},
		"the key, no query":       {Stream: "users", DedupeKey: "k", Target: "dns:///users:443"},
		"the key, another target": {Stream: "users", DedupeKey: "k", Query: []byte("1"), Target: "dns:///copy:443"},
		"the ID, another stream":  {ID: "a", Stream: "orders", DedupeKey: "k", Query: []byte("1"), Target: "dns:///users:443"},
		"the ID, another query":   {ID: "a", Stream: "users", DedupeKey: "k", Query: []byte("2"), Target: "dns:///users:443"},
		"the ID, another target":  {ID: "a", Stream: "users", DedupeKey: "k", Query: []byte("1")},
		"the ID, another key":     {ID: "a", Stream: "users", DedupeKey: "other", Query: []byte("1"), Target: "dns:///users:443"},
		"the ID, no key":          {ID: "a", Stream: "users", Query: []byte("1"), Target: "dns:///users:443"},
	} {
		st, err := s.Store.Submit(s.ctx, job)
		if !errors.Is(err, stream.ErrExists) || st.ID != "" {
			s.Errorf("%s: Submit returned job %q and error %v, want ErrExists", name, st.ID, err)
		}
	}
	for name, job := range map[string]stream.Job{
		"the same key":        {Stream: "users", DedupeKey: "k", Query: []byte("1"), Target: "dns:///users:443"},
		"the same key and ID": {ID: "a", Stream: "users", DedupeKey: "k", Query: []byte("1"), Target: "dns:///users:443"},
		"the key, another ID": {ID: "b", Stream: "users", DedupeKey: "k", Query: []byte("1"), Target: "dns:///users:443"},
		"another policy":      {Stream: "users", DedupeKey: "k", Query: []byte("1"), Target: "dns:///users:443", OnBad: stream.HaltJob, MaxBad: 7, Priority: 9, NotBefore: time.Now().Add(time.Hour)},
	} {
		st := s.add(job)
		if !st.Existed {
			s.Errorf("%s: Existed is not set", name)
		}
		st.Existed = false
		if diff := cmp.Diff(first, st, sameTime); diff != "" {
			s.Errorf("%s: not the first job (-want +got):\n%s", name, diff)
		}
	}
	if st := s.add(stream.Job{ID: "c", Stream: "users"}); st.Existed {
		s.Error("a job without a key was taken for another without a key")
	}
	if s.add(stream.Job{ID: "d", Stream: "users"}).Existed {
		s.Error("a job without a key was taken for another without a key")
	}
	// The key outlives the job's end.
	for range 3 {
		for _, st := range s.take("w", long, 3) {
			s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: stream.Completed}), nil, "release")
		}
	}
	if st := s.add(stream.Job{Stream: "users", DedupeKey: "k", Query: []byte("1"), Target: "dns:///users:443"}); !st.Existed || st.ID != "a" || st.State != stream.Completed {
		s.Errorf("the key of a completed job gave %+v", st)
	}
	// It is the stream's: another stream's jobs know nothing of it.
	if st := s.add(stream.Job{ID: "o", Stream: "orders", DedupeKey: "k"}); st.Existed || st.ID != "o" {
		s.Errorf("the key of another stream gave %+v", st)
	}
	// A cancelled job gives it free, and cannot take it back once another job has it.
	s.must(s.Store.Cancel(s.ctx, "o"))
	if st := s.add(stream.Job{ID: "o2", Stream: "orders", DedupeKey: "k"}); st.Existed || st.ID != "o2" {
		s.Errorf("the key of a cancelled job gave %+v", st)
	}
	if _, err := s.Store.Retry(s.ctx, "o"); !errors.Is(err, stream.ErrState) {
		s.Errorf("retry of a cancelled job whose key is another's: error %v, want ErrState", err)
	}
	s.must(s.Store.Cancel(s.ctx, "o2"))
	s.must(s.Store.Retry(s.ctx, "o"))
}

func (s *storeTest) dedupeRace() {
	stores := s.all()
	for round := range 5 {
		got := make([]stream.Status, 16)
		var all sync.WaitGroup
		for i := range got {
			all.Go(func() {
				var err error
				got[i], err = stores[i%len(stores)].Submit(s.ctx, stream.Job{Stream: "users", DedupeKey: fmt.Sprint("k", round)})
				if err != nil {
					s.Error(err)
				}
			})
		}
		all.Wait()
		made := 0
		for _, st := range got {
			if st.ID != got[0].ID {
				s.Errorf("one key, but the jobs %s and %s", st.ID, got[0].ID)
			}
			if !st.Existed {
				made++
			}
		}
		if made != 1 {
			s.Errorf("%d callers were told that the job is new, want 1", made)
		}
	}
}

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
	claim := func(most int, streams ...string) []string {
		s.Helper()
		got, err := s.Store.Claim(s.ctx, stream.Claim{Owner: worker("w"), Streams: streams, TTL: 2 * long, Max: most})
		s.is(err, nil, "claim")
		return ids(got)
	}
	for _, step := range []struct {
		most    int
		streams []string
		want    []string
	}{
		{10, []string{"nobody's"}, nil},
		{10, []string{}, nil},
		{2, []string{"users"}, []string{"urgent", "early"}},
		{10, []string{"nobody's", "users"}, []string{"late", "idle"}},
		{10, nil, []string{"other"}},
	} {
		if step.streams != nil && len(step.streams) == 0 {
			got, err := s.Store.Claim(s.ctx, stream.Claim{Owner: worker("w"), Streams: []string{}, TTL: long, Max: 10})
			if len(got) != 0 || err != nil {
				s.Errorf("an owner without handlers claimed %v, error %v", ids(got), err)
			}
			continue
		}
		if got := claim(step.most, step.streams...); !slices.Equal(got, step.want) {
			s.Errorf("claiming %d of %v gave %v, want %v", step.most, step.streams, got, step.want)
		}
	}
	if s.Advance == nil {
		return
	}
	// Leases that ran out and jobs that are ready stand in one order.
	s.pass(90 * time.Minute)
	s.add(stream.Job{ID: "ready", NotBefore: now.Add(-3 * time.Hour)})
	s.add(stream.Job{ID: "top", Priority: 6})
	s.pass(time.Hour)
	if got, want := claim(3), []string{"other", "top", "urgent"}; !slices.Equal(got, want) {
		s.Errorf("the most urgent are %v, want %v", got, want)
	}
	if got, want := claim(1), []string{"ready"}; !slices.Equal(got, want) {
		s.Errorf("the one that was due longest is %v, want %v", got, want)
	}
	s.pass(24 * time.Hour)
	if got := claim(1); !slices.Equal(got, []string{"tomorrow"}) && !slices.Equal(got, []string{"other"}) {
		s.Errorf("after a day the most urgent is %v", got)
	}
}

func (s *storeTest) claimRace() {
	const jobs, workers = 60, 12
	for i := range jobs {
		s.add(stream.Job{ID: fmt.Sprint("job", i), Priority: i % 3})
	}
	stores := s.all()
	round := func(epoch uint64) {
		s.Helper()
		var (
			lock  sync.Mutex
			owner = map[string]string{}
			all   sync.WaitGroup
		)
		for w := range workers {
			all.Go(func() {
				name := fmt.Sprint("w", w)
				for empty := 0; empty < 2; { // one empty answer may come from others' claims under way
					got, err := stores[w%len(stores)].Claim(s.ctx, stream.Claim{Owner: worker(name), TTL: long, Max: 1 + w%4})
					if err != nil {
						s.Error(err)
						return
					}
					if len(got) > 1+w%4 {
						s.Errorf("%d jobs were claimed at once, want %d at most", len(got), 1+w%4)
					}
					if len(got) == 0 {
						empty++
					}
					for _, st := range got {
						lock.Lock()
						if before, twice := owner[st.ID]; twice || st.Epoch != epoch {
							s.Errorf("job %s was given to %s and to %q, epoch %d, want %d", st.ID, name, before, st.Epoch, epoch)
						}
						owner[st.ID] = name
						lock.Unlock()
					}
				}
			})
		}
		all.Wait()
		for _, st := range s.take("rest", long, jobs) {
			owner[st.ID] = "rest"
		}
		if len(owner) != jobs {
			s.Errorf("%d jobs were claimed, want %d", len(owner), jobs)
		}
		for id, name := range owner {
			if st := s.get(id); st.Owner != worker(name) || st.Epoch != epoch {
				s.Errorf("job %s belongs to %v in epoch %d, but was given to %s in epoch %d", id, st.Owner, st.Epoch, name, epoch)
			}
		}
	}
	round(1)
	if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{All: true}); n != jobs || err != nil {
		s.Fatalf("Expire ended %d leases, error %v, want %d", n, err, jobs)
	}
	round(2)
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

func (s *storeTest) leaseEnds() {
	s.add(stream.Job{ID: "a"})
	first := s.one("w", s.ttl)
	s.pass(s.ttl + s.ttl/4)
	second := s.one("v", long)
	if second.Epoch != 2 || second.Attempts != 2 || !second.Reclaimed || second.Owner != worker("v") || !second.ClaimedAt.After(first.ClaimedAt.Add(-long)) {
		s.Errorf("the claim after the lease's end returned %+v", second)
	}
	if !second.StartedAt.Equal(s.get("a").StartedAt) || second.CreatedAt.IsZero() {
		s.Errorf("StartedAt changed")
	}
	if s.get("a").Reclaimed {
		s.Error("Reclaimed is for claims only")
	}
	s.is(s.Store.Renew(s.ctx, first.Lease(), stream.Progress{}, long), stream.ErrFenced, "renewing after another's claim")
}

func (s *storeTest) renew() {
	s.add(stream.Job{ID: "a"})
	st := s.one("w", s.ttl)
	want := stream.Progress{Records: 1 << 40, Bytes: 1 << 50, Bad: 3, Size: 1 << 41}
	for range 3 {
		s.pass(s.ttl / 3)
		s.is(s.Store.Renew(s.ctx, st.Lease(), want, s.ttl), nil, "renew")
	}
	s.pass(s.ttl / 3)
	if got := s.take("v", long, 1); len(got) != 0 {
		s.Error("a renewed lease ran out")
	}
	if got := s.get("a"); got.Progress != want {
		s.Errorf("progress is %+v, want %+v", got.Progress, want)
	}
	if err := s.Store.Renew(s.ctx, st.Lease(), want, 0); err == nil {
		s.Error("a lease could be renewed for no time")
	}
	s.pass(s.ttl)
	if second := s.one("v", long); second.Progress != want || second.Epoch != 2 {
		s.Errorf("the next owner gets %+v", second)
	}
}

func (s *storeTest) note() {
	s.add(stream.Job{ID: "a"})
	st := s.one("w", s.ttl)
	if st.CrashState != (stream.CrashState{}) || st.RetryState != (stream.RetryState{}) {
		s.Errorf("a new job suspects %+v, %+v", st.CrashState, st.RetryState)
	}
	retry := stream.RetryState{Failures: 7, NoProgress: 25 * time.Hour, Denied: time.Minute, Dependent: 1500 * time.Microsecond}
	want := stream.CrashState{BatchLimit: 500, SuspectUntil: 1 << 40, InFlightSeq: 1<<40 - 1, Crashes: 2}
	s.is(s.Store.SaveState(s.ctx, st.Lease(), want, retry), nil, "SaveState")
	if got := s.get("a"); got.CrashState != want || got.RetryState != retry || !got.LeaseUntil.Equal(st.LeaseUntil) {
		s.Errorf("crash and retry state are %+v, %+v, lease until %v", got.CrashState, got.RetryState, got.LeaseUntil)
	}
	s.pass(s.ttl + s.ttl/4)
	second := s.one("v", long)
	if second.CrashState != want || second.RetryState != retry {
		s.Errorf("the next owner gets %+v, %+v", second.CrashState, second.RetryState)
	}
	s.is(s.Store.SaveState(s.ctx, second.Lease(), stream.CrashState{}, stream.RetryState{}), nil, "SaveState")
	if got := s.get("a"); got.CrashState != (stream.CrashState{}) || got.RetryState != (stream.RetryState{}) {
		s.Errorf("a cleared state is %+v, %+v", got.CrashState, got.RetryState)
	}
}

func (s *storeTest) release() {
	s.add(stream.Job{ID: "a"})
	wait := s.ttl
	r := stream.Release{State: stream.Ready, After: wait, RetryState: stream.RetryState{Failures: 4, NoProgress: time.Hour, Denied: 2 * time.Second, Dependent: 3 * time.Microsecond}, Progress: stream.Progress{Records: 9, Bytes: 8, Bad: 7, Size: 6},
		Reason: "source", LastError: "not UTF-8: \xff\x00 'quoted'", CrashState: stream.CrashState{BatchLimit: 1, SuspectUntil: 2, InFlightSeq: 3, Crashes: 4}}
	first := s.one("w", long)
	s.is(s.Store.Release(s.ctx, first.Lease(), r), nil, "release")
	st := s.get("a")
	if st.State != stream.Ready || st.RetryState != r.RetryState || st.Progress != r.Progress || st.Reason != "source" || st.CrashState != r.CrashState || !st.FinishedAt.IsZero() || !st.LeaseUntil.IsZero() {
		s.Errorf("the released job is %+v", st)
	}
	if !bytes.Contains([]byte(st.LastError), []byte("'quoted'")) {
		s.Errorf("the text of an error with odd bytes became %q", st.LastError)
	}
	s.is(s.Store.Release(s.ctx, first.Lease(), r), stream.ErrFenced, "releasing a ready job again")
	if got := s.take("v", long, 1); len(got) != 0 {
		s.Error("the job was claimed before its time")
	}
	s.pass(wait + wait/4)
	second := s.one("v", long)
	if second.Reclaimed || second.Epoch != 2 || second.Attempts != 2 {
		s.Errorf("a job that was released is claimed as %+v", second)
	}
	for _, bad := range []stream.Release{{State: stream.Running}, {}, {State: stream.Cancelled}, {State: stream.Paused}, {State: stream.Ready, After: -1}} {
		if err := s.Store.Release(s.ctx, second.Lease(), bad); err == nil {
			s.Errorf("%+v was taken", bad)
		}
	}
	for i, state := range []stream.State{stream.Completed, stream.Failed} {
		id := fmt.Sprint("end", i)
		s.add(stream.Job{ID: id, Priority: 1})
		st := s.take("w", long, 1)[0]
		r := stream.Release{State: state, Progress: stream.Progress{Records: 5}, Reason: "end"}
		s.is(s.Store.Release(s.ctx, st.Lease(), r), nil, "release as %s", state)
		ended := s.get(id)
		if ended.State != state || ended.FinishedAt.IsZero() || ended.Epoch != st.Epoch || ended.Owner != worker("w") || ended.Reason != "end" {
			s.Errorf("the job released as %s is %+v", state, ended)
		}
		s.is(s.Store.Release(s.ctx, st.Lease(), r), nil, "releasing as %s twice", state)
		other := stream.Release{State: stream.Completed}
		if state == stream.Completed {
			other.State = stream.Failed
		}
		s.is(s.Store.Release(s.ctx, st.Lease(), other), stream.ErrFenced, "releasing as %s after %s", other.State, state)
		stale := st.Lease()
		stale.Epoch--
		s.is(s.Store.Release(s.ctx, stale, r), stream.ErrFenced, "releasing with a stale lease")
		if got := s.get(id); got.State != state || !got.FinishedAt.Equal(ended.FinishedAt) {
			s.Errorf("a final job changed to %+v", got)
		}
	}
	s.pass(2 * s.ttl)
	if got := s.take("u", s.ttl, 10); slices.ContainsFunc(got, func(st stream.Status) bool { return st.ID != "a" }) {
		s.Errorf("final jobs were claimed: %v", ids(got))
	}
}

func (s *storeTest) fencing() {
	ends := map[string]func(st stream.Status){
		"another's claim": func(st stream.Status) {
			if _, err := s.Store.Expire(s.ctx, stream.ExpireFilter{Incarnation: st.Owner.Incarnation}); err != nil {
				s.Fatal(err)
			}
			s.one("v", long)
		},
		"its own next claim": func(st stream.Status) {
			s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: stream.Ready}), nil, "release")
			s.one("w", long)
		},
		"a cancel":         func(st stream.Status) { s.must(s.Store.Cancel(s.ctx, st.ID)) },
		"a pause":          func(st stream.Status) { s.must(s.Store.Pause(s.ctx, st.ID)) },
		"pause and resume": func(st stream.Status) { s.must(s.Store.Pause(s.ctx, st.ID)); s.must(s.Store.Resume(s.ctx, st.ID)) },
		"cancel and retry": func(st stream.Status) { s.must(s.Store.Cancel(s.ctx, st.ID)); s.must(s.Store.Retry(s.ctx, st.ID)) },
		"a release": func(st stream.Status) {
			s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: stream.Ready, After: long}), nil, "release")
		},
	}
	for name, end := range ends {
		id := "after-" + string(bytes.ReplaceAll([]byte(name), []byte(" "), []byte("-")))
		s.add(stream.Job{ID: id})
		st := s.one("w", long)
		end(st)
		before := s.get(id)
		s.is(s.Store.Renew(s.ctx, st.Lease(), stream.Progress{Records: 99}, long), stream.ErrFenced, "Renew after %s", name)
		s.is(s.Store.SaveState(s.ctx, st.Lease(), stream.CrashState{BatchLimit: 99}, stream.RetryState{Failures: 99}), stream.ErrFenced, "Note after %s", name)
		for _, state := range []stream.State{stream.Ready, stream.Completed, stream.Failed} {
			s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: state, RetryState: stream.RetryState{Failures: 99}}), stream.ErrFenced, "Release as %s after %s", state, name)
		}
		future := before.Lease()
		future.Epoch++
		s.is(s.Store.Renew(s.ctx, future, stream.Progress{}, long), stream.ErrFenced, "Renew with an epoch that does not exist")
		if diff := cmp.Diff(before, s.get(id), sameTime); diff != "" {
			s.Errorf("after %s a stale lease changed the job (-before +after):\n%s", name, diff)
		}
		if !before.State.Final() {
			s.must(s.Store.Cancel(s.ctx, id))
		}
	}
}

func (s *storeTest) must(st stream.Status, err error) stream.Status {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	return st
}

func (s *storeTest) states() {
	lead := map[stream.State]func(id string){
		stream.Ready:     func(string) {},
		stream.Running:   func(string) { s.one("w", long) },
		stream.Paused:    func(id string) { s.must(s.Store.Pause(s.ctx, id)) },
		stream.Cancelled: func(id string) { s.must(s.Store.Cancel(s.ctx, id)) },
		stream.Completed: func(string) { s.finish(stream.Completed) },
		stream.Failed:    func(string) { s.finish(stream.Failed) },
	}
	actions := map[string]struct {
		do    func(context.Context, string) (stream.Status, error)
		from  []stream.State
		to    stream.State
		epoch uint64
	}{
		"cancel": {s.Store.Cancel, []stream.State{stream.Ready, stream.Running, stream.Paused}, stream.Cancelled, 1},
		"pause":  {s.Store.Pause, []stream.State{stream.Ready, stream.Running}, stream.Paused, 1},
		"resume": {s.Store.Resume, []stream.State{stream.Paused}, stream.Ready, 0},
		"retry":  {s.Store.Retry, []stream.State{stream.Completed, stream.Failed, stream.Cancelled}, stream.Ready, 1},
	}
	for from, reach := range lead {
		for name, action := range actions {
			id := name + "-" + string(from)
			s.add(stream.Job{ID: id})
			reach(id)
			before := s.get(id)
			if before.State != from {
				s.Fatalf("the job is %s, want %s", before.State, from)
			}
			got, err := action.do(s.ctx, id)
			after := s.get(id)
			if !slices.Contains(action.from, from) {
				s.is(err, stream.ErrState, "%s of a job that is %s", name, from)
				if diff := cmp.Diff(before, after); diff != "" {
					s.Errorf("a refused %s changed a job that is %s (-before +after):\n%s", name, from, diff)
				}
			} else {
				s.is(err, nil, "%s of a job that is %s", name, from)
				if diff := cmp.Diff(got, after, sameTime); diff != "" {
					s.Errorf("%s of a job that is %s returned something else than is stored (-returned +stored):\n%s", name, from, diff)
				}
				if after.State != action.to || after.Epoch != before.Epoch+action.epoch || after.FinishedAt.IsZero() == action.to.Final() || !after.LeaseUntil.IsZero() {
					s.Errorf("%s of a job that is %s made it %+v", name, from, after)
				}
				if after.Progress != before.Progress {
					s.Errorf("%s of a job that is %s changed its progress to %+v", name, from, after.Progress)
				}
				if name == "retry" && (after.RetryState != (stream.RetryState{}) || after.CrashState != (stream.CrashState{}) || after.Reason != "") {
					s.Errorf("retry left %+v", after)
				}
				if action.to == stream.Ready {
					if st := s.one("next", long); st.ID != id || st.Reclaimed || st.Epoch != after.Epoch+1 {
						s.Errorf("after %s of a job that is %s the claim gave %+v", name, from, st)
					}
				} else if got := s.take("next", long, 1); len(got) != 0 {
					s.Errorf("a job that is %s was claimed", action.to)
				}
			}
			if st := s.get(id); !st.State.Final() {
				s.must(s.Store.Cancel(s.ctx, id))
			}
		}
	}
	// NotBefore outlasts a pause.
	s.add(stream.Job{ID: "later", NotBefore: time.Now().Add(24 * time.Hour)})
	s.must(s.Store.Pause(s.ctx, "later"))
	s.must(s.Store.Resume(s.ctx, "later"))
	if got := s.take("next", long, 1); len(got) != 0 {
		s.Error("pause and resume made a job start before its time")
	}
}

func (s *storeTest) finish(state stream.State) {
	s.Helper()
	st := s.one("w", long)
	s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: state, RetryState: stream.RetryState{Failures: 3, Denied: time.Hour}, Progress: stream.Progress{Records: 11}, Reason: "r", LastError: "e",
		CrashState: stream.CrashState{BatchLimit: 4, SuspectUntil: 5, InFlightSeq: 6, Crashes: 7}}), nil, "release")
}

func (s *storeTest) expire() {
	mine := worker("w")
	long := long
	for name, test := range map[string]struct {
		dead  stream.ExpireFilter
		match bool
	}{
		"its pod":                                {stream.ExpireFilter{PodUID: mine.PodUID}, true},
		"another pod":                            {stream.ExpireFilter{PodUID: "uid-v"}, false},
		"itself":                                 {stream.ExpireFilter{Incarnation: mine.Incarnation}, true},
		"another process":                        {stream.ExpireFilter{Incarnation: "incarnation-v"}, false},
		"its pod and itself":                     {stream.ExpireFilter{PodUID: mine.PodUID, Incarnation: mine.Incarnation}, true},
		"its pod and another process":            {stream.ExpireFilter{PodUID: mine.PodUID, Incarnation: "incarnation-v"}, false},
		"another pod and itself":                 {stream.ExpireFilter{PodUID: "uid-v", Incarnation: mine.Incarnation}, false},
		"its container":                          {stream.ExpireFilter{PodUID: mine.PodUID, Container: "main"}, true},
		"another container":                      {stream.ExpireFilter{PodUID: mine.PodUID, Container: "sidecar"}, false},
		"its pod but itself":                     {stream.ExpireFilter{PodUID: mine.PodUID, ExceptIncarnation: mine.Incarnation}, false},
		"its pod but another process":            {stream.ExpireFilter{PodUID: mine.PodUID, ExceptIncarnation: "incarnation-v"}, true},
		"its pod, leases before it":              {stream.ExpireFilter{PodUID: mine.PodUID, ClaimedBefore: time.Now().Add(-24 * long)}, false},
		"its pod, leases up to now":              {stream.ExpireFilter{PodUID: mine.PodUID, ClaimedBefore: time.Now().Add(24 * long)}, true},
		"all":                                    {stream.ExpireFilter{All: true}, true},
		"all but itself":                         {stream.ExpireFilter{All: true, ExceptIncarnation: mine.Incarnation}, false},
		"all but another process":                {stream.ExpireFilter{All: true, ExceptIncarnation: "incarnation-v"}, true},
		"all in another container":               {stream.ExpireFilter{All: true, Container: "sidecar"}, false},
		"its pod, its container, another lives":  {stream.ExpireFilter{PodUID: mine.PodUID, Container: "main", ExceptIncarnation: "incarnation-v", ClaimedBefore: time.Now().Add(24 * long)}, true},
		"its pod, its container, itself but old": {stream.ExpireFilter{PodUID: mine.PodUID, Container: "main", Incarnation: mine.Incarnation, ClaimedBefore: time.Now().Add(-24 * long)}, false},
	} {
		st := s.add(stream.Job{})
		s.one("w", long)
		want := 0
		if test.match {
			want = 1
		}
		n, err := s.Store.Expire(s.ctx, test.dead)
		if n != want || err != nil {
			s.Errorf("%s: Expire returned %d, error %v, want %d", name, n, err, want)
		}
		got := s.take("next", long, 10)
		if len(got) != want || want == 1 && (!got[0].Reclaimed || got[0].ID != st.ID || got[0].Epoch != 2) {
			s.Errorf("%s: the next claim gave %+v, want %d jobs of a dead owner", name, got, want)
		}
		if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{Incarnation: mine.Incarnation}); err != nil || n != 1-want {
			s.Errorf("%s: then %d leases were left, error %v, want %d", name, n, err, 1-want)
		}
		s.must(s.Store.Cancel(s.ctx, st.ID))
	}
	// Owners that did not say their container's name match any.
	s.add(stream.Job{ID: "plain"})
	nameless := worker("w")
	nameless.Container = ""
	if got, err := s.Store.Claim(s.ctx, stream.Claim{Owner: nameless, TTL: long, Max: 1}); len(got) != 1 || err != nil {
		s.Fatalf("claimed %v, error %v", got, err)
	}
	if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{PodUID: mine.PodUID, Container: "main"}); n != 1 || err != nil {
		s.Errorf("Expire in a container of an owner that has not named its own returned %d, error %v", n, err)
	}
	for _, dead := range []stream.ExpireFilter{{}, {Container: "main"}, {ExceptIncarnation: "x"}, {ClaimedBefore: time.Now()}} {
		if n, err := s.Store.Expire(s.ctx, dead); err == nil {
			s.Errorf("%+v names nobody, but ended %d leases", dead, n)
		}
	}
	// Ready, paused and final jobs have no lease to end, whatever their owner was.
	if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{All: true}); n != 0 || err != nil {
		s.Errorf("Expire ended %d leases, error %v, where there was none", n, err)
	}
}

func (s *storeTest) list() {
	var want []string
	for i := range 7 {
		st := s.add(stream.Job{ID: fmt.Sprint("j", i), Stream: []string{"users", "orders"}[i%2]})
		want = append([]string{st.ID}, want...)
	}
	s.must(s.Store.Pause(s.ctx, "j0"))
	s.must(s.Store.Cancel(s.ctx, "j1"))
	for _, test := range []struct {
		f    stream.Filter
		want []string
	}{
		{stream.Filter{}, want},
		{stream.Filter{Limit: 2}, want[:2]},
		{stream.Filter{Streams: []string{"orders"}}, []string{"j5", "j3", "j1"}},
		{stream.Filter{States: []stream.State{stream.Paused, stream.Cancelled}}, []string{"j1", "j0"}},
		{stream.Filter{States: []stream.State{stream.Ready}, Streams: []string{"users", "nobody's"}, Limit: 2}, []string{"j6", "j4"}},
		{stream.Filter{States: []stream.State{stream.Failed}}, nil},
	} {
		got, err := s.Store.List(s.ctx, test.f)
		if err != nil || !slices.Equal(ids(got), test.want) {
			s.Errorf("%+v listed %v, error %v, want %v", test.f, ids(got), err, test.want)
		}
		for _, st := range got {
			if diff := cmp.Diff(s.get(st.ID), st); diff != "" {
				s.Errorf("List and Get differ (-get +list):\n%s", diff)
			}
		}
	}
}

func (s *storeTest) unknown() {
	for name, do := range map[string]func(context.Context, string) (stream.Status, error){
		"Get": s.Store.Get, "Cancel": s.Store.Cancel, "Pause": s.Store.Pause, "Resume": s.Store.Resume, "Retry": s.Store.Retry,
	} {
		_, err := do(s.ctx, "nobody's")
		s.is(err, stream.ErrNotFound, "%s", name)
	}
	l := stream.Lease{Job: "nobody's", Epoch: 1, Owner: worker("w")}
	s.is(s.Store.Renew(s.ctx, l, stream.Progress{}, long), stream.ErrFenced, "Renew")
	s.is(s.Store.SaveState(s.ctx, l, stream.CrashState{}, stream.RetryState{}), stream.ErrFenced, "Note")
	s.is(s.Store.Release(s.ctx, l, stream.Release{State: stream.Completed}), stream.ErrFenced, "Release")
	if got := s.take("w", long, 5); len(got) != 0 {
		s.Errorf("an empty store gave %v", ids(got))
	}
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Store.Submit(ended, stream.Job{Stream: "users"}); err == nil {
		s.Error("Submit succeeded although its context had ended")
	}
}

// model compares the store with a simple one, over random steps. All times are such that no deadline falls on the time of a step:
// leases and waits last whole hours, and time moves by 25 minutes.
func (s *storeTest) model() {
	if s.Advance == nil {
		s.Skip("without Advance this would take hours")
	}
	rounds := 0
	rapid.Check(s.T, func(t *rapid.T) {
		rounds++
		m := &modelTest{T: t, s: s, stream: fmt.Sprint("stream", rounds, "-", stream.NewID()), jobs: map[string]*stream.Status{}, due: map[string]time.Duration{}}
		t.Repeat(map[string]func(*rapid.T){
			"submit":  m.submit,
			"claim":   m.claim,
			"renew":   m.renew,
			"note":    m.note,
			"release": m.release,
			"expire":  m.expire,
			"change":  m.change,
			"time":    func(*rapid.T) { m.now += 25 * time.Minute; s.Advance(25 * time.Minute) },
			"":        m.compare,
		})
	})
}

type modelTest struct {
	*rapid.T
	s      *storeTest
	stream string
	now    time.Duration
	order  []string
	jobs   map[string]*stream.Status
	due    map[string]time.Duration // end of the lease, or of the wait
	leases []stream.Lease           // all that were ever given
}

func (m *modelTest) owner(t *rapid.T) stream.Owner {
	return worker(m.stream + rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "owner"))
}

func (m *modelTest) job(t *rapid.T) *stream.Status {
	if len(m.order) == 0 {
		t.Skip("no job yet")
	}
	return m.jobs[rapid.SampledFrom(m.order).Draw(t, "job")]
}

func (m *modelTest) submit(t *rapid.T) {
	job := stream.Job{ID: fmt.Sprint(m.stream, "/", rapid.IntRange(0, 5).Draw(t, "id")), Stream: m.stream, Priority: rapid.IntRange(0, 2).Draw(t, "priority")}
	if key := rapid.IntRange(0, 5).Draw(t, "key"); key > 0 {
		job.DedupeKey = fmt.Sprint(m.stream, "/", key)
	}
	got, err := m.s.Store.Submit(m.s.ctx, job)
	if there := m.jobs[job.ID]; there != nil && there.DedupeKey != job.DedupeKey {
		if !errors.Is(err, stream.ErrExists) {
			t.Fatalf("Submit of job %s with key %q, which is there with key %q: error %v, want ErrExists", job.ID, job.DedupeKey, there.DedupeKey, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	want := job.ID
	if m.jobs[want] == nil && job.DedupeKey != "" {
		for _, other := range m.jobs {
			if other.DedupeKey == job.DedupeKey && other.State != stream.Cancelled {
				want = other.ID
			}
		}
	}
	if known := m.jobs[want] != nil; got.ID != want || got.Existed != known {
		t.Fatalf("Submit returned job %s, existed %v, want %s, %v", got.ID, got.Existed, want, known)
	}
	if !got.Existed {
		m.jobs[want] = &stream.Status{Job: job, State: stream.Ready}
		m.due[want] = m.now
		m.order = append(m.order, want)
	}
}

func (m *modelTest) claim(t *rapid.T) {
	c := stream.Claim{Owner: m.owner(t), Streams: []string{m.stream}, TTL: time.Duration(rapid.IntRange(1, 2).Draw(t, "ttl")) * time.Hour, Max: rapid.IntRange(1, 3).Draw(t, "max")}
	got, err := m.s.Store.Claim(m.s.ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	var due []string
	for _, id := range m.order {
		if st := m.jobs[id]; (st.State == stream.Ready || st.State == stream.Running) && m.due[id] <= m.now {
			due = append(due, id)
		}
	}
	if len(got) != min(len(due), c.Max) {
		t.Fatalf("%d of the due jobs %v were claimed: %v, want %d", len(got), due, ids(got), min(len(due), c.Max))
	}
	last := 1 << 30 // no greater priority may come later, or be left behind
	for _, st := range got {
		if st.Priority > last {
			t.Fatalf("%s with priority %d was claimed after one of %d", st.ID, st.Priority, last)
		}
		if !slices.Contains(due, st.ID) {
			t.Fatalf("%s was claimed, but only %v are due", st.ID, due)
		}
		last = st.Priority
		want := m.jobs[st.ID]
		if died := want.State == stream.Running && want.Owner.Incarnation != c.Owner.Incarnation; st.Reclaimed != died {
			t.Fatalf("%s: Reclaimed is %v, but it was %s and owned by %v", st.ID, st.Reclaimed, want.State, want.Owner)
		}
		due = slices.DeleteFunc(due, func(id string) bool { return id == st.ID })
		want.State, want.Epoch, want.Attempts, want.Owner = stream.Running, want.Epoch+1, want.Attempts+1, c.Owner
		m.due[st.ID] = m.now + c.TTL
		m.leases = append(m.leases, st.Lease())
	}
	for _, id := range due {
		if len(got) > 0 && m.jobs[id].Priority > last {
			t.Fatalf("%s was left behind, with priority %d, when one of %d was claimed", id, m.jobs[id].Priority, last)
		}
	}
}

func (m *modelTest) lease(t *rapid.T) (stream.Lease, *stream.Status, bool) {
	if len(m.leases) == 0 {
		t.Skip("no lease yet")
	}
	l := rapid.SampledFrom(m.leases).Draw(t, "lease")
	st := m.jobs[l.Job]
	return l, st, st.State == stream.Running && st.Epoch == l.Epoch
}

func (m *modelTest) outcome(t *rapid.T, what string, err error, current bool) bool {
	if current && err != nil || !current && !errors.Is(err, stream.ErrFenced) {
		t.Fatalf("%s: error %v, lease current: %v", what, err, current)
	}
	return current
}

func (m *modelTest) renew(t *rapid.T) {
	l, st, current := m.lease(t)
	p := stream.Progress{Records: rapid.Uint64Range(0, 1<<50).Draw(t, "records")}
	if m.outcome(t, "Renew", m.s.Store.Renew(m.s.ctx, l, p, time.Hour), current) {
		st.Progress = p
		m.due[l.Job] = m.now + time.Hour
	}
}

func (m *modelTest) note(t *rapid.T) {
	l, st, current := m.lease(t)
	j := stream.CrashState{BatchLimit: rapid.IntRange(0, 1000).Draw(t, "probe"), SuspectUntil: rapid.Uint64Range(0, 1<<50).Draw(t, "until")}
	retry := stream.RetryState{Failures: rapid.IntRange(0, 2).Draw(t, "failures")}
	retry.Dependent = time.Duration(retry.Failures) * time.Second
	if m.outcome(t, "SaveState", m.s.Store.SaveState(m.s.ctx, l, j, retry), current) {
		st.CrashState, st.RetryState = j, retry
		if retry == (stream.RetryState{}) {
			st.Reason = ""
		}
	}
}

func (m *modelTest) release(t *rapid.T) {
	l, st, current := m.lease(t)
	r := stream.Release{State: rapid.SampledFrom([]stream.State{stream.Ready, stream.Completed, stream.Failed}).Draw(t, "state"), Reason: "reason",
		After: time.Duration(rapid.IntRange(0, 1).Draw(t, "after")) * time.Hour, RetryState: stream.RetryState{Failures: rapid.IntRange(0, 9).Draw(t, "attempts"), NoProgress: time.Minute}}
	err := m.s.Store.Release(m.s.ctx, l, r)
	if !current && st.Epoch == l.Epoch && st.State == r.State && r.State.Final() {
		if err != nil {
			t.Fatalf("releasing twice: %v", err)
		}
		return
	}
	if m.outcome(t, "Release", err, current) {
		st.State, st.RetryState, st.Progress, st.Reason, st.CrashState = r.State, r.RetryState, r.Progress, r.Reason, r.CrashState
		if m.due[l.Job] = m.now; r.State == stream.Ready {
			m.due[l.Job] += r.After
		}
	}
}

func (m *modelTest) expire(t *rapid.T) {
	o := m.owner(t)
	want := 0
	for id, st := range m.jobs {
		if st.State == stream.Running && st.Owner == o && m.due[id] > m.now {
			m.due[id] = m.now
			want++
		}
	}
	if n, err := m.s.Store.Expire(m.s.ctx, stream.ExpireFilter{Incarnation: o.Incarnation}); n != want || err != nil {
		t.Fatalf("Expire returned %d, error %v, want %d", n, err, want)
	}
}

func (m *modelTest) change(t *rapid.T) {
	st := m.job(t)
	store := m.s.Store
	what := rapid.SampledFrom([]string{"cancel", "pause", "resume", "retry"}).Draw(t, "change")
	possible := map[string]bool{"cancel": !st.State.Final(), "pause": !st.State.Final() && st.State != stream.Paused, "resume": st.State == stream.Paused, "retry": st.State.Final()}[what]
	do := map[string]func(context.Context, string) (stream.Status, error){"cancel": store.Cancel, "pause": store.Pause, "resume": store.Resume, "retry": store.Retry}[what]
	if what == "retry" && st.State == stream.Cancelled && st.DedupeKey != "" {
		for _, other := range m.jobs {
			if other.ID != st.ID && other.DedupeKey == st.DedupeKey && other.State != stream.Cancelled {
				possible = false // its key is another's by now
			}
		}
	}
	if _, err := do(m.s.ctx, st.ID); possible && err != nil || !possible && !errors.Is(err, stream.ErrState) {
		t.Fatalf("%s of a job that is %s: %v", what, st.State, err)
	}
	if !possible {
		return
	}
	wasRunning := st.State == stream.Running
	switch what {
	case "cancel":
		st.State, st.Epoch = stream.Cancelled, st.Epoch+1
	case "pause":
		st.State, st.Epoch = stream.Paused, st.Epoch+1
	case "resume":
		st.State = stream.Ready
	case "retry":
		st.State, st.Epoch, st.RetryState, st.CrashState, st.Reason = stream.Ready, st.Epoch+1, stream.RetryState{}, stream.CrashState{}, ""
	}
	if wasRunning {
		m.due[st.ID] = m.now // the lease is over; only a wait before the job's time outlasts a stop
	}
}

func (m *modelTest) compare(t *rapid.T) {
	got, err := m.s.Store.List(m.s.ctx, stream.Filter{Streams: []string{m.stream}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(m.order) {
		t.Fatalf("there are the jobs %v, want %v", ids(got), m.order)
	}
	for i, st := range got {
		id := m.order[len(m.order)-1-i]
		want := m.jobs[id]
		if st.ID != id || st.State != want.State || st.Epoch != want.Epoch || st.Attempts != want.Attempts || st.RetryState != want.RetryState ||
			st.Progress != want.Progress || st.CrashState != want.CrashState || st.Reason != want.Reason || st.Owner != want.Owner || st.DedupeKey != want.DedupeKey {
			t.Fatalf("job %s is\n%+v, want\n%+v", id, st, *want)
		}
		if st.LeaseUntil.IsZero() == (st.State == stream.Running) {
			t.Fatalf("job %s is %s and its lease ends at %v", id, st.State, st.LeaseUntil)
		}
	}
}
