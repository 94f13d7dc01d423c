package sqlitestore

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func TestSinkAlone(t *testing.T) {
	streamtest.RunSinkAlone(t, func(t *testing.T) streamtest.SinkAlone {
		jobs, err := Open(t.Context(), filepath.Join(t.TempDir(), "jobs.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { jobs.Close() })
		db, err := OpenDB(t.Context(), filepath.Join(t.TempDir(), "copies.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		list := func(t *testing.T, table string) []string {
			t.Helper()
			jobs, err := ids(db.QueryContext(t.Context(), `select distinct job from `+table+` order by job`))
			if err != nil {
				t.Fatal(err)
			}
			return jobs
		}
		return streamtest.SinkAlone{
			Migrate: func(ctx context.Context) error { return MigrateSink(ctx, db) },
			Version: func(ctx context.Context) (int64, int64, error) {
				v, err := SinkVersion(ctx, db)
				return v.Stored, v.Known, err
			},
			Open:  func(ctx context.Context) (stream.ReplaySink, error) { return NewSink(ctx, db, nil, WithoutMigrate()) },
			Purge: func(ctx context.Context, r stream.SinkRetention) (int, error) { return PurgeSink(ctx, db, r) },
			Jobs:  jobs,
			Age: func(t *testing.T, by time.Duration, except ...string) {
				for _, job := range list(t, "levada_offset") {
					if !slices.Contains(except, job) {
						mustExec(t, db, `update levada_offset set updated_at = updated_at - ? where job = ?`, by.Microseconds(), job)
					}
				}
			},
			Offsets:    func(t *testing.T) []string { return list(t, "levada_offset") },
			Quarantine: func(t *testing.T) []string { return list(t, "levada_quarantine") },
		}
	})
}
