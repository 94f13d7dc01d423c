package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

// session is one stream, from the checkpoint on. One goroutine receives, the run's own commits.
type session struct {
	r      *run
	cancel context.CancelCauseFunc
	frames chan *frame // closed when nothing more comes
	spare  chan *frame
	err    error // why nothing more comes; set before frames is closed

	probing bool   // the batches are small, since something is suspected
	next    uint64 // the record to come
	digest  Digest // of those that came
	lastKey []byte
	marked  bool // the first mark came

	stopped atomic.Int64 // when the worker began to shut down, in Unix nanoseconds; 0 before

	mu       sync.Mutex
	inFlight int           // bytes received and not committed
	less     chan struct{} // inFlight is less now
}

// disconnectError ends a session, not the run.
type disconnectError struct{ Disconnect }

func (e *disconnectError) Error() string { return e.Err.Error() }
func (e *disconnectError) Unwrap() error { return e.Err }

var (
	readDesc = &grpc.StreamDesc{StreamName: "Read", ServerStreams: true}
	errIdle  = errors.New("the stream is silent")
	// errDrained: the producer ended the stream on purpose.
	errDrained = errors.New("the producer asks to go on elsewhere")
)

// session reads and commits until the stream's end, when it returns nil, or until an error. drained: the producer
// ended the stream on purpose.
func (r *run) session() (drained bool, err error) {
	ctx, cancel := context.WithCancelCause(r.leaseCtx)
	defer cancel(nil)
	s := &session{
		r: r, cancel: cancel, frames: make(chan *frame, 64), spare: make(chan *frame, 64), less: make(chan struct{}, 1),
		probing: r.suspicion.BatchLimit > 0, next: r.checkpoint.Seq + 1, digest: r.checkpoint.Digest,
	}
	defer context.AfterFunc(r.stopCtx, func() {
		s.stopped.Store(time.Now().UnixNano())
		cancel(errStopping)
	})()
	in, err := s.open(ctx, r.checkpoint.Token, r.suspicion.limit(r.config.CommitRecords))
	if err != nil {
		return false, s.endReason(ctx, err)
	}
	var receiver sync.WaitGroup
	receiver.Go(func() {
		s.err = s.receive(ctx, in)
		close(s.frames)
	})
	defer receiver.Wait()
	defer s.discard()
	defer cancel(nil)
	return s.commitAll(ctx)
}

// batchLimit is how large a batch may be so that a record of the largest size fits behind others: producers leave up to a quarter to
// those. The limit given to gRPC is larger still, by what else is in a frame.
func batchLimit(maxRecord int) int { return maxRecord + min(maxRecord/3, 512<<10) + 64 }

// open asks the producer for the records from s.next on. after names a position before it, from which the producer counts; most is how many records a
// batch may have.
func (s *session) open(ctx context.Context, after []byte, most int) (grpc.ClientStream, error) {
	r, config := s.r, s.r.config
	// A proxy that accepts the stream and sends nothing must not hold it open: the first mark is due at once.
	guard := time.AfterFunc(config.IdleTimeout, func() { s.cancel(errIdle) })
	defer guard.Stop()
	conn, err := config.Dial(ctx, r.job)
	if err != nil {
		return nil, err
	}
	in, err := conn.NewStream(ctx, readDesc, streamv1.Stream_Read_FullMethodName, grpc.ForceCodecV2(r.codec),
		grpc.MaxCallRecvMsgSize(config.MaxRecord+1<<20))
	if err != nil {
		return nil, err
	}
	err = in.SendMsg(&streamv1.ReadRequest{
		Stream: r.job.Stream, Query: r.job.Query, After: after, NextSeq: s.next, Job: r.job.ID, Epoch: r.lease.Epoch,
		MaxBatchBytes: uint32(batchLimit(config.MaxRecord)), MaxBatchRecords: uint32(most),
	})
	if err == nil {
		err = in.CloseSend()
	}
	if err != nil {
		// The cause is in the status, which only RecvMsg returns.
		if e := in.RecvMsg(new(frame)); e != nil {
			return nil, e
		}
		return nil, err
	}
	r.event(Event{Kind: EventOpened, From: s.next})
	return in, nil
}

