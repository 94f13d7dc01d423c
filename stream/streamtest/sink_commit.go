package streamtest

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/levada-io/levada/stream"
)

func (s *sinkTest) fence() {
	first, c := s.owner("a")
	if !same(c, stream.Checkpoint{}) {
		s.Errorf("the checkpoint of a new job is %+v", c)
	}
	s.stands(first, stream.Checkpoint{})
	c = s.mustCommit(first, c, 3)
	s.stands(first, c)
	second := s.lease("a")
	s.stands(second, c)
	_, err := s.Sink.Fence(s.ctx, first)
	s.is(err, stream.ErrFenced, "Fence of an older epoch")
	s.stands(second, c)
	stale, _ := step(first, c, 2)
	s.is(s.Sink.Commit(s.ctx, stale), stream.ErrFenced, "Commit of an older epoch")
	lost, _ := step(first, stream.Checkpoint{}, 2)
	s.is(s.Sink.Commit(s.ctx, lost), stream.ErrFenced, "Commit of an older epoch, on another checkpoint")
	s.stands(second, c)
	c = s.mustCommit(second, c, 2)
	s.stands(second, c)
}

func (s *sinkTest) commit() {
	l, c := s.owner("a")
	for n := range 5 {
		c = s.mustCommit(l, c, n)
	}
	s.stands(l, c)
	// The position moves without records too.
	next := c
	next.Token = []byte("a bookmark")
	empty := stream.NewCommit(l, c, next, &stream.Batch{Job: stream.Job{ID: "a"}})
	s.is(s.Sink.Commit(s.ctx, empty), nil, "Commit without records")
	s.stands(l, next)
	done := next
	done.Done = true
	s.is(s.Sink.Commit(s.ctx, stream.NewCommit(l, next, done, &stream.Batch{Job: stream.Job{ID: "a"}})), nil, "the last Commit")
	s.stands(l, done)
	second := s.lease("a")
	s.stands(second, done)
}

func (s *sinkTest) anyBytes() {
	l, c := s.owner("a")
	odd := make([]byte, 256)
	for i := range odd {
		odd[i] = byte(i)
	}
	records := []stream.Record{
		{Seq: 1, Key: []byte{0}, Value: []byte{}},
		{Seq: 2, Key: odd, Value: odd},
		{Seq: 3, Key: bytes.Repeat([]byte{0xff}, 1024), Value: bytes.Repeat(odd, 4096)},
	}
	next := stream.Checkpoint{Seq: 3, Token: bytes.Repeat(odd, 64), Bytes: 1 << 60}
	for _, r := range records {
		next.Digest.Add(r)
	}
	s.is(s.Sink.Commit(s.ctx, stream.NewCommit(l, c, next, &stream.Batch{Job: stream.Job{ID: "a"}, Records: records})), nil, "Commit")
	if got := s.fenced(l); !same(got, next) {
		s.Errorf("the checkpoint is another: number %d, token of %d bytes", got.Seq, len(got.Token))
	}
	got := s.Effects(s.T, "a")
	if len(got) != len(records) {
		s.Fatalf("%d effects, want %d", len(got), len(records))
	}
	for i, r := range records {
		if !bytes.Equal(got[i].Key, r.Key) || !bytes.Equal(got[i].Value, r.Value) {
			s.Errorf("record %d is stored otherwise", r.Seq)
		}
	}
	s.mustCommit(l, next, 1)
}

