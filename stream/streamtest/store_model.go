package streamtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/stream"
)

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
	due := m.dueJobs()
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

// dueJobs are those that a claim may take: ready ones, and running ones whose lease has run out.
func (m *modelTest) dueJobs() (due []string) {
	for _, id := range m.order {
		if st := m.jobs[id]; (st.State == stream.Ready || st.State == stream.Running) && m.due[id] <= m.now {
			due = append(due, id)
		}
	}
	return due
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