// endReason says why the stream ended, given what gRPC returned.
func (s *session) endReason(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, errIdle):
			return &disconnectError{Disconnect{Transport: true, Err: fmt.Errorf("%w: no frame for %v", errIdle, s.r.config.IdleTimeout)}}
		default:
			return cause
		}
	}
	return &disconnectError{Classify(err)}
}

// receive takes frames off the stream and checks them, as long as there is room.
func (s *session) receive(ctx context.Context, in grpc.ClientStream) error {
	idle := time.AfterFunc(s.r.config.IdleTimeout, func() { s.cancel(errIdle) })
	defer idle.Stop()
	for {
		f := s.take()
		idle.Reset(s.r.config.IdleTimeout)
		err := in.RecvMsg(f)
		idle.Stop()
		if err != nil {
			return s.endReason(ctx, err)
		}
		done, err := s.accept(f)
		if err != nil {
			f.free()
			return &disconnectError{Classify(err)}
		}
		select {
		case s.frames <- f:
		case <-ctx.Done():
			f.free()
			return s.endReason(ctx, nil)
		}
		if done {
			return nil
		}
		if !s.room(ctx) {
			return s.endReason(ctx, nil)
		}
	}
}

// accept checks that a frame continues the stream. done: it is the last.
func (s *session) accept(f *frame) (done bool, err error) {
	if f.err != nil {
		return false, f.err
	}
	switch f.kind {
	case fieldFrameBatch:
		if s.digest, err = f.check(s.next, s.lastKey, s.digest); err != nil {
			return false, err
		}
		if n := len(f.records); n > 0 {
			s.r.event(Event{Kind: EventReceived, From: s.next, To: s.next + uint64(n) - 1, Bytes: uint64(f.size)})
			s.next += uint64(n)
			s.lastKey = append(s.lastKey[:0], f.records[n-1].Key...)
		}
		s.mu.Lock()
		s.inFlight += f.size
		s.mu.Unlock()
	case fieldFrameMark:
		if next := f.other.GetMark().GetNextSeq(); next != s.next {
			return false, corrupt("mark", fmt.Errorf("record %d was to come, and it names %d", s.next, next))
		}
	case fieldFrameEnd:
		return true, nil
	case fieldFrameDrain:
		return true, nil
	}
	return false, nil
}

// room waits until another frame may be received.
func (s *session) room(ctx context.Context) bool {
	for {
		s.mu.Lock()
		limit := s.r.config.MaxInFlight
		if s.probing {
			limit = 0 // records that are not suspected must not be in memory, or they would be blamed
		}
		ok := s.inFlight == 0 || s.inFlight < limit
		s.mu.Unlock()
		if ctx.Err() != nil {
			return false
		}
		if ok {
			return true
		}
		select {
		case <-s.less:
		case <-ctx.Done():
			return false
		}
	}
}

func (s *session) take() *frame {
	select {
	case f := <-s.spare:
		return f
	default:
		return new(frame)
	}
}

func (s *session) give(f *frame) {
	size := 0
	if f.kind == fieldFrameBatch {
		size = f.size
	}
	f.free()
	select {
	case s.spare <- f:
	default:
	}
	s.mu.Lock()
	s.inFlight -= size
	s.mu.Unlock()
	signal(s.less)
}

// discard frees what was not committed.
func (s *session) discard() {
	for f := range s.frames {
		f.free()
	}
}

