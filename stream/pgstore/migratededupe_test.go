package pgstore

import (
	"database/sql"
	"errors"
	"io/fs"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// migrateTo makes the tables as an earlier version of this package did.
func migrateTo(t *testing.T, pool *pgxpool.Pool, set, table string, version int64) {
	t.Helper()
	files, err := fs.Sub(migrations, "migrations/"+set)
	if err != nil {
		t.Fatal(err)
	}
	var db *sql.DB = stdlib.OpenDBFromPool(pool)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(table), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
}

// Jobs that were stored while a key was unique in the whole table keep theirs. What has changed since (a key belongs to a stream, and a
// cancelled job gives it free) holds for them too.
func TestMigrationKeepsDedupeKeys(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	migrateTo(t, pool, "job", "levada_job_version", 2)
	mustExec(t, pool, `insert into levada_job (id, stream, target, query, dedupe_key, priority, not_before, on_bad, max_bad, state, created_at, updated_at, finished_at) values
		('ready', 'users', '', '\x7b7d', 'k1', 0, now(), 'quarantine', 0, 'ready', now(), now(), null),
		('done', 'users', '', null, 'k2', 0, now(), 'quarantine', 7, 'completed', now(), now(), now()),
		('cancelled', 'users', '', null, 'k3', 0, now(), 'quarantine', 0, 'cancelled', now(), now(), now()),
		('none', 'users', '', null, null, 0, now(), 'quarantine', 0, 'ready', now(), now(), null),
		('none too', 'users', '', null, null, 0, now(), 'quarantine', 0, 'ready', now(), now(), null)`)
	if _, err := New(t.Context(), pool, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) {
		t.Fatalf("a database of the schema before: error %v, want ErrOlder", err)
	}
	s := open(t, pool)
	for _, test := range []struct {
		job     stream.Job
		existed string // the id of the job that has the key; empty: none
	}{
		{stream.Job{Stream: "users", DedupeKey: "k1", Query: []byte("{}")}, "ready"},
		{stream.Job{Stream: "users", DedupeKey: "k2"}, "done"},
		{stream.Job{Stream: "orders", DedupeKey: "k1"}, ""},
		{stream.Job{Stream: "users", DedupeKey: "k3"}, ""},
	} {
		st, err := s.Submit(t.Context(), test.job)
		if err != nil {
			t.Fatal(err)
		}
		if st.Existed != (test.existed != "") || st.Existed && st.ID != test.existed || st.DedupeKey != test.job.DedupeKey {
			t.Errorf("submit of %s %s gave job %s with the key %q, existed: %v; want job %q", test.job.Stream, test.job.DedupeKey, st.ID, st.DedupeKey, st.Existed, test.existed)
		}
	}
	if _, err := s.Retry(t.Context(), "cancelled"); !errors.Is(err, stream.ErrState) {
		t.Errorf("retry of a cancelled job from before, whose key another has: error %v, want ErrState", err)
	}
	if st, err := s.Get(t.Context(), "done"); err != nil || st.MaxBad != 7 || st.State != stream.Completed {
		t.Errorf("the completed job is %+v, error %v", st, err)
	}
	if st, err := s.Get(t.Context(), "ready"); err != nil || string(st.Query) != "{}" {
		t.Errorf("the ready job is %+v, error %v", st, err)
	}
	if all, err := s.List(t.Context(), stream.Filter{}); err != nil || len(all) != 7 {
		t.Errorf("%d jobs, error %v; want the five from before and two", len(all), err)
	}
}

// Quarantined records from before attempts were kept have the last error as their history once they are refused again.
func TestMigrationKeepsTheQuarantine(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	migrateTo(t, pool, "sink", "levada_sink_version", 1)
	mustExec(t, pool, `insert into levada_offset (job, version, epoch, seq, token, digest) values ('a', 1, 3, 9, '\x01', decode(repeat('00', 16), 'hex'))`)
	mustExec(t, pool, `insert into levada_quarantine (job, seq, key, payload, error, class, attempts, state) values ('a', 2, 'k', 'v', 'refused', 'refused', 1, 'replay')`)
	sink, err := NewSink(t.Context(), pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := sink.Quarantined(t.Context(), "a", 0)
	if err != nil || len(rows) != 1 || string(rows[0].Payload) != "v" || rows[0].State != stream.Replay || rows[0].Error != "refused" || len(rows[0].History) != 0 {
		t.Fatalf("the quarantine is %+v, error %v", rows, err)
	}
	l := stream.Lease{Job: "a", Epoch: 4}
	if c, err := sink.Fence(t.Context(), l); err != nil || c.Seq != 9 {
		t.Fatalf("checkpoint %+v, error %v", c, err)
	}
	if err := sink.RefuseReplay(t.Context(), l, 2, stream.NewAttempt(stream.ClassCrash, errors.New("died"))); err != nil {
		t.Fatal(err)
	}
	rows, err = sink.Quarantined(t.Context(), "a", 0)
	if err != nil || len(rows) != 1 || len(rows[0].History) != 2 || rows[0].History[0].Error != "refused" || rows[0].History[1].Error != "died" || rows[0].State != stream.Waiting {
		t.Errorf("the quarantine is %+v, error %v", rows, err)
	}
}
