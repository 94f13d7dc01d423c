package streamtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
)

// losses are the ways in which an owner loses its lease while its handler is at work. No other owner has fenced after any of them.
func (s *sinkTest) losses() map[string]func(l stream.Lease) error {
	return map[string]func(l stream.Lease) error{
		"pause":   func(l stream.Lease) error { _, err := s.Store.Pause(s.ctx, l.Job); return err },
		"cancel":  func(l stream.Lease) error { _, err := s.Store.Cancel(s.ctx, l.Job); return err },
		"release": func(l stream.Lease) error { return s.Store.Release(s.ctx, l, stream.Release{State: stream.Ready}) },
		"claim":   func(l stream.Lease) error { s.lease(l.Job); return nil },
	}
}

// outside: a sink that refused such a commit would have its records handed over again, although nothing has crashed.
func (s *sinkTest) outside() {
	if s.Store == nil {
		s.Skip("this sink knows no jobs")
	}
	sink := stream.AtLeastOnce(s.replays(), func(context.Context, *stream.Batch) error { return nil })
	stays := func(l stream.Lease, want stream.Checkpoint) {
		s.Helper()
		if got, err := s.Sink.Fence(s.ctx, l); err != nil || !same(got, want) {
			s.Errorf("%s: the checkpoint is %+v, error %v, want %+v", l.Job, got, err, want)
		}
	}
	for name, lose := range s.losses() {
		l, c := s.owner(name)
		commit, next := step(l, c, 3)
		s.is(sink.Commit(s.ctx, commit), nil, "Commit before "+name)
		if err := lose(l); err != nil {
			s.Fatal(err)
		}
		before, err := s.Store.Get(s.ctx, name)
		if err != nil {
			s.Fatal(err)
		}
		commit, after := step(l, next, 4, bad(5, stream.ClassRefused))
		s.is(sink.Commit(s.ctx, commit), nil, "Commit after "+name)
		s.is(sink.Commit(s.ctx, commit), stream.ErrConflict, "the same Commit after "+name)
		now, err := s.Store.Get(s.ctx, name)
		if err != nil {
			s.Fatal(err)
		}
		if now.State != before.State || now.Epoch != before.Epoch || !now.LeaseUntil.Equal(before.LeaseUntil) || now.Owner != before.Owner {
			s.Errorf("after %s the commit has changed the job from %+v to %+v", name, before, now)
		}
		if now.Progress.Records != 7 || now.Progress.Bad != 1 || now.Progress.Bytes != after.Bytes {
			s.Errorf("after %s the progress is %+v, and 7 records are committed, 1 of them bad", name, now.Progress)
		}
		if q, err := s.replays().Quarantined(s.ctx, name, 0); err != nil || len(q) != 1 || q[0].Seq != 5 {
			s.Errorf("after %s the quarantine is %+v, error %v", name, q, err)
		}
		stays(l, after)
		// The end of a stream is not an effect.
		done := after
		done.Done = true
		s.is(sink.Commit(s.ctx, stream.NewCommit(l, after, done, &stream.Batch{Job: stream.Job{ID: name}})), stream.ErrFenced, "the last Commit after "+name)
		stays(l, after)
		// Nor is another owner's job touched.
		second := l
		second.Epoch = max(l.Epoch, now.Epoch) + 1
		stays(second, after)
		commit, _ = step(l, after, 1)
		s.is(sink.Commit(s.ctx, commit), stream.ErrFenced, "Commit after "+name+" and the next owner's Fence")
		stays(second, after)
	}
	ghost := stream.Lease{Job: "ghost", Epoch: 1}
	commit, _ := step(ghost, s.fenced(ghost), 3)
	s.is(sink.Commit(s.ctx, commit), stream.ErrFenced, "Commit of a job that does not exist")
}

