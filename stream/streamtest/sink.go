package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/levada-io/levada/stream"
)

// SinkHandler is what a sink under test has to call as its handler. put stores the effect of one record in the transaction that the
// handler was given: a row with its job, number, key and value, in a table without unique keys, so that doubled effects are seen.
type SinkHandler func(ctx context.Context, b *stream.Batch, put func(stream.Record) error) error

// SinkUnderTest is a sink, and what its suite needs to know of it.
type SinkUnderTest struct {
	// Sink has an empty database. Its quarantine is tested if it is a [stream.ReplaySink].
	Sink stream.Sink
	// More are sinks on the same database as other processes have them, with the same handler.
	More []stream.Sink
	// Effects returns the rows of a job, in the order of their numbers.
	Effects func(t *testing.T, job string) []stream.Record
	// Store is where the sink's jobs are, if the sink checks that they are running, and keeps their leases. Nil if it knows no jobs.
	Store stream.Store
}

// sinkTests are the checks of RunSink.
var sinkTests = []struct {
	name string
	run  func(*sinkTest)
}{
	{"Fence returns the checkpoint and keeps older owners out", (*sinkTest).fence},
	{"Commit stores effects and checkpoint", (*sinkTest).commit},
	{"Commit takes any bytes", (*sinkTest).anyBytes},
	{"Commit refuses what does not go on from the checkpoint", (*sinkTest).conflict},
	{"A handler's error leaves nothing", (*sinkTest).handlerError},
	{"A handler's panic leaves nothing", (*sinkTest).handlerPanic},
	{"A context that ends in the handler leaves nothing", (*sinkTest).contextEnds},
	{"Fence tells what became of a commit whose outcome is unknown", (*sinkTest).unknownOutcome},
	{"Fence during a commit", (*sinkTest).fenceDuringCommit},
	{"Owners that race store each record once", (*sinkTest).race},
	{"Jobs do not touch each other", (*sinkTest).jobs},
	{"Quarantined records go with the checkpoint", (*sinkTest).quarantine},
	{"Too many bad records change nothing", (*sinkTest).tooManyBad},
	{"Quarantined records are marked", (*sinkTest).mark},
	{"Replay hands a record over again", (*sinkTest).replay},
	{"Replay of a record that is refused again", (*sinkTest).replayRefused},
	{"Cancel and pause keep the owner from committing", (*sinkTest).stopped},
	{"Commit keeps the lease", (*sinkTest).keepsLease},
	{"Skip of a record that is not in the batch", (*sinkTest).skipForeign},
	{"Effects outside are accounted for although the lease is lost", (*sinkTest).outside},
	{"A replay outside is accounted for although the lease is lost", (*sinkTest).replayOutside},
	{"At least once: a pause or a cancel hands nothing over twice", (*sinkTest).atLeastOnce},
}

// RunSink checks that a sink which keeps effects and checkpoint in one transaction does what [stream.Sink] promises, and
// [stream.ReplaySink] if it is one. open is called for each test; what it opens is closed by the test that it belongs to.
func RunSink(t *testing.T, open func(t *testing.T, handler SinkHandler) SinkUnderTest) {
	for _, test := range sinkTests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			s := &sinkTest{T: t, ctx: ctx, epochs: map[string]uint64{}}
			s.SinkUnderTest = open(t, func(ctx context.Context, b *stream.Batch, put func(stream.Record) error) error {
				for _, r := range b.Records {
					if err := put(r); err != nil {
						return err
					}
				}
				if after := s.after(); after != nil {
					return after(ctx, b)
				}
				return nil
			})
			test.run(s)
		})
	}
}

type sinkTest struct {
	*testing.T
	SinkUnderTest
	ctx context.Context

	claims sync.Mutex // not the other one: handlers take that while they hold the database
	epochs map[string]uint64

	lock sync.Mutex
	last func(ctx context.Context, b *stream.Batch) error
}

// then sets what the handler does once it has put the records.
func (s *sinkTest) then(last func(ctx context.Context, b *stream.Batch) error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.last = last
}

func (s *sinkTest) after() func(ctx context.Context, b *stream.Batch) error {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.last
}

