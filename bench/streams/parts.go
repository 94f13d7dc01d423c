package main

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// part is what one process does.
type part struct {
	role     string
	records  int
	size     int
	target   string
	database string
	slow     int
	profile  string
}

// play does it. A producer prints its address and works until its input ends; a receiver prints how long it took.
func play(p part) error {
	if p.profile != "" {
		f, err := os.Create(filepath.Join(p.profile, fmt.Sprintf("%s-%s-%d.pprof", p.role, filepath.Base(p.database), p.size)))
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	switch p.role {
	case "serve", "serve-each":
		return p.serve(ctx)
	}
	begun := time.Now()
	err := map[string]func(context.Context, part) error{
		"discard": discard, "discard-each": discard,
		"bulk": bulk, "work": work,
	}[p.role](ctx, p)
	fmt.Println(time.Since(begun))
	return err
}

// rows is the source of all: records 1 to n, each as large as the other.
type rows struct {
	n, size int
}

func (s rows) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	c := &rowCursor{rows: s, value: make([]byte, s.size)}
	if len(q.After) == 8 {
		c.at = binary.BigEndian.Uint64(q.After)
	}
	return c, nil
}

type rowCursor struct {
	rows
	at    uint64
	key   [8]byte
	value []byte
}

func (c *rowCursor) Next(context.Context) ([]byte, error) {
	if c.at == uint64(c.n) {
		return nil, io.EOF
	}
	c.at++
	binary.BigEndian.PutUint64(c.key[:], c.at)
	return c.key[:], nil
}

func (c *rowCursor) Value(dst []byte) ([]byte, error) {
	binary.BigEndian.PutUint64(c.value, c.at)
	return append(dst, c.value...), nil
}

func (c *rowCursor) Close() error { return nil }

func (p part) serve(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	s, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		return err
	}
	s.Handle("rows", rows{p.records, p.size})
	if p.role == "serve" {
		s.Register(server)
	} else {
		streamv1.RegisterStreamServer(server, each{records: p.records, size: p.size})
	}
	fmt.Println(listener.Addr())
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
}

// each is what everybody writes first: grpc-go with a message for each record.
type each struct {
	streamv1.UnimplementedStreamServer
	records, size int
}

func (e each) Read(_ *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
	value := make([]byte, e.size)
	batch := &streamv1.Batch{Records: []*streamv1.Record{{Key: make([]byte, 8), Value: value}}}
	frame := &streamv1.Frame{Frame: &streamv1.Frame_Batch{Batch: batch}}
	for i := range e.records {
		binary.BigEndian.PutUint64(batch.Records[0].Key, uint64(i+1))
		if err := out.Send(frame); err != nil {
			return err
		}
	}
	return nil
}