// commitAll commits what was received, as much at once as is there.
func (s *session) commitAll(ctx context.Context) (drained bool, err error) {
	var group []*frame
	var records []Record
	var next *frame // taken off frames, and not part of the group
	for {
		group, records = group[:0], records[:0]
		f := next
		if next = nil; f == nil {
			var ok bool
			if f, ok = <-s.frames; !ok {
				return false, s.err
			}
		}
		if f.kind != fieldFrameBatch {
			drained, done, err := s.control(f)
			s.give(f)
			if err != nil || done {
				return drained, err
			}
			continue
		}
		size := f.size
		group = append(group, f)
		config := s.r.config
		for count := len(f.records); size < config.CommitBytes && count < config.CommitRecords && !s.probing; {
			select {
			case f, ok := <-s.frames:
				// A commit ends where a batch ends, if it can: the token of the checkpoint is that of its number then.
				if ok && f.kind == fieldFrameBatch && count+len(f.records) <= config.CommitRecords {
					group = append(group, f)
					size += f.size
					count += len(f.records)
					continue
				}
				next = f
			default:
			}
			break
		}
		together := group[0].records
		if len(group) > 1 {
			for _, f := range group {
				records = append(records, f.records...)
			}
			together = records
		}
		err := s.r.process(together, group[len(group)-1].token)
		if err == nil && s.probing && s.r.suspicion.BatchLimit == 0 {
			err = errReopen // nothing is suspected any more: reopen for large batches
		}
		if err != nil {
			s.cancel(nil) // before there is room again, or more would be received that will not be committed
		}
		for _, f := range group {
			s.give(f)
		}
		if err != nil {
			if next != nil {
				next.free()
			}
			return false, err
		}
		if s.r.leaseCtx.Err() != nil {
			return false, context.Cause(s.r.leaseCtx)
		}
		// What was received is committed, but a slow sink must not use up the time to release the lease.
		if at := s.stopped.Load(); at != 0 && time.Since(time.Unix(0, at)) > s.r.config.DrainTimeout/2 {
			return false, errStopping
		}
	}
}

// control handles a frame without records.
func (s *session) control(f *frame) (drained, done bool, err error) {
	r := s.r
	switch f.kind {
	case fieldFrameMark:
		mark := f.other.GetMark()
		if mark.GetSize() > 0 {
			r.mu.Lock()
			r.progress.Size = mark.GetSize()
			r.mu.Unlock()
		}
		first := !s.marked
		s.marked = true
		r.retryState.Denied = 0 // the producer accepts us
		if first || bytes.Equal(mark.GetToken(), r.checkpoint.Token) {
			return false, false, nil
		}
		next := r.checkpoint
		next.Token = mark.GetToken()
		return false, false, s.step(next)
	case fieldFrameDrain:
		drain := f.other.GetDrain()
		return true, true, &disconnectError{Disconnect{Transport: true, Reason: ReasonDraining, After: max(drain.GetRetryAfter().AsDuration(), 0), Err: fmt.Errorf("%w: %s", errDrained, drain.GetReason())}}
	case fieldFrameEnd:
		end := f.other.GetEnd()
		if end.GetCount() != r.checkpoint.Seq || !bytes.Equal(end.GetDigest(), r.checkpoint.Digest[:]) {
			return false, true, &failure{ReasonIncomplete, fmt.Errorf("%w: the producer says %d records with digest %x, and %d with digest %v were committed",
				ErrIncomplete, end.GetCount(), end.GetDigest(), r.checkpoint.Seq, r.checkpoint.Digest)}
		}
		next := r.checkpoint
		next.Token, next.Done = end.GetToken(), true
		return false, true, s.step(next)
	}
	return false, false, nil // of a newer producer, which must expect that older readers ignore it
}

// step moves the checkpoint without records.
func (s *session) step(next Checkpoint) error {
	for {
		err := s.r.step(next, &Batch{Job: s.r.job, Epoch: s.r.lease.Epoch}, nil)
		if err == nil {
			return nil
		}
		if err := s.r.afterRefusal(err); err != nil {
			return err
		}
	}
}