func (s *sinkTest) conflict() {
	strangers := s.lease("a")
	never, _ := step(strangers, stream.Checkpoint{}, 1)
	s.is(s.Sink.Commit(s.ctx, never), stream.ErrFenced, "Commit without a Fence")
	l, c := strangers, s.fenced(strangers)
	again, next := step(l, c, 2)
	s.is(s.Sink.Commit(s.ctx, again), nil, "Commit")
	s.is(s.Sink.Commit(s.ctx, again), stream.ErrConflict, "the same Commit again")
	s.stands(l, next)
	for name, change := range map[string]func(*stream.Checkpoint){
		"a smaller number": func(c *stream.Checkpoint) { c.Seq-- },
		"a greater number": func(c *stream.Checkpoint) { c.Seq++ },
		"another token":    func(c *stream.Checkpoint) { c.Token = []byte("other") },
		"no token":         func(c *stream.Checkpoint) { c.Token = nil },
		"another digest":   func(c *stream.Checkpoint) { c.Digest[15]++ },
	} {
		prev := next
		change(&prev)
		c, _ := step(l, prev, 2)
		s.is(s.Sink.Commit(s.ctx, c), stream.ErrConflict, "Commit on "+name)
		s.stands(l, next)
	}
}

func (s *sinkTest) handlerError() {
	l, c := s.owner("a")
	c = s.mustCommit(l, c, 2)
	reason := errors.New("the reason")
	for _, test := range []struct {
		err     error
		verdict stream.Verdict
	}{{reason, stream.NoVerdict}, {stream.Skip(reason), stream.VerdictSkip}, {stream.Retry(reason), stream.VerdictRetry}, {stream.Later(reason), stream.VerdictLater}, {stream.Halt(reason), stream.VerdictHalt}} {
		s.then(func(context.Context, *stream.Batch) error { return test.err })
		failing, _ := step(l, c, 3)
		err := s.Sink.Commit(s.ctx, failing)
		s.is(err, reason, "Commit with a handler that fails")
		if got := stream.VerdictOf(err); got != test.verdict {
			s.Errorf("the error is marked %q, want %q", got, test.verdict)
		}
		s.stands(l, c)
	}
	s.then(nil)
	s.stands(l, s.mustCommit(l, c, 3))
}

func (s *sinkTest) handlerPanic() {
	l, c := s.owner("a")
	c = s.mustCommit(l, c, 2)
	reason := errors.New("the reason")
	s.then(func(context.Context, *stream.Batch) error { panic(reason) })
	for range 20 { // more often than there are connections
		func() {
			defer func() {
				if got := recover(); got != reason {
					s.Errorf("Commit panicked with %v, want the handler's value", got)
				}
			}()
			failing, _ := step(l, c, 3)
			s.Errorf("Commit returned %v", s.Sink.Commit(s.ctx, failing))
		}()
	}
	s.stands(l, c)
	s.then(nil)
	s.stands(l, s.mustCommit(l, c, 3))
}

func (s *sinkTest) contextEnds() {
	l, c := s.owner("a")
	c = s.mustCommit(l, c, 2)
	for range 12 {
		ctx, cancel := context.WithCancel(s.ctx)
		s.then(func(context.Context, *stream.Batch) error { cancel(); return nil })
		failing, _ := step(l, c, 3)
		err := s.Sink.Commit(ctx, failing)
		if err == nil {
			s.Fatal("Commit returned nil although its context had ended before it could commit")
		}
		if got := stream.VerdictOf(err); got != stream.NoVerdict {
			s.Errorf("the end of the context is marked %q: %v", got, err)
		}
	}
	s.then(nil)
	s.stands(l, c)
	s.stands(l, s.mustCommit(l, c, 3))
}

// unknownOutcome ends the context at any moment of the commit.
func (s *sinkTest) unknownOutcome() {
	l, c := s.owner("a")
	began := time.Now()
	next := s.mustCommit(l, c, 1)
	took := time.Since(began)
	c = next
	for i := range 40 {
		ctx, cancel := context.WithTimeout(s.ctx, took*time.Duration(i)/20)
		commit, next := step(l, c, 2)
		err := s.Sink.Commit(ctx, commit)
		cancel()
		switch got := s.fenced(l); {
		case same(got, next):
			c = next
		case !same(got, c):
			s.Fatalf("after a commit that returned %v the checkpoint is %+v, want %+v or %+v", err, got, c, next)
		case err == nil:
			s.Fatal("Commit returned nil, but did not commit")
		}
	}
	s.stands(l, c)
}
