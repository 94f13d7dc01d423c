package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

// recording is a handler that stores records in the table effect.
func recording(handler streamtest.SinkHandler) Handler {
	return func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		return handler(ctx, b, func(r stream.Record) error {
			_, err := tx.Exec(ctx, `insert into effect values ($1, $2, $3, $4)`, b.Job.ID, int64(r.Seq), r.Key, r.Value)
			return err
		})
	}
}

func effects(pool *pgxpool.Pool) func(*testing.T, string) []stream.Record {
	return func(t *testing.T, job string) []stream.Record {
		t.Helper()
		rows, err := pool.Query(context.Background(), `select seq, key, value from effect where job = $1 order by seq`, job)
		if err != nil {
			t.Fatal(err)
		}
		all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r stream.Record, err error) {
			return r, row.Scan(&r.Seq, &r.Key, &r.Value)
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
}

func mustExec(t *testing.T, pool *pgxpool.Pool, statement string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

const effectTable = `create table effect (job text not null, seq bigint not null, key bytea not null, value bytea not null)`

func TestSinkOfAStoreConformance(t *testing.T) {
	streamtest.RunSink(t, func(t *testing.T, handler streamtest.SinkHandler) streamtest.SinkUnderTest {
		dsn := testserver.Postgres(t)
		a, b := connect(t, dsn), connect(t, dsn)
		mustExec(t, a, effectTable)
		s := open(t, a)
		return streamtest.SinkUnderTest{Sink: s.Sink(recording(handler)), More: []stream.Sink{open(t, b).Sink(recording(handler))}, Effects: effects(a), Store: s}
	})
}

func TestSinkOfAnotherDatabaseConformance(t *testing.T) {
	for name, mode := range map[string]pgx.QueryExecMode{"simple": pgx.QueryExecModeSimpleProtocol, "exec": pgx.QueryExecModeExec, "describe": pgx.QueryExecModeCacheDescribe} {
		t.Run(name, func(t *testing.T) {
			streamtest.RunSink(t, func(t *testing.T, handler streamtest.SinkHandler) streamtest.SinkUnderTest {
				dsn := testserver.Postgres(t)
				plain := connect(t, dsn)
				mustExec(t, plain, effectTable)
				newSink := func(pool *pgxpool.Pool) stream.Sink {
					sink, err := NewSink(t.Context(), pool, recording(handler))
					if err != nil {
						t.Fatal(err)
					}
					return sink
				}
				newSink(plain) // a read-only session cannot make tables
				strangers := connect(t, dsn, strange, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
				return streamtest.SinkUnderTest{Sink: newSink(strangers), More: []stream.Sink{newSink(plain)}, Effects: effects(plain)}
			})
		})
	}
}

// claim makes the next owner of job "a".
func claim(t *testing.T, s *Store) stream.Lease {
	t.Helper()
	if _, err := s.Submit(t.Context(), stream.Job{ID: "a", Stream: "users"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Expire(t.Context(), stream.ExpireFilter{All: true}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Claim(t.Context(), stream.Claim{Owner: stream.Self(), TTL: time.Hour, Max: 1})
	if err != nil || len(got) != 1 {
		t.Fatalf("claimed %v, error %v", got, err)
	}
	return got[0].Lease()
}

func fence(t *testing.T, sink stream.Sink, l stream.Lease) stream.Checkpoint {
	t.Helper()
	c, err := sink.Fence(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// step makes the commit of the record after prev.
func step(l stream.Lease, prev stream.Checkpoint) *stream.Commit {
	next := prev
	next.Seq++
	next.Token = fmt.Appendf(nil, "token-%d", next.Seq)
	return stream.NewCommit(l, prev, next, &stream.Batch{Job: stream.Job{ID: l.Job}, Epoch: l.Epoch,
		Records: []stream.Record{{Seq: next.Seq, Key: fmt.Appendf(nil, "%d", next.Seq), Value: []byte("v")}}})
}

func TestErrorsOfTheHandlersStatements(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	mustExec(t, pool, `create table picky (n integer primary key check (n > 0), m text not null default '');
		create table child (n integer references picky (n) deferrable initially deferred)`)
	for name, test := range map[string]struct {
		statement string
		wrap      func(error) error
		verdict   stream.Verdict
		state     string
	}{
		"a check":                   {`insert into picky (n) values (-1)`, nil, stream.VerdictSkip, "23514"},
		"not null":                  {`insert into picky (n, m) values (1, null)`, nil, stream.VerdictSkip, "23502"},
		"a unique key":              {`insert into picky (n) values (1), (1)`, nil, stream.VerdictLater, "23505"},
		"a foreign key, at the end": {`insert into child (n) values (7)`, nil, stream.VerdictLater, "23503"},
		"a number too large":        {`insert into picky (n) values (1::bigint << 40)`, nil, stream.VerdictSkip, "22003"},
		"bad text":                  {`insert into picky (n) values ('x'::text::integer)`, nil, stream.VerdictSkip, "22P02"},
		"division by zero":          {`select 1 / count(*) from picky`, nil, stream.VerdictSkip, "22012"},
		"a mistake in SQL":          {`insert into nowhere values (1)`, nil, stream.NoVerdict, "42P01"},
		"a deadlock":                {`do $$ begin raise exception using errcode = '40P01'; end $$`, nil, stream.NoVerdict, "40P01"},
		"a lock":                    {`do $$ begin raise exception using errcode = '55P03'; end $$`, nil, stream.NoVerdict, "55P03"},
		"a full disk":               {`do $$ begin raise exception using errcode = '53100'; end $$`, nil, stream.NoVerdict, "53100"},
		"a shutdown":                {`select pg_terminate_backend(pg_backend_pid())`, nil, stream.NoVerdict, "57P01"},
		"marked by the handler":     {`insert into picky (n) values (-1)`, stream.Retry, stream.VerdictRetry, "23514"},
	} {
		t.Run(name, func(t *testing.T) {
			sink, err := NewSink(t.Context(), pool, func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
				_, err := tx.Exec(ctx, test.statement)
				if test.wrap != nil {
					err = test.wrap(err)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			l := stream.Lease{Job: name, Epoch: 1}
			fence(t, sink, l)
			for range 3 { // also on a connection where it has happened before
				err := sink.Commit(t.Context(), step(l, stream.Checkpoint{}))
				if sqlState(err) != test.state || stream.VerdictOf(err) != test.verdict {
					t.Errorf("error is %v, marked %q, want state %s, marked %q", err, stream.VerdictOf(err), test.state, test.verdict)
				}
			}
			if c := fence(t, sink, l); c.Seq != 0 {
				t.Errorf("checkpoint %+v", c)
			}
		})
	}
}

func TestHandlersThatMisuseTheTransaction(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	s := open(t, pool)
	l := claim(t, s)
	for name, test := range map[string]struct {
		handler Handler
		verdict stream.Verdict
	}{
		"commit":                {func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error { return tx.Commit(ctx) }, stream.VerdictHalt},
		"commit, error dropped": {func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error { _ = tx.Commit(ctx); return nil }, stream.VerdictHalt},
		"rollback":              {func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error { _ = tx.Rollback(ctx); return nil }, stream.VerdictHalt},
		"commit in SQL": {func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
			_, err := tx.Exec(ctx, `commit`)
			return err
		}, stream.VerdictHalt},
		"a failed statement": {func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
			_, _ = tx.Exec(ctx, `nonsense`)
			return nil
		}, stream.NoVerdict},
		"rows that are left open": {func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
			_, _ = tx.Query(ctx, `select 1`)
			return nil
		}, stream.NoVerdict},
	} {
		t.Run(name, func(t *testing.T) {
			sink := s.Sink(test.handler)
			c := fence(t, sink, l)
			for range 12 { // more than there are connections
				if err := sink.Commit(t.Context(), step(l, c)); err == nil || stream.VerdictOf(err) != test.verdict {
					t.Errorf("error is %v, marked %q, want one marked %q", err, stream.VerdictOf(err), test.verdict)
				}
			}
			if got := fence(t, sink, l); got.Seq != c.Seq {
				t.Errorf("checkpoint %+v", got)
			}
		})
	}
	nested := s.Sink(func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, `select 1`); return err })
	})
	if err := nested.Commit(t.Context(), step(l, fence(t, nested, l))); err != nil {
		t.Errorf("a savepoint: %v", err)
	}
}

// TestAStaleOwnerIsNotToldThatItsRecordsAreBad has a stale owner meet the rows of its successor.
func TestAStaleOwnerIsNotToldThatItsRecordsAreBad(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	s := open(t, pool)
	mustExec(t, pool, `create table once (n bigint primary key)`)
	sink := s.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		_, err := tx.Exec(ctx, `insert into once values ($1)`, int64(b.Records[0].Seq))
		return err
	})
	l := claim(t, s)
	start := fence(t, sink, l)
	if err := sink.Commit(t.Context(), step(l, start)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Commit(t.Context(), step(l, start)); !errors.Is(err, stream.ErrConflict) || stream.VerdictOf(err) != stream.NoVerdict {
		t.Errorf("the same commit again: %v, marked %q", err, stream.VerdictOf(err))
	}
	fence(t, sink, claim(t, s))
	if err := sink.Commit(t.Context(), step(l, start)); !errors.Is(err, stream.ErrFenced) || stream.VerdictOf(err) != stream.NoVerdict {
		t.Errorf("the commit of a stale owner: %v, marked %q", err, stream.VerdictOf(err))
	}
}

func TestTransactionsOfTheSinkHaveLimits(t *testing.T) {
	pool := connect(t, testserver.Postgres(t), func(c *pgxpool.Config) { c.MaxConns = 1 })
	s := open(t, pool, WithLimits(Limits{Idle: 1234 * time.Millisecond, Statement: -1}))
	got := map[string]string{}
	var conn *pgx.Conn
	sink := s.Sink(func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
		conn = tx.Conn()
		for _, name := range []string{"idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout", "synchronous_commit", "transaction_isolation"} {
			var value string
			if err := tx.QueryRow(ctx, `select current_setting($1)`, name).Scan(&value); err != nil {
				return err
			}
			got[name] = value
		}
		return nil
	})
	l := claim(t, s)
	if err := sink.Commit(t.Context(), step(l, fence(t, sink, l))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"idle_in_transaction_session_timeout": "1234ms", "statement_timeout": "0", "lock_timeout": "10s", "synchronous_commit": "on", "transaction_isolation": "read committed"} {
		if got[name] != want {
			t.Errorf("%s is %q in the transaction, want %q", name, got[name], want)
		}
	}
	var idle, lock string
	if err := pool.QueryRow(t.Context(), `select current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')`).Scan(&idle, &lock); err != nil || idle != "0" || lock != "0" {
		t.Errorf("after the commit the session's limits are %q and %q, error %v", idle, lock, err)
	}
	if conn.IsClosed() {
		t.Error("the connection was not reused")
	}
}

func TestNewerVersionsAreRefused(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	s := open(t, pool)
	sink := s.Sink(nil)
	l := claim(t, s)
	fence(t, sink, l)
	mustExec(t, pool, `update levada_offset set version = $1`, stream.CheckpointVersion+1)
	if _, err := sink.Fence(t.Context(), claim(t, s)); !errors.Is(err, stream.ErrNewer) {
		t.Errorf("Fence of a newer checkpoint: %v", err)
	}
	var epoch uint64
	if err := pool.QueryRow(t.Context(), `select epoch from levada_offset`).Scan(&epoch); err != nil || epoch != l.Epoch {
		t.Errorf("a program that does not understand the checkpoint fenced it: epoch %d, error %v", epoch, err)
	}
	mustExec(t, pool, `insert into levada_sink_version (version_id, is_applied) values (99, true)`)
	if _, err := NewSink(t.Context(), pool, nil); !errors.Is(err, stream.ErrNewer) {
		t.Errorf("NewSink on newer tables: %v", err)
	}
	if _, err := New(t.Context(), pool); !errors.Is(err, stream.ErrNewer) || !strings.Contains(err.Error(), "99") {
		t.Errorf("New on newer tables: %v", err)
	}
}
