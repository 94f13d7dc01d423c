package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

const effectTable = `create table effect (job text not null, seq integer not null, key blob not null, value blob not null)`

// recording is a handler that stores records in the table effect.
func recording(handler streamtest.SinkHandler) Handler {
	return func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
		return handler(ctx, b, func(r stream.Record) error {
			_, err := tx.ExecContext(ctx, `insert into effect values (?, ?, ?, ?)`, b.Job.ID, int64(r.Seq), r.Key, r.Value)
			return err
		})
	}
}

func effects(db *sql.DB) func(*testing.T, string) []stream.Record {
	return func(t *testing.T, job string) (all []stream.Record) {
		t.Helper()
		rows, err := db.QueryContext(context.Background(), `select seq, key, value from effect where job = ? order by seq`, job)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var r stream.Record
			if err := rows.Scan(&r.Seq, &r.Key, &r.Value); err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return all
	}
}

func mustExec(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

func TestSinkOfAStoreConformance(t *testing.T) {
	streamtest.RunSink(t, func(t *testing.T, handler streamtest.SinkHandler) streamtest.SinkUnderTest {
		path := filepath.Join(t.TempDir(), "jobs.db")
		a, b := open(t, path), open(t, path)
		mustExec(t, a.write, effectTable)
		return streamtest.SinkUnderTest{Sink: a.Sink(recording(handler)), More: []stream.Sink{b.Sink(recording(handler))}, Effects: effects(a.read), Store: a}
	})
}

// openPlain opens a database as a user would who knows nothing of this package.
func openPlain(t *testing.T, name string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+name+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=foreign_keys(1)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestSinkOfAnotherDatabaseConformance(t *testing.T) {
	streamtest.RunSink(t, func(t *testing.T, handler streamtest.SinkHandler) streamtest.SinkUnderTest {
		path := filepath.Join(t.TempDir(), "effects.db")
		u := streamtest.SinkUnderTest{}
		for range 2 {
			db := openPlain(t, path)
			sink, err := NewSink(t.Context(), db, recording(handler))
			if err != nil {
				t.Fatal(err)
			}
			if u.Sink == nil {
				mustExec(t, db, effectTable)
				u.Sink, u.Effects = sink, effects(db)
				continue
			}
			u.More = append(u.More, sink)
		}
		return u
	})
}

// begin makes a job in a fresh store, and its first owner.
func begin(t *testing.T, s *Store, sink stream.Sink) stream.Lease {
	t.Helper()
	if _, err := s.Submit(t.Context(), stream.Job{ID: "a", Stream: "users"}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Claim(t.Context(), stream.Claim{Owner: stream.Self(), TTL: 1e12, Max: 1})
	if err != nil || len(got) != 1 {
		t.Fatalf("claimed %v, error %v", got, err)
	}
	if _, err := sink.Fence(t.Context(), got[0].Lease()); err != nil {
		t.Fatal(err)
	}
	return got[0].Lease()
}

func one(l stream.Lease) *stream.Commit {
	return stream.NewCommit(l, stream.Checkpoint{}, stream.Checkpoint{Seq: 1, Token: []byte("1")},
		&stream.Batch{Job: stream.Job{ID: l.Job}, Records: []stream.Record{{Seq: 1, Key: []byte("k"), Value: []byte("v")}}})
}

func TestErrorsOfTheHandlersStatements(t *testing.T) {
	for name, test := range map[string]struct {
		statement string
		wrap      func(error) error
		verdict   stream.Verdict
	}{
		"a check":                   {`insert into picky (n) values (-1)`, nil, stream.VerdictSkip},
		"not null":                  {`insert into picky (n, m) values (1, null)`, nil, stream.VerdictSkip},
		"a unique key":              {`insert into picky (n) values (1), (1)`, nil, stream.VerdictLater},
		"a foreign key, at the end": {`insert into child (n) values (7)`, nil, stream.VerdictLater},
		"a trigger":                 {`insert into picky (n) values (13)`, nil, stream.VerdictSkip},
		"a wrong type":              {`insert into strictly (n) values ('x')`, nil, stream.VerdictSkip},
		"a mistake in SQL":          {`insert into nowhere values (1)`, nil, stream.NoVerdict},
		"marked by the handler":     {`insert into picky (n) values (-1)`, stream.Retry, stream.VerdictRetry},
	} {
		t.Run(name, func(t *testing.T) {
			db := openPlain(t, filepath.Join(t.TempDir(), "effects.db"))
			mustExec(t, db, `create table picky (n integer primary key not null check (n > 0), m text not null default '');
				create table child (n integer references picky (n) deferrable initially deferred);
				create table strictly (n integer) strict;
				create trigger unlucky before insert on picky when new.n = 13 begin select raise(abort, 'unlucky'); end`)
			sink, err := NewSink(t.Context(), db, func(ctx context.Context, tx *sql.Tx, _ *stream.Batch) error {
				_, err := tx.ExecContext(ctx, test.statement)
				if test.wrap != nil {
					err = test.wrap(err)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			l := stream.Lease{Job: "a", Epoch: 1}
			if _, err := sink.Fence(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			for range 2 { // also on a connection where it has happened before
				err = sink.Commit(t.Context(), one(l))
				if err == nil || stream.VerdictOf(err) != test.verdict || code(err) == 0 {
					t.Errorf("error is %v, marked %q, want one of SQLite's marked %q", err, stream.VerdictOf(err), test.verdict)
				}
			}
			if c, err := sink.Fence(t.Context(), l); c.Seq != 0 || err != nil {
				t.Errorf("checkpoint %+v, error %v", c, err)
			}
		})
	}
}

// TestAStaleOwnerIsNotToldThatItsRecordsAreBad has a stale owner meet the rows of its successor.
func TestAStaleOwnerIsNotToldThatItsRecordsAreBad(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "jobs.db"))
	mustExec(t, s.write, `create table once (n integer primary key)`)
	sink := s.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
		_, err := tx.ExecContext(ctx, `insert into once values (?)`, int64(b.Records[0].Seq))
		return err
	})
	l := begin(t, s, sink)
	if err := sink.Commit(t.Context(), one(l)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Commit(t.Context(), one(l)); !errors.Is(err, stream.ErrConflict) || stream.VerdictOf(err) != stream.NoVerdict {
		t.Errorf("the same commit again: %v, marked %q", err, stream.VerdictOf(err))
	}
	next := l
	next.Epoch++
	if _, err := sink.Fence(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if err := sink.Commit(t.Context(), one(l)); !errors.Is(err, stream.ErrFenced) || stream.VerdictOf(err) != stream.NoVerdict {
		t.Errorf("the commit of a stale owner: %v, marked %q", err, stream.VerdictOf(err))
	}
}

func TestAHandlerThatEndsTheTransactionHalts(t *testing.T) {
	for name, end := range map[string]func(tx *sql.Tx) error{"commit": (*sql.Tx).Commit, "rollback": (*sql.Tx).Rollback} {
		t.Run(name, func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "jobs.db"))
			sink := s.Sink(func(_ context.Context, tx *sql.Tx, _ *stream.Batch) error { return end(tx) })
			l := begin(t, s, sink)
			err := sink.Commit(t.Context(), one(l))
			if stream.VerdictOf(err) != stream.VerdictHalt || !strings.Contains(err.Error(), "to the sink") {
				t.Errorf("error is %v, marked %q", err, stream.VerdictOf(err))
			}
			if c, err := sink.Fence(t.Context(), l); c.Seq != 0 || err != nil {
				t.Errorf("checkpoint %+v, error %v", c, err)
			}
		})
	}
}

func TestASinkWithoutAHandlerKeepsCheckpoints(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "jobs.db"))
	sink := s.Sink(nil)
	l := begin(t, s, sink)
	if err := sink.Commit(t.Context(), one(l)); err != nil {
		t.Fatal(err)
	}
	if c, err := sink.Fence(t.Context(), l); c.Seq != 1 || err != nil {
		t.Errorf("checkpoint %+v, error %v", c, err)
	}
}

func TestANewerCheckpointIsRefused(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "jobs.db"))
	sink := s.Sink(nil)
	l := begin(t, s, sink)
	mustExec(t, s.write, `update levada_offset set version = ?, seq = 5`, stream.CheckpointVersion+1)
	next := l
	next.Epoch++
	if _, err := sink.Fence(t.Context(), next); !errors.Is(err, stream.ErrNewer) {
		t.Errorf("Fence returned %v", err)
	}
	var epoch uint64
	if err := s.read.QueryRow(`select epoch from levada_offset`).Scan(&epoch); err != nil || epoch != l.Epoch {
		t.Errorf("a program that does not understand the checkpoint fenced it: epoch %d, error %v", epoch, err)
	}
}