// replayOutside is the same for a quarantined record that was handed over again.
func (s *sinkTest) replayOutside() {
	if s.Store == nil {
		s.Skip("this sink knows no jobs")
	}
	for name, lose := range s.losses() {
		l, c := s.owner(name)
		s.mustCommit(l, c, 4, bad(2, stream.ClassRefused), bad(3, stream.ClassRefused))
		if n, err := s.replays().MarkQuarantined(s.ctx, name, stream.Replay); n != 2 || err != nil {
			s.Fatalf("marked %d, error %v", n, err)
		}
		calls := 0
		sink := stream.AtLeastOnce(s.replays(), func(context.Context, *stream.Batch) error {
			calls++
			return lose(l)
		})
		batch := &stream.Batch{Job: stream.Job{ID: name}, Records: []stream.Record{record(2)}}
		s.is(sink.CommitReplay(s.ctx, l, batch), nil, "CommitReplay after "+name)
		s.is(sink.CommitReplay(s.ctx, l, batch), nil, "CommitReplay after "+name+", again for an answer that was lost")
		if calls != 1 {
			s.Errorf("after %s the handler was called %d times", name, calls)
		}
		if q, err := s.replays().Quarantined(s.ctx, name, 0, stream.Replayed); err != nil || len(q) != 1 || q[0].Seq != 2 {
			s.Errorf("after %s the replayed records are %+v, error %v", name, q, err)
		}
		second := l
		second.Epoch += 9
		s.fenced(second)
		sink = stream.AtLeastOnce(s.replays(), func(context.Context, *stream.Batch) error { return nil })
		s.is(sink.CommitReplay(s.ctx, l, &stream.Batch{Job: stream.Job{ID: name}, Records: []stream.Record{record(3)}}), stream.ErrFenced, "CommitReplay after "+name+" and the next owner's Fence")
	}
}

// atLeastOnce has workers of several processes take turns at a job that is paused and cancelled while a record is in the handler.
func (s *sinkTest) atLeastOnce() {
	if s.Store == nil {
		s.Skip("this sink knows no jobs")
	}
	const records = 60
	numbers := make([]stream.Record, records)
	for i := range numbers {
		numbers[i] = record(uint64(i + 1))
	}
	quiet := slog.New(slog.DiscardHandler)
	server := newServer(s.T, stream.ServerConfig{Logger: quiet})
	server.Handle("outside", stream.Slice(numbers...))
	listener, g := bufconn.Listen(1<<20), grpc.NewServer()
	server.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	defer func() { g.Stop(); <-served }()
	conns := stream.NewConnections("passthrough:///outside", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	defer conns.Close()

	var mu sync.Mutex
	handed := map[uint64]int{}
	entered := make(chan uint64)
	handle := stream.Each(func(ctx context.Context, _ *stream.Batch, r stream.Record) error {
		if r.Seq%10 == 5 {
			select {
			case entered <- r.Seq: // the test goes on while this record is in the handler
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			time.Sleep(50 * time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		handed[r.Seq]++
		return nil
	})
	work := func(ctx context.Context) (stopped <-chan error) {
		worker, err := stream.NewWorker(stream.WorkerConfig{Store: s.Store, Dial: conns.Dial, Logger: quiet, PollInterval: 20 * time.Millisecond, Owner: stream.Owner{Incarnation: stream.NewID()}, Lease: 6 * time.Second})
		if err != nil {
			s.Fatal(err)
		}
		worker.Handle("outside", stream.AtLeastOnce(s.replays(), handle))
		done := make(chan error, 1)
		go func() { done <- worker.Run(ctx) }()
		return done
	}
	if _, err := s.Store.Submit(s.ctx, stream.Job{ID: "j", Stream: "outside"}); err != nil {
		s.Fatal(err)
	}
	for turn := range records / 10 {
		ctx, stop := context.WithCancel(s.ctx)
		done := work(ctx)
		var seq uint64
		select {
		case seq = <-entered:
		case <-s.ctx.Done():
			s.Fatal("no record was handed over")
		}
		var err error
		switch turn % 3 {
		case 0:
			if _, err = s.Store.Pause(s.ctx, "j"); err == nil {
				err = s.noted("j", seq)
			}
			if err == nil {
				_, err = s.Store.Resume(s.ctx, "j")
			}
		case 1:
			if _, err = s.Store.Cancel(s.ctx, "j"); err == nil {
				err = s.noted("j", seq)
			}
			if err == nil {
				_, err = s.Store.Retry(s.ctx, "j")
			}
		case 2: // shutdown
		}
		stop()
		if err := errors.Join(err, <-done); err != nil {
			s.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(s.ctx)
	done := work(ctx)
	status, err := stream.Wait(s.ctx, s.Store, "j")
	stop()
	if err := errors.Join(err, <-done); err != nil {
		s.Fatalf("%+v: %v", status, err)
	}
	for seq := uint64(1); seq <= records; seq++ {
		if handed[seq] != 1 {
			s.Errorf("record %d was handed over %d times", seq, handed[seq])
		}
	}
}

// noted waits until the job's progress has come to a record.
func (s *sinkTest) noted(job string, seq uint64) error {
	for {
		st, err := s.Store.Get(s.ctx, job)
		if err != nil || st.Progress.Records >= seq {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-s.ctx.Done():
			return fmt.Errorf("record %d was finished, and the job shows %d: %w", seq, st.Progress.Records, s.ctx.Err())
		}
	}
}
