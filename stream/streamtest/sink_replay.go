package streamtest

import (
	"context"
	"errors"
	"strings"

	"github.com/levada-io/levada/stream"
)

// aside puts records 2 and 3 of job "a" into quarantine, marked for replay.
func (s *sinkTest) aside() (stream.ReplaySink, stream.Lease, stream.Checkpoint) {
	s.Helper()
	r := s.replays()
	l, c := s.owner("a")
	c = s.mustCommit(l, c, 4, bad(2, stream.ClassPanic), bad(3, stream.ClassPanic))
	if n, err := r.MarkQuarantined(s.ctx, "a", stream.Replay); n != 2 || err != nil {
		s.Fatalf("marked %d, error %v", n, err)
	}
	return r, l, c
}

func again(seq uint64) *stream.Batch {
	return &stream.Batch{Job: stream.Job{ID: "a"}, Records: []stream.Record{record(seq)}}
}

func withState(q stream.Quarantined, state stream.QuarantineState, attempts int) stream.Quarantined {
	q.State, q.Attempts = state, attempts
	return q
}

func (s *sinkTest) replay() {
	r, l, c := s.aside()
	s.is(r.CommitReplay(s.ctx, l, again(2)), nil, "CommitReplay")
	s.stands(l, c, 3)
	s.kept(withState(bad(2, stream.ClassPanic), stream.Replayed, 4), withState(bad(3, stream.ClassPanic), stream.Replay, 3))
	// It happens once.
	s.is(r.CommitReplay(s.ctx, l, again(2)), stream.ErrConflict, "CommitReplay of a replayed record")
	s.is(r.CommitReplay(s.ctx, l, again(1)), stream.ErrConflict, "CommitReplay of a record that is not in quarantine")
	if err := r.CommitReplay(s.ctx, l, &stream.Batch{Job: stream.Job{ID: "a"}, Records: []stream.Record{record(2), record(3)}}); err == nil {
		s.Error("CommitReplay took two records")
	}
	s.stands(l, c, 3)
	// A fault that passes leaves the mark.
	reason := errors.New("the reason")
	s.then(func(context.Context, *stream.Batch) error { return reason })
	s.is(r.CommitReplay(s.ctx, l, again(3)), reason, "CommitReplay with a handler that fails")
	s.then(nil)
	s.stands(l, c, 3)
	s.kept(withState(bad(2, stream.ClassPanic), stream.Replayed, 4), withState(bad(3, stream.ClassPanic), stream.Replay, 3))
	// The fence holds.
	second := s.lease("a")
	s.fenced(second)
	s.is(r.CommitReplay(s.ctx, l, again(3)), stream.ErrFenced, "CommitReplay of an older epoch")
	s.stands(second, c, 3)
	s.is(r.CommitReplay(s.ctx, second, again(3)), nil, "CommitReplay")
	s.stands(second, c)
}

func (s *sinkTest) replayRefused() {
	r, l, c := s.aside()
	reason := errors.New("the reason")
	s.then(func(_ context.Context, b *stream.Batch) error { b.Skip(b.Records[0], reason); return nil })
	if err := r.CommitReplay(s.ctx, l, again(2)); stream.VerdictOf(err) != stream.VerdictSkip {
		s.Errorf("a record that was refused again gave %v, marked %q", err, stream.VerdictOf(err))
	}
	s.then(func(context.Context, *stream.Batch) error { panic(reason) })
	func() {
		defer func() {
			if got := recover(); got != reason {
				s.Errorf("CommitReplay panicked with %v, want the handler's value", got)
			}
		}()
		s.Errorf("CommitReplay returned %v", r.CommitReplay(s.ctx, l, again(3)))
	}()
	s.then(nil)
	s.stands(l, c, 2, 3)
	s.replayHistory(r)
	s.replayCrash(r, l)
}

// replayHistory checks the attempts that are known of record 2, which was refused, and of record 3, whose handler panicked.
func (s *sinkTest) replayHistory(r stream.ReplaySink) {
	all, err := r.Quarantined(s.ctx, "a", 0, stream.Waiting)
	if err != nil || len(all) != 2 {
		s.Fatalf("the records that wait are %+v, error %v", all, err)
	}
	for i, class := range []stream.Class{stream.ClassRefused, stream.ClassPanic} {
		if all[i].Class != class || all[i].Attempts != 4 || all[i].Error == "why panic" {
			s.Errorf("after the replay the record is %+v, want class %s", all[i], class)
		}
		// What was known before is not overwritten.
		h := all[i].History
		if len(h) != 2 || h[0].Class != stream.ClassPanic || h[0].Error != "why panic" || h[1].Class != class || !strings.Contains(h[1].Error, "the reason") {
			s.Errorf("the attempts that are known are %+v, want the first one and the replay, with their texts", h)
		}
	}
	if stack := all[1].History[len(all[1].History)-1].Stack; !strings.Contains(stack, "replayRefused") {
		s.Errorf("the stack of the panic is not kept, but %q", stack)
	}
}

// replayCrash: a process that dies in a replay, or a producer that cannot make the record, is kept as well.
func (s *sinkTest) replayCrash(r stream.ReplaySink, l stream.Lease) {
	death := stream.NewAttempt(stream.ClassCrash, errors.New("it died"))
	s.is(r.RefuseReplay(s.ctx, l, 2, death), nil, "RefuseReplay of a record that waits")
	if n, err := r.MarkQuarantined(s.ctx, "a", stream.Replay, 2); n != 1 || err != nil {
		s.Fatalf("marked %d, error %v", n, err)
	}
	s.is(r.RefuseReplay(s.ctx, l, 2, death), nil, "RefuseReplay")
	s.is(r.RefuseReplay(s.ctx, l, 9, death), nil, "RefuseReplay of a record that is not in quarantine")
	all, err := r.Quarantined(s.ctx, "a", 0, stream.Waiting)
	if err != nil || len(all) != 2 || all[0].Class != stream.ClassCrash || all[0].Attempts != 5 || len(all[0].History) != 3 || all[0].History[2].Error != "it died" {
		s.Errorf("after a process died in a replay: %+v, error %v", all, err)
	}
	second := s.lease("a")
	s.fenced(second)
	if n, err := r.MarkQuarantined(s.ctx, "a", stream.Replay, 2); n != 1 || err != nil {
		s.Fatalf("marked %d, error %v", n, err)
	}
	s.is(r.RefuseReplay(s.ctx, l, 2, death), stream.ErrFenced, "RefuseReplay of an older epoch")
}
