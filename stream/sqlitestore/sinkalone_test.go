package sqlitestore

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

// A sink in another file than the job store's had offsets that nothing deleted, and no way to make its tables beforehand.
func TestSinkAloneIsMigratedAndPurged(t *testing.T) {
	ctx := t.Context()
	jobs, err := Open(ctx, filepath.Join(t.TempDir(), "jobs.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer jobs.Close()
	db, err := OpenDB(ctx, filepath.Join(t.TempDir(), "copies.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if v, err := SinkVersion(ctx, db); err != nil || v.Stored != 0 || v.Known == 0 {
		t.Errorf("before: %+v, error %v", v, err)
	}
	if _, err := NewSink(ctx, db, nil, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a sink without tables: error %v, want ErrOlder", err)
	}
	if _, err := PurgeSink(ctx, db, stream.SinkRetention{OlderThan: time.Hour}); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a purge without tables: error %v, want ErrOlder", err)
	}
	if err := MigrateSink(ctx, db); err != nil {
		t.Fatal(err)
	}
	sink, err := NewSink(ctx, db, nil, WithoutMigrate())
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
	if _, err := db.ExecContext(ctx, `update levada_offset set updated_at = ? where job <> 'recent'`, time.Now().Add(-2*time.Hour).UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if _, err := jobs.Submit(ctx, stream.Job{ID: "there", Stream: "users"}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		r    stream.SinkRetention
		n    int
		left []string
	}{
		{stream.SinkRetention{OlderThan: 3 * time.Hour}, 0, []string{"done", "open", "recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: jobs, Max: 1}, 1, []string{"open", "recent", "there", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour}, 1, []string{"open", "recent", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, Jobs: jobs}, 1, []string{"recent", "waiting"}},
		{stream.SinkRetention{OlderThan: time.Hour, WithQuarantine: true}, 1, []string{"recent"}},
	} {
		n, err := PurgeSink(ctx, db, step.r)
		left, leftErr := ids(db.QueryContext(ctx, `select job from levada_offset order by job`))
		if err = errors.Join(err, leftErr); err != nil || n != step.n || !slices.Equal(left, step.left) {
			t.Errorf("purge with %+v deleted %d and left %v, error %v; want %d and %v", step.r, n, left, err, step.n, step.left)
		}
	}
	if rows, err := ids(db.QueryContext(ctx, `select job from levada_quarantine`)); err != nil || len(rows) != 0 {
		t.Errorf("the quarantined records of %v are left, error %v", rows, err)
	}
}
