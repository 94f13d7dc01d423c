// Users copies a table of users from one service to another over a gRPC stream, exactly once. Producer and worker are in one program
// here; in life they are two. Interrupt it at any point, start it again, and it goes on after the last commit:
//
//	go run ./examples/streams/users
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"net"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	// The producer serves records in the order of their keys. Here they are in memory; see also stream.File and package pgsource.
	var users []stream.Record
	for id := 1; id <= 10000; id++ {
		users = append(users, stream.Record{Key: fmt.Appendf(nil, "%08d", id), Value: fmt.Appendf(nil, "User %d", id)})
	}
	producer, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		return err
	}
	producer.Handle("users", stream.Slice(users...))
	server := grpc.NewServer()
	producer.Register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go server.Serve(listener)
	defer stream.Shutdown(context.Background(), server, producer)

	// The worker keeps jobs, offsets and the copy in one SQLite file; with Postgres it is the same, see package pgstore.
	store, err := sqlitestore.Open(ctx, "users.db")
	if err != nil {
		return err
	}
	defer store.Close()
	unlock, err := store.LockWorker() // one worker a file
	if err != nil {
		return err
	}
	defer unlock()
	db, err := sql.Open("sqlite", "users.db")
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "create table if not exists users (id text primary key, name text not null)"); err != nil {
		return err
	}
	conns := stream.NewConnections(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer conns.Close()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, SingleProcess: true, PollInterval: 100 * time.Millisecond})
	if err != nil {
		return err
	}
	worker.Handle("users", store.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
		for _, r := range b.Records { // your statements, in the transaction that moves the offset
			if _, err := tx.ExecContext(ctx, "insert into users (id, name) values (?, ?)", string(r.Key), string(r.Value)); err != nil {
				return err
			}
		}
		return nil
	}))
	job, err := store.Submit(ctx, stream.Job{Stream: "users", DedupeKey: "users of today"}) // again: the same job
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(ctx) }()
	status, err := stream.Wait(ctx, store, job.ID)
	stop() // a service would go on with the next job
	if err = errors.Join(err, <-ended); err == nil {
		fmt.Printf("job %s: %d users copied\n", status.State, status.Progress.Records)
	}
	return err
}
