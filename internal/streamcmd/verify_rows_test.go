package streamcmd

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/commandline/commandlinetest"
	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// ownTable copies a stream into a table of the user's own, with a program of the user's own.
func ownTable(t *testing.T, address string, submit func(stream.Job) (stream.Status, error), store stream.Store, sink stream.Sink) (job string) {
	t.Helper()
	conns := stream.NewConnections(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer conns.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, Observe: func(e stream.Event) {
		if e.Kind == stream.EventReleased && e.State.Final() {
			stop()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	worker.Handle("lines", sink)
	status, err := submit(stream.Job{Stream: "lines", Target: address})
	if err != nil {
		t.Fatal(err)
	}
	if err := worker.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return status.ID
}

// Rows of the user's own table were deleted, and the command said "nothing is lost" with exit code 0, since the checkpoint was all that it
// had compared. What it claims must be what it compared.
func TestVerifyClaimsOnlyWhatItCompared(t *testing.T) {
	t.Parallel()
	const records = 500
	var lines strings.Builder
	for i := range records {
		fmt.Fprintf(&lines, "line %d\n", i+1)
	}
	file := filepath.Join(t.TempDir(), "lines")
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	_, address := serving(t, "--file", "lines="+file)

	sqliteName := filepath.Join(t.TempDir(), "jobs.db")
	sqlite, err := sqlitestore.Open(t.Context(), sqliteName)
	if err != nil {
		t.Fatal(err)
	}
	defer sqlite.Close()
	dsn := testserver.Postgres(t)
	postgres, err := pgstore.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer postgres.Close()

	for _, c := range []struct {
		name, store string
		exec        func(sql string, args ...any) error
		run         func() string
	}{
		{"SQLite", sqliteName, func(s string, args ...any) error {
			_, err := sqlite.DB().ExecContext(t.Context(), s, args...)
			return err
		}, func() string {
			return ownTable(t, address, func(j stream.Job) (stream.Status, error) { return sqlite.Submit(t.Context(), j) }, sqlite,
				sqlite.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
					for _, r := range b.Records {
						if _, err := tx.ExecContext(ctx, `insert into mine (job, n, id, body) values (?, ?, ?, ?)`, b.Job.ID, r.Seq, r.Key, string(r.Value)); err != nil {
							return err
						}
					}
					return nil
				}))
		}},
		{"Postgres", dsn, func(s string, args ...any) error { _, err := postgres.Pool().Exec(t.Context(), s, args...); return err }, func() string {
			return ownTable(t, address, func(j stream.Job) (stream.Status, error) { return postgres.Submit(t.Context(), j) }, postgres,
				postgres.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
					for _, r := range b.Records {
						if _, err := tx.Exec(ctx, `insert into mine (job, n, id, body) values ($1, $2, $3, $4)`, b.Job.ID, int64(r.Seq), r.Key, string(r.Value)); err != nil {
							return err
						}
					}
					return nil
				}))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bytes := map[string]string{"SQLite": "blob", "Postgres": "bytea"}[c.name]
			if err := c.exec(`create table mine (job text, n bigint, id ` + bytes + `, body text)`); err != nil {
				t.Fatal(err)
			}
			job := c.run()
			verify := func(flags ...string) commandlinetest.Outcome {
				return levada(t, append([]string{"stream", "verify", job, "--store", c.store}, flags...)...)
			}
			last := func(o commandlinetest.Outcome) string {
				all := strings.Split(strings.TrimSpace(o.Stdout), "\n")
				return all[len(all)-1]
			}
			expect := func(o commandlinetest.Outcome, code int, parts ...string) {
				t.Helper()
				for _, part := range parts {
					if o.Code != code || !strings.Contains(last(o), part) {
						t.Errorf("exit code %d and last line %q, want %d and %q\n%s%s", o.Code, last(o), code, part, o.Stdout, o.Stderr)
					}
				}
			}
			bySeq, byKey := "select n as seq, id as key, body as value from mine where job = $1 order by n desc;", "select id as key from mine"
			expect(verify(), exitNoRows, "no rows were compared")
			expect(verify("--checkpoint-only"), 0, "no rows were compared")
			expect(verify("--query", bySeq), 0, "500 records, each once", "seq, key, value")
			expect(verify("--query", byKey), 0, "500 records, each once")
			expect(verify("--query", "select n as seq from mine where job = $1", "--offline"), 0, "500 records, each once", "the checkpoint and the rows")
			for _, bad := range []struct{ query, want string }{
				{"select n from mine", "expected seq"},
				{"select nothing from mine", "--query"},
				{"select id as key from mine", "needs the producer"},
				{"select body as value from mine", "expected seq"},
				// What writes is refused before it is executed, in words that say what is expected.
				{"drop table mine", "it begins with DROP"},
				{"-- all of them\n delete from mine", "it begins with DELETE"},
				{"update mine set n = 1", "it begins with UPDATE"},
				{"", "--query is empty"},
			} {
				if o := verify("--query", bad.query, "--offline"); o.Code != 2 || !strings.Contains(o.Stderr, bad.want) {
					t.Errorf("%s: %+v, want exit code 2 and %q", bad.query, o, bad.want)
				}
			}
			if o := verify("--offline"); o.Code != 2 || !strings.Contains(o.Stderr, "leaves nothing to compare") {
				t.Errorf("offline without rows: %+v", o)
			}
			for _, writes := range []string{"delete from mine returning n as seq", "with gone as (delete from mine returning n) select n as seq from gone"} {
				if o := verify("--query", writes); o.Code != 2 || strings.Count(o.Stderr, "\n") != 1 || o.Stdout != "" {
					t.Errorf("a query that writes, %s: %+v", writes, o)
				}
			}
			// A number with a fraction is no record's: rounded, it would stand for another record.
			for _, fraction := range []string{"select n + 0.5 as seq from mine", "select case when n = 7 then 7.5 else n end as seq from mine"} {
				if o := verify("--query", fraction, "--offline"); o.Code == 0 || !strings.Contains(o.Stderr, "no whole number") {
					t.Errorf("%s: %+v", fraction, o)
				}
			}
			expect(verify("--query", "select n * 1.0 as seq from mine where job = $1", "--offline"), 0, "500 records, each once")

			if err := c.exec(`delete from mine where n between 101 and 140`); err != nil {
				t.Fatal(err)
			}
			if err := c.exec(`insert into mine select * from mine where n = 7`); err != nil {
				t.Fatal(err)
			}
			if err := c.exec(`update mine set body = 'x' where n = 300`); err != nil {
				t.Fatal(err)
			}
			expect(verify("--query", bySeq), 1, "NOT EQUAL", "42 records differ")
			expect(verify("--query", byKey), 1, "NOT EQUAL", "41 records differ")
			expect(verify("--query", "select n as seq from mine where job = $1", "--offline"), 1, "41 records differ")
			expect(verify("--query", bySeq, "--names", "1"), 1, "42 records differ")
			if o := verify("--query", bySeq); !strings.Contains(o.Stdout, "record 7 ") || !strings.Contains(o.Stdout, "record 101 ") {
				t.Errorf("the records that differ are not named:\n%s", o.Stdout)
			}
			expect(verify(), exitNoRows, "no rows were compared")
		})
	}
}
