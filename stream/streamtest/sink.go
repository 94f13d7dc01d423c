package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// RunSink checks that a sink which keeps effects and checkpoint in one transaction does what [stream.Sink] promises, and
// [stream.ReplaySink] if it is one. open is called for each test; what it opens is closed by the test that it belongs to.
func RunSink(t *testing.T, open func(t *testing.T, handler SinkHandler) SinkUnderTest) {
	tests := []struct {
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
	for _, test := range tests {
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

// fenceDuringCommit fences while the handler of the old owner is at work: whichever comes first, what Fence returns is what stays.
func (s *sinkTest) fenceDuringCommit() {
	other := s.Sink
	if len(s.More) > 0 {
		other = s.More[0]
	}
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
		type answer struct {
			stream.Lease
			stream.Checkpoint
			error
		}
		fenced := make(chan answer, 1)
		claiming := make(chan struct{})
		go func() {
			close(claiming)
			l := s.lease(job)
			c, err := other.Fence(s.ctx, l)
			fenced <- answer{l, c, err}
		}()
		<-claiming
		var a answer
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
		switch {
		case err == nil && same(a.Checkpoint, next):
		case errors.Is(err, stream.ErrFenced) && same(a.Checkpoint, c):
		default:
			s.Errorf("the commit returned %v, and Fence the checkpoint %+v; before the commit it was %+v", err, a.Checkpoint, c)
		}
		s.stands(a.Lease, a.Checkpoint)
		s.stands(a.Lease, s.mustCommit(a.Lease, a.Checkpoint, 1))
	}
}

// race has owners take a job from each other while the others go on.
func (s *sinkTest) race() {
	const owners, last = 5, 60
	sinks := append([]stream.Sink{s.Sink}, s.More...)
	var all sync.WaitGroup
	for i := range owners {
		all.Go(func() {
			sink := sinks[i%len(sinks)]
			for {
				l := s.lease("a")
				c, err := sink.Fence(s.ctx, l)
				for err == nil && c.Seq < last {
					commit, next := step(l, c, 1+int(c.Seq)%4)
					if err = sink.Commit(s.ctx, commit); err == nil {
						c = next
					}
					if c.Seq%10 == 0 && err == nil {
						break // so that another has a turn
					}
				}
				if err != nil && !errors.Is(err, stream.ErrFenced) {
					s.Errorf("owner %d: %v", l.Epoch, err)
					return
				}
				if c.Seq >= last {
					return
				}
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
	// Records that the handler quarantines, and those quarantined before it. The same commit works after it has failed.
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
	for _, test := range []struct {
		states []stream.QuarantineState
		want   []uint64
	}{
		{[]stream.QuarantineState{stream.Waiting}, []uint64{1, 4}},
		{[]stream.QuarantineState{stream.Replay, stream.Dropped}, []uint64{2, 3}},
		{[]stream.QuarantineState{stream.Replayed}, nil},
	} {
		got, err := r.Quarantined(s.ctx, "a", 0, test.states...)
		var seqs []uint64
		for _, q := range got {
			seqs = append(seqs, q.Seq)
		}
		if err != nil || !slices.Equal(seqs, test.want) {
			s.Errorf("%v are the records %v, error %v, want %v", test.states, seqs, err, test.want)
		}
	}
	if n, err := r.MarkQuarantined(s.ctx, "b", stream.Replay); n != 0 || err != nil {
		s.Errorf("another job's mark returned %d, error %v", n, err)
	}
	mark(2, stream.Replay)
	mark(0, stream.Replay)
	mark(1, stream.Waiting, 4)
	mark(0, stream.Waiting, 4)
	mark(1, stream.Replay, 4)
}

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
	// A process that dies in a replay, or a producer that cannot make the record, is kept as well.
	death := stream.NewAttempt(stream.ClassCrash, errors.New("it died"))
	s.is(r.RefuseReplay(s.ctx, l, 2, death), nil, "RefuseReplay of a record that waits")
	if n, err := r.MarkQuarantined(s.ctx, "a", stream.Replay, 2); n != 1 || err != nil {
		s.Fatalf("marked %d, error %v", n, err)
	}
	s.is(r.RefuseReplay(s.ctx, l, 2, death), nil, "RefuseReplay")
	s.is(r.RefuseReplay(s.ctx, l, 9, death), nil, "RefuseReplay of a record that is not in quarantine")
	all, err = r.Quarantined(s.ctx, "a", 0, stream.Waiting)
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
