package streamtest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/stream"
)

func bad(seq uint64, class stream.Class) stream.Quarantined {
	r := record(seq)
	return stream.Quarantined{Seq: seq, Key: append(r.Key, 0, 0xff), Payload: append(r.Value, 0xff, 0), Error: "why " + string(class), Class: class, Attempts: 3}
}

func (s *sinkTest) replays() stream.ReplaySink {
	r, ok := s.Sink.(stream.ReplaySink)
	if !ok {
		s.Skip("this sink's quarantine cannot be read")
	}
	return r
}

func (s *sinkTest) kept(want ...stream.Quarantined) {
	s.Helper()
	got, err := s.replays().Quarantined(s.ctx, "a", 0)
	if err != nil {
		s.Fatal(err)
	}
	for i := range got {
		if got[i].FirstSeen.IsZero() {
			s.Errorf("record %d has no FirstSeen", got[i].Seq)
		}
		got[i].FirstSeen = time.Time{}
	}
	for i := range want {
		want[i].Job = "a"
		if want[i].State == "" {
			want[i].State = stream.Waiting
		}
	}
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.Errorf("the quarantine is another (-want +got):\n%s", diff)
	}
}

func (s *sinkTest) quarantine() {
	s.replays()
	l, c := s.owner("a")
	c = s.mustCommit(l, c, 4, bad(2, stream.ClassProducer), bad(4, stream.ClassCrash))
	if c.Bad != 2 {
		s.Fatalf("%d bad records, want 2", c.Bad)
	}
	kept := []stream.Quarantined{bad(2, stream.ClassProducer), bad(4, stream.ClassCrash)}
	s.stands(l, c, 2, 4)
	s.kept(kept...)
	// All or nothing, with the handler's error and with a conflict.
	reason := errors.New("the reason")
	s.then(func(_ context.Context, b *stream.Batch) error {
		b.Skip(b.Records[0], reason)
		return reason
	})
	failing, _ := step(l, c, 3, bad(6, stream.ClassPanic))
	s.is(s.Sink.Commit(s.ctx, failing), reason, "Commit with a handler that fails")
	s.then(nil)
	conflicting, _ := step(l, stream.Checkpoint{}, 7, bad(1, stream.ClassPanic))
	s.is(s.Sink.Commit(s.ctx, conflicting), stream.ErrConflict, "Commit on another checkpoint")
	s.stands(l, c, 2, 4)
	s.kept(kept...)
	s.quarantineInHandler(l, c)
}

// quarantineInHandler commits records that the handler quarantines, and one quarantined before it, on the checkpoint of the test quarantine.
func (s *sinkTest) quarantineInHandler(l stream.Lease, c stream.Checkpoint) {
	next := c
	next.Seq, next.Token, next.Bad = 7, []byte("t"), c.Bad+2
	effects := len(s.Effects(s.T, "a"))
	s.then(func(_ context.Context, b *stream.Batch) error {
		b.Skip(b.Records[0], errors.New("odd: \xff\x00."))
		return nil
	})
	odd := stream.NewCommit(l, c, next, &stream.Batch{Job: stream.Job{ID: "a"}, Records: []stream.Record{{Seq: 5, Key: []byte{0xff, 0}, Value: []byte{0, 1}}, record(7)}}, bad(6, stream.ClassCrash))
	s.is(s.Sink.Commit(s.ctx, odd), nil, "Commit")
	if got := s.fenced(l); !same(got, next) {
		s.Errorf("the checkpoint is %+v, want %+v", got, next)
	}
	if got := len(s.Effects(s.T, "a")); got != effects+2 { // this handler leaves the effect of what it skips
		s.Errorf("%d effects, want %d", got, effects+2)
	}
	all, err := s.replays().Quarantined(s.ctx, "a", 0)
	if err != nil || len(all) != 4 || all[2].Seq != 5 || all[3].Seq != 6 {
		s.Fatalf("the quarantine is %+v, error %v", all, err)
	}
	if q := all[2]; !bytes.Equal(q.Key, []byte{0xff, 0}) || !bytes.Equal(q.Payload, []byte{0, 1}) || q.Class != stream.ClassRefused || q.Attempts != 1 || !strings.HasPrefix(q.Error, "odd: ") {
		s.Errorf("what the handler quarantined is %+v", q)
	}
	first, err := s.replays().Quarantined(s.ctx, "a", 2)
	if err != nil || len(first) != 2 || first[0].Seq != 2 || first[1].Seq != 4 {
		s.Errorf("the first two are %+v, error %v", first, err)
	}
	if none, err := s.replays().Quarantined(s.ctx, "b", 0); err != nil || len(none) != 0 {
		s.Errorf("another job's quarantine is %+v, error %v", none, err)
	}
}

