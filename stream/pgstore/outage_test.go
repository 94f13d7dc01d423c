package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
)

// outages runs a job of n records with a handler, against a real server, until it ends. meanwhile is called again and again with how the job
// stands.
type outages struct {
	records int
	limits  pgstore.Limits
	config  func(*stream.WorkerConfig)
	handle  func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error
	look    func(stream.Status)
}

func (o outages) run(t *testing.T, pool *pgxpool.Pool) (stream.Status, []stream.Quarantined) {
	t.Helper()
	store, err := pgstore.New(t.Context(), pool, pgstore.WithLimits(o.limits))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var records []stream.Record
	for i := range o.records {
		records = append(records, stream.Record{Key: fmt.Appendf(nil, "%08d", i+1), Value: []byte("value")})
	}
	server, g := valid(stream.NewServer(stream.ServerConfig{})), grpc.NewServer()
	server.Handle("s", stream.Slice(records...))
	server.Register(g)
	served := make(chan struct{})
	go func() { defer close(served); g.Serve(listener) }()
	defer func() { g.Stop(); <-served }()
	conns := stream.NewConnections(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer conns.Close()
	config := stream.WorkerConfig{Store: store, Dial: conns.Dial, PollInterval: 50 * time.Millisecond, Retry: stream.Backoff{Min: 50 * time.Millisecond, Max: 500 * time.Millisecond},
		Logger: slog.New(slog.DiscardHandler)}
	if o.config != nil {
		o.config(&config)
	}
	worker, err := stream.NewWorker(config)
	if err != nil {
		t.Fatal(err)
	}
	sink := store.Sink(o.handle)
	worker.Handle("s", sink)
	job, err := store.Submit(t.Context(), stream.Job{Stream: "s"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for end := time.Now().Add(2 * time.Minute); !job.State.Final(); time.Sleep(20 * time.Millisecond) {
		if job, err = store.Get(t.Context(), job.ID); err != nil {
			t.Fatal(err)
		}
		if o.look != nil {
			o.look(job)
		}
		if time.Now().After(end) {
			t.Fatalf("after 2 min the job is %s %s %+v: %s", job.State, job.Reason, job.RetryState, job.LastError)
		}
	}
	rows, err := sink.Quarantined(t.Context(), job.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	return job, rows
}

func counted(t *testing.T, pool *pgxpool.Pool, table string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `select count(*) from `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// What goes wrong between a handler and its database, and passes, with a real server: no job fails for it, no record is put into quarantine, and
// the job says what it waits for.
func TestWhatPassesInADatabaseFailsNoJob(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	run := func(sql string) error { _, err := pool.Exec(context.Background(), sql); return err }
	insert := func(table string) func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		return func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
			for _, r := range b.Records {
				if _, err := tx.Exec(ctx, `insert into `+table+` values ($1)`, int64(r.Seq)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for name, test := range map[string]struct {
		table  string
		setup  string
		passes string // ends what is wrong; the setup is wrong until then
		reason stream.Reason
	}{
		"children before their parents": {"child", `create table parent (n bigint primary key); create table child (n bigint references parent)`,
			`insert into parent select generate_series(1, 100)`, stream.ReasonDependentRows},
		"children before their parents, seen at the commit": {"late", `create table elder (n bigint primary key); create table late (n bigint references elder deferrable initially deferred)`,
			`insert into elder select generate_series(1, 100)`, stream.ReasonDependentRows},
		"a key that is still taken": {"taken", `create table taken (n bigint primary key); insert into taken values (50)`, `delete from taken where n = 50`, stream.ReasonDependentRows},
		"a full disk": {"full_disk", `create table full_disk (n bigint);
			create function no_room() returns trigger language plpgsql as $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
			create trigger t before insert on full_disk for each row execute function no_room()`, `drop trigger t on full_disk`, stream.ReasonStorageFull},
		"a table that a migration makes later": {"made_later", ``, `create table made_later (n bigint)`, stream.ReasonSchema},
	} {
		t.Run(name, func(t *testing.T) {
			if err := run(test.setup); err != nil {
				t.Fatal(err)
			}
			waited := false
			job, rows := outages{records: 100, handle: insert(test.table), look: func(s stream.Status) {
				if !waited && s.State == stream.Ready && s.RetryState.Failures > 0 && s.Reason == test.reason && s.NotBefore.After(s.CreatedAt) {
					waited = true
					if err := run(test.passes); err != nil {
						t.Error(err)
					}
				}
			}, config: func(c *stream.WorkerConfig) { c.ReleaseAfterFailures = 3 }}.run(t, pool)
			if job.State != stream.Completed || len(rows) != 0 || !waited || counted(t, pool, test.table) != 100 {
				t.Errorf("the job is %s %s %s, %d records are in quarantine, waited: %v", job.State, job.Reason, job.LastError, len(rows), waited)
			}
		})
	}
	t.Run("a lock that another holds", func(t *testing.T) {
		if err := run(`create table locked (n bigint)`); err != nil {
			t.Fatal(err)
		}
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		if _, err := tx.Exec(t.Context(), `lock table locked`); err != nil {
			t.Fatal(err)
		}
		waited := false
		job, rows := outages{records: 100, limits: pgstore.Limits{Lock: 100 * time.Millisecond}, handle: insert("locked"), look: func(s stream.Status) {
			if !waited && s.State == stream.Ready && s.Reason == stream.ReasonLockWait {
				waited = true
				tx.Rollback(context.Background())
			}
		}, config: func(c *stream.WorkerConfig) { c.ReleaseAfterFailures = 3 }}.run(t, pool)
		if job.State != stream.Completed || len(rows) != 0 || !waited || counted(t, pool, "locked") != 100 {
			t.Errorf("the job is %s %s %s, %d records are in quarantine, waited: %v", job.State, job.Reason, job.LastError, len(rows), waited)
		}
	})
}

// A handler that works for longer between two statements than the server lets a transaction wait gets fewer records at once, and comes to the
// end. It got the whole batch again and again, and the job failed.
func TestAHandlerThatKeepsItsTransactionWaitingGetsFewerRecords(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(t.Context(), `create table slowly (n bigint)`); err != nil {
		t.Fatal(err)
	}
	const idle = 400 * time.Millisecond
	largest := 0
	job, rows := outages{records: 64, limits: pgstore.Limits{Idle: idle}, handle: func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		if _, err := tx.Exec(ctx, `select 1`); err != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(len(b.Records)) * idle / 20):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for _, r := range b.Records {
			if _, err := tx.Exec(ctx, `insert into slowly values ($1)`, int64(r.Seq)); err != nil {
				return err
			}
		}
		largest = max(largest, len(b.Records))
		return nil
	}, config: func(c *stream.WorkerConfig) { c.NoProgress = stream.AtOnce }}.run(t, pool)
	if job.State != stream.Completed || len(rows) != 0 || counted(t, pool, "slowly") != 64 {
		t.Errorf("the job is %s %s %s, %d records are in quarantine", job.State, job.Reason, job.LastError, len(rows))
	}
	if largest >= 64 {
		t.Errorf("a batch of %d was in time", largest)
	}
}

// What a handler computes before its first statement keeps no transaction waiting, however long it takes. The server threw the worker out, again and
// again, and the job failed.
func TestAHandlerMayWorkBeforeItsFirstStatement(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(t.Context(), `create table computed (n bigint)`); err != nil {
		t.Fatal(err)
	}
	job, rows := outages{records: 30, limits: pgstore.Limits{Idle: 300 * time.Millisecond}, handle: func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		batch := &pgx.Batch{}
		for _, r := range b.Records {
			batch.Queue(`insert into computed values ($1)`, int64(r.Seq))
		}
		return tx.SendBatch(ctx, batch).Close()
	}, config: func(c *stream.WorkerConfig) { c.NoProgress = 10 * time.Second }}.run(t, pool)
	if job.State != stream.Completed || len(rows) != 0 || counted(t, pool, "computed") != 30 {
		t.Errorf("the job is %s %s %s, %d records are in quarantine", job.State, job.Reason, job.LastError, len(rows))
	}
}

// Each way to a statement begins the transaction, and what cannot begin is no record's fault, whatever the handler makes of it.
func TestEveryStatementIsInTheTransaction(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(t.Context(), `create table inside (n bigint)`); err != nil {
		t.Fatal(err)
	}
	const insert = `insert into inside values (1)`
	ways := map[string]func(ctx context.Context, tx pgx.Tx) error{
		"Exec": func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, insert); return err },
		"QueryRow": func(ctx context.Context, tx pgx.Tx) error {
			var n int64
			return tx.QueryRow(ctx, insert+` returning n`).Scan(&n)
		},
		"Query": func(ctx context.Context, tx pgx.Tx) error {
			rows, _ := tx.Query(ctx, insert+` returning n`)
			_, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		},
		"CopyFrom": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"inside"}, []string{"n"}, pgx.CopyFromRows([][]any{{int64(1)}}))
			return err
		},
		"SendBatch": func(ctx context.Context, tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(insert)
			return tx.SendBatch(ctx, batch).Close()
		},
		"Begin": func(ctx context.Context, tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, insert); return err })
		},
		"Prepare": func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Prepare(ctx, "insert_inside", insert); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "insert_inside")
			return err
		},
		"Conn": func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Conn().Exec(ctx, insert); return err },
		"LargeObjects": func(ctx context.Context, tx pgx.Tx) error {
			lo := tx.LargeObjects()
			_, err := lo.Create(ctx, 0)
			return err
		},
	}
	for name, way := range ways {
		for _, broken := range []bool{false, true} {
			limits := pgstore.Limits{}
			if broken {
				limits.Lock = 10000 * time.Hour // more than the server takes for this setting: the transaction cannot begin
			}
			sink, err := pgstore.NewSink(t.Context(), pool, func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
				if err := way(ctx, tx); err != nil {
					return stream.Skip(err)
				}
				return errors.New("undo it")
			}, pgstore.WithLimits(limits))
			if err != nil {
				t.Fatal(err)
			}
			lease := stream.Lease{Job: fmt.Sprint(name, broken), Epoch: 1}
			if _, err := sink.Fence(t.Context(), lease); err != nil {
				t.Fatal(err)
			}
			err = sink.Commit(t.Context(), stream.NewCommit(lease, stream.Checkpoint{}, stream.Checkpoint{Seq: 1, Token: []byte("1")},
				&stream.Batch{Job: stream.Job{ID: lease.Job}, Records: []stream.Record{{Seq: 1, Key: []byte("k"), Value: []byte("v")}}}))
			if want := map[bool]string{false: "undo it", true: "begin"}[broken]; err == nil || !strings.Contains(err.Error(), want) || stream.VerdictOf(err) != stream.NoVerdict {
				t.Errorf("%s: error %v, marked %q, want one that says %q", name, err, stream.VerdictOf(err), want)
			}
		}
	}
	if n := counted(t, pool, "inside"); n != 0 {
		t.Errorf("%d rows are there though their transactions were undone", n)
	}
}

