// Worker copies the users of a producer into its own Postgres database, exactly once. A copy is a job, which any replica may work on:
// POST /copies/NL makes one, GET /jobs/ID shows it. Copy this program together with its other half, examples/streams/producer.
//
//	DATABASE_URL=postgres://localhost/copy AMQP_URL=amqp://localhost PRODUCER=dns:///producer:50051 ADMIN_LISTEN=:8081 go run ./examples/streams/worker
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/rabbitnotify"
	"github.com/levada-io/levada/stream/streammetrics"
)

const schema = `create table if not exists copied_users (id bigint primary key, country text not null, name text not null)`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		slog.Error("worker failed", "error", err)
		os.Exit(1)
	}
	slog.Info("worker stopped")
}

// run opens what the worker needs, in an order such that the defers close it in the right one: the worker gives its jobs back, then the
// message queue, the connections to producers, probes and metrics, and the database at last.
func run(ctx context.Context) error {
	// Jobs, offsets, quarantine and the copy are in one database: a commit is one transaction.
	store, err := pgstore.Open(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer store.Close()
	if _, err := store.Pool().Exec(ctx, schema); err != nil {
		return fmt.Errorf("create the table copied_users: %w", err)
	}
	adminListener, err := net.Listen("tcp", os.Getenv("ADMIN_LISTEN"))
	if err != nil {
		return fmt.Errorf("ADMIN_LISTEN: %w", err)
	}
	web := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	defer web.Close()
	connections := stream.NewConnections(os.Getenv("PRODUCER"), grpc.WithTransportCredentials(insecure.NewCredentials())) // in earnest: TLS
	defer connections.Close()
	// The message queue wakes workers. It decides nothing: without it jobs start some seconds later.
	notifier, err := rabbitnotify.New(ctx, os.Getenv("AMQP_URL"))
	if err != nil {
		return fmt.Errorf("AMQP_URL: %w", err)
	}
	defer notifier.Close()

	metrics := streammetrics.NewWorker()
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Notifier: notifier, Dial: connections.Dial, Observe: metrics.Observe,
		Owner:        stream.Self(), // the pod: POD_NAME, POD_UID, CONTAINER_NAME
		DrainTimeout: 20 * time.Second,
	})
	if err != nil {
		return err
	}
	worker.Handle("users", store.Sink(stream.JSON(copyUsers)))
	metrics.Watch(worker)
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics, streammetrics.NewStore(store), collectors.NewGoCollector())

	a := &admin{store: store, notifier: notifier, worker: worker}
	web.Handler = a.handler(registry)
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(adminListener) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { a.draining.Store(true) })() // SIGTERM: not ready from now on
	slog.Info("working", "owner", worker.Owner(), "admin", adminListener.Addr())
	go func() {
		if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
			slog.Error("probes and metrics failed, stopping", "error", err)
			cancel()
		}
	}()
	return worker.Run(ctx) // until SIGTERM, and all is committed and given back
}

type user struct {
	ID   int64
	Name string
}

// copyUsers writes a batch, in the transaction that moves the job's offset. A record that is not JSON of a user is in quarantine already.
func copyUsers(ctx context.Context, tx pgx.Tx, b *stream.Batch, users []stream.Typed[user]) error {
	var query struct{ Country string }
	if err := json.Unmarshal(b.Job.Query, &query); err != nil {
		return stream.Halt(fmt.Errorf("query of the job: %w", err)) // a person has to look
	}
	inserts := &pgx.Batch{}
	for _, u := range users {
		inserts.Queue("insert into copied_users (id, country, name) values ($1, $2, $3)", u.Value.ID, query.Country, u.Value.Name)
	}
	return tx.SendBatch(ctx, inserts).Close()
}

// admin answers probes, and makes and shows jobs.
type admin struct {
	store    *pgstore.Store
	notifier stream.Notifier
	worker   *stream.Worker
	draining atomic.Bool
}

func (a *admin) handler(metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if a.worker.Stuck() > 0 { // a handler that ignores its context: only a restart helps
			http.Error(w, "a handler does not return", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if a.draining.Load() || a.store.Pool().Ping(r.Context()) != nil {
			http.Error(w, "shutting down, or the database does not answer", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /copies/{country}", func(w http.ResponseWriter, r *http.Request) {
		query, _ := json.Marshal(map[string]string{"country": r.PathValue("country")})
		// The key makes a repeated request the same job. SubmitTx would do it in a transaction of your own.
		job, err := stream.Submit(r.Context(), a.store, a.notifier, stream.Job{Stream: "users", Query: query, DedupeKey: "copy/" + r.PathValue("country")})
		answer(w, job, err)
	})
	mux.HandleFunc("GET /jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		job, err := a.store.Get(r.Context(), r.PathValue("id"))
		answer(w, job, err)
	})
	return mux
}

func answer(w http.ResponseWriter, job stream.Status, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(job)
}