func (s *sinkTest) tooManyBad() {
	s.replays()
	l, c := s.owner("a")
	c = s.mustCommit(l, c, 3, bad(2, stream.ClassPanic))
	for name, test := range map[string]struct {
		job  stream.Job
		want error
	}{
		"halt":  {stream.Job{ID: "a", OnBad: stream.HaltJob}, nil},
		"limit": {stream.Job{ID: "a", OnBad: stream.Quarantine, MaxBad: 2}, stream.ErrTooManyBad},
		"none":  {stream.Job{ID: "a", OnBad: stream.Quarantine, MaxBad: stream.None}, stream.ErrTooManyBad},
	} {
		for _, early := range []bool{true, false} {
			next := c
			next.Seq, next.Token = c.Seq+3, []byte(name)
			batch := &stream.Batch{Job: test.job, Records: []stream.Record{record(c.Seq + 1), record(c.Seq + 3)}}
			before := []stream.Quarantined{bad(c.Seq+2, stream.ClassProducer)}
			s.then(func(_ context.Context, b *stream.Batch) error {
				if !early {
					b.Skip(record(c.Seq+3), errors.New("why"))
				}
				return nil
			})
			if early {
				batch.Records = batch.Records[:1]
				before = append(before, bad(c.Seq+3, stream.ClassProducer))
			}
			err := s.Sink.Commit(s.ctx, stream.NewCommit(l, c, next, batch, before...))
			if stream.VerdictOf(err) != stream.VerdictHalt || test.want != nil && !errors.Is(err, test.want) {
				s.Errorf("%s: error is %v, marked %q, want one that halts", name, err, stream.VerdictOf(err))
			}
			s.stands(l, c, 2)
			s.kept(bad(2, stream.ClassPanic))
		}
	}
	s.then(nil)
	// At the limit it still goes.
	next := c
	next.Seq, next.Bad = c.Seq+1, c.Bad+1
	s.is(s.Sink.Commit(s.ctx, stream.NewCommit(l, c, next, &stream.Batch{Job: stream.Job{ID: "a", MaxBad: 2}}, bad(4, stream.ClassPanic))), nil, "Commit at the limit")
	s.kept(bad(2, stream.ClassPanic), bad(4, stream.ClassPanic))
}

// skipForeign: the record that the handler has left out would be neither in the effects nor in the quarantine.
func (s *sinkTest) skipForeign() {
	l, c := s.owner("a")
	c = s.mustCommit(l, c, 3, bad(2, stream.ClassPanic))
	foreign := func(_ context.Context, b *stream.Batch) error {
		b.Skip(record(99), errors.New("why"))
		return nil
	}
	s.then(foreign)
	next, _ := step(l, c, 2)
	if err := s.Sink.Commit(s.ctx, next); stream.VerdictOf(err) != stream.VerdictHalt || !strings.Contains(err.Error(), "record 99") {
		s.Errorf("Commit: error is %v, marked %q, want one that halts and names the record", err, stream.VerdictOf(err))
	}
	s.then(nil)
	s.stands(l, c, 2)
	r, ok := s.Sink.(stream.ReplaySink)
	if !ok {
		return
	}
	if n, err := r.MarkQuarantined(s.ctx, "a", stream.Replay); n != 1 || err != nil {
		s.Fatalf("marked %d, error %v", n, err)
	}
	s.then(foreign)
	if err := r.CommitReplay(s.ctx, l, again(2)); stream.VerdictOf(err) != stream.VerdictSkip || !strings.Contains(err.Error(), "record 99") {
		s.Errorf("CommitReplay: error is %v, marked %q, want one that refuses the record", err, stream.VerdictOf(err))
	}
	s.then(nil)
	s.stands(l, c, 2)
	if got, err := r.Quarantined(s.ctx, "a", 0, stream.Replayed); len(got) != 0 || err != nil {
		s.Errorf("replayed: %v, %v", got, err)
	}
}

func (s *sinkTest) mark() {
	r := s.replays()
	l, c := s.owner("a")
	s.mustCommit(l, c, 6, bad(1, stream.ClassPanic), bad(2, stream.ClassPanic), bad(3, stream.ClassPanic), bad(4, stream.ClassPanic))
	mark := func(want int, to stream.QuarantineState, seqs ...uint64) {
		s.Helper()
		if n, err := r.MarkQuarantined(s.ctx, "a", to, seqs...); n != want || err != nil {
			s.Errorf("marking %v %s returned %d, error %v, want %d", seqs, to, n, err, want)
		}
	}
	mark(1, stream.Dropped, 2)
	mark(0, stream.Replay, 2)
	mark(1, stream.Replay, 3, 99)
	for _, state := range []stream.QuarantineState{stream.Replayed, "gone", ""} {
		if n, err := r.MarkQuarantined(s.ctx, "a", state); err == nil {
			s.Errorf("%d records were marked %q", n, state)
		}
	}
	s.states()
	if n, err := r.MarkQuarantined(s.ctx, "b", stream.Replay); n != 0 || err != nil {
		s.Errorf("another job's mark returned %d, error %v", n, err)
	}
	mark(2, stream.Replay)
	mark(0, stream.Replay)
	mark(1, stream.Waiting, 4)
	mark(0, stream.Waiting, 4)
	mark(1, stream.Replay, 4)
}

// states reads the quarantine of job "a" by state: 2 was dropped, 3 is marked for replay.
func (s *sinkTest) states() {
	for _, test := range []struct {
		states []stream.QuarantineState
		want   []uint64
	}{
		{[]stream.QuarantineState{stream.Waiting}, []uint64{1, 4}},
		{[]stream.QuarantineState{stream.Replay, stream.Dropped}, []uint64{2, 3}},
		{[]stream.QuarantineState{stream.Replayed}, nil},
	} {
		got, err := s.replays().Quarantined(s.ctx, "a", 0, test.states...)
		var seqs []uint64
		for _, q := range got {
			seqs = append(seqs, q.Seq)
		}
		if err != nil || !slices.Equal(seqs, test.want) {
			s.Errorf("%v are the records %v, error %v, want %v", test.states, seqs, err, test.want)
		}
	}
}