// discard receives with grpc-go as it is, and keeps nothing.
func discard(ctx context.Context, p part) error {
	conn, err := grpc.NewClient(p.target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	in, err := streamv1.NewStreamClient(conn).Read(ctx, &streamv1.ReadRequest{Stream: "rows"})
	if err != nil {
		return err
	}
	n := 0
	for {
		frame, err := in.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n += len(frame.GetBatch().GetRecords())
	}
	if n != p.records {
		return fmt.Errorf("%d records came, of %d", n, p.records)
	}
	return nil
}

const (
	createTable = `create table rows (n %s primary key, value %s not null)`
	insertRow   = `insert into rows (n, value) values (?, ?)`
)

// bulk loads the same rows with nothing in between: prepared inserts, or COPY, as many rows in a transaction as a worker commits.
func bulk(ctx context.Context, p part) error {
	together := min(4096, 1<<20/(p.size+8)+1)
	cursor, _ := rows{p.records, p.size}.Open(ctx, stream.Query{})
	if p.isPostgres() {
		conn, err := pgx.Connect(ctx, p.database)
		if err != nil {
			return err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		if err := p.createPostgres(ctx, conn); err != nil {
			return err
		}
		for begun := 0; begun < p.records; begun += together {
			left := min(together, p.records-begun)
			if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				_, err := tx.CopyFrom(ctx, pgx.Identifier{"rows"}, []string{"n", "value"}, pgx.CopyFromFunc(func() ([]any, error) {
					if left == 0 {
						return nil, nil
					}
					left--
					key, _ := cursor.Next(ctx)
					value, _ := cursor.Value(nil)
					return []any{int64(binary.BigEndian.Uint64(key)), value}, nil
				}))
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	}
	store, err := sqlitestore.Open(ctx, p.database)
	if err != nil {
		return err
	}
	if err := store.Close(); err != nil {
		return err
	}
	db, err := p.createSQLite(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	insert, err := db.PrepareContext(ctx, insertRow)
	if err != nil {
		return err
	}
	var value []byte
	for begun := 0; begun < p.records; begun += together {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		stmt := tx.StmtContext(ctx, insert)
		for range min(together, p.records-begun) {
			key, _ := cursor.Next(ctx)
			value, _ = cursor.Value(value[:0])
			if _, err := stmt.ExecContext(ctx, int64(binary.BigEndian.Uint64(key)), value); err != nil {
				return err
			}
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}

func (p part) isPostgres() bool { return filepath.Ext(p.database) != ".db" }

// createSQLite makes the table, in a file with the store's settings.
func (p part) createSQLite(ctx context.Context) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+p.database+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	_, err = db.ExecContext(ctx, fmt.Sprintf(createTable, "integer", "blob"))
	return db, err
}

func (p part) createPostgres(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `drop table if exists rows`); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, fmt.Sprintf(createTable, "bigint", "bytea"))
	return err
}

// work is ours: a job, read and committed by a worker.
func work(ctx context.Context, p part) error {
	var store stream.Store
	var sink stream.Sink
	slow := func() { time.Sleep(time.Duration(p.slow) * time.Millisecond) }
	if p.isPostgres() {
		conn, err := pgx.Connect(ctx, p.database)
		if err != nil {
			return err
		}
		if err := errors.Join(p.createPostgres(ctx, conn), conn.Close(ctx)); err != nil {
			return err
		}
		pg, err := pgstore.Open(ctx, p.database)
		if err != nil {
			return err
		}
		store, sink = pg, pg.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
			slow()
			i := 0
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"rows"}, []string{"n", "value"}, pgx.CopyFromFunc(func() ([]any, error) {
				if i == len(b.Records) {
					return nil, nil
				}
				r := b.Records[i]
				i++
				return []any{int64(r.Seq), r.Value}, nil
			}))
			return err
		})
	} else {
		lite, err := sqlitestore.Open(ctx, p.database)
		if err != nil {
			return err
		}
		db, err := p.createSQLite(ctx)
		if err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return err
		}
		store, sink = lite, lite.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
			slow()
			insert, err := tx.PrepareContext(ctx, insertRow)
			if err != nil {
				return err
			}
			for _, r := range b.Records {
				if _, err := insert.ExecContext(ctx, int64(r.Seq), r.Value); err != nil {
					return err
				}
			}
			return insert.Close()
		})
	}
	defer store.Close()
	conns := stream.NewConnections(p.target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer conns.Close()
	job, err := store.Submit(ctx, stream.Job{Stream: "rows"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, Observe: func(e stream.Event) {
		if e.Kind == stream.EventReleased {
			cancel()
		}
	}})
	if err != nil {
		return err
	}
	worker.Handle("rows", sink)
	if err := worker.Run(ctx); err != nil {
		return err
	}
	job, err = store.Get(context.WithoutCancel(ctx), job.ID)
	if err == nil && (job.State != stream.Completed || job.Progress.Records != uint64(p.records)) {
		err = fmt.Errorf("the job is %s after %d records: %s", job.State, job.Progress.Records, job.LastError)
	}
	return err
}
