package streams_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgnotify"
	"github.com/levada-io/levada/stream/pgsource"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/sqlitestore"
	"github.com/levada-io/levada/stream/streammetrics"
	"github.com/levada-io/levada/stream/streamtest"
)

// The functions of this file are the code blocks of docs/streams-guide.md: TestGuideIsThisCode compares them, so the guide compiles.

func Example_submit() {
	ctx := context.Background()
	store, err := pgstore.Open(ctx, "postgres://localhost/copy")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	job, err := store.Submit(ctx, stream.Job{
		Stream:    "users",
		Target:    "dns:///producer:50051",          // empty: the worker knows
		Query:     []byte(`{"country":"NL"}`),       // for the source
		DedupeKey: "users/NL/" + "2026-11-30",       // submitting again returns the same job
		NotBefore: time.Now().Add(10 * time.Minute), // zero: at once
		OnBad:     stream.HaltJob,                   // default: into quarantine, and on
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(job.ID, job.State, job.Existed)
}

func Example_submitInTransaction() {
	ctx := context.Background()
	store, err := pgstore.Open(ctx, "postgres://localhost/copy")
	if err != nil {
		log.Fatal(err)
	}
	err = pgx.BeginFunc(ctx, store.Pool(), func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into imports (country) values ('NL')"); err != nil {
			return err
		}
		_, err := store.SubmitTx(ctx, tx, stream.Job{Stream: "users", Query: []byte(`{"country":"NL"}`)})
		return err // the job exists if and only if the import does
	})
	if err != nil {
		log.Fatal(err)
	}
}

func Example_wait() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	store, err := pgstore.Open(ctx, "postgres://localhost/copy")
	if err != nil {
		log.Fatal(err)
	}
	job, err := stream.Wait(ctx, store, "5f3a1c7e-0000-4000-8000-000000000000")
	if failed, ok := errors.AsType[*stream.JobError](err); ok {
		log.Fatal(failed.Status.Reason, failed.Status.LastError)
	}
	if err != nil {
		log.Fatal(err) // the time was over
	}
	fmt.Println(job.Progress.Records, "records, of which", job.Progress.Bad, "are in quarantine")
}

// A countdown is a source of your own: n, n-1, ... as values, under growing keys.
type countdown struct{ n int }

func (s countdown) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	c := &countdownCursor{n: s.n}
	if len(q.After) > 0 { // go on after this key
		if _, err := fmt.Sscanf(string(q.After), "%010d", &c.at); err != nil || c.at > s.n {
			return nil, &stream.PositionGoneError{} // the reader gets an error and does not start elsewhere
		}
	}
	return c, nil
}

type countdownCursor struct{ n, at int }

func (c *countdownCursor) Next(ctx context.Context) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if c.at == c.n {
		return nil, io.EOF
	}
	c.at++
	return fmt.Appendf(nil, "%010d", c.at), nil // leading zeros: keys are compared byte by byte
}

func (c *countdownCursor) Value(dst []byte) ([]byte, error) {
	return fmt.Append(dst, c.n-c.at), nil // a panic or Skip here costs this record only
}

func (c *countdownCursor) Close() error { return nil }

func TestCountdown(t *testing.T) {
	streamtest.RunSource(t, func(t *testing.T) streamtest.SourceUnderTest {
		return streamtest.SourceUnderTest{Source: countdown{100}, Query: stream.Query{Stream: "countdown"}, Count: 100}
	})
}

