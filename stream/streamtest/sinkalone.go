package streamtest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

// SinkAlone is a sink in another database than the job store's, which is empty, and what its suite needs to know of it.
type SinkAlone struct {
	// Migrate creates the tables, and Version says which version they have (0: none), and which one this program needs.
	Migrate func(ctx context.Context) error
	Version func(ctx context.Context) (stored, known int64, err error)
	// Open returns a sink without creating tables. Its handler is not called.
	Open func(ctx context.Context) (stream.ReplaySink, error)
	// Purge deletes offsets and quarantined records.
	Purge func(ctx context.Context, r stream.SinkRetention) (int, error)
	// Jobs is a job store in a database of its own.
	Jobs stream.Store
	// Age makes the offsets of all jobs older, except those of the jobs named.
	Age func(t *testing.T, by time.Duration, except ...string)
	// Offsets and Quarantine return the jobs that have an offset, and those that have quarantined records, in order.
	Offsets    func(t *testing.T) []string
	Quarantine func(t *testing.T) []string
}

// RunSinkAlone checks that a sink without a job store in its database can be migrated and purged by itself: nothing else would create its tables, or delete
// the offsets of jobs that are gone. open is called for each test.
func RunSinkAlone(t *testing.T, open func(t *testing.T) SinkAlone) {
	for name, run := range map[string]func(context.Context, *testing.T, SinkAlone){
		"Tables are created by Migrate alone":                   sinkAloneMigrates,
		"A purge deletes what is old and belongs to no job":     sinkAlonePurges,
		"A purge that must not guess deletes nothing":           sinkAloneKeeps,
		"A purge with an impossible retention is refused":       sinkAloneRefuses,
		"A purge that cannot ask the job store deletes nothing": sinkAloneAsksJobs,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			run(ctx, t, open(t))
		})
	}
}

func sinkAloneMigrates(ctx context.Context, t *testing.T, s SinkAlone) {
	if stored, known, err := s.Version(ctx); err != nil || stored != 0 || known == 0 {
		t.Errorf("before: version %d of %d, error %v", stored, known, err)
	}
	if _, err := s.Open(ctx); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a sink without tables: error %v, want ErrOlder", err)
	}
	if _, err := s.Purge(ctx, stream.SinkRetention{OlderThan: time.Hour}); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a purge without tables: error %v, want ErrOlder", err)
	}
	for range 2 { // again: it changes nothing
		if err := s.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if stored, known, err := s.Version(ctx); err != nil || stored != known {
		t.Errorf("after: version %d of %d, error %v", stored, known, err)
	}
	if _, err := s.Open(ctx); err != nil {
		t.Errorf("a sink with tables: %v", err)
	}
}

// fill commits one record of each job. The stream of "open" has not ended; "waiting" has a record in quarantine, and "done" one that was dropped.
func (s SinkAlone) fill(ctx context.Context, t *testing.T, jobs ...string) {
	t.Helper()
	if err := s.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	sink, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range jobs {
		l := stream.Lease{Job: id, Epoch: 1}
		c, err := sink.Fence(ctx, l)
		if err != nil {
			t.Fatal(err)
		}
		next, aside := c, []stream.Quarantined(nil)
		next.Seq, next.Token, next.Done = 1, []byte("t"), id != "open"
		if id == "waiting" || id == "done" {
			next.Bad, aside = 1, []stream.Quarantined{{Seq: 1, Key: []byte("k"), Error: "bad", Class: stream.ClassRefused, Attempts: 1}}
		}
		if err := sink.Commit(ctx, stream.NewCommit(l, c, next, &stream.Batch{Job: stream.Job{ID: id}}, aside...)); err != nil {
			t.Fatal(err)
		}
	}
	if slices.Contains(jobs, "done") {
		if _, err := sink.MarkQuarantined(ctx, "done", stream.Dropped); err != nil {
			t.Fatal(err)
		}
	}
}

func sinkAlonePurges(ctx context.Context, t *testing.T, s SinkAlone) {
	s.fill(ctx, t, "done", "there", "open", "waiting", "recent")
	s.Age(t, 2*time.Hour, "recent")
	if _, err := s.Jobs.Submit(ctx, stream.Job{ID: "there", Stream: "users"}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		r    stream.SinkRetention
		n    int
		left []string
	}{
		{stream.SinkRetention{OlderThan: 3 * time.Hour}, 0, []string{"done", "open", "recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: s.Jobs, Max: 1}, 1, []string{"open", "recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: s.Jobs}, 1, []string{"recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: s.Jobs, WithQuarantine: true}, 1, []string{"recent", "there"}},
		{stream.SinkRetention{OlderThan: time.Hour}, 1, []string{"recent"}},
	} {
		n, err := s.Purge(ctx, step.r)
		if left := s.Offsets(t); err != nil || n != step.n || !slices.Equal(left, step.left) {
			t.Errorf("purge with %+v deleted %d and left %v, error %v; want %d and %v", step.r, n, left, err, step.n, step.left)
		}
	}
	if jobs := s.Quarantine(t); len(jobs) != 0 {
		t.Errorf("quarantined records of %v are left", jobs)
	}
}

// A stream that was not read to its end goes on after its offset: only the job store knows that it will not.
func sinkAloneKeeps(ctx context.Context, t *testing.T, s SinkAlone) {
	s.fill(ctx, t, "open")
	s.Age(t, 365*24*time.Hour)
	if n, err := s.Purge(ctx, stream.SinkRetention{OlderThan: time.Hour, WithQuarantine: true}); err != nil || n != 0 || len(s.Offsets(t)) != 1 {
		t.Errorf("%d offsets deleted, error %v, %v left", n, err, s.Offsets(t))
	}
}

func sinkAloneRefuses(ctx context.Context, t *testing.T, s SinkAlone) {
	s.fill(ctx, t, "done")
	s.Age(t, 2*time.Hour)
	for _, r := range []stream.SinkRetention{{}, {OlderThan: time.Second}, {OlderThan: time.Hour, Max: -1}} {
		if _, err := s.Purge(ctx, r); err == nil || len(s.Offsets(t)) != 1 {
			t.Errorf("purge with %+v: error %v, %v left", r, err, s.Offsets(t))
		}
	}
}

func sinkAloneAsksJobs(ctx context.Context, t *testing.T, s SinkAlone) {
	s.fill(ctx, t, "done")
	s.Age(t, 2*time.Hour)
	if n, err := s.Purge(ctx, stream.SinkRetention{OlderThan: time.Hour, Jobs: unreachableJobs{}}); err == nil || n != 0 || len(s.Offsets(t)) != 1 {
		t.Errorf("a job store that does not answer: %d offsets deleted, error %v", n, err)
	}
}

// unreachableJobs is a job store that cannot be asked.
type unreachableJobs struct{}

func (unreachableJobs) Get(context.Context, string) (stream.Status, error) {
	return stream.Status{}, errors.New("not reachable")
}