// lease makes the next owner of a job.
func (s *sinkTest) lease(job string) stream.Lease {
	s.Helper()
	s.claims.Lock()
	defer s.claims.Unlock()
	if s.Store == nil {
		s.epochs[job]++
		return stream.Lease{Job: job, Epoch: s.epochs[job], Owner: worker(fmt.Sprint("w", s.epochs[job]))}
	}
	_, err := s.Store.Submit(s.ctx, stream.Job{ID: job, Stream: "stream-of-" + job})
	for err == nil {
		if _, err = s.Store.Expire(s.ctx, stream.ExpireFilter{Incarnation: worker(job).Incarnation}); err != nil {
			break
		}
		var got []stream.Status
		got, err = s.Store.Claim(s.ctx, stream.Claim{Owner: worker(job), Streams: []string{"stream-of-" + job}, TTL: long, Max: 1})
		if len(got) == 1 {
			return got[0].Lease()
		}
		// A commit of the owner that was thought dead has made the lease last again.
	}
	s.Errorf("claim of job %s: %v", job, err) // not Fatal: tests call this in goroutines of their own
	return stream.Lease{Job: job}
}

func (s *sinkTest) fenced(l stream.Lease) stream.Checkpoint {
	s.Helper()
	c, err := s.Sink.Fence(s.ctx, l)
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// owner makes the next owner of a job, and fences.
func (s *sinkTest) owner(job string) (stream.Lease, stream.Checkpoint) {
	s.Helper()
	l := s.lease(job)
	return l, s.fenced(l)
}

func record(seq uint64) stream.Record {
	return stream.Record{Seq: seq, Key: fmt.Appendf(nil, "key-%08d", seq), Value: fmt.Appendf(nil, "value of %d", seq)}
}

// step makes the commit of the next n records after prev, the last of which are quarantined before the handler gets them.
func step(l stream.Lease, prev stream.Checkpoint, n int, quarantined ...stream.Quarantined) (*stream.Commit, stream.Checkpoint) {
	next, batch := prev, &stream.Batch{Job: stream.Job{ID: l.Job, Stream: "users", OnBad: stream.Quarantine}, Epoch: l.Epoch}
	for range n {
		next.Seq++
		r := record(next.Seq)
		next.Digest.Add(r)
		next.Bytes += uint64(len(r.Key) + len(r.Value))
		if !slices.ContainsFunc(quarantined, func(q stream.Quarantined) bool { return q.Seq == r.Seq }) {
			batch.Records = append(batch.Records, r)
		}
	}
	next.Token = fmt.Appendf(nil, "token-%d", next.Seq)
	next.Bad += uint64(len(quarantined))
	return stream.NewCommit(l, prev, next, batch, quarantined...), next
}

func (s *sinkTest) mustCommit(l stream.Lease, prev stream.Checkpoint, n int, quarantined ...stream.Quarantined) stream.Checkpoint {
	s.Helper()
	c, next := step(l, prev, n, quarantined...)
	if err := s.Sink.Commit(s.ctx, c); err != nil {
		s.Fatal(err)
	}
	return next
}

// stands checks that the checkpoint is the one given, and that the effects are those of records 1 to its number, but for some.
func (s *sinkTest) stands(l stream.Lease, want stream.Checkpoint, without ...uint64) {
	s.Helper()
	if got := s.fenced(l); !same(got, want) {
		s.Errorf("the checkpoint is %+v, want %+v", got, want)
	}
	var expected []stream.Record
	for seq := uint64(1); seq <= want.Seq; seq++ {
		if !slices.Contains(without, seq) {
			expected = append(expected, record(seq))
		}
	}
	if diff := cmp.Diff(expected, s.Effects(s.T, l.Job), cmpopts.IgnoreUnexported(stream.Record{}), cmpopts.EquateEmpty()); diff != "" {
		s.Errorf("other effects than those of records 1 to %d without %v (-want +got):\n%s", want.Seq, without, diff)
	}
}

func same(a, b stream.Checkpoint) bool {
	return a.Seq == b.Seq && bytes.Equal(a.Token, b.Token) && a.Digest == b.Digest && a.Bytes == b.Bytes && a.Bad == b.Bad && a.Done == b.Done
}

func (s *sinkTest) is(err, want error, what string) {
	s.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		s.Errorf("%s: error is %v, want %v", what, err, want)
	}
	// The two ask for different things, so an error is never both.
	if errors.Is(err, stream.ErrFenced) && errors.Is(err, stream.ErrConflict) {
		s.Errorf("%s: error %v is both ErrFenced and ErrConflict", what, err)
	}
}
