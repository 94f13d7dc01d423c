package pgstore

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

// tablesIn returns the names of all tables outside of the system's schemas.
func tablesIn(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `select schemaname || '.' || tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema') order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A program that only reads created five tables in whatever database it was pointed at.
func TestWithoutMigrateCreatesNothing(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	if _, err := New(t.Context(), pool, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) || !strings.Contains(err.Error(), "with Migrate of") {
		t.Errorf("a store without tables: error %v, want ErrOlder with the function to call", err)
	}
	if _, err := NewSink(t.Context(), pool, nil, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a sink without tables: error %v, want ErrOlder", err)
	}
	if versions, err := Versions(t.Context(), pool); err != nil || len(versions) != 2 || versions[0].Stored != 0 || versions[0].Known == 0 {
		t.Errorf("versions %+v, error %v", versions, err)
	}
	if got := tablesIn(t, pool); len(got) > 0 {
		t.Errorf("there are the tables %v", got)
	}
	if err := Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), pool, WithoutMigrate()); err != nil {
		t.Error(err)
	}
	// A user who may read and write, and create nothing, is enough afterwards.
	mustExec(t, pool, `update levada_job_version set version_id = 0 where version_id > 1`)
	mustExec(t, pool, `delete from levada_job_version where version_id > 0`)
	if _, err := New(t.Context(), pool, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a store with older tables: error %v, want ErrOlder", err)
	}
}

// With a schema of its own nothing of the store is elsewhere, and handlers keep their search_path.
func TestTablesInASchema(t *testing.T) {
	dsn := testserver.Postgres(t)
	pool := connect(t, dsn)
	mustExec(t, pool, effectTable)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := Migrate(t.Context(), pool, WithSchema("jobs")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, table := range tablesIn(t, pool) {
		if table != "public.effect" && !strings.HasPrefix(table, "jobs.") {
			t.Errorf("table %s is outside of the schema", table)
		}
	}
	if got := tablesIn(t, pool); !slices.Contains(got, "jobs.levada_job") {
		t.Fatalf("tables %v", got)
	}
	if _, err := New(t.Context(), pool, WithSchema(`x"; drop`)); err == nil || !strings.Contains(err.Error(), "WithSchema") {
		t.Errorf("a bad schema: error %v", err)
	}
	streamtest.RunSink(t, func(t *testing.T, handler streamtest.SinkHandler) streamtest.SinkUnderTest {
		dsn := testserver.Postgres(t)
		pool := connect(t, dsn)
		mustExec(t, pool, effectTable)
		s := open(t, pool, WithSchema("jobs"))
		return streamtest.SinkUnderTest{Sink: s.Sink(recording(handler)), Effects: effects(pool), Store: s}
	})
}

// Rows of jobs that had ended were never deleted.
func TestPurgeDeletesWhatEndedLongAgo(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	s := open(t, pool)
	for _, id := range []string{"old", "fresh", "quarantined", "ready"} {
		if _, err := s.Submit(t.Context(), stream.Job{ID: id, Stream: "users", DedupeKey: id}); err != nil {
			t.Fatal(err)
		}
	}
	mustExec(t, pool, `update levada_job set state = 'completed', finished_at = now() - interval '2 hours' where id in ('old', 'quarantined')`)
	mustExec(t, pool, `update levada_job set state = 'completed', finished_at = now() where id = 'fresh'`)
	mustExec(t, pool, `insert into levada_offset (job, version, epoch, token, digest) select id, 1, 1, '', '' from levada_job`)
	mustExec(t, pool, `insert into levada_quarantine (job, seq, key, error, class, attempts, state) values ('quarantined', 1, '', '', '', 1, 'waiting')`)
	for i, r := range []stream.Retention{{OlderThan: 3 * time.Hour}, {OlderThan: time.Hour}, {OlderThan: time.Hour, WithQuarantine: true}} {
		if n, err := s.Purge(t.Context(), r); err != nil || n != min(i, 1) {
			t.Errorf("purge %d deleted %d jobs, error %v", i+1, n, err)
		}
	}
	var rows int
	if err := pool.QueryRow(t.Context(), `select (select count(*) from levada_job) + (select count(*) from levada_offset) * 10 + (select count(*) from levada_quarantine) * 100`).Scan(&rows); err != nil || rows != 22 {
		t.Errorf("what is left counts %d, want two jobs and their offsets (22), error %v", rows, err)
	}
}
