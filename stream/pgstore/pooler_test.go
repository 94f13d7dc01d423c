package pgstore

import (
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func openDSN(t *testing.T, dsn string, opts ...Option) *Store {
	t.Helper()
	s, err := Open(t.Context(), dsn, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Statements that pgx had prepared on one server connection were missing on the next, or were there already.
func TestStoreConformanceThroughPgBouncer(t *testing.T) {
	streamtest.RunStore(t, func(t *testing.T) streamtest.StoreUnderTest {
		dsn := testserver.Postgres(t)
		bouncer := testserver.PgBouncer(t, dsn, "transaction")
		return streamtest.StoreUnderTest{Store: openDSN(t, bouncer.DSN()), More: []stream.Store{openDSN(t, bouncer.DSN())}, Advance: advance(t, connect(t, dsn))}
	})
}

func TestSinkConformanceThroughPgBouncer(t *testing.T) {
	streamtest.RunSink(t, func(t *testing.T, handler streamtest.SinkHandler) streamtest.SinkUnderTest {
		dsn := testserver.Postgres(t)
		direct := connect(t, dsn)
		mustExec(t, direct, effectTable)
		bouncer := testserver.PgBouncer(t, dsn, "transaction")
		s := openDSN(t, bouncer.DSN())
		more := openDSN(t, bouncer.DSN()+"&default_query_exec_mode=exec").Sink(recording(handler))
		return streamtest.SinkUnderTest{Sink: s.Sink(recording(handler)), More: []stream.Sink{more}, Effects: effects(direct), Store: s}
	})
}

// A lock of the session stayed on a server connection that other clients used, and processes that started later waited for it without end.
func TestMigrationsAtOnceThroughPgBouncer(t *testing.T) {
	dsn := testserver.Postgres(t)
	bouncer := testserver.PgBouncer(t, dsn, "transaction")
	for _, schema := range []string{"", "jobs"} {
		var all sync.WaitGroup
		for range 4 { // each with connections of its own, as processes have
			all.Go(func() {
				s, err := Open(t.Context(), bouncer.DSN(), WithSchema(schema))
				if err != nil {
					t.Error(err)
					return
				}
				_ = s.Close()
			})
		}
		all.Wait()
	}
	direct := connect(t, dsn)
	var locks int
	if err := direct.QueryRow(t.Context(), `select count(*) from pg_locks where locktype = 'advisory'`).Scan(&locks); err != nil || locks > 0 {
		t.Errorf("%d advisory locks are left, error %v", locks, err)
	}
	if _, err := New(t.Context(), direct, WithoutMigrate()); err != nil {
		t.Error(err)
	}
}

// A migration that fails leaves nothing behind: neither tables, nor a transaction, nor the lock.
func TestFailedMigrationLeavesNothing(t *testing.T) {
	pool := connect(t, testserver.Postgres(t), func(c *pgxpool.Config) { c.MaxConns = 1 })
	mustExec(t, pool, `create view levada_quarantine as select 1 as one`) // in the way of a table of the sink's
	before := strings.Join(tablesIn(t, pool), " ")
	if err := migrate(t.Context(), newTables(pool, ""), sinkSet.name, sinkSet.what); err == nil || !strings.Contains(err.Error(), "levada_quarantine") {
		t.Errorf("error %v, want one that names what is in the way", err)
	}
	if after := strings.Join(tablesIn(t, pool), " "); after != before {
		t.Errorf("tables %q, before %q", after, before)
	}
	mustExec(t, pool, `drop view levada_quarantine`)
	if err := Migrate(t.Context(), pool); err != nil {
		t.Error(err)
	}
}

// A pool of the user's that keeps statements prepared failed with "prepared statement already exists", at its start or, with little load, much later.
func TestPoolThatPreparesBehindPgBouncerIsRefused(t *testing.T) {
	dsn := testserver.Postgres(t)
	bouncer := testserver.PgBouncer(t, dsn, "transaction")
	open(t, connect(t, dsn))
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec} {
		pool := connect(t, bouncer.DSN(), pooled, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
		for what, use := range map[string]func() error{
			"New":     func() error { _, err := New(t.Context(), pool); return err },
			"NewSink": func() error { _, err := NewSink(t.Context(), pool, nil); return err },
			"Migrate": func() error { return Migrate(t.Context(), pool) },
			"Versions": func() error {
				_, err := Versions(t.Context(), pool)
				return err
			},
		} {
			err := use()
			if err == nil || !strings.Contains(err.Error(), "default_query_exec_mode=exec") || !strings.Contains(err.Error(), "transaction mode") {
				t.Errorf("%s with a pool in mode %v: error %v, want one that names default_query_exec_mode=exec", what, mode, err)
			}
		}
	}
	if _, err := Open(t.Context(), bouncer.DSN()+"&default_query_exec_mode=cache_statement"); err == nil || !strings.Contains(err.Error(), "default_query_exec_mode=exec") {
		t.Errorf("Open with a mode in the connection string that cannot work: error %v", err)
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		open(t, connect(t, bouncer.DSN(), pooled, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
	}
}

// pooled takes out what PgBouncer does not let through.
func pooled(c *pgxpool.Config) { delete(c.ConnConfig.RuntimeParams, "synchronous_commit") }

// In session mode a client has its server connection to itself, and everything works.
func TestPoolBehindPgBouncerInSessionModeIsTaken(t *testing.T) {
	bouncer := testserver.PgBouncer(t, testserver.Postgres(t), "session")
	s := open(t, connect(t, bouncer.DSN(), pooled))
	if _, err := s.Submit(t.Context(), stream.Job{ID: "a", Stream: "users"}); err != nil {
		t.Error(err)
	}
	openDSN(t, bouncer.DSN())
}

// Without transactions nothing can work, and the error says which setting must change.
func TestStatementPoolingIsRefused(t *testing.T) {
	bouncer := testserver.PgBouncer(t, testserver.Postgres(t), "statement")
	_, err := Open(t.Context(), bouncer.DSN())
	if err == nil || !strings.Contains(err.Error(), "pool_mode = transaction") {
		t.Errorf("error %v, want one that names pool_mode", err)
	}
}
