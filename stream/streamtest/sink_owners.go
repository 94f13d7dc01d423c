package streamtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/levada-io/levada/stream"
)

// fenceDuringCommit fences while the handler of the old owner is at work: whichever comes first, what Fence returns is what stays.
func (s *sinkTest) fenceDuringCommit() {
	for round := range 8 {
		job := fmt.Sprint("job", round)
		old, c := s.owner(job)
		c = s.mustCommit(old, c, 2)
		inside, goOn := make(chan struct{}), make(chan struct{})
		s.then(func(context.Context, *stream.Batch) error { close(inside); <-goOn; return nil })
		commit, next := step(old, c, 3)
		outcome := make(chan error, 1)
		go func() { outcome <- s.Sink.Commit(s.ctx, commit) }()
		<-inside
		s.then(nil)
		fenced := s.fenceElsewhere(job)
		var a fenceAnswer
		var got bool
		if round%2 == 0 { // let Fence through first, where it does not have to wait
			select {
			case a = <-fenced:
				got = true
			case <-time.After(50 * time.Millisecond):
			}
		}
		close(goOn)
		err := <-outcome
		if !got {
			a = <-fenced
		}
		if a.error != nil {
			s.Fatal(a.error)
		}
		if committed := err == nil && same(a.Checkpoint, next); !committed && !(errors.Is(err, stream.ErrFenced) && same(a.Checkpoint, c)) {
			s.Errorf("the commit returned %v, and Fence the checkpoint %+v; before the commit it was %+v", err, a.Checkpoint, c)
		}
		s.stands(a.Lease, a.Checkpoint)
		s.stands(a.Lease, s.mustCommit(a.Lease, a.Checkpoint, 1))
	}
}

// fenceAnswer is what a Fence returned.
type fenceAnswer struct {
	stream.Lease
	stream.Checkpoint
	error
}

// fenceElsewhere fences as the next owner, in another process if there is one. It returns when the claim is under way.
func (s *sinkTest) fenceElsewhere(job string) <-chan fenceAnswer {
	other := s.Sink
	if len(s.More) > 0 {
		other = s.More[0]
	}
	fenced, claiming := make(chan fenceAnswer, 1), make(chan struct{})
	go func() {
		close(claiming)
		l := s.lease(job)
		c, err := other.Fence(s.ctx, l)
		fenced <- fenceAnswer{l, c, err}
	}()
	<-claiming
	return fenced
}

// race has owners take a job from each other while the others go on.
func (s *sinkTest) race() {
	const owners, last = 5, 60
	sinks := append([]stream.Sink{s.Sink}, s.More...)
	var all sync.WaitGroup
	for i := range owners {
		all.Go(func() {
			for done := false; !done; {
				done = s.raceTurn(sinks[i%len(sinks)], last)
			}
		})
	}
	all.Wait()
	l, c := s.owner("a")
	if c.Seq < last {
		s.Errorf("the owners came to record %d, want %d at least", c.Seq, last)
	}
	want := c
	want.Digest = stream.Digest{}
	for seq := uint64(1); seq <= c.Seq; seq++ {
		want.Digest.Add(record(seq))
	}
	s.stands(l, want)
}

// raceTurn takes the job and commits until another owner takes it, or a multiple of ten is reached, so that another has a turn. It reports whether the
// job has come to the last record.
func (s *sinkTest) raceTurn(sink stream.Sink, last uint64) (done bool) {
	l := s.lease("a")
	c, err := sink.Fence(s.ctx, l)
	for err == nil && c.Seq < last {
		commit, next := step(l, c, 1+int(c.Seq)%4)
		if err = sink.Commit(s.ctx, commit); err == nil {
			c = next
		}
		if c.Seq%10 == 0 && err == nil {
			break
		}
	}
	if err != nil && !errors.Is(err, stream.ErrFenced) {
		s.Errorf("owner %d: %v", l.Epoch, err)
		return true
	}
	return c.Seq >= last
}

func (s *sinkTest) jobs() {
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			l := s.lease(fmt.Sprint("job", i))
			c, err := s.Sink.Fence(s.ctx, l)
			for n := 0; err == nil && n < 10; n++ {
				var commit *stream.Commit
				commit, c = step(l, c, i+1)
				err = s.Sink.Commit(s.ctx, commit)
			}
			if err != nil {
				s.Errorf("job %d: %v", i, err)
			}
			if c.Seq != uint64(10*(i+1)) {
				s.Errorf("job %d came to %d", i, c.Seq)
			}
		})
	}
	all.Wait()
	for i := range 6 {
		if got := s.Effects(s.T, fmt.Sprint("job", i)); len(got) != 10*(i+1) || got[len(got)-1].Seq != uint64(len(got)) {
			s.Errorf("job %d has %d effects, want %d", i, len(got), 10*(i+1))
		}
	}
}

func (s *sinkTest) stopped() {
	if s.Store == nil {
		s.Skip("this sink knows no jobs")
	}
	for name, stop := range map[string]func(context.Context, string) (stream.Status, error){"cancel": s.Store.Cancel, "pause": s.Store.Pause} {
		l, c := s.owner(name)
		c = s.mustCommit(l, c, 2)
		if _, err := stop(s.ctx, name); err != nil {
			s.Fatal(err)
		}
		commit, _ := step(l, c, 3)
		s.is(s.Sink.Commit(s.ctx, commit), stream.ErrFenced, "Commit after "+name)
		s.stands(l, c)
	}
	l, c := s.owner("release")
	if err := s.Store.Release(s.ctx, l, stream.Release{State: stream.Ready}); err != nil {
		s.Fatal(err)
	}
	commit, _ := step(l, c, 3)
	s.is(s.Sink.Commit(s.ctx, commit), stream.ErrFenced, "Commit after a release")
	ghost := stream.Lease{Job: "ghost", Epoch: 1}
	commit, _ = step(ghost, s.fenced(ghost), 3)
	s.is(s.Sink.Commit(s.ctx, commit), stream.ErrFenced, "Commit of a job that does not exist")
}

func (s *sinkTest) keepsLease() {
	if s.Store == nil {
		s.Skip("this sink knows no jobs")
	}
	l, c := s.owner("a")
	before, err := s.Store.Get(s.ctx, "a")
	if err != nil {
		s.Fatal(err)
	}
	if err := s.Store.Renew(s.ctx, l, stream.Progress{Size: 77}, 2*long); err != nil {
		s.Fatal(err)
	}
	if n, err := s.Store.Expire(s.ctx, stream.ExpireFilter{Incarnation: l.Owner.Incarnation}); n != 1 || err != nil {
		s.Fatalf("expired %d, error %v", n, err)
	}
	c = s.mustCommit(l, c, 4, bad(3, stream.ClassPanic))
	st, err := s.Store.Get(s.ctx, "a")
	if err != nil {
		s.Fatal(err)
	}
	if st.LeaseUntil.Before(before.LeaseUntil.Add(long / 2)) {
		s.Errorf("the lease that was to last %v ended at %v before the commit, and ends at %v after it", 2*long, before.LeaseUntil, st.LeaseUntil)
	}
	if want := (stream.Progress{Records: 4, Bytes: c.Bytes, Bad: 1, Size: 77}); st.Progress != want {
		s.Errorf("progress is %+v, want %+v", st.Progress, want)
	}
}
