package streamtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

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
	for name, lose := range s.losses() {
		l, after := s.commitAfter(sink, name, lose)
		s.checkpointStays(l, after)
		// The end of a stream is not an effect.
		done := after
		done.Done = true
		s.is(sink.Commit(s.ctx, stream.NewCommit(l, after, done, &stream.Batch{Job: stream.Job{ID: name}})), stream.ErrFenced, "the last Commit after "+name)
		s.checkpointStays(l, after)
		// Nor is another owner's job touched.
		now, err := s.Store.Get(s.ctx, name)
		if err != nil {
			s.Fatal(err)
		}
		second := l
		second.Epoch = max(l.Epoch, now.Epoch) + 1
		s.checkpointStays(second, after)
		commit, _ := step(l, after, 1)
		s.is(sink.Commit(s.ctx, commit), stream.ErrFenced, "Commit after "+name+" and the next owner's Fence")
		s.checkpointStays(second, after)
	}
	ghost := stream.Lease{Job: "ghost", Epoch: 1}
	commit, _ := step(ghost, s.fenced(ghost), 3)
	s.is(sink.Commit(s.ctx, commit), stream.ErrFenced, "Commit of a job that does not exist")
}

// commitAfter commits before and after the lease was lost, and checks that the second one changes progress and quarantine, and nothing else of the job.
func (s *sinkTest) commitAfter(sink stream.Sink, name string, lose func(stream.Lease) error) (stream.Lease, stream.Checkpoint) {
	s.Helper()
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
	return l, after
}

func (s *sinkTest) checkpointStays(l stream.Lease, want stream.Checkpoint) {
	s.Helper()
	if got, err := s.Sink.Fence(s.ctx, l); err != nil || !same(got, want) {
		s.Errorf("%s: the checkpoint is %+v, error %v, want %+v", l.Job, got, err, want)
	}
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

// outsideRecords is how many records atLeastOnce hands over. Each turn ends at every tenth.
const outsideRecords = 60

// handOver has workers of several processes, one after the other, work on one job.
type handOver struct {
	*sinkTest
	conns   *stream.Connections
	entered chan uint64 // every tenth record waits here for the test, which goes on while it is in the handler

	mu     sync.Mutex
	handed map[uint64]int // how often the handler returned, by record
}

// atLeastOnce has workers of several processes take turns at a job that is paused and cancelled while a record is in the handler.
func (s *sinkTest) atLeastOnce() {
	if s.Store == nil {
		s.Skip("this sink knows no jobs")
	}
	numbers := make([]stream.Record, outsideRecords)
	for i := range numbers {
		numbers[i] = record(uint64(i + 1))
	}
	conns, stopProducer := serve(s.T, "outside", stream.Slice(numbers...))
	defer stopProducer()
	h := &handOver{sinkTest: s, conns: conns, entered: make(chan uint64), handed: map[uint64]int{}}
	if _, err := s.Store.Submit(s.ctx, stream.Job{ID: "j", Stream: "outside"}); err != nil {
		s.Fatal(err)
	}
	for number := range outsideRecords / 10 {
		h.turn(number)
	}
	ctx, stop := context.WithCancel(s.ctx)
	done := h.work(ctx)
	status, err := stream.Wait(s.ctx, s.Store, "j")
	stop()
	if err := errors.Join(err, <-done); err != nil {
		s.Fatalf("%+v: %v", status, err)
	}
	for seq := uint64(1); seq <= outsideRecords; seq++ {
		if h.handed[seq] != 1 {
			s.Errorf("record %d was handed over %d times", seq, h.handed[seq])
		}
	}
}

func (h *handOver) handle(ctx context.Context, _ *stream.Batch, r stream.Record) error {
	if r.Seq%10 == 5 {
		select {
		case h.entered <- r.Seq:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		time.Sleep(50 * time.Millisecond)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handed[r.Seq]++
	return nil
}

// work starts the worker of another process.
func (h *handOver) work(ctx context.Context) (stopped <-chan error) {
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: h.Store, Dial: h.conns.Dial, Logger: slog.New(slog.DiscardHandler), PollInterval: 20 * time.Millisecond,
		Owner: stream.Owner{Incarnation: stream.NewID()}, Lease: 6 * time.Second})
	if err != nil {
		h.Fatal(err)
	}
	worker.Handle("outside", stream.AtLeastOnce(h.replays(), stream.Each(h.handle)))
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	return done
}

// turn runs a worker until a record is in its handler, and ends the turn there: by a pause, a cancel or a shutdown.
func (h *handOver) turn(number int) {
	ctx, stop := context.WithCancel(h.ctx)
	done := h.work(ctx)
	var seq uint64
	select {
	case seq = <-h.entered:
	case <-h.ctx.Done():
		h.Fatal("no record was handed over")
	}
	var err error
	switch number % 3 {
	case 0:
		err = h.interrupt(seq, h.Store.Pause, h.Store.Resume)
	case 1:
		err = h.interrupt(seq, h.Store.Cancel, h.Store.Retry)
	case 2: // shutdown
	}
	stop()
	if err := errors.Join(err, <-done); err != nil {
		h.Fatal(err)
	}
}

// interrupt ends the lease, waits until the record in the handler is accounted for all the same, and lets the job go on.
func (h *handOver) interrupt(seq uint64, end, goOn func(context.Context, string) (stream.Status, error)) error {
	if _, err := end(h.ctx, "j"); err != nil {
		return err
	}
	if err := h.noted("j", seq); err != nil {
		return err
	}
	_, err := goOn(h.ctx, "j")
	return err
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
