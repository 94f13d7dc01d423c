package streamtest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/stream"
)

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
	s.dedupeOthers()
	s.dedupeSame(first)
	for _, id := range []string{"c", "d"} {
		if s.add(stream.Job{ID: id, Stream: "users"}).Existed {
			s.Error("a job without a key was taken for another without a key")
		}
	}
	s.dedupeEnded()
}

// dedupeOthers submits jobs with a key or an ID that is taken, for other records.
func (s *storeTest) dedupeOthers() {
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
}

// dedupeSame submits the first job again, for the same records.
func (s *storeTest) dedupeSame(first stream.Status) {
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
}

// dedupeEnded ends jobs, and submits others with their keys.
func (s *storeTest) dedupeEnded() {
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