// One record that keeps the transaction waiting for too long is too slow: the job waits, and its error names the limit.
func TestAnErrorOfATransactionThatWaitedNamesItsLimit(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	job, _ := outages{records: 1, limits: pgstore.Limits{Idle: 100 * time.Millisecond}, handle: func(ctx context.Context, tx pgx.Tx, _ *stream.Batch) error {
		if _, err := tx.Exec(ctx, `select 1`); err != nil {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
		_, err := tx.Exec(ctx, `select 1`)
		return err
	}, config: func(c *stream.WorkerConfig) { c.NoProgress = time.Second }}.run(t, pool)
	if job.Reason != stream.ReasonNoProgress || !contains(job.LastError, "Limits.Idle", "100ms", string(stream.ReasonTooSlow)) {
		t.Errorf("the job is %s %s: %s", job.State, job.Reason, job.LastError)
	}
}

// A pool whose connections others hold: the job waits for one, and reports it.
func TestAPoolThatIsUsedUpIsNamed(t *testing.T) {
	config, err := pgxpool.ParseConfig(testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 3
	effects, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer effects.Close()
	sink, err := pgstore.NewSink(t.Context(), effects, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		conn, err := effects.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = sink.Fence(ctx, stream.Lease{Job: "j", Epoch: 1})
	if stream.ReasonOf(err) != stream.ReasonPoolExhausted || !errors.Is(err, context.DeadlineExceeded) || !contains(err.Error(), "all 3 connections", "MaxJobs") {
		t.Errorf("%v", err)
	}
}

func contains(text string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