func Example_sources() {
	ctx := context.Background()
	pool, err := pgsource.Connect(ctx, "postgres://localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	// A table that others write to: alter table users add column xid xid8 not null default pg_current_xact_id()
	users, err := pgsource.Keyset(pool, pgsource.Query{Table: "users", Horizon: "xid", Key: []string{"id"}})
	if err != nil {
		log.Fatal(err)
	}
	type city struct{ Code, Name string }
	cities := []city{{"AMS", "Amsterdam"}, {"RTM", "Rotterdam"}}

	server, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	server.Handle("users", users)
	server.Handle("orders", stream.File("orders.ndjson", stream.FileOptions{}))
	server.Handle("cities", stream.SliceOf(cities,
		func(c city) []byte { return []byte(c.Code) },
		func(dst []byte, c city) ([]byte, error) { return append(dst, c.Name...), nil }))
}

type user struct {
	ID   int64
	Name string
}

// storeUsers runs in the transaction that moves the offset. Records that are not JSON of a user are in quarantine already.
func storeUsers(ctx context.Context, tx pgx.Tx, b *stream.Batch, users []stream.Typed[user]) error {
	for _, u := range users {
		if u.Value.Name == "" {
			b.Skip(u.Record, errors.New("a user has a name")) // into quarantine, in the same transaction
			continue
		}
		if _, err := tx.Exec(ctx, "insert into users (id, name) values ($1, $2)", u.Value.ID, u.Value.Name); err != nil {
			return err // an outage is tried again; data that the table refuses is searched for and goes into quarantine
		}
	}
	return nil
}

func Example_worker() {
	ctx := context.Background() // in a program: signal.NotifyContext
	store, err := pgstore.Open(ctx, "postgres://localhost/copy")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	notifier, err := pgnotify.New(ctx, "postgres://localhost/copy")
	if err != nil {
		log.Fatal(err)
	}
	defer notifier.Close()
	connections := stream.NewConnections("dns:///producer:50051", grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer connections.Close()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Notifier: notifier, Dial: connections.Dial})
	if err != nil {
		log.Fatal(err)
	}
	worker.Handle("users", store.Sink(stream.JSON(storeUsers)))
	if err := worker.Run(ctx); err != nil { // until ctx ends, and all is committed and given back
		log.Fatal(err)
	}
}

// welcome calls another service for each record. The key lets that service tell a repetition.
func welcome(ctx context.Context, b *stream.Batch, r stream.Record) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://mail.example/welcome", strings.NewReader(string(r.Value)))
	if err != nil {
		return stream.Halt(err)
	}
	req.Header.Set("Idempotency-Key", b.IdempotencyKey(r))
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return err // tried again, for as long as it takes
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusUnprocessableEntity:
		return stream.Skip(fmt.Errorf("refused: %s", answer.Status)) // into quarantine
	case answer.StatusCode >= 300:
		return fmt.Errorf("mail service: %s", answer.Status)
	}
	return nil
}

func Example_atLeastOnce() {
	ctx := context.Background()
	store, err := sqlitestore.Open(ctx, "jobs.db")
	if err != nil {
		log.Fatal(err)
	}
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Dial: stream.NewConnections("producer:50051", grpc.WithTransportCredentials(insecure.NewCredentials())).Dial,
		CommitRecords: 100, // what is repeated at most after a crash
	})
	if err != nil {
		log.Fatal(err)
	}
	worker.Handle("users", stream.AtLeastOnce(store.Sink(nil), stream.Each(welcome)))
}

func TestHandlerSkipsWhatIsRefused(t *testing.T) {
	source := stream.Slice(stream.Record{Key: []byte("1"), Value: []byte("Ada")}, stream.Record{Key: []byte("2"), Value: []byte("nobody")})
	handler := stream.Each(func(_ context.Context, _ *stream.Batch, r stream.Record) error {
		if string(r.Value) == "nobody" {
			return stream.Skip(errors.New("refused"))
		}
		return nil
	})
	outcome := streamtest.Handle(t, handler, source)
	if outcome.Err != nil || len(outcome.Quarantine) != 1 || outcome.Quarantine[0].Seq != 2 {
		t.Errorf("the job: %v, in quarantine: %+v", outcome.Err, outcome.Quarantine)
	}
}

func Example_replay() {
	ctx := context.Background()
	store, err := pgstore.Open(ctx, "postgres://localhost/copy")
	if err != nil {
		log.Fatal(err)
	}
	id := "5f3a1c7e-0000-4000-8000-000000000000"
	sink := store.Sink(nil)
	rows, err := sink.Quarantined(ctx, id, 100, stream.Waiting)
	if err != nil {
		log.Fatal(err)
	}
	for _, row := range rows {
		fmt.Printf("record %d, key %q: %s\n%s\n", row.Seq, row.Key, row.Error, row.Payload)
	}
	// After the handler is fixed: the job's worker hands them over again.
	if _, err := sink.MarkQuarantined(ctx, id, stream.Replay); err != nil { // none named: all
		log.Fatal(err)
	}
	if job, err := store.Get(ctx, id); err == nil && job.State.Final() {
		_, err = store.Retry(ctx, id)
		if err != nil {
			log.Fatal(err)
		}
	}
}

