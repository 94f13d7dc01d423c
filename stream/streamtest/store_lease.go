package streamtest

import (
	"bytes"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/stream"
)

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
	s.releaseFinal("end0", stream.Completed, stream.Failed)
	s.releaseFinal("end1", stream.Failed, stream.Completed)
	s.pass(2 * s.ttl)
	if got := s.take("u", s.ttl, 10); slices.ContainsFunc(got, func(st stream.Status) bool { return st.ID != "a" }) {
		s.Errorf("final jobs were claimed: %v", ids(got))
	}
}

// releaseFinal ends a job. Ending it again so is no error, since the first answer may have been lost; ending it otherwise is one.
func (s *storeTest) releaseFinal(id string, state, other stream.State) {
	s.Helper()
	s.add(stream.Job{ID: id, Priority: 1})
	st := s.take("w", long, 1)[0]
	r := stream.Release{State: state, Progress: stream.Progress{Records: 5}, Reason: "end"}
	s.is(s.Store.Release(s.ctx, st.Lease(), r), nil, "release as %s", state)
	ended := s.get(id)
	if ended.State != state || ended.FinishedAt.IsZero() || ended.Epoch != st.Epoch || ended.Owner != worker("w") || ended.Reason != "end" {
		s.Errorf("the job released as %s is %+v", state, ended)
	}
	s.is(s.Store.Release(s.ctx, st.Lease(), r), nil, "releasing as %s twice", state)
	s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: other}), stream.ErrFenced, "releasing as %s after %s", other, state)
	stale := st.Lease()
	stale.Epoch--
	s.is(s.Store.Release(s.ctx, stale, r), stream.ErrFenced, "releasing with a stale lease")
	if got := s.get(id); got.State != state || !got.FinishedAt.Equal(ended.FinishedAt) {
		s.Errorf("a final job changed to %+v", got)
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
		s.stale(name, st)
	}
}

// stale tries everything with a lease that has ended. The job stays as it is.
func (s *storeTest) stale(name string, st stream.Status) {
	s.Helper()
	id := st.ID
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
		want := 0
		if test.match {
			want = 1
		}
		s.expireOne(name, test.dead, want)
	}
	s.expireOthers()
}

// expireOne ends the leases that the filter names, of which owner "w" has one.
func (s *storeTest) expireOne(name string, dead stream.ExpireFilter, want int) {
	s.Helper()
	st := s.add(stream.Job{})
	s.one("w", long)
	n, err := s.Store.Expire(s.ctx, dead)
	if n != want || err != nil {
		s.Errorf("%s: Expire returned %d, error %v, want %d", name, n, err, want)
	}
	got := s.take("next", long, 10)
	if len(got) != want || want == 1 && (!got[0].Reclaimed || got[0].ID != st.ID || got[0].Epoch != 2) {
		s.Errorf("%s: the next claim gave %+v, want %d jobs of a dead owner", name, got, want)
	}
	if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{Incarnation: worker("w").Incarnation}); err != nil || n != 1-want {
		s.Errorf("%s: then %d leases were left, error %v, want %d", name, n, err, 1-want)
	}
	s.must(s.Store.Cancel(s.ctx, st.ID))
}

// expireOthers: owners without a container's name, filters that name no owner, jobs without a lease.
func (s *storeTest) expireOthers() {
	// Owners that did not say their container's name match any.
	s.add(stream.Job{ID: "plain"})
	nameless := worker("w")
	nameless.Container = ""
	if got, err := s.Store.Claim(s.ctx, stream.Claim{Owner: nameless, TTL: long, Max: 1}); len(got) != 1 || err != nil {
		s.Fatalf("claimed %v, error %v", got, err)
	}
	if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{PodUID: nameless.PodUID, Container: "main"}); n != 1 || err != nil {
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
