package pgstore

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/notifybus"
)

func TestManyOpenAFreshDatabaseAtOnce(t *testing.T) {
	dsn := testserver.Postgres(t)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			// A pool of one connection, and one whose statements may not wait long, are enough.
			pool := connect(t, dsn, func(c *pgxpool.Config) {
				c.MaxConns = 1
				c.ConnConfig.RuntimeParams["statement_timeout"] = "3000"
			})
			if _, err := New(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var applied int
	if err := connect(t, dsn).QueryRow(t.Context(), `select count(*) from levada_job_version where version_id = 1`).Scan(&applied); err != nil || applied != 1 {
		t.Errorf("the first migration was applied %d times, error %v", applied, err)
	}
}

func TestASinkNeedsNoJobs(t *testing.T) {
	pool := connect(t, testserver.Postgres(t))
	sink, err := NewSink(t.Context(), pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	var jobs bool
	if err := pool.QueryRow(t.Context(), `select to_regclass('levada_job') is not null`).Scan(&jobs); err != nil || jobs {
		t.Errorf("there is a table of jobs: %v, error %v", jobs, err)
	}
	l := stream.Lease{Job: "a", Epoch: 1}
	if err := sink.Commit(t.Context(), step(l, fence(t, sink, l))); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(t.Context(), "not a DSN"); err == nil {
		t.Error("a bad DSN was taken")
	}
	s, err := Open(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.pool.Ping(t.Context()); err == nil {
		t.Error("Close left the store's own connections open")
	}
}

func TestSubmitTx(t *testing.T) {
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			pool := connect(t, testserver.Postgres(t))
			s := open(t, pool)
			reason := errors.New("the caller's own reason")
			job := stream.Job{ID: "a", Stream: "users", DedupeKey: "k"}
			err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
				if st, err := s.SubmitTx(t.Context(), tx, job); err != nil || st.ID != "a" || st.Existed {
					t.Errorf("%+v, error %v", st, err)
				}
				if st, err := s.SubmitTx(t.Context(), tx, stream.Job{Stream: "users", DedupeKey: "k"}); err != nil || st.ID != "a" || !st.Existed {
					t.Errorf("%+v, error %v", st, err)
				}
				return reason
			})
			if !errors.Is(err, reason) {
				t.Fatal(err)
			}
			if _, err := s.Get(t.Context(), "a"); !errors.Is(err, stream.ErrNotFound) {
				t.Errorf("the job of a transaction that was rolled back: error %v", err)
			}
			err = pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
				_, err := s.SubmitTx(t.Context(), tx, job)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if st, err := s.Get(t.Context(), "a"); err != nil || st.State != stream.Ready {
				t.Errorf("%+v, error %v", st, err)
			}
		})
	}
}

func TestNotifier(t *testing.T) {
	dsn := testserver.Postgres(t)
	pool := connect(t, dsn)
	loud, quiet := open(t, pool), open(t, pool, WithoutNotify())
	listener, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close(context.Background())
	if _, err := listener.Exec(t.Context(), `listen `+NotifyChannel); err != nil {
		t.Fatal(err)
	}
	// heard returns what came before a mark that is sent now.
	heard := func() string {
		t.Helper()
		mustExec(t, pool, `select pg_notify($1, 'mark')`, NotifyChannel)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var got []string
		for {
			n, err := listener.WaitForNotification(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if n.Payload == "mark" {
				return strings.Join(got, ", ")
			}
			h, err := notifybus.Decode(n.Payload) // as listeners do
			if err != nil {
				t.Error(err)
			}
			got = append(got, h.Stream+" "+h.Job)
		}
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lease := func(ttl time.Duration) stream.Lease {
		t.Helper()
		got, err := loud.Claim(t.Context(), stream.Claim{Owner: stream.Self(), TTL: ttl, Max: 1})
		if err != nil || len(got) != 1 {
			t.Fatalf("claimed %v, error %v", got, err)
		}
		return got[0].Lease()
	}
	ctx := t.Context()
	for _, step := range []struct {
		what string
		do   func(s *Store)
		want string
	}{
		{"submit", func(s *Store) { must(s.Submit(ctx, stream.Job{ID: "a", Stream: "users"})) }, "users a"},
		{"submit again", func(s *Store) { must(s.Submit(ctx, stream.Job{ID: "a", Stream: "users"})) }, ""},
		{"submit for later", func(s *Store) { must(s.Submit(ctx, stream.Job{Stream: "users", NotBefore: time.Now().Add(time.Hour)})) }, ""},
		{"pause", func(s *Store) { must(s.Pause(ctx, "a")) }, ""},
		{"resume", func(s *Store) { must(s.Resume(ctx, "a")) }, "users a"},
		{"renew, release", func(s *Store) {
			l := lease(time.Hour)
			must(nil, s.Renew(ctx, l, stream.Progress{}, time.Hour))
			must(nil, s.SaveState(ctx, l, stream.CrashState{}, stream.RetryState{}))
			must(nil, s.Release(ctx, l, stream.Release{State: stream.Ready}))
		}, "users a"},
		{"expire", func(s *Store) { lease(time.Hour); must(s.Expire(ctx, stream.ExpireFilter{All: true})) }, "users a"},
		{"cancel", func(s *Store) { lease(time.Hour); must(s.Cancel(ctx, "a")) }, ""},
		{"retry", func(s *Store) { must(s.Retry(ctx, "a")) }, "users a"},
		{"release for later", func(s *Store) {
			must(nil, s.Release(ctx, lease(time.Hour), stream.Release{State: stream.Ready, After: time.Hour}))
		}, ""},
		{"submit names that must be escaped", func(s *Store) { must(s.Submit(ctx, stream.Job{ID: "a+b%20c", Stream: "50%+&ü"})) }, "50%+&ü a+b%20c"},
	} {
		step.do(loud)
		if got := heard(); got != step.want {
			t.Errorf("%s sent %q, want %q", step.what, got, step.want)
		}
	}
	must(quiet.Submit(ctx, stream.Job{ID: "q", Stream: "users"}))
	must(quiet.Pause(ctx, "q"))
	must(quiet.Resume(ctx, "q"))
	if got := heard(); got != "" {
		t.Errorf("a store without notifications sent %q", got)
	}
}
