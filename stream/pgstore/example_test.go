package pgstore_test

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
)

// A worker of any number: jobs, offsets and the copied rows are in one Postgres database, and a batch's rows and its offset in one transaction.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	store, err := pgstore.Open(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	connections := stream.NewConnections("dns:///producer:443", grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer connections.Close()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: connections.Dial})
	if err != nil {
		log.Fatal(err)
	}
	err = worker.Handle("users", store.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		rows := &pgx.Batch{} // one round trip for all records
		for _, r := range b.Records {
			rows.Queue(`insert into users (id, name) values ($1, $2) on conflict (id) do update set name = excluded.name`, string(r.Key), string(r.Value))
		}
		return tx.SendBatch(ctx, rows).Close()
	}))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := stream.Submit(ctx, store, nil, stream.Job{ID: "copy-users", Stream: "users"}); err != nil {
		log.Fatal(err)
	}
	if err := worker.Run(ctx); err != nil { // until SIGTERM
		log.Print(err)
	}
}
