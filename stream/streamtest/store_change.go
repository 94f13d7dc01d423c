package streamtest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/stream"
)

// personAction is a change that a person makes, and from which states it is possible.
type personAction struct {
	name  string
	do    func(context.Context, string) (stream.Status, error)
	from  []stream.State
	to    stream.State
	epoch uint64 // by how much the epoch grows
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
	actions := []personAction{
		{"cancel", s.Store.Cancel, []stream.State{stream.Ready, stream.Running, stream.Paused}, stream.Cancelled, 1},
		{"pause", s.Store.Pause, []stream.State{stream.Ready, stream.Running}, stream.Paused, 1},
		{"resume", s.Store.Resume, []stream.State{stream.Paused}, stream.Ready, 0},
		{"retry", s.Store.Retry, []stream.State{stream.Completed, stream.Failed, stream.Cancelled}, stream.Ready, 1},
	}
	for from, reach := range lead {
		for _, action := range actions {
			id := action.name + "-" + string(from)
			s.add(stream.Job{ID: id})
			reach(id)
			s.act(id, from, action)
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

// act tries the action on a job in a state.
func (s *storeTest) act(id string, from stream.State, action personAction) {
	s.Helper()
	before := s.get(id)
	if before.State != from {
		s.Fatalf("the job is %s, want %s", before.State, from)
	}
	got, err := action.do(s.ctx, id)
	after := s.get(id)
	if !slices.Contains(action.from, from) {
		s.is(err, stream.ErrState, "%s of a job that is %s", action.name, from)
		if diff := cmp.Diff(before, after); diff != "" {
			s.Errorf("a refused %s changed a job that is %s (-before +after):\n%s", action.name, from, diff)
		}
		return
	}
	s.is(err, nil, "%s of a job that is %s", action.name, from)
	if diff := cmp.Diff(got, after, sameTime); diff != "" {
		s.Errorf("%s of a job that is %s returned something else than is stored (-returned +stored):\n%s", action.name, from, diff)
	}
	s.acted(before, after, action)
}

// acted checks what an action that was possible has made of the job.
func (s *storeTest) acted(before, after stream.Status, action personAction) {
	s.Helper()
	name, from := action.name, before.State
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
		if st := s.one("next", long); st.ID != after.ID || st.Reclaimed || st.Epoch != after.Epoch+1 {
			s.Errorf("after %s of a job that is %s the claim gave %+v", name, from, st)
		}
	} else if got := s.take("next", long, 1); len(got) != 0 {
		s.Errorf("a job that is %s was claimed", action.to)
	}
}

func (s *storeTest) finish(state stream.State) {
	s.Helper()
	st := s.one("w", long)
	s.is(s.Store.Release(s.ctx, st.Lease(), stream.Release{State: state, RetryState: stream.RetryState{Failures: 3, Denied: time.Hour}, Progress: stream.Progress{Records: 11}, Reason: "r", LastError: "e",
		CrashState: stream.CrashState{BatchLimit: 4, SuspectUntil: 5, InFlightSeq: 6, Crashes: 7}}), nil, "release")
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
