//go:build linux

package streams

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgnotify"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/podwatch"
	"github.com/levada-io/levada/stream/rabbitnotify"
)

// roleEnv makes this test binary one of the processes that are killed.
const roleEnv = "LEVADA_FAULTS_ROLE"

// role is the configuration of such a process.
type role struct {
	Name    string // producer, worker, watcher
	Address string // of the producer
	DSN     string
	AMQP    string // empty: Postgres notifies
	Pod     string
	PodUID  string
	Kube    *kubeAccess // watcher
	Records int
	Streams int
	Pace    time.Duration // of a commit
	Lease   time.Duration // 0: as by default, and so for PollInterval
	Sweep   time.Duration
}

// kubeAccess is how a watcher reaches the API server.
type kubeAccess struct{ Host, CA, Cert, Key, Namespace string }

func TestMain(m *testing.M) {
	text := os.Getenv(roleEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := map[string]func(context.Context, role) error{"producer": produce, "worker": workOn, "watcher": watchPods}[r.Name](ctx, r)
	if err != nil {
		fmt.Fprintln(os.Stderr, r.Name+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// rows is the source of a stream: record i has i as its key, and a value that can be made again.
type rows struct{ stream, n int }

func value(dst []byte, stream int, i uint64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, i*0x9e3779b97f4a7c15+uint64(stream))
	for len(dst)%97 < int(i%80) {
		dst = append(dst, byte(i))
	}
	return dst
}

func (s rows) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	c := &cursor{rows: s}
	if len(q.After) > 0 {
		c.at = binary.BigEndian.Uint64(q.After)
	}
	return c, nil
}

func (s rows) Size(context.Context, stream.Query) (uint64, error) { return uint64(s.n), nil }

type cursor struct {
	rows
	at uint64
}

func (c *cursor) Next(context.Context) ([]byte, error) {
	if c.at == uint64(c.n) {
		return nil, io.EOF
	}
	c.at++
	return binary.BigEndian.AppendUint64(nil, c.at), nil
}

func (c *cursor) Value(dst []byte) ([]byte, error) {
	return append(dst, value(nil, c.stream, c.at)...), nil
}

func (c *cursor) Close() error { return nil }

func produce(ctx context.Context, r role) error {
	listener, err := net.Listen("tcp", r.Address)
	if err != nil {
		return err
	}
	server := valid(stream.NewServer(stream.ServerConfig{BatchBytes: 32 << 10, MaxStreamAge: 5 * time.Second}))
	for i := range r.Streams {
		server.Handle(fmt.Sprintf("stream%d", i), rows{i, r.Records})
	}
	g := grpc.NewServer()
	server.Register(g)
	go func() {
		<-ctx.Done()
		draining, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stream.Shutdown(draining, g, server)
	}()
	return g.Serve(listener)
}

func workOn(ctx context.Context, r role) error {
	store, err := pgstore.Open(ctx, r.DSN)
	if err != nil {
		return err
	}
	defer store.Close()
	var notifier stream.Notifier
	if r.AMQP != "" {
		notifier, err = rabbitnotify.New(ctx, r.AMQP, rabbitnotify.WithLogger(slog.New(slog.DiscardHandler)))
	} else {
		notifier, err = pgnotify.New(ctx, r.DSN)
	}
	if err != nil {
		return err
	}
	defer notifier.Close()
	conns := stream.NewConnections(r.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer conns.Close()
	for name, value := range map[string]string{"POD_NAME": r.Pod, "POD_UID": cmp.Or(r.PodUID, r.Pod), "CONTAINER_NAME": "worker"} { // as the downward API sets them
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Notifier: notifier, Dial: conns.Dial, Owner: stream.Self(),
		CommitRecords: 1000, Lease: r.Lease, PollInterval: r.Sweep, MaxJobs: 4, MaxInFlight: 1 << 20, DrainTimeout: 5 * time.Second,
		// Killed from outside two times in a hundred milliseconds looks like a record that kills: these records do not.
		MaxCrashes: 1000,
	})
	if err != nil {
		return err
	}
	for i := range r.Streams {
		worker.Handle(fmt.Sprintf("stream%d", i), store.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
			j := 0
			// The table has no key: what is written twice is there twice.
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"ledger"}, []string{"job", "seq", "value"}, pgx.CopyFromFunc(func() ([]any, error) {
				if j == len(b.Records) {
					return nil, nil
				}
				record := b.Records[j]
				j++
				return []any{b.Job.ID, int64(record.Seq), record.Value}, nil
			}))
			if err != nil {
				return err
			}
			time.Sleep(r.Pace) // so that there is time to be killed in
			return nil
		}))
	}
	err = worker.Run(ctx)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// watchPods is the pod watcher.
func watchPods(ctx context.Context, r role) error {
	store, err := pgstore.Open(ctx, r.DSN)
	if err != nil {
		return err
	}
	defer store.Close()
	notifier, err := rabbitnotify.New(ctx, r.AMQP, rabbitnotify.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer notifier.Close()
	config := &rest.Config{Host: r.Kube.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: r.Kube.CA, CertFile: r.Kube.Cert, KeyFile: r.Kube.Key}}
	pods, err := podwatch.NewPods(config, r.Kube.Namespace)
	if err != nil {
		return err
	}
	watcher, err := podwatch.New(pods, store, podwatch.Options{Namespace: r.Kube.Namespace, Notifier: notifier, ClockSkew: time.Second, OnEnded: func(d podwatch.EndedOwner) {
		slog.Info("death", "pod", d.Owner.Pod, "cause", d.Cause, "reason", d.Reason, "expired", d.Expired)
	}})
	if err != nil {
		return err
	}
	return watcher.Run(ctx)
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