func Example_pool() {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig("postgres://pgbouncer:6432/copy")
	if err != nil {
		log.Fatal(err)
	}
	const jobs = 16
	config.MaxConns = jobs + 4 // one for each job's transaction, and some for claims, leases and probes
	// Through PgBouncer in transaction mode, statements cannot be kept prepared. pgstore.Open sees that by itself:
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	store, err := pgstore.New(ctx, pool)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	notifier, err := pgnotify.New(ctx, "postgres://localhost:5432/copy") // to the server itself: LISTEN needs a session
	if err != nil {
		log.Fatal(err)
	}
	defer notifier.Close()
}

func Example_sizes() {
	ctx := context.Background()
	store, err := sqlitestore.Open(ctx, "jobs.db")
	if err != nil {
		log.Fatal(err)
	}
	const largest = 16 << 20
	producer, err := stream.NewServer(stream.ServerConfig{MaxRecord: largest})
	if err != nil {
		log.Fatal(err)
	}
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Dial: stream.NewConnections("producer:50051", grpc.WithTransportCredentials(insecure.NewCredentials())).Dial,
		MaxRecord:   largest,     // a larger one arrives as a bad record, and goes into quarantine
		MaxInFlight: 2 * largest, // per job; one batch is always let in
		MaxJobs:     4,           // so 4 * (MaxInFlight + 1 MiB window) of memory
	})
	_, _ = producer, worker
	if err != nil {
		log.Fatal(err)
	}
}

func Example_metrics() {
	ctx := context.Background()
	store, err := pgstore.Open(ctx, "postgres://localhost/copy")
	if err != nil {
		log.Fatal(err)
	}
	connections := stream.NewConnections("producer:50051", grpc.WithTransportCredentials(insecure.NewCredentials()))
	ofWorker := streammetrics.NewWorker()
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Dial: connections.Dial,
		Observe: func(e stream.Event) { // called from many goroutines; it must not wait
			ofWorker.Observe(e)
			if e.Kind == stream.EventLost {
				log.Printf("job %s lost: %v", e.Job.ID, e.Err)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ofWorker.Watch(worker)
	prometheus.MustRegister(ofWorker, streammetrics.NewStore(store))

	ofServer := streammetrics.NewServer()
	server, err := stream.NewServer(stream.ServerConfig{OnBad: ofServer.OnBad})
	if err != nil {
		log.Fatal(err)
	}
	ofServer.Watch(server)
	prometheus.MustRegister(ofServer)
}

func Example_tls() {
	server, err := credentials.NewServerTLSFromFile("producer.crt", "producer.key")
	if err != nil {
		log.Fatal(err)
	}
	producer := grpc.NewServer(grpc.Creds(server))
	client, err := credentials.NewClientTLSFromFile("ca.crt", "")
	if err != nil {
		log.Fatal(err)
	}
	connections := stream.NewConnections("dns:///producer:50051", grpc.WithTransportCredentials(client))
	_, _ = producer, connections
}

func Example_reader() {
	ctx := context.Background()
	db, err := sql.Open("sqlite", "copy.db")
	if err != nil {
		log.Fatal(err)
	}
	connections := stream.NewConnections("producer:50051", grpc.WithTransportCredentials(insecure.NewCredentials()))
	var after stream.Checkpoint // from your database
	reader, err := stream.NewReader(stream.ReaderConfig{Dial: connections.Dial, Stream: "users"}, after)
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	for delivery, err := range reader.Deliveries(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if err := keep(ctx, db, delivery.Records, delivery.After); err != nil { // in one transaction
			log.Fatal(err)
		}
	} // complete: number and digest were the producer's
}

func keep(context.Context, *sql.DB, []stream.Record, stream.Checkpoint) error { return nil }
