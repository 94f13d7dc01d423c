package sqlitestore_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// What goes wrong in a SQLite file, and passes: no job fails for it, no record is put into quarantine, and the job says what it waits for.
func TestWhatPassesInAFileFailsNoJob(t *testing.T) {
	for name, test := range map[string]struct {
		setup, passes, insert string
		reason                stream.Reason
	}{
		"children before their parents": {`create table parent (n integer primary key); create table child (n integer references parent deferrable initially deferred)`,
			`with recursive s(n) as (select 1 union all select n + 1 from s where n < 100) insert into parent select n from s`, `insert into child values (?)`, stream.ReasonDependentRows},
		"a key that is still taken":             {`create table taken (n integer primary key); insert into taken values (50)`, `delete from taken where n = 50`, `insert into taken values (?)`, stream.ReasonDependentRows},
		"a file that may not grow":              {`create table growing (n integer, b blob)`, `pragma max_page_count = 100000`, `insert into growing values (?, zeroblob(20000))`, stream.ReasonStorageFull},
		"a table that a migration makes later":  {``, `create table made_later (n integer)`, `insert into made_later values (?)`, stream.ReasonSchema},
		"a column that a migration makes later": {`create table narrow (x integer)`, `alter table narrow add column n integer`, `insert into narrow (n) values (?)`, stream.ReasonSchema},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := sqlitestore.Open(t.Context(), filepath.Join(t.TempDir(), "jobs.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			run := func(text string) {
				if _, err := store.DB().ExecContext(context.Background(), text); err != nil {
					t.Error(err)
				}
			}
			run(`pragma foreign_keys = on`)
			run(test.setup)
			if test.reason == stream.ReasonStorageFull {
				run(`pragma max_page_count = 40`)
			}
			var records []stream.Record
			for i := range 100 {
				records = append(records, stream.Record{Key: fmt.Appendf(nil, "%08d", i+1), Value: []byte("value")})
			}
			listener, g, server := bufconn.Listen(1<<16), grpc.NewServer(), valid(stream.NewServer(stream.ServerConfig{}))
			server.Handle("s", stream.Slice(records...))
			server.Register(g)
			served := make(chan struct{})
			go func() { defer close(served); g.Serve(listener) }()
			defer func() { g.Stop(); <-served }()
			conns := stream.NewConnections("passthrough:///s", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
			defer conns.Close()
			worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, SingleProcess: true, PollInterval: 50 * time.Millisecond, ReleaseAfterFailures: 3,
				Retry: stream.Backoff{Min: 50 * time.Millisecond, Max: 500 * time.Millisecond}, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			sink := store.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
				for _, r := range b.Records {
					if _, err := tx.ExecContext(ctx, test.insert, int64(r.Seq)); err != nil {
						return err
					}
				}
				return nil
			})
			worker.Handle("s", sink)
			job, err := store.Submit(t.Context(), stream.Job{Stream: "s"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- worker.Run(ctx) }()
			waited := false
			for end := time.Now().Add(2 * time.Minute); !job.State.Final() && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				if job, err = store.Get(t.Context(), job.ID); err != nil {
					t.Fatal(err)
				}
				if !waited && job.State == stream.Ready && job.Reason == test.reason {
					waited = true
					run(test.passes)
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			rows, err := sink.Quarantined(t.Context(), job.ID, 0)
			if job.State != stream.Completed || len(rows) != 0 || err != nil || !waited {
				t.Errorf("the job is %s %s %+v: %s; %d records are in quarantine, waited: %v, %v", job.State, job.Reason, job.RetryState, job.LastError, len(rows), waited, err)
			}
		})
	}
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}

// A file that this process may not write is named as that: taken for an outage, nobody would look at its permissions.
func TestAFileThatMayOnlyBeReadIsNamed(t *testing.T) {
	store, err := sqlitestore.Open(t.Context(), filepath.Join(t.TempDir(), "jobs.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.DB().ExecContext(t.Context(), `pragma query_only = 1`); err != nil { // SQLite gives it the code of a file without the permission
		t.Fatal(err)
	}
	_, err = store.Submit(t.Context(), stream.Job{Stream: "s"})
	if stream.ReasonOf(err) != stream.ReasonPrivilege || !strings.Contains(err.Error(), "write the database file and its directory") {
		t.Errorf("submitting to a file that may only be read: %v (reason %q)", err, stream.ReasonOf(err))
	}
}
