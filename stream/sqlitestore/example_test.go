package sqlitestore_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// A worker on one machine: jobs, offsets and the copied rows are in one SQLite file, and a batch's rows and its offset in one transaction.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "levada")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := sqlitestore.Open(ctx, filepath.Join(dir, "copies.db"))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	if _, err := store.DB().ExecContext(ctx, `create table users (id text primary key, name text not null)`); err != nil {
		log.Fatal(err)
	}
	connections := stream.NewConnections("producer.example:443", grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer connections.Close()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: connections.Dial})
	if err != nil {
		log.Fatal(err)
	}
	err = worker.Handle("users", store.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
		for _, r := range b.Records {
			if _, err := tx.ExecContext(ctx, `insert into users (id, name) values (?, ?) on conflict (id) do update set name = excluded.name`, string(r.Key), string(r.Value)); err != nil {
				return err
			}
		}
		return nil
	}))
	if err != nil {
		log.Fatal(err)
	}
	job, err := stream.Submit(ctx, store, nil, stream.Job{ID: "copy-users", Stream: "users"})
	fmt.Println(job.ID, job.State, err)
	// Programs call worker.Run(ctx) here, with a ctx that ends on SIGTERM.

	// Output: copy-users ready <nil>
}
