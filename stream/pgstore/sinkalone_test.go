package pgstore

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// A sink in another database than the job store's had tables that only a program which may create them could make, and offsets that nothing deleted.
func TestSinkAloneIsMigratedAndPurged(t *testing.T) {
	ctx := t.Context()
	pool := connect(t, testserver.Postgres(t))
	jobs := open(t, connect(t, testserver.Postgres(t)))
	if v, err := SinkVersion(ctx, pool); err != nil || v.Stored != 0 || v.Known == 0 {
		t.Errorf("before: %+v, error %v", v, err)
	}
	if err := MigrateSink(ctx, pool, WithSchema("copies")); err != nil {
		t.Fatal(err)
	}
	if got := tablesIn(t, pool); slices.Contains(got, "copies.levada_job") || !slices.Contains(got, "copies.levada_offset") {
		t.Errorf("tables %v, want those of a sink alone", got)
	}
	if v, err := SinkVersion(ctx, pool, WithSchema("copies")); err != nil || v.Stored != v.Known {
		t.Errorf("after: %+v, error %v", v, err)
	}
	if _, err := NewSink(ctx, pool, nil, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a sink in another schema: error %v, want ErrOlder", err)
	}
	sink, err := NewSink(ctx, pool, nil, WithoutMigrate(), WithSchema("copies"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"done", "there", "open", "waiting", "recent"} {
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
	if _, err := sink.MarkQuarantined(ctx, "done", stream.Dropped); err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, `update copies.levada_offset set updated_at = now() - interval '2 hours' where job <> 'recent'`)
	if _, err := jobs.Submit(ctx, stream.Job{ID: "there", Stream: "users"}); err != nil {
		t.Fatal(err)
	}
	left := func() (ids []string) {
		t.Helper()
		if err := pool.QueryRow(ctx, `select array_agg(job order by job) from copies.levada_offset`).Scan(&ids); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	for _, r := range []stream.SinkRetention{{}, {OlderThan: time.Second}, {OlderThan: time.Hour, Max: -1}} {
		if _, err := PurgeSink(ctx, pool, r, WithSchema("copies")); err == nil {
			t.Errorf("purge with %+v was taken", r)
		}
	}
	for _, step := range []struct {
		r    stream.SinkRetention
		n    int
		left []string
	}{
		{stream.SinkRetention{OlderThan: 3 * time.Hour}, 0, []string{"done", "open", "recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: jobs, Max: 1}, 1, []string{"open", "recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: jobs}, 1, []string{"recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: jobs, WithQuarantine: true}, 1, []string{"recent", "there"}},
		{stream.SinkRetention{OlderThan: time.Hour}, 1, []string{"recent"}},
	} {
		if n, err := PurgeSink(ctx, pool, step.r, WithSchema("copies")); err != nil || n != step.n || !slices.Equal(left(), step.left) {
			t.Errorf("purge with %+v deleted %d and left %v, error %v; want %d and %v", step.r, n, left(), err, step.n, step.left)
		}
	}
	var rows int
	if err := pool.QueryRow(ctx, `select count(*) from copies.levada_quarantine`).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d quarantined records are left, error %v", rows, err)
	}
}

// A stream that was not read to its end goes on after its offset: only the job store knows that it will not.
func TestSinkPurgeWithoutTheJobsKeepsUnfinishedOffsets(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	sink, err := NewSink(t.Context(), pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Fence(t.Context(), stream.Lease{Job: "open", Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, `update levada_offset set updated_at = now() - interval '1 year'`)
	if n, err := PurgeSink(t.Context(), pool, stream.SinkRetention{OlderThan: time.Hour, WithQuarantine: true}); err != nil || n != 0 {
		t.Errorf("%d offsets deleted, error %v", n, err)
	}
	if n, err := PurgeSink(t.Context(), pool, stream.SinkRetention{OlderThan: time.Hour, Jobs: failing{}}); err == nil || n != 0 {
		t.Errorf("a job store that does not answer: %d offsets deleted, error %v", n, err)
	}
}

// failing is a job store that cannot be asked.
type failing struct{}

func (failing) Get(context.Context, string) (stream.Status, error) {
	return stream.Status{}, errors.New("not reachable")
}
